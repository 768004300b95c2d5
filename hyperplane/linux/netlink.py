"""rtnetlink(7): one batch of messages brings a device up with its address and routes; a few questions besides.

The messages are encoded by pyroute2's classes once, when this module is loaded; later only the bytes that differ are
written over. That and a plain socket make a batch some 50 us of Python, where
pyroute2's own sockets take 2 ms and more.
Everything here concerns the network namespace of the calling thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from copy import copy
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final, NamedTuple

# pyroute2 has no type hints: its messages are Any, and what is read from them is given a type below.
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from hyperplane.errors import DeviceError, DeviceExists, HyperplaneError, PermissionMissing
from hyperplane.linux.namespaces import descriptors_exhausted

# linux/netlink.h
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x001, 0x004, 0x100, 0x200, 0x400
NLM_F_DUMP: Final = 0x300
NLM_F_ACK_TLVS: Final = 0x200
NLMSGERR_ATTR_MSG: Final = 1
NETLINK_CAP_ACK, NETLINK_EXT_ACK = 10, 11
SOL_NETLINK: Final = 270
# linux/rtnetlink.h
RTM_NEWLINK, RTM_NEWADDR, RTM_GETADDR, RTM_NEWROUTE, RTM_GETROUTE = 16, 20, 22, 24, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWQDISC: Final = 36
TC_H_ROOT: Final = 0xFFFFFFFF  # linux/pkt_sched.h
RT_TABLE_MAIN, RTPROT_STATIC, RT_SCOPE_LINK, RTN_UNICAST = 254, 4, 253, 1
RTM_F_FIB_MATCH: Final = 0x2000
# linux/if.h, linux/if_link.h, linux/neighbour.h
IFF_UP: Final = 1
IN6_ADDR_GEN_MODE_NONE: Final = 1
NUD_PERMANENT: Final = 0x80
NTF_PROXY: Final = 0x08

SIOCGIFINDEX: Final = 0x8933  # linux/sockios.h

HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
# A device's queue, packets: what waits for the engine. What the kernel gives a TUN does for one environment; making it
# longer costs memory that is cleared. An ENI's is for all of them.
TUN_QUEUE, ENI_QUEUE = 500, 1000

# What stands in a template where a value is written over; no message has these bytes otherwise.
INDEX_MARK: Final = 0x7B6D5F43
MTU_MARK: Final = 0x79674B31
ADDRESS_MARK: Final = "123.109.95.61"
SOURCE_MARK: Final = "121.103.75.47"


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _encode(message: Any, kind: int, nlmsg_flags: int, attributes: list[tuple[str, Any]], **fields: Any) -> bytes:
    for field, value in fields.items():
        message[field] = value
    message["attrs"] = attributes
    message["header"]["type"] = kind
    message["header"]["flags"] = NLM_F_REQUEST | nlmsg_flags
    message.encode()
    return bytes(message.data) + bytes(-len(message.data) % 4)


def _link(attributes: list[tuple[str, Any]], **fields: int) -> bytes:
    return _encode(ifinfmsg(), RTM_NEWLINK, NLM_F_ACK, attributes, index=INDEX_MARK, **fields)


def _route(attributes: list[tuple[str, Any]]) -> bytes:
    return _encode(
        rtmsg(),
        RTM_NEWROUTE,
        NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL,
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
            place += _aligned(length)
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
_NO_QUEUEING = _encode(
    tcmsg(),
    RTM_NEWQDISC,
    NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE,
    [("TCA_KIND", "noqueue")],
    index=INDEX_MARK,
    parent=TC_H_ROOT,
)
_UP = _link([], flags=IFF_UP, change=IFF_UP)
_ADDRESS = _encode(
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
UP: Final = Template(_UP).numbered()
ROUTE: Final = Template(_route([]))
SOURCED_ROUTE: Final = Template(_route([("RTA_PREFSRC", SOURCE_MARK)]))
PREFIX_LENGTH: Final = HEADER.size + 1  # of rtm_dst_len in a route message
QUEUEING_STEP: Final = 2  # of a device with an address


class Refusal(NamedTuple):
    """One message of a batch that the kernel refused: its place from 1 on, the errno, the kernel's own words."""

    place: int
    errno: int
    text: str


