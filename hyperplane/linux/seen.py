"""What a namespace has: links, addresses and routes of its devices, as rtnetlink(7) tells them.

Looked at often, for every ENI and environment: so the few attributes that count are read from the messages directly,
where pyroute2 would decode them all, in some 30 times the time. Everything here concerns the network namespace of the
calling thread.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from msgspec import Struct

from hyperplane.linux import netlink
from hyperplane.linux.rtnl import (
    HEADER,
    IFLA_AF_SPEC,
    IFLA_INET_CONF,
    IPV4_DEVCONF_FORWARDING,
    NLM_F_REQUEST,
    RT_TABLE_MAIN,
    RTN_UNICAST,
    aligned,
)

# linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
RTM_GETLINK: Final = 18
IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_MASTER, IFLA_LINKINFO = 1, 3, 4, 10, 18
IFLA_EXT_MASK, IFLA_CARRIER, IFLA_CARRIER_UP_COUNT = 29, 33, 47
IFLA_INFO_KIND: Final = 1
RTEXT_FILTER_SKIP_STATS: Final = 8
IFA_ADDRESS, IFA_LOCAL = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE, RTA_VIA = 1, 4, 5, 6, 7, 15, 18
IFF_UP, IFF_LOOPBACK, IFF_NOARP = 0x1, 0x8, 0x80  # linux/if.h
ARPHRD_ETHER: Final = 1  # linux/if_arp.h
NLA_TYPE_MASK: Final = 0x3FFF  # linux/netlink.h

LINK: Final = struct.Struct("=BxHiII")  # struct ifinfomsg
ADDRESS: Final = struct.Struct("=BBBBI")  # struct ifaddrmsg
ROUTE: Final = struct.Struct("=BBBBBBBBI")  # struct rtmsg
UINT32: Final = struct.Struct("=I")
ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr


class Link(Struct, frozen=True):
    """type: ARPHRD_. mac: as the device has it, of any length. kind: as in `ip link add ... type KIND`, "" for
    hardware. master: the device that it is a port of, 0 for none. ups:
    how often it got a carrier. forwards: net.ipv4.conf.DEVICE.forwarding."""

    index: int
    name: str
    type: int
    flags: int
    mtu: int
    mac: bytes
    kind: str
    master: int
    carrier: bool
    ups: int
    forwards: bool

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def has_arp(self) -> bool:
        """Ethernet-like, and ARP not switched off (`ip link set DEVICE arp off`)."""
        return self.type == ARPHRD_ETHER and not self.flags & (IFF_NOARP | IFF_LOOPBACK)


class Route(Struct, frozen=True):
    """Of the main table, unicast. source: the address that it prefers, None for none. direct: no gateway."""

    network: IPv4Network
    index: int
    source: IPv4Address | None
    metric: int
    direct: bool


def links() -> dict[int, Link]:
    """All, by index. Raises OSError."""
    body = LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0) + _attribute(IFLA_EXT_MASK, UINT32.pack(RTEXT_FILTER_SKIP_STATS))
    found = (_link(data) for data in _asked(RTM_GETLINK, netlink.NLM_F_DUMP, body))
    return {link.index: link for link in found}


def link(name: str) -> Link | None:
    """One by its name; None when there is none. Raises OSError."""
    body = LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    body += _attribute(IFLA_EXT_MASK, UINT32.pack(RTEXT_FILTER_SKIP_STATS))
    body += _attribute(IFLA_IFNAME, name.encode() + b"\0")
    try:
        return next(map(_link, _asked(RTM_GETLINK, 0, body)), None)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise


def addresses(index: int) -> list[IPv4Address]:
    """Those on a device. Raises OSError."""
    body = ADDRESS.pack(socket.AF_INET, 0, 0, 0, index)
    found = []
    for data in _asked(netlink.RTM_GETADDR, netlink.NLM_F_DUMP, body, strict=True):
        _, _, _, _, of = ADDRESS.unpack_from(data, HEADER.size)
        values = dict(_attributes(data, HEADER.size + ADDRESS.size))
        local = values.get(IFA_LOCAL) or values.get(IFA_ADDRESS)
        if of == index and local:
            found.append(IPv4Address(local))
    return found


def routes(index: int) -> list[Route]:
    """Those that lead to a device. The kernel picks them: a namespace may have a million others. Raises OSError."""
    body = ROUTE.pack(socket.AF_INET, 0, 0, 0, RT_TABLE_MAIN, 0, 0, 0, 0) + _attribute(RTA_OIF, UINT32.pack(index))
    found = []
    for data in _asked(netlink.RTM_GETROUTE, netlink.NLM_F_DUMP, body, strict=True):
        _, length, _, _, _, _, _, kind, _ = ROUTE.unpack_from(data, HEADER.size)
        values = dict(_attributes(data, HEADER.size + ROUTE.size))
        where = (kind, _number(values.get(RTA_OIF)), _number(values.get(RTA_TABLE)))
        if where != (RTN_UNICAST, index, RT_TABLE_MAIN):  # a kernel that does not pick
            continue
        network = IPv4Network((int.from_bytes(values.get(RTA_DST, bytes(4))), length))
        source = values.get(RTA_PREFSRC)
        direct = RTA_GATEWAY not in values and RTA_VIA not in values
        metric = _number(values.get(RTA_PRIORITY))
        found.append(Route(network, index, IPv4Address(source) if source else None, metric, direct))
    return found


def _link(data: bytes) -> Link:
    _, kind, index, flags, _ = LINK.unpack_from(data, HEADER.size)
    values = dict(_attributes(data, HEADER.size + LINK.size))
    info = dict(_attributes(values.get(IFLA_LINKINFO, b""), 0))
    return Link(
        index=index,
        name=_text(values.get(IFLA_IFNAME)),
        type=kind,
        flags=flags,
        mtu=_number(values.get(IFLA_MTU)),
        mac=values.get(IFLA_ADDRESS, b""),
        kind=_text(info.get(IFLA_INFO_KIND)),
        master=_number(values.get(IFLA_MASTER)),
        carrier=any(values.get(IFLA_CARRIER, b"")),
        ups=_number(values.get(IFLA_CARRIER_UP_COUNT)),
        forwards=_forwards(values.get(IFLA_AF_SPEC, b"")),
    )


def _forwards(data: bytes) -> bool:
    """From the settings of IPv4, an array of 32-bit values (inet_fill_link_af() in net/ipv4/devinet.c)."""
    ipv4 = dict(_attributes(data, 0)).get(socket.AF_INET, b"")
    conf = dict(_attributes(ipv4, 0)).get(IFLA_INET_CONF, b"")
    at = UINT32.size * (IPV4_DEVCONF_FORWARDING - 1)
    return bool(_number(conf[at : at + UINT32.size]))


def _asked(kind: int, flags: int, body: bytes, *, strict: bool = False) -> Iterator[bytes]:
    length = HEADER.size + len(body)
    request = HEADER.pack(length, kind, NLM_F_REQUEST | flags, 0, 0) + body
    return netlink.answers(request, strict=strict)


def _attribute(kind: int, value: bytes) -> bytes:
    length = ATTRIBUTE.size + len(value)
    return ATTRIBUTE.pack(length, kind) + value + bytes(aligned(length) - length)


def _attributes(data: bytes, at: int) -> Iterator[tuple[int, bytes]]:
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < ATTRIBUTE.size:
            return
        yield kind & NLA_TYPE_MASK, data[at + ATTRIBUTE.size : at + length]
        at += aligned(length)


def _text(value: bytes | None) -> str:
    return (value or b"").rstrip(b"\0").decode(errors="surrogateescape")


def _number(value: bytes | None) -> int:
    return UINT32.unpack(value)[0] if value and len(value) == UINT32.size else 0
