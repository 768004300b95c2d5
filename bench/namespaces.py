"""Thousands of namespaces: gone means that the kernel has taken them down, which it does in the background."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Final

from bench.lab import LIBC, MNT_DETACH, NETNS, NamespaceThread, setns, shell

MARKER: Final = "last"
THREADS: Final = 16
TO_GO: Final = 120.0  # seconds that the kernel may take for it


def remove(namespaces: Sequence[str], near: str) -> float:
    """Deletes namespaces and waits until their devices are gone; returns the seconds that this took.

    near: a namespace that stays. One end of a veth pair is there, the other one in the namespace that is deleted last:
    the kernel takes namespaces down in the order in which they were deleted, and so this end goes when all have.
    """
    begun = time.monotonic()
    shell("ip", "-n", near, "link", "add", MARKER, "type", "veth", "peer", "name", MARKER, "netns", namespaces[-1])
    # Each unmounting waits for a grace period, and several wait together.
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(_delete, namespaces[:-1]))
    _delete(namespaces[-1])
    with NamespaceThread(near) as thread:
        while thread.call(has_device, MARKER):
            assert time.monotonic() < begun + TO_GO, f"{len(namespaces)} namespaces: not gone within {TO_GO:.0f} s"
            time.sleep(0.01)
    return time.monotonic() - begun


def _delete(name: str) -> None:
    LIBC.umount2(os.fsencode(NETNS / name), MNT_DETACH)
    with suppress(OSError):
        (NETNS / name).unlink()


def having(namespaces: Sequence[str], device: str) -> list[str]:
    """Those that have a device of that name."""

    def look(namespace: str) -> bool:
        fd = os.open(NETNS / namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            setns(fd)
        finally:
            os.close(fd)
        return has_device(device)

    with NamespaceThread() as thread:
        return [one for one in namespaces if thread.call(look, one)]


def has_device(name: str) -> bool:
    """In the namespace of the calling thread."""
    with suppress(OSError):
        return bool(socket.if_nametoindex(name))
    return False
