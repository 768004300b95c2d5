"""Packets and descriptors over a Unix seqpacket socket (unix(7)): one message, one packet, up to 250 descriptors.

Received descriptors are close-on-exec, and belong to whoever receive() gave them to. A packet that is too long, or
whose descriptors did not all arrive, is Garbled, and the connection as good as before.
"""

from __future__ import annotations

import array
import os
import socket
import struct
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from hyperplane.errors import EngineError, PermissionMissing
from hyperplane.ipc.messages import MOST_BYTES, MOST_DESCRIPTORS
from hyperplane.linux.sockets import peer_credentials

ANCILLARY: Final = socket.CMSG_SPACE(253 * array.array("i").itemsize)  # SCM_MAX_FD, linux/scm.h
TIMEVAL: Final = struct.Struct("ll")  # struct timeval
LONGEST_PATH: Final = 107  # struct sockaddr_un


class Garbled(Exception):
    """A packet arrived that cannot be a message; its descriptors are closed. str(): why."""


class ConnectionLost(EngineError):
    """The other side has gone."""


class Unresponsive(ConnectionLost):
    """The other side is there, and does not answer in time."""


class Channel:
    """One end of a connection. Not thread-safe. A context manager: leaving it closes the socket."""

    def __init__(self, connected: socket.socket, *, seconds: float | None = None) -> None:
        """seconds: how long send() and receive() wait at most; None: for ever."""
        self._socket = connected
        _limit(connected, seconds)
        with suppress(OSError):
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MOST_BYTES)
        self._room = bytearray(MOST_BYTES)
        self._view = memoryview(self._room)

    def fileno(self) -> int:
        return self._socket.fileno()

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Channel:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def peer(self) -> tuple[int, int]:
        """pid and uid of the other side, as they were when it connected or listened (SO_PEERCRED)."""
        found = peer_credentials(self._socket)
        return found.pid, found.uid

    def send(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """Sends one packet; the descriptors stay the caller's. Raises ConnectionLost, EngineError."""
        if len(data) > MOST_BYTES or len(fds) > MOST_DESCRIPTORS:
            limit = f"{MOST_BYTES} bytes and {MOST_DESCRIPTORS} descriptors"
            raise EngineError(f"message of {len(data)} bytes with {len(fds)} descriptors", limit=limit)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([data], rights, socket.MSG_NOSIGNAL)
        except BlockingIOError:
            raise Unresponsive("the other side does not read") from None
        except OSError as error:
            _lost(error)

    def receive(self, *, wait: bool = True) -> tuple[memoryview, list[int]] | None:
        """The next packet, and its descriptors: they are the caller's now. The view holds until the next call.

        wait=False: None when there is none now. Raises Garbled, ConnectionLost (at the end of the stream too).
        """
        flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
        try:
            size, ancillary, came, _ = self._socket.recvmsg_into([self._view], ANCILLARY, flags)
        except BlockingIOError:
            if wait:
                raise Unresponsive("the other side does not answer") from None
            return None
        except OSError as error:
            _lost(error)
        fds = array.array("i")
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(data[: len(data) - len(data) % fds.itemsize])
        if came & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
            close_all(fds)
            if came & socket.MSG_TRUNC:
                raise Garbled(f"a message has more than {MOST_BYTES} bytes")
            raise Garbled("not all descriptors of a message arrived: raise the limit of open files (ulimit -Hn)")
        if not size:  # the end, or a packet of no bytes, which nobody of ours sends
            close_all(fds)
            raise ConnectionLost("the other side has closed the connection")
        return self._view[:size], fds.tolist()


def connect(path: Path, *, seconds: float) -> Channel:
    """Raises ConnectionLost when nobody listens, PermissionMissing, EngineError."""
    check_path(path)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        _limit(made, seconds)
        made.connect(os.fspath(path))
    except PermissionError:
        made.close()
        raise PermissionMissing(f"{path} may not be opened", resource=str(path), remedy="run as root") from None
    except OSError as error:
        made.close()
        raise ConnectionLost(f"nobody listens on {path}: {error.strerror or error}", resource=str(path)) from None
    return Channel(made, seconds=seconds)


def check_path(path: Path) -> None:
    """Raises EngineError for a path that is too long for a socket."""
    if len(os.fsencode(path)) > LONGEST_PATH:
        remedy = "set HYPERPLANE_RUN_DIR to a shorter one, or give the instance a shorter name"
        raise EngineError(f"socket path {path} is too long", limit=f"{LONGEST_PATH} bytes", remedy=remedy)


def close_all(fds: Iterable[int]) -> None:
    for fd in fds:
        with suppress(OSError):
            os.close(fd)


def _limit(made: socket.socket, seconds: float | None) -> None:
    """By the kernel's own clock: with settimeout() Python would poll before each call, even one that must not wait."""
    made.settimeout(None)
    whole, part = divmod(seconds or 0.0, 1)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        made.setsockopt(socket.SOL_SOCKET, option, TIMEVAL.pack(int(whole), int(part * 1e6)))


def _lost(error: OSError) -> NoReturn:
    raise ConnectionLost(f"the connection is lost: {error.strerror or error}") from None
