"""Unix sockets (unix(7)): who is at the other end, and who may connect."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import Any, Final, NamedTuple

UCRED: Final = struct.Struct("3i")  # struct ucred
# What is taken from a socket's mode: there is no moment in which others may connect.
OWNER_ONLY: Final = 0o177
OWNER_AND_GROUP: Final = 0o117


class Credentials(NamedTuple):
    pid: int
    uid: int
    gid: int


def peer_credentials(connected: Any) -> Credentials:
    """Of the process that connected, or that listens, as they were then (SO_PEERCRED). connected: a socket, or what
    asyncio gives for one. Raises OSError."""
    return Credentials(*UCRED.unpack(connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)))


def bind(made: socket.socket, path: Path, umask: int) -> None:
    """Binds a socket that is made with this umask; for a moment it is the whole process's. Raises OSError."""
    before = os.umask(umask)
    try:
        made.bind(os.fspath(path))
    finally:
        os.umask(before)
