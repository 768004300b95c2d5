"""The segments that an ENI address lies on: devices of the calling thread's namespace whose hosts look for it there by
ARP, or at least without a router in between.

A device is one when an address of its own has a subnet that holds the ENI address, or when a route without a gateway
("on-link") that holds it leads there: an uplink needs no address of its own. A default route says nothing of where an
address lies, and a route to one host is somebody's.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator, Sequence
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
    devices = seen.links()
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
    # A table may have a million routes, and nearly all of them have a gateway: few are decoded.
    request = rtnl.encode(rtmsg(), netlink.RTM_GETROUTE, netlink.NLM_F_DUMP, [], family=socket.AF_INET)
    for data in netlink.answers(request):
        _, length, _, _, table, _, scope, kind = ROUTE.unpack_from(data, rtnl.HEADER.size)
        if (table, scope, kind) != (rtnl.RT_TABLE_MAIN, rtnl.RT_SCOPE_LINK, rtnl.RTN_UNICAST) or not 0 < length < 32:
            continue
        message = rtmsg(data)
        message.decode()
        index = message.get_attr("RTA_OIF")
        if index and not message.get_attr("RTA_GATEWAY") and not message.get_attr("RTA_VIA"):
            yield IPv4Network((message.get_attr("RTA_DST"), length)), index


def troubles(segments: Sequence[Segment]) -> list[str]:
    """Why hosts on a segment may not find an ENI address, or it not them, although all that an ENI sets is set: lines
    that say what to do. Raises OSError."""
    present = netlink.addresses()
    devices = seen.links()
    said: dict[str, None] = {}  # each once, in order
    for segment in segments:
        said |= dict.fromkeys(of_device(segment, devices.get(segment.link.master)) or _of_settings(segment, present))
    return list(said)


def of_device(segment: Segment, master: Link | None) -> list[str]:
    """Those that lie in what device it is. master: of which it is a port."""
    link, address = segment.link, segment.address
    if link.kind == "ipvlan":
        # In mode l2 the kernel even answers ARP for it: broadcasts reach every ipvlan device, other packets by address.
        return [
            f"device {link.name} is ipvlan: it gets packets for its own addresses only, none for ENI address "
            f"{address}; use macvlan, or route {address} to this namespace"
        ]
    if master and master.kind in TAKES_ALL:
        return [
            f"device {link.name} is a port of {master.kind} {master.name}, which takes its packets: ENI address "
            f"{address} is not found there; move addresses and routes of {segment.subnet} to {master.name}"
        ]
    if master and master.kind == "vrf":
        return [
            f"device {link.name} is in VRF {master.name}, and the ENI's routes are not: ENI address {address} is not "
            f"found there; take {link.name} out of the VRF (`ip link set {link.name} nomaster`)"
        ]
    if not link.up:
        return [f"device {link.name} is down: ENI address {address} is not found there; `ip link set {link.name} up`"]
    return []


def _of_settings(segment: Segment, present: Sequence[tuple[str, IPv4Address, IPv4Network]]) -> Iterator[str]:
    link = segment.link
    if not link.has_arp:
        return
    asks_as = _asks_as(segment, present)
    if asks_as and asks_as not in segment.subnet:
        yield (
            f"device {link.name} has no address in {segment.subnet}: it asks for hosts there as {asks_as}, which "
            f"those with rp_filter do not answer; give it an address in {segment.subnet}"
        )
    elsewhere = _refused_by_strict_filter(segment, present)
    if elsewhere:
        yield (
            f"device {link.name} has rp_filter=1, and {segment.subnet} is routed to device {elsewhere}: hosts on "
            f"{link.name} get no answer for ENI address {segment.address}; "
            f"set net.ipv4.conf.{link.name}.rp_filter to 2"
        )


def _asks_as(segment: Segment, present: Sequence[tuple[str, IPv4Address, IPv4Network]]) -> IPv4Address | None:
    """The sender of the kernel's ARP requests for what an ENI sends: an address of the device's, else any that the
    namespace has; None for 0.0.0.0, which hosts do answer (inet_select_addr() in the kernel)."""
    if segment.source:
        return segment.source
    own = [local for device, local, _ in present if device == segment.device]
    others = [local for _, local, _ in present if not local.is_loopback]
    return next(iter(own or others), None)


def _refused_by_strict_filter(segment: Segment, present: Sequence[tuple[str, IPv4Address, IPv4Network]]) -> str:
    """The device that the segment's hosts are routed to instead, when rp_filter is strict on this one; else ""."""
    try:
        values = [int(settings.read(RP_FILTER.format(name))) for name in ("all", segment.device)]
    except (HyperplaneError, ValueError):  # the device is gone
        return ""
    if max(values) != STRICT:  # ip-sysctl: the larger one counts
        return ""
    taken = {segment.address, *(local for _, local, _ in present)}
    host = next((host for host in segment.subnet.hosts() if host not in taken), None)
    route = netlink.match(host) if host else None
    return route.device if route and route.device != segment.device else ""
