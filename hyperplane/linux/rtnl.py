"""rtnetlink(7) messages that set a device up, as bytes in which only what differs is written over.

They are encoded by pyroute2's classes once, when this module is loaded: doing so for each device would take longer than
the kernel does.
"""

from __future__ import annotations

import os
import socket
import struct
from copy import copy
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

# pyroute2 has no type hints: its messages are Any.
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

# linux/netlink.h
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x001, 0x004, 0x100, 0x200, 0x400
# linux/rtnetlink.h
RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE, RTM_NEWQDISC = 16, 20, 24, 36
TC_H_ROOT: Final = 0xFFFFFFFF  # linux/pkt_sched.h
RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST = 254, 4, 253, 1
# linux/if.h, linux/if_link.h, linux/ip.h
IFF_UP: Final = 1
IFLA_AF_SPEC, IFLA_INET_CONF, IPV4_DEVCONF_FORWARDING = 26, 1, 1
IN6_ADDR_GEN_MODE_NONE: Final = 1

HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
# A device's queue, packets: what waits for the engine. What the kernel gives a TUN does for one environment; making it
# longer costs memory that is cleared. An ENI's is for all of them.
TUN_QUEUE, ENI_QUEUE = 500, 1000

# What stands in a template where a value is written over; no message has these bytes otherwise.
INDEX_MARK: Final = 0x7B6D5F43
MTU_MARK: Final = 0x79674B31
ADDRESS_MARK: Final = "123.109.95.61"
SOURCE_MARK: Final = "121.103.75.47"


def aligned(length: int) -> int:
    """NLMSG_ALIGN."""
    return (length + 3) & ~3


def encode(message: Any, kind: int, nlmsg_flags: int, attributes: list[tuple[str, Any]], **fields: Any) -> bytes:
    """A message of pyroute2's with these fields and attributes, as a request of that kind (RTM_)."""
    for field, value in fields.items():
        message[field] = value
    message["attrs"] = attributes
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST | nlmsg_flags
    message.encode()
    return bytes(message.data) + bytes(-len(message.data) % 4)


def _link(attributes: list[tuple[str, Any]], **fields: int) -> bytes:
    return encode(ifinfmsg(), RTM_NEWLINK, NLM_F_ACK, attributes, index=INDEX_MARK, **fields)


def _nested(value: bytes, *kinds: int) -> bytes:
    """An attribute with this value, in attributes of these kinds, the innermost first (netlink(7))."""
    for kind in kinds:
        value = struct.pack("=HH", 4 + len(value), kind) + value
    return value


def _setting(number: int, value: int) -> bytes:
    """Sets a device's net.ipv4.conf, by its number (IPV4_DEVCONF_). pyroute2 encodes only what the kernel answers, a
    list of all of them."""
    data = _nested(struct.pack("=I", value), number, IFLA_INET_CONF, socket.AF_INET, IFLA_AF_SPEC)
    message = _link([])
    return struct.pack("=I", len(message) + len(data)) + message[4:] + data


def _route(attributes: list[tuple[str, Any]], flags: int = NLM_F_EXCL) -> bytes:
    return encode(
        rtmsg(),
        RTM_NEWROUTE,
        NLM_F_ACK | NLM_F_CREATE | flags,
        [("RTA_DST", ADDRESS_MARK), ("RTA_OIF", INDEX_MARK), *attributes],
        family=socket.AF_INET,
        table=RT_TABLE_MAIN,
        proto=RTPROT_STATIC,
        scope=RT_SCOPE_LINK,
        type=RTN_UNICAST,
    )


class Template:
    """Bytes of one message or several, and where to write."""

    def __init__(self, *messages: bytes) -> None:
        self.data = bytearray(b"".join(messages))
        self.count = len(messages)
        self.places = self._places(struct.pack("=I", INDEX_MARK))  # for the index
        self._mtu = self._places(struct.pack("=I", MTU_MARK))
        self._address = self._places(socket.inet_aton(ADDRESS_MARK))
        self._source = self._places(socket.inet_aton(SOURCE_MARK))

    def filled(self, *, mtu: int = 0, address: bytes = b"", source: bytes = b"") -> Template:
        """A copy in which only the device's index is missing."""
        made = copy(self)
        made.data = bytearray(self.data)
        made.places = list(self.places)
        for places, value in (
            (self._mtu, struct.pack("=I", mtu)),
            (self._address, address),
            (self._source, source),
        ):
            for place in places:
                made.data[place : place + 4] = value
        return made

    def append(self, other: Template) -> None:
        """To one that is filled; so is the other one."""
        self.places += [len(self.data) + place for place in other.places]
        self.data += other.data
        self.count += other.count

    def numbered(self) -> Template:
        """Itself, its messages numbered from 1 on. A refusal is answered in any case; so one acknowledgement, of the
        last message, tells that all are done."""
        place = 0
        for number in range(1, self.count + 1):
            length, kind, flags, *_ = HEADER.unpack_from(self.data, place)
            flags = flags & ~NLM_F_ACK if number < self.count else flags
            HEADER.pack_into(self.data, place, length, kind, flags, number, 0)
            place += aligned(length)
        return self

    def fill(self, index: int) -> bytearray:
        """The bytes to send, about a device by its index."""
        data = bytearray(self.data)
        value = struct.pack("=I", index)
        for place in self.places:
            data[place : place + 4] = value
        return data

    def _places(self, mark: bytes) -> list[int]:
        # Every value stands at a multiple of four.
        return [place for place in range(0, len(self.data), 4) if self.data[place : place + 4] == mark]


