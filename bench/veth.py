"""Attaching an environment by a veth pair, as platforms do: by netlink at its best, and by the commands of `ip`.

By netlink: messages that pyroute2 encoded once, over plain sockets. One batch makes the pair, both ends with numbers
that we choose (so nobody has to ask), and gives the outer end its address; another one, in the environment's namespace,
gives the inner end its address and the default route. By `ip`: a process for each of these steps.
A NAT for all environments is one rule of the namespace that the outer ends are in: MASQUERADE.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from bench.lab import setns

RTM_NEWLINK, RTM_DELLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 17, 20, 24  # linux/rtnetlink.h
REQUEST, CREATE = 0x5, 0x600  # linux/netlink.h: NLM_F_REQUEST | NLM_F_ACK; NLM_F_CREATE | NLM_F_EXCL
NLMSG_ERROR: Final = 2
IFF_UP: Final = 1
INNER: Final = 999  # index of the inner end: the first ones are lo's and those that modules make
FIRST_OUTER: Final = 1000

# For nft(8), in the namespace of the outer ends.
MASQUERADE: Final = (
    "table ip nat { chain post { type nat hook postrouting priority srcnat; ip saddr 198.18.0.0/16 masquerade; }; }"
)

# What stands in the templates where values are written over.
OUTER_MARK, FD_MARK, NAME_MARK = 0x7B6D5F43, 0x79674B31, "hpmark00000"
OUTER_ADDRESS, INNER_ADDRESS = "123.109.95.61", "121.103.75.47"


def netlink_socket() -> socket.socket:
    return socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)


class VethAttacher:
    """Attaches namespaces to the namespace of the calling thread, which stays the only one to use it."""

    def __init__(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._socket = netlink_socket()
        self._outer, self._inner, self._delete = _outer_batch(), _inner_batch(), _deletion()
        self.kernel = 0.0  # seconds that the kernel took for the last pair

    def attach(self, number: int, namespace: Path) -> None:
        """Attaches the namespace at a path as environment `number`, from 0 to 16,000. Raises OSError."""
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            outer, inner = _addresses(number)
            values = {
                struct.pack("=I", OUTER_MARK): struct.pack("=I", FIRST_OUTER + number),
                struct.pack("=I", FD_MARK): struct.pack("=I", fd),
                NAME_MARK.encode(): _outer_name(number).encode(),
                socket.inet_aton(OUTER_ADDRESS): outer,
                socket.inet_aton(INNER_ADDRESS): inner,
            }
            self.kernel = _send(self._socket, _filled(self._outer, values), 3)
            setns(fd)
            try:
                with netlink_socket() as inside:
                    self.kernel += _send(inside, _filled(self._inner, values), 3)
            finally:
                setns(self._home)
        finally:
            os.close(fd)

    def detach(self, number: int) -> None:
        """Deletes the pair of environment `number`; returns when it is gone. Raises OSError."""
        deletion = _filled(self._delete, {struct.pack("=I", OUTER_MARK): struct.pack("=I", FIRST_OUTER + number)})
        _send(self._socket, deletion, 1)

    def close(self) -> None:
        self._socket.close()
        os.close(self._home)


class IpAttacher:
    """As VethAttacher, by the commands of `ip`, which inherit the calling thread's namespace."""

    kernel = 0.0  # not known

    def attach(self, number: int, namespace: Path) -> None:
        outer, inner = (socket.inet_ntoa(address) for address in _addresses(number))
        device = _outer_name(number)
        there = ("-n", namespace.name)
        _ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", namespace.name)
        _ip("address", "add", f"{outer}/30", "dev", device)
        _ip("link", "set", device, "up")
        _ip(*there, "address", "add", f"{inner}/30", "dev", "eth0")
        _ip(*there, "link", "set", "eth0", "up")
        _ip(*there, "route", "add", "default", "via", outer)

    def detach(self, number: int) -> None:
        _ip("link", "delete", _outer_name(number))

    def close(self) -> None:
        """Nothing is kept."""


def outer_address(number: int) -> str:
    """Of the outer end of environment `number`."""
    return socket.inet_ntoa(_addresses(number)[0])


def _outer_name(number: int) -> str:
    return f"hpmark{number:05}"


def _ip(*arguments: str) -> None:
    subprocess.run(("ip", *arguments), stdin=subprocess.DEVNULL, check=True, timeout=60)


def _addresses(number: int) -> tuple[bytes, bytes]:
    """Of both ends, in a /30 of 198.18.0.0/16."""
    network = (198 << 24 | 18 << 16) + 4 * number
    return struct.pack("!I", network + 1), struct.pack("!I", network + 2)


def _filled(template: bytes, values: dict[bytes, bytes]) -> bytes:
    for mark, value in values.items():
        template = template.replace(mark, value)
    return template


def _send(kernel: socket.socket, batch: bytes, count: int) -> float:
    """Returns the seconds between sending and the last answer."""
    begun = time.perf_counter()
    kernel.send(batch)
    answered = 0
    while answered < count:
        data = kernel.recv(65536)
        while data:
            length, kind = struct.unpack_from("=IH", data)
            (code,) = struct.unpack_from("=i", data, 16)
            if kind == NLMSG_ERROR and code:
                raise OSError(-code, f"netlink message {answered + 1} refused")
            answered += 1
            data = data[length + 3 & ~3 :]
    return time.perf_counter() - begun


def _encoded(message: Any, kind: int, how: int, attributes: Sequence[tuple[str, Any]], **fields: Any) -> bytes:
    for field, value in fields.items():
        message[field] = value
    message["attrs"] = list(attributes)
    message["header"]["type"] = kind
    message["header"]["flags"] = how
    message.encode()
    return bytes(message.data) + bytes(-len(message.data) % 4)


def _address(index: int, address: str) -> bytes:
    attributes = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
    return _encoded(
        ifaddrmsg(), RTM_NEWADDR, REQUEST | CREATE, attributes, family=socket.AF_INET, prefixlen=30, index=index
    )


def _up(index: int) -> bytes:
    return _encoded(ifinfmsg(), RTM_NEWLINK, REQUEST, [], index=index, flags=IFF_UP, change=IFF_UP)


def _deletion() -> bytes:
    return _encoded(ifinfmsg(), RTM_DELLINK, REQUEST, [], index=OUTER_MARK)


def _outer_batch() -> bytes:
    peer = {"index": INNER, "attrs": [("IFLA_IFNAME", "eth0"), ("IFLA_NET_NS_FD", FD_MARK)]}
    information = [("IFLA_INFO_KIND", "veth"), ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]})]
    attributes = [("IFLA_IFNAME", NAME_MARK), ("IFLA_LINKINFO", {"attrs": information})]
    pair = _encoded(ifinfmsg(), RTM_NEWLINK, REQUEST | CREATE, attributes, index=OUTER_MARK)
    return pair + _address(OUTER_MARK, OUTER_ADDRESS) + _up(OUTER_MARK)


def _inner_batch() -> bytes:
    attributes = [("RTA_OIF", INNER), ("RTA_GATEWAY", OUTER_ADDRESS)]
    route = _encoded(
        rtmsg(), RTM_NEWROUTE, REQUEST | CREATE, attributes, family=socket.AF_INET, table=254, proto=4, scope=0, type=1
    )
    return _address(INNER, INNER_ADDRESS) + _up(INNER) + route
