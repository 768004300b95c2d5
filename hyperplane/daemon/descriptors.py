"""The socket by which a platform without privileges hands in an open TUN (SCM_RIGHTS, unix(7)).

One packet with one descriptor comes in, `{"descriptor": TOKEN}` or a Problem goes out. The token stands for the
descriptor once, for 30 s, and for whoever sent it (or root). A descriptor may be anything: it is checked by
`linux.tun.adopt_tun()`, and closed by the reaper.
"""

from __future__ import annotations

import array
import asyncio
import os
import secrets
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from hyperplane.api.service import Peer
from hyperplane.errors import (
    AccessDenied,
    DeviceError,
    HyperplaneError,
    InvalidValue,
    ResourceNotFound,
    TooManyRequests,
)
from hyperplane.ipc.messages import problem
from hyperplane.linux.processes import Process, process
from hyperplane.linux.reaper import Reaper
from hyperplane.linux.sockets import OWNER_AND_GROUP, Credentials, bind, peer_credentials
from hyperplane.linux.tunnel import TunnelDevice, take_tunnel

MOST_WAITING: Final = 256
LIFETIME: Final = 30.0  # seconds
MOST_CONNECTIONS: Final = 256
LONGEST_REQUEST: Final = 4096


@dataclass(slots=True)
class _Waiting:
    device: TunnelDevice
    uid: int
    sender: Process | None
    expiry: asyncio.TimerHandle


class Descriptors:
    """Belongs to the event loop. open() listens; take() gives a device away."""

    def __init__(self, reaper: Reaper, *, most: int = MOST_WAITING, lifetime: float = LIFETIME) -> None:
        self._reaper = reaper
        self._most = most
        self._lifetime = lifetime
        self._waiting: dict[str, _Waiting] = {}
        self._clients: set[socket.socket] = set()
        self._listener: socket.socket | None = None

    def open(self, path: Path, gid: int | None) -> None:
        """Raises DeviceError."""
        self._loop = asyncio.get_running_loop()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            with suppress(FileNotFoundError):
                path.unlink()
            bind(listener, path, OWNER_AND_GROUP)
            if gid is not None:
                os.chown(path, -1, gid)
            listener.listen(64)
        except OSError as error:
            listener.close()
            message = f"socket {path} cannot be made: {error.strerror}"
            raise DeviceError(message, resource=str(path), remedy="remove what is there") from None
        self._listener, self._path = listener, path
        self._loop.add_reader(listener, self._accept)

    def __len__(self) -> int:
        return len(self._waiting)

    def check(self, token: str, peer: Peer) -> None:
        """Raises ResourceNotFound, AccessDenied."""
        waiting = self._waiting.get(token)
        if waiting is None:
            remedy = f"send the descriptor again: it is kept for {self._lifetime:.0f} s and given once"
            raise ResourceNotFound("no such descriptor waits", resource="descriptor", remedy=remedy, field="descriptor")
        if peer.uid not in (0, waiting.uid):
            message = "the descriptor was sent by another user"
            raise AccessDenied(message, resource="descriptor", remedy="send it yourself", field="descriptor")

    def sender(self, token: str) -> Process | None:
        """The process that sent what a token stands for; None when it is not known, or has ended."""
        waiting = self._waiting.get(token)
        return waiting.sender if waiting else None

    def take(self, token: str, peer: Peer) -> TunnelDevice:
        """The device behind a token, which is used up. Raises as check()."""
        self.check(token, peer)
        waiting = self._waiting.pop(token)
        waiting.expiry.cancel()
        return waiting.device

    def close(self) -> None:
        """Stops listening; what waits is closed by the reaper."""
        if self._listener is None:
            return
        self._loop.remove_reader(self._listener)
        self._listener.close()
        self._listener = None
        self._path.unlink(missing_ok=True)
        for client in tuple(self._clients):
            self._leave(client)
        for token in tuple(self._waiting):
            self._expire(token)

    def _accept(self) -> None:
        assert self._listener
        while len(self._clients) < MOST_CONNECTIONS:
            try:
                client, _ = self._listener.accept()
            except OSError:  # nobody, or no descriptor left
                return
            client.setblocking(False)
            self._clients.add(client)
            self._loop.add_reader(client, self._read, client)
        self._loop.remove_reader(self._listener)  # until somebody leaves

    def _leave(self, client: socket.socket) -> None:
        self._clients.discard(client)
        self._loop.remove_reader(client)
        client.close()
        if self._listener is not None and len(self._clients) == MOST_CONNECTIONS - 1:
            self._loop.add_reader(self._listener, self._accept)

    def _read(self, client: socket.socket) -> None:
        try:
            fds, ended = _receive(client)
        except BlockingIOError:
            return
        except OSError:
            self._leave(client)
            return
        try:
            if ended:
                self._leave(client)
                return
            try:
                answer = msgspec.json.encode({"descriptor": self._keep(fds, peer_credentials(client))})
            except HyperplaneError as error:
                answer = msgspec.json.encode(problem(error))
        finally:
            for fd in fds:
                self._reaper.close(fd)  # perhaps the last one of a device
        try:
            client.send(answer)
        except OSError:  # it does not read: its descriptor expires
            self._leave(client)

    def _keep(self, fds: list[int], sender: Credentials) -> str:
        if len(fds) != 1:
            remedy = "send one packet with one descriptor of an open TUN"
            raise InvalidValue(f"{len(fds)} descriptors came", resource="descriptor", limit="one", remedy=remedy)
        if len(self._waiting) >= self._most:
            limit = f"{self._most} descriptors that wait to be used"
            raise TooManyRequests("too many descriptors wait", resource="descriptor", limit=limit, remedy="try later")
        try:
            device = take_tunnel(fds[0])
        except HyperplaneError as error:  # its number here tells the sender nothing
            message = error.message.replace(f"descriptor {fds[0]}", "the descriptor")
            raise type(error)(message, resource="descriptor", remedy=error.remedy) from None
        token = secrets.token_hex(16)
        expiry = self._loop.call_later(self._lifetime, self._expire, token)
        self._waiting[token] = _Waiting(device, sender.uid, process(sender.pid), expiry)
        return token

    def _expire(self, token: str) -> None:
        if waiting := self._waiting.pop(token, None):
            waiting.expiry.cancel()
            self._reaper.close(waiting.device.fd)


def _receive(client: socket.socket) -> tuple[list[int], bool]:
    """The descriptors of one packet; True at the end. Raises OSError."""
    # Room for one more than is allowed: the kernel closes what does not fit.
    room = socket.CMSG_SPACE(2 * array.array("i").itemsize)
    data, ancillary, _, _ = client.recvmsg(LONGEST_REQUEST, room, socket.MSG_CMSG_CLOEXEC)
    fds = array.array("i")
    for level, kind, content in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return fds.tolist(), not data and not fds