# No IPv6 link-local address: nothing would answer its router solicitations, and an idle tunnel stays silent. A kernel
# without IPv6 would refuse the message.
_NO_LINK_LOCAL: Final = (
    [("IFLA_AF_SPEC", {"attrs": [("AF_INET6", {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", IN6_ADDR_GEN_MODE_NONE)]})]})]
    if os.path.exists("/proc/sys/net/ipv6")
    else []
)
# In a message of their own, before the device is up: changing the queue later costs more.
_ENI_SIZES = _link([("IFLA_MTU", MTU_MARK), ("IFLA_TXQLEN", ENI_QUEUE), *_NO_LINK_LOCAL])
_SIZES = _link([("IFLA_MTU", MTU_MARK), *_NO_LINK_LOCAL])
# A TUN never tells its queueing discipline to wait: one would hand packets through, and hold 24 KB for none.
_NO_QUEUEING = encode(
    tcmsg(),
    RTM_NEWQDISC,
    NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
    [("TCA_KIND", "noqueue")],
    index=INDEX_MARK,
    parent=TC_H_ROOT,
)
_MTU = _link([("IFLA_MTU", MTU_MARK)])
_FORWARDING = _setting(IPV4_DEVCONF_FORWARDING, 1)
_UP = _link([], flags=IFF_UP, change=IFF_UP)
_ADDRESS = encode(
    ifaddrmsg(),
    RTM_NEWADDR,
    NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
    [("IFA_LOCAL", ADDRESS_MARK), ("IFA_ADDRESS", ADDRESS_MARK)],
    family=socket.AF_INET,
    prefixlen=32,
    index=INDEX_MARK,
)
DEVICE: Final = Template(_ENI_SIZES, _UP)
ADDRESSED_DEVICE: Final = Template(_SIZES, _NO_QUEUEING, _ADDRESS, _UP)
ROUTED_DEVICE: Final = Template(_SIZES, _NO_QUEUEING, _FORWARDING, _UP)
UP: Final = Template(_UP).numbered()
ROUTE: Final = Template(_route([]))
SOURCED_ROUTE: Final = Template(_route([("RTA_PREFSRC", SOURCE_MARK)]))
# Without NLM_F_EXCL the kernel puts it before another one for the same network (fib_table_insert()).
FIRST_ROUTE: Final = Template(_route([], 0))
FIRST_SOURCED_ROUTE: Final = Template(_route([("RTA_PREFSRC", SOURCE_MARK)], 0))
PREFIX_LENGTH: Final = HEADER.size + 1  # of rtm_dst_len in a route message
QUEUEING_STEP: Final = 2  # of an environment's device


@lru_cache(maxsize=256)  # environments have few shapes
def configuration(
    mtu: int, address: IPv4Address | None, routes: tuple[IPv4Network, ...], *, routed: bool = False
) -> Template:
    """The batch of netlink.configure(), for a device whose index is not known yet.

    routed: an environment's device without an address, for what is behind its namespace. With the last address of a
    device the kernel deletes all its routes (fib_disable_ip()), so whoever needs none there must never be given one. It
    forwards by a setting of its own, which is there whenever it is made again, also where /proc/sys is read-only.
    """
    source = b"" if address is None else address.packed
    kind = ADDRESSED_DEVICE if address else ROUTED_DEVICE if routed else DEVICE
    device = kind.filled(mtu=mtu, address=source)
    for route in routes:
        template = ROUTE if address is None else SOURCED_ROUTE
        device.append(_filled(template, route, source))
    return device.numbered()


def renaming(name: str) -> Template:
    """The batch of netlink.rename()."""
    return Template(_link([], flags=0, change=IFF_UP), _link([("IFLA_IFNAME", name)])).numbered()


def repairs(
    *,
    mtu: int,
    address: IPv4Address | None,
    forwards: bool,
    up: bool,
    routes: tuple[IPv4Network, ...],
    source: IPv4Address | None,
) -> tuple[Template, list[str]]:
    """The batch of netlink.repair(), and what each message is about. One message at least must be asked for."""
    batch, steps = Template(), []
    if mtu:
        batch.append(Template(_MTU).filled(mtu=mtu))
        steps.append(f"MTU {mtu}")
    if address is not None:
        batch.append(Template(_ADDRESS).filled(address=address.packed))
        steps.append(f"address {address}")
    if forwards:
        batch.append(Template(_FORWARDING))
        steps.append("forwarding")
    if up:
        batch.append(Template(_UP))
        steps.append("up")
    for route in routes:
        template = FIRST_ROUTE if source is None else FIRST_SOURCED_ROUTE
        batch.append(_filled(template, route, b"" if source is None else source.packed))
        steps.append(f"route {route}")
    return batch.numbered(), steps


def _filled(template: Template, route: IPv4Network, source: bytes) -> Template:
    message = template.filled(address=route.network_address.packed, source=source)
    message.data[PREFIX_LENGTH] = route.prefixlen
    return message
