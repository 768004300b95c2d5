"""rtnetlink(7): one batch of messages brings a device up with its address and routes; a few questions besides.

Over plain sockets: a batch costs some 50 us of Python, where pyroute2's own sockets take 2 ms and more. Everything here
concerns the network namespace of the calling thread.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final, NamedTuple

# pyroute2 has no type hints: its messages are Any, and what is read from them is given a type below.
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from hyperplane.errors import DeviceError, DeviceExists, HyperplaneError, PermissionMissing
from hyperplane.linux import rtnl
from hyperplane.linux.namespaces import descriptors_exhausted
from hyperplane.linux.rtnl import (
    HEADER,
    NLM_F_ACK,
    NLM_F_CREATE,
    QUEUEING_STEP,
    UP,
    Template,
    aligned,
    configuration,
    encode,
)

# linux/netlink.h
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLM_F_DUMP: Final = 0x300
NLM_F_ACK_TLVS: Final = 0x200
NLMSGERR_ATTR_MSG: Final = 1
NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK = 10, 11, 12
SOL_NETLINK: Final = 270
# linux/rtnetlink.h, linux/neighbour.h
RTM_GETADDR, RTM_GETROUTE, RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 22, 26, 28, 29, 30
RTM_F_FIB_MATCH: Final = 0x2000
NUD_PERMANENT: Final = 0x80
NTF_PROXY: Final = 0x08

SIOCGIFINDEX: Final = 0x8933  # linux/sockios.h


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


def check_configuration(
    device: str,
    mtu: int,
    address: IPv4Address | None,
    routes: Sequence[IPv4Network],
    refusals: Sequence[Refusal],
    *,
    routed: bool = False,
) -> None:
    """Raises as configure() when the kernel refused one of its messages. routed: as for rtnl.configuration()."""
    steps = [f"MTU {mtu}", "up"]
    if address is not None or routed:  # a kernel without CONFIG_NET_SCHED queues as it does
        refusals = [one for one in refusals if one.place != QUEUEING_STEP]
        steps[1:1] = ["", "forwarding" if address is None else f"address {address}"]
    if refusals:
        raise _refused(device, [*steps, *(f"route {route}" for route in routes)], refusals[0])


def bring_up(device: str) -> None:
    """Raises as configure()."""
    with _socket() as kernel:
        refusals, _ = _transact(kernel, UP.fill(_index(kernel, device)), UP.count)
    if refusals:
        raise _refused(device, ["up"], refusals[0])


def repair(
    device: str,
    index: int,
    *,
    mtu: int = 0,
    address: IPv4Address | None = None,
    forwards: bool = False,
    up: bool = False,
    routes: Sequence[IPv4Network] = (),
    source: IPv4Address | None = None,
) -> None:
    """Sets what is given of a device by its index: MTU, one more address, forwarding, up, routes that prefer source.

    A route goes before one that somebody else has made for the same network. Raises as configure().
    """
    batch, steps = rtnl.repairs(mtu=mtu, address=address, forwards=forwards, up=up, routes=tuple(routes), source=source)
    with _socket() as kernel:
        refusals, _ = _transact(kernel, batch.fill(index), batch.count)
    if refusals:
        raise _refused(device, steps, refusals[0])


def rename(index: int, name: str) -> None:
    """Gives a device another name; it is down afterwards: Linux before 6.2 renames no device that is up. Raises as
    configure()."""
    batch = rtnl.renaming(name)
    with _socket() as kernel:
        refusals, _ = _transact(kernel, batch.fill(index), batch.count)
    if refusals:
        raise _refused(name, ["down", "name"], refusals[0])


def _transact(kernel: socket.socket, batch: bytes | bytearray, count: int) -> tuple[list[Refusal], float]:
    """Sends a numbered batch of count messages; returns those refused, and the seconds until the last answer."""
    refusals = []
    begun = time.perf_counter()
    kernel.send(batch)
    answered = 0
    while answered < count:
        said = kernel.recv(65536)
        refusals += refusals_in(said)
        answered = max(HEADER.unpack_from(data)[3] for _, data in _messages(said))
    return refusals, time.perf_counter() - begun


def refusals_in(said: bytes) -> list[Refusal]:
    """Those among the answers to a batch."""
    return [refusal for _, data in _messages(said) if (refusal := _refusal(data))]


def addresses() -> list[tuple[str, IPv4Address, IPv4Network]]:
    """The IPv4 addresses of this namespace: device, address, the subnet on that device."""
    request = encode(ifaddrmsg(), RTM_GETADDR, NLM_F_DUMP, [], family=socket.AF_INET)
    found = []
    for message in ask(request, ifaddrmsg):
        local = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        # With a peer, IFA_ADDRESS is the other end and the prefix is that end's (ip-address(8)).
        peer = message.get_attr("IFA_ADDRESS") or local
        subnet = IPv4Network((peer, message["prefixlen"]), strict=False)
        found.append((socket.if_indextoname(message["index"]), IPv4Address(local), subnet))
    return found


def match(address: IPv4Address) -> Match | None:
    """The route in this namespace that fits address best, None without one."""
    request = encode(
        rtmsg(), RTM_GETROUTE, 0, [("RTA_DST", str(address))], family=socket.AF_INET, dst_len=32, flags=RTM_F_FIB_MATCH
    )
    try:
        message = next(ask(request, rtmsg))
    except OSError as error:
        if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL):
            return None  # no route, or one of type unreachable, prohibit or blackhole
        raise
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
    request = encode(ndmsg(), RTM_GETNEIGH, NLM_F_DUMP, [], family=socket.AF_INET, flags=NTF_PROXY)
    return [IPv4Address(one.get_attr("NDA_DST")) for one in ask(request, ndmsg) if one["ifindex"] == index]


def _proxy(kind: int, flags: int, device: str, address: IPv4Address) -> None:
    request = encode(
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
        place += aligned(length)


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
        at += aligned(max(length, 4))
    return Refusal(place, -code, text)


def ask(request: bytes, kind: Any) -> Iterator[Any]:
    """The answers to one question, decoded by pyroute2. Raises OSError."""
    for data in answers(request):
        message = kind(data)
        message.decode()
        yield message


def answers(request: bytes, *, strict: bool = False) -> Iterator[bytes]:
    """The messages that answer one question, as they came. strict: the kernel picks by the attributes of a dump's
    request (NETLINK_GET_STRICT_CHK); one that is older than 4.20 gives everything. Raises OSError."""
    with _socket() as kernel:
        if strict:
            with suppress(OSError):
                kernel.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        kernel.send(request)
        dump = HEADER.unpack_from(request)[2] & NLM_F_DUMP == NLM_F_DUMP
        while True:
            for type_, data in _messages(kernel.recv(1 << 18)):
                if type_ == NLMSG_DONE:
                    return
                if type_ == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data, HEADER.size)[0]
                    raise OSError(code, os.strerror(code))
                yield data
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