class Match(NamedTuple):
    """The route that an address would take: rtm_type, the route's prefix length and its device ("" for none)."""

    type: int
    prefix_length: int
    device: str


def configure(device: str, *, mtu: int, address: IPv4Address | None, routes: Sequence[IPv4Network]) -> float:
    """Gives a device its MTU and address (None: it is an ENI's), brings it up and routes `routes` to it, in one batch.

    An address is also the source that the routes prefer; without one the device gets the longer queue. Returns the
    seconds that the kernel took for it. Raises DeviceError, PermissionMissing.
    """
    batch = configuration(mtu, address, tuple(routes))
    with _socket() as kernel:
        refusals, seconds = _transact(kernel, batch.fill(_index(kernel, device)), batch.count)
    check_configuration(device, mtu, address, routes, refusals)
    return seconds


@lru_cache(maxsize=256)  # environments have few shapes
def configuration(mtu: int, address: IPv4Address | None, routes: tuple[IPv4Network, ...]) -> Template:
    """What configure() sends, for a device whose index is not known yet."""
    source = b"" if address is None else address.packed
    device = (DEVICE if address is None else ADDRESSED_DEVICE).filled(mtu=mtu, address=source)
    for route in routes:
        template = ROUTE if address is None else SOURCED_ROUTE
        message = template.filled(address=route.network_address.packed, source=source)
        message.data[PREFIX_LENGTH] = route.prefixlen
        device.append(message)
    return device.numbered()


def check_configuration(
    device: str,
    mtu: int,
    address: IPv4Address | None,
    routes: Sequence[IPv4Network],
    refusals: Sequence[Refusal],
) -> None:
    """Raises as configure() when the kernel refused one of its messages."""
    if address is not None:  # a kernel without CONFIG_NET_SCHED queues as it does
        refusals = [one for one in refusals if one.place != QUEUEING_STEP]
    if refusals:
        steps = [f"MTU {mtu}", *([] if address is None else ["", f"address {address}"]), "up"]
        raise _refused(device, [*steps, *(f"route {route}" for route in routes)], refusals[0])


def bring_up(device: str) -> None:
    """Raises as configure()."""
    with _socket() as kernel:
        refusals, _ = _transact(kernel, UP.fill(_index(kernel, device)), UP.count)
    if refusals:
        raise _refused(device, ["up"], refusals[0])


def _transact(kernel: socket.socket, batch: bytes | bytearray, count: int) -> tuple[list[Refusal], float]:
    """Sends a numbered batch of count messages; returns those refused, and the seconds until the last answer."""
    refusals = []
    begun = time.perf_counter()
    kernel.send(batch)
    answered = 0
    while answered < count:
        answers = kernel.recv(65536)
        refusals += refusals_in(answers)
        answered = max(HEADER.unpack_from(data)[3] for _, data in _messages(answers))
    return refusals, time.perf_counter() - begun


def refusals_in(answers: bytes) -> list[Refusal]:
    """Those among the answers to a batch."""
    return [refusal for _, data in _messages(answers) if (refusal := _refusal(data))]


def addresses() -> list[tuple[str, IPv4Address, IPv4Network]]:
    """The IPv4 addresses of this namespace: device, address, the subnet on that device."""
    request = _encode(ifaddrmsg(), RTM_GETADDR, NLM_F_DUMP, [], family=socket.AF_INET)
    found = []
    for message in _ask(request, ifaddrmsg):
        local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        # With a peer, IFA_ADDRESS is the other end and the prefix is that end's (ip-address(8)).
        peer = message.get_attr("IFA_ADDRESS") or local
        subnet = IPv4Network((peer, message["prefixlen"]), strict=False)
        found.append((socket.if_indextoname(message["index"]), IPv4Address(local), subnet))
    return found


def match(address: IPv4Address) -> Match | None:
    """The route in this namespace that fits address best, None without one."""
    request = _encode(
        rtmsg(), RTM_GETROUTE, 0, [("RTA_DST", str(address))], family=socket.AF_INET, dst_len=32, flags=RTM_F_FIB_MATCH
    )
    try:
        answers = list(_ask(request, rtmsg))
    except OSError as error:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
            return None  # no route, or one of type unreachable, prohibit or blackhole
        raise
    message = answers[0]
    index = message.get_attr("RTA_OIF")
    return Match(message["type"], message["dst_len"], socket.if_indextoname(index) if index else "")


