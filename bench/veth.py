"""Attaching an environment by a veth pair, at its best: messages that pyroute2 encoded once, over plain sockets.

One batch makes the pair, both ends with numbers that we choose (so nobody has to ask), and gives the outer end its
address; another one, in the environment's namespace, gives the inner end its address and the default route. What a NAT
would need for each environment besides (a rule, a set element) is left out.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from bench.lab import setns

RTM_NEWLINK, RTM_NEWADDR, RTM_NEWROUTE = 16, 20, 24  # linux/rtnetlink.h
REQUEST, CREATE = 0x5, 0x600  # linux/netlink.h: NLM_F_REQUEST | NLM_F_ACK; NLM_F_CREATE | NLM_F_EXCL
NLMSG_ERROR: Final = 2
IFF_UP: Final = 1
INNER: Final = 999  # index of the inner end: the first ones are lo's and those that modules make
FIRST_OUTER: Final = 1000

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
        self._outer, self._inner = _outer_batch(), _inner_batch()

    def attach(self, number: int, namespace: Path) -> None:
        """Attaches the namespace at a path as environment `number`, from 0 to 16,000. Raises OSError."""
        fd = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            outer, inner = _addresses(number)
            values = {
                struct.pack("=I", OUTER_MARK): struct.pack("=I", FIRST_OUTER + number),
                struct.pack("=I", FD_MARK): struct.pack("=I", fd),
                NAME_MARK.encode(): f"hpmark{number:05}".encode(),
                socket.inet_aton(OUTER_ADDRESS): outer,
                socket.inet_aton(INNER_ADDRESS): inner,
            }
            _send(self._socket, _filled(self._outer, values), 3)
            setns(fd)
            try:
                with netlink_socket() as inside:
                    _send(inside, _filled(self._inner, values), 3)
            finally:
                setns(self._home)
        finally:
            os.close(fd)

    def close(self) -> None:
        self._socket.close()
        os.close(self._home)


def outer_address(number: int) -> str:
    """Of the outer end of environment `number`."""
    return socket.inet_ntoa(_addresses(number)[0])


def _addresses(number: int) -> tuple[bytes, bytes]:
    """Of both ends, in a /30 of 198.18.0.0/16."""
    network = (198 << 24 | 18 << 16) + 4 * number
    return struct.pack("!I", network + 1), struct.pack("!I", network + 2)


def _filled(template: bytes, values: dict[bytes, bytes]) -> bytes:
    for mark, value in values.items():
        template = template.replace(mark, value)
    return template


def _send(kernel: socket.socket, batch: bytes, count: int) -> None:
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
