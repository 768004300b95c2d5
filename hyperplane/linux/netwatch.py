"""Tells that something in a namespace's network has changed: rtnetlink(7) notifications, one socket a namespace.

A socket for each VPC, not for each environment: the kernel goes through all listeners of the host for every
notification of any namespace (netlink_broadcast_filtered() in net/netlink/af_netlink.c), so that ten thousand of them
would slow down every device that is made. One socket that hears all namespaces (NETLINK_LISTEN_ALL_NSID) is no way
around it: their numbers are searched in a row for each notification.

Proxy neighbours and the settings of neighbours change without a notification: who depends on them has to look.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import socket
import struct
from collections.abc import Callable
from typing import Final

from hyperplane.linux.namespaces import Key, NamespaceThreads, descriptors_exhausted, open_namespace
from hyperplane.linux.netlink import SOL_NETLINK

NETLINK_ADD_MEMBERSHIP: Final = 1  # linux/netlink.h
# linux/rtnetlink.h: links, IPv4 addresses, routes and rules, and per-device settings such as `forwarding`
GROUPS: Final = (1, 5, 7, 8, 24)
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
NLM_F_REPLACE: Final = 0x100  # linux/netlink.h
RT_SCOPE_LINK: Final = 253  # linux/rtnetlink.h
SO_ATTACH_FILTER: Final = 26  # asm-generic/socket.h
BUFFER: Final = 1 << 20  # bytes
MOST_AT_ONCE: Final = 64  # notifications that are read in one turn of the event loop

# linux/filter.h
BPF_LOAD_HALF, BPF_LOAD_BYTE = 0x28, 0x30  # BPF_LD | BPF_H or BPF_B | BPF_ABS
BPF_EQUAL, BPF_ANY_BIT, BPF_RETURN = 0x15, 0x45, 0x06  # BPF_JMP | BPF_JEQ or BPF_JSET | BPF_K, BPF_RET | BPF_K
TYPE_AT, FLAGS_AT, SCOPE_AT = 4, 6, 16 + 6  # in struct nlmsghdr; rtm_scope behind it


def _swapped(value: int) -> int:
    """A word in this machine's order, as BPF_LD, which loads in network order, sees it."""
    return socket.htons(value)


# Of a million routes that a routing daemon changes ours are told from the others by their scope, and by their being
# replaced: direct ones only. (code, jump if true, jump if false, value)
FILTER: Final = (
    (BPF_LOAD_HALF, 0, 0, TYPE_AT),
    (BPF_EQUAL, 1, 0, _swapped(RTM_NEWROUTE)),
    (BPF_EQUAL, 0, 4, _swapped(RTM_DELROUTE)),
    (BPF_LOAD_BYTE, 0, 0, SCOPE_AT),
    (BPF_EQUAL, 2, 0, RT_SCOPE_LINK),
    (BPF_LOAD_HALF, 0, 0, FLAGS_AT),
    (BPF_ANY_BIT, 0, 1, _swapped(NLM_F_REPLACE)),
    (BPF_RETURN, 0, 0, 0xFFFFFFFF),
    (BPF_RETURN, 0, 0, 0),
)


class NetworkWatch:
    """Watches namespaces by their keys; belongs to the event loop's thread. changed(key): something did, perhaps."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, threads: NamespaceThreads, changed: Callable[[Key], None]
    ) -> None:
        self._loop = loop
        self._threads = threads
        self._changed = changed
        self._sockets: dict[Key, socket.socket] = {}

    async def add(self, key: Key, spec: str) -> None:
        """Watches the namespace that spec names, if it still has that key. Twice is as good as once.

        Raises NamespaceNotFound, PermissionMissing, DeviceError.
        """
        if key in self._sockets:
            return
        found = await asyncio.wrap_future(self._threads.submit(_open, self._threads, key, spec))
        if found is None:
            return
        if key in self._sockets:  # another one was faster
            found.close()
            return
        self._sockets[key] = found
        self._loop.add_reader(found.fileno(), self._read, key)

    def __contains__(self, key: Key | None) -> bool:
        return key in self._sockets

    def remove(self, key: Key) -> None:
        if found := self._sockets.pop(key, None):
            self._loop.remove_reader(found.fileno())
            found.close()

    def close(self) -> None:
        for key in tuple(self._sockets):
            self.remove(key)

    def _read(self, key: Key) -> None:
        listener = self._sockets[key]
        for _ in range(MOST_AT_ONCE):
            try:
                listener.recv(1)  # that there was one is enough
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:  # some were lost
                    self.remove(key)
                break
        self._changed(key)


def _open(threads: NamespaceThreads, key: Key, spec: str) -> socket.socket | None:
    with open_namespace(spec) as namespace:
        if namespace.key != key:
            return None
        with threads.inside(namespace.fd):
            try:
                found = socket.socket(
                    socket.AF_NETLINK,
                    socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK,
                    socket.NETLINK_ROUTE,
                )
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise descriptors_exhausted("netlink socket") from None
                raise
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        _filter(found)
        found.bind((0, 0))
        for group in GROUPS:
            found.setsockopt(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group)
    except BaseException:
        found.close()
        raise
    return found


def _filter(listener: socket.socket) -> None:
    code = b"".join(struct.pack("=HBBI", *one) for one in FILTER)
    program = ctypes.create_string_buffer(code)
    listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(FILTER), ctypes.addressof(program)))
