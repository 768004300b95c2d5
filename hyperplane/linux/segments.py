"""The segments that an ENI address lies on: devices of the calling thread's namespace whose hosts expect to find it there
by ARP, or at least without a router in between.

A device is one when an address of its own has a subnet that holds the ENI address, or when a route without a gateway
("on-link") that holds it leads there: an uplink needs no address of its own. A default route says nothing of where an
address lies, and a route to one host is somebody's.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from pyroute2.netlink.rtnl.rtmsg import rtmsg  # without type hints

from hyperplane.errors import HyperplaneError
from hyperplane.linux import netlink, rtnl, seen, settings
from hyperplane.linux.seen import Link

# struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type; after the header
ROUTE: Final = struct.Struct("=8B")
RP_FILTER: Final = "/proc/sys/net/ipv4/conf/{}/rp_filter"
STRICT: Final = 1  # rp_filter: the route to the sender must lead to the device

# Kinds of devices that take all packets of their ports before IP sees them.
TAKES_ALL: Final = frozenset({"bridge", "bond", "team", "openvswitch"})


@dataclass(frozen=True, slots=True)
class Segment:
    """address: the ENI's. subnet: of the device's own address, or the route's destination. source: an address of the
    device's in subnet, by which it asks for hosts there; None without one."""

    address: IPv4Address
    link: Link
    subnet: IPv4Network
    source: IPv4Address | None

    @property
    def device(self) -> str:
        return self.link.name


def find(addresses: Sequence[IPv4Address]) -> list[Segment]:
    """The segments of each of an ENI's addresses, each device once, in the order of addresses.

    Devices without ARP (`link.has_arp`: WireGuard, TUN, ...) are among them when their own address says so: packets are
    forwarded there too. Raises OSError.
    """
    devices = {one.index: one for one in seen.links().values()}
    names = {link.name: link for link in devices.values()}
    found: dict[tuple[IPv4Address, int], Segment] = {}
    present = netlink.addresses()
    routes = list(_on_link())
    for address in addresses:
        for name, local, subnet in present:
            link = names.get(name)
            if link and subnet.prefixlen < 32 and address in subnet and address != local:
                found.setdefault((address, link.index), Segment(address, link, subnet, local))
        for subnet, index in routes:
            link = devices.get(index)
            if link and link.has_arp and address in subnet:
                found.setdefault((address, index), Segment(address, link, subnet, None))
    return list(found.values())


def _on_link() -> Iterator[tuple[IPv4Network, int]]:
    """The routes of the main table that lead to more than one host and to less than everybody, with no gateway."""
    request = rtnl.encode(rtmsg(), netlink.RTM_GETROUTE, netlink.NLM_F_DUMP, [], family=socket.AF_INET)
    for route in netlink.ask(request, _Undecoded):
        _, length, _, _, table, _, scope, kind = ROUTE.unpack_from(route.data, rtnl.HEADER.size)
        if (table, scope, kind) != (rtnl.RT_TABLE_MAIN, rtnl.RT_SCOPE_LINK, rtnl.RTN_UNICAST) or not 0 < length < 32:
            continue
        message = rtmsg(route.data)
        message.decode()
        index = message.get_attr("RTA_OIF")
        if index and not message.get_attr("RTA_GATEWAY") and not message.get_attr("RTA_VIA"):
            yield IPv4Network((message.get_attr("RTA_DST"), length)), index


class _Undecoded:
    """A message as it came: a table may have a million routes, and nearly all of them have a gateway."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def decode(self) -> None:
        pass


def troubles(segments: Sequence[Segment]) -> list[str]:
    """Why an ENI may not be found on a segment, or not find the hosts there, although everything is set: each a line
    that says what to do. Raises OSError."""
    said: dict[str, None] = {}  # each once, in order
    devices = {one.index: one for one in seen.links().values()}
    for segment in segments:
        for text in _troubles(segment, devices):
            said[text] = None
    return list(said)


def _troubles(segment: Segment, devices: Mapping[int, Link]) -> Iterator[str]:
    yield from ()