def add_proxy(device: str, address: IPv4Address) -> None:
    """Answers ARP requests for address on device (ip-neighbour(8), `ip neigh add proxy`). Raises as configure()."""
    _proxy(RTM_NEWNEIGH, NLM_F_CREATE, device, address)


def remove_proxy(device: str, address: IPv4Address) -> None:
    _proxy(RTM_DELNEIGH, 0, device, address)


def proxies(device: str) -> list[IPv4Address]:
    """The addresses that this namespace answers for on device."""
    index = socket.if_nametoindex(device)
    request = _encode(ndmsg(), RTM_GETNEIGH, NLM_F_DUMP, [], family=socket.AF_INET, flags=NTF_PROXY)
    answers = _ask(request, ndmsg)
    return [IPv4Address(one.get_attr("NDA_DST")) for one in answers if one["ifindex"] == index]


def _proxy(kind: int, flags: int, device: str, address: IPv4Address) -> None:
    request = _encode(
        ndmsg(),
        kind,
        NLM_F_ACK | flags,
        [("NDA_DST", str(address))],
        family=socket.AF_INET,
        ifindex=socket.if_nametoindex(device),
        state=NUD_PERMANENT,
        flags=NTF_PROXY,
    )
    with _socket() as kernel:
        refusals, _ = _transact(kernel, Template(request).numbered().data, 1)
    if refusals:
        raise _refused(device, [f"proxy neighbour {address}"], refusals[0])


def _socket() -> socket.socket:
    try:
        kernel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise descriptors_exhausted("netlink socket") from None
        raise
    # Refusals in words, and without a copy of what was refused.
    kernel.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
    kernel.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
    return kernel


def _index(any_socket: socket.socket, device: str) -> int:
    """As socket.if_nametoindex(), without a socket of its own. Raises OSError."""
    answer = fcntl.ioctl(any_socket, SIOCGIFINDEX, struct.pack("16s24x", device.encode()))  # struct ifreq
    return int(struct.unpack_from("=16xi", answer)[0])


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and bytes of each message in what one recv() gave."""
    place = 0
    while place < len(data):
        length, kind, *_ = HEADER.unpack_from(data, place)
        yield kind, data[place : place + length]
        place += _aligned(length)


def _refusal(data: bytes) -> Refusal | None:
    """From an NLMSG_ERROR message; None when it only acknowledges."""
    _, _, flags, place, _ = HEADER.unpack_from(data)
    (code,) = struct.unpack_from("=i", data, HEADER.size)
    if not code:
        return None
    text = ""
    at = HEADER.size + 4 + HEADER.size
    while flags & NLM_F_ACK_TLVS and at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if kind == NLMSGERR_ATTR_MSG:
            text = data[at + 4 : at + length].rstrip(b"\0").decode(errors="replace")
        at += _aligned(max(length, 4))
    return Refusal(place, -code, text)


def _ask(request: bytes, kind: Any) -> Iterator[Any]:
    """The answers to one question, decoded by pyroute2. Raises OSError."""
    with _socket() as kernel:
        kernel.send(request)
        dump = HEADER.unpack_from(request)[2] & NLM_F_DUMP == NLM_F_DUMP
        while True:
            for type_, data in _messages(kernel.recv(1 << 18)):
                if type_ == NLMSG_DONE:
                    return
                if type_ == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data, HEADER.size)[0]
                    raise OSError(code, os.strerror(code))
                message = kind(data)
                message.decode()
                yield message
                if not dump:
                    return


def _refused(device: str, steps: Sequence[str], refusal: Refusal) -> HyperplaneError:
    step = steps[refusal.place - 1]
    if refusal.errno in (errno.EPERM, errno.EACCES):
        remedy = "run as root or with CAP_NET_ADMIN in the namespace"
        return PermissionMissing(f"device {device}: {step} not permitted", resource=device, remedy=remedy)
    if refusal.errno == errno.EEXIST:
        remedy = "remove it first, or give other routes" if step.startswith("route") else ""
        return DeviceExists(f"device {device}: {step} exists already", resource=device, remedy=remedy)
    reason = refusal.text or os.strerror(refusal.errno)
    return DeviceError(f"device {device}: {step} refused: {reason}", resource=device)
