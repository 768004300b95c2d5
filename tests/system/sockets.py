"""Sockets inside network namespaces, used from outside: a socket stays in the namespace it was made in (setns(2))."""

from __future__ import annotations

import array
import fcntl
import os
import socket
import struct
import threading
from collections.abc import Callable
from typing import TypeVar

from hyperplane.linux.namespaces import CLONE_NEWNET, LIBC

T = TypeVar("T")

SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17  # linux/sockios.h, linux/ethtool.h


def call_in(namespace: str, call: Callable[[], T]) -> T:
    """Calls in a new thread that has gone into the namespace."""
    done: list[T] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            fd = os.open(f"/run/netns/{namespace}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                assert LIBC.setns(fd, CLONE_NEWNET) == 0, f"setns into {namespace} refused"
            finally:
                os.close(fd)
            done.append(call())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name=f"in {namespace}")
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
    return done[0]


def socket_in(namespace: str, kind: int = socket.SOCK_STREAM) -> socket.socket:
    """An IPv4 socket in the namespace; kind may hold SOCK_NONBLOCK."""
    return call_in(namespace, lambda: socket.socket(socket.AF_INET, kind))


def checksum_in_software(namespace: str, device: str) -> None:
    """Switches off the device's own checksums of outgoing packets, and with them segmentation (ethtool(8), -K)."""
    value = array.array("I", [ETHTOOL_STXCSUM, 0])  # struct ethtool_value, linux/ethtool.h
    request = struct.pack("16sP16x", device.encode(), value.buffer_info()[0])  # struct ifreq
    with socket_in(namespace, socket.SOCK_DGRAM) as one:
        fcntl.ioctl(one, SIOCETHTOOL, request)


def reachable(namespace: str, address: str, port: int) -> bool:
    """Whether somebody in the namespace can connect."""
    with socket_in(namespace) as one:
        one.settimeout(1)
        return one.connect_ex((address, port)) == 0
