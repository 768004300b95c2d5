"""One connection of the daemon to an engine process: a question, its answer, and errors as exceptions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Self, TypeVar

from hyperplane import __version__
from hyperplane.errors import EngineError, HyperplaneError, PermissionMissing, ProtocolMismatch
from hyperplane.ipc import messages, transport
from hyperplane.ipc.messages import VERSION, Answer, Done, Hello, Message, Refused, Welcome
from hyperplane.ipc.transport import ConnectionLost, Garbled, Unresponsive

A = TypeVar("A", bound=Answer)

SECONDS: Final = 10.0  # for one answer; the longest is that to Inherit


class Conversation:
    """welcome, regions (descriptors, in the order of welcome.regions) and pidfd belong to whoever takes them out.

    Not thread-safe. A context manager: leaving it closes it, with those that nobody took.
    """

    def __init__(self, path: Path) -> None:
        """Raises ConnectionLost (nobody listens), Unresponsive, PermissionMissing, ProtocolMismatch, EngineError."""
        self._channel = transport.connect(path, seconds=SECONDS)
        self.pidfd = -1
        self.regions: list[int] = []
        try:
            self.pid = self._process(path)
            # Opened before the answer to Hello: it lived then, so this is its descriptor and not a later process's.
            self.pidfd = _pidfd(self.pid)
            self.welcome, self.regions = self._hello()
        except Unresponsive:
            self.close()
            raise Unresponsive(f"engine {self.pid} does not answer", resource=str(path)) from None
        except BaseException:
            self.close()
            raise

    def ask(self, message: Message, expected: type[A], fds: Sequence[int] = ()) -> tuple[A, list[int]]:
        """The answer and its descriptors, which are the caller's. Raises what the engine raised, and ConnectionLost."""
        self._channel.send(messages.encode(message), fds)
        try:
            received = self._channel.receive()
        except Garbled as error:
            raise ConnectionLost(f"the engine's answer cannot be read: {error}") from None
        assert received
        data, came = received
        try:
            answer = messages.answer(data)
        except messages.UNREADABLE as error:
            transport.close_all(came)
            raise ConnectionLost(f"the engine's answer cannot be read: {error}") from None
        if isinstance(answer, expected):
            return answer, came
        transport.close_all(came)
        if isinstance(answer, Refused):
            raise messages.exception(answer.problem)
        raise ConnectionLost(f"the engine answered {type(message).__name__} with {type(answer).__name__}")

    def do(self, message: Message, fds: Sequence[int] = ()) -> None:
        """What is answered by Done."""
        transport.close_all(self.ask(message, Done, fds)[1])

    def close(self) -> None:
        self._channel.close()
        transport.close_all([*self.regions, *((self.pidfd,) if self.pidfd >= 0 else ())])
        self.regions, self.pidfd = [], -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _process(self, path: Path) -> int:
        pid, uid = self._channel.peer()
        if uid not in (0, os.geteuid()):
            remedy = "remove it, and see who may write to its directory"
            raise PermissionMissing(f"user {uid} listens on {path}", resource=str(path), remedy=remedy)
        return pid

    def _hello(self) -> tuple[Welcome, list[int]]:
        try:
            welcome, regions = self.ask(Hello(version=VERSION, product=__version__), Welcome)
        except ConnectionLost as error:
            if "cannot be read" in error.message:
                raise self._mismatch(error) from None
            raise
        if welcome.version != VERSION or len(regions) != len(welcome.regions):
            transport.close_all(regions)
            raise self._mismatch(f"it answered in version {welcome.version}, {welcome.product}")
        return welcome, regions

    def _mismatch(self, what: HyperplaneError | str) -> ProtocolMismatch:
        return ProtocolMismatch(
            f"engine {self.pid} speaks another protocol than {VERSION} of hyperplane-nat {__version__}: {what}",
            remedy=f"run the daemon of its version, or end it with its connections: kill {self.pid}, then start the"
            " daemon",
        )


def _pidfd(pid: int) -> int:
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno:
            raise ConnectionLost(f"engine {pid} has ended: {error.strerror}") from None
        raise EngineError(f"engine {pid}: {error}") from None
