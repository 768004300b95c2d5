"""The daemon's side: an engine in another process, and a mirror of its links with which a successor can go on.

Calls block; any thread may call, one at a time is served. While the engine is dead, calls wait for its successor
(`patience` seconds at most). A call that was under way when it died is made again: all that can be asked is idempotent.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Self, TypeVar

from msgspec.structs import replace

from hyperplane.errors import EngineError, HyperplaneError, InvalidValue
from hyperplane.ipc import messages, transport
from hyperplane.ipc.conversation import Conversation
from hyperplane.ipc.messages import (
    Applied,
    Apply,
    Config,
    Drain,
    Inherit,
    LinkResult,
    LinkSpec,
    Shutdown,
    Start,
)
from hyperplane.ipc.mirror import Link, Mirror
from hyperplane.ipc.state import Item, bare, number_of, send_state
from hyperplane.ipc.transport import ConnectionLost
from hyperplane.resources import Problem

T = TypeVar("T")

TRIES: Final = 3  # engines that a call may outlive


@dataclass(frozen=True, slots=True)
class Synced:
    """errors: by id, of those that are not as they should be. removed: links that are gone; their fds are the
    caller's to close."""

    errors: dict[str, HyperplaneError]
    removed: tuple[Link, ...]


class RemoteEngine:
    """`RemoteEngine.connect(path)` adopts the engine that listens, with its links and memory.

    Every method raises EngineError when the engine does not answer, and what the engine raised. The callbacks, and
    those of the mirror, run in the thread that met the event, with the lock held, and must not call back:
    on_removal(link) for each link that remove() has ended, when its counters can still be read, on_lost() when the
    connection broke.
    """

    def __init__(self, path: Path) -> None:
        """Not connected: adopt() does that."""
        self.path = path
        self.patience = 0.0
        self.mirror = Mirror()
        self.on_removal: Callable[[Link], None] = lambda link: None
        self.on_lost: Callable[[], None] = lambda: None
        self.pid = 0
        self.pidfd = -1  # of the process, when there is or was one
        self.product = ""  # its version
        self._changed = threading.Condition(threading.RLock())
        self._conversation: Conversation | None = None
        self._closed = False
        self._generation = 0
        self._request = 0

    @classmethod
    def connect(cls, path: Path) -> Self:
        """Raises ConnectionLost (nobody listens), ProtocolMismatch, PermissionMissing, EngineError."""
        made = cls(path)
        try:
            made.adopt()
        except BaseException:
            made.close()
            raise
        return made

    @property
    def config(self) -> Config:
        """The engine's."""
        return self.mirror.config

    @property
    def regions(self) -> dict[str, int]:
        """The engine's memory, by name; the descriptors are the mirror's."""
        return self.mirror.regions

    @property
    def generation(self) -> int:
        """Of the state that the engine was given last."""
        return self._generation

    @property
    def trouble(self) -> str:
        """Why no call is answered at present, and what to do; "" while the engine is connected, and after close()."""
        if self._conversation is not None or self._closed:
            return ""
        if self.pidfd < 0 or _has_ended(self.pidfd):
            return "no engine runs; see engine.log; the daemon goes on trying to start one"
        return f"engine {self.pid} does not answer; if it hangs, kill -9 {self.pid}: another one goes on with its flows"

    # Life

    def adopt(self) -> bool:
        """Connects to the engine that listens and learns its memory and links; or again, to the one that is known.

        Returns whether it translates already. Raises as connect() does, and ConnectionLost when it is another one.
        """
        with self._changed:
            self._disconnect()
            conversation = Conversation(self.path)
            try:
                if not self.regions:
                    self.mirror.learn(conversation)
                    self._generation = conversation.welcome.generation
                elif conversation.pid != self.pid:
                    raise ConnectionLost(f"engine {self.pid} is gone, {conversation.pid} listens on {self.path}")
                self._connected(conversation)
            except BaseException:
                conversation.close()
                raise
            return conversation.welcome.started

    def start(self) -> None:
        """The engine translates from now on; nothing when it does already."""
        self._ask(lambda conversation: conversation.do(Start()))

    def shutdown(self) -> None:
        """Ends the engine process, and with it all flows; the links' descriptors are still here."""
        self._ask(lambda conversation: conversation.do(Shutdown()))

    def close(self) -> None:
        """Closes the connection and all descriptors, those of the links too. The engine goes on."""
        with self._changed:
            self._closed = True
            self._disconnect()
            self.mirror.close()
            self._forget_process()
            self._changed.notify_all()

    def succeed(self, pid: int, *, inherit: bool = True) -> list[tuple[Link, Problem]]:
        """Gives the engine process pid, which listens now, what its dead predecessor had, and starts it.

        inherit=False: it has memory of its own; all flows have ended, and links get new numbers. Returns the links that
        it refused; they are forgotten, and their fds the caller's. Raises as connect() does; then nothing has changed
        here, and another successor may be tried.
        """
        with self._changed:
            conversation = Conversation(self.path)
            try:
                return self._hand_over(conversation, pid, inherit=inherit)
            except BaseException:
                if self._conversation is not conversation:
                    conversation.close()
                raise

    # Links

    def links(self) -> list[Link]:
        """As the engine has them, ENIs before their tunnels."""
        with self._changed:
            return list(self.mirror.links.values())

    def link(self, key: str) -> Link | None:
        with self._changed:
            return self.mirror.links.get(key)

    def knows(self, key: str) -> bool:
        """Whether there is a link of that id, without waiting for a call that is under way."""
        return key in self.mirror.links

    def add(self, spec: LinkSpec, fd: int, more: Sequence[int] = ()) -> int:
        """Makes a link and returns its number; fd and more are the mirror's from then on. When this raises they are the
        caller's.

        Raises InvalidValue, AddressInUse, NotATunnel, DeviceError, EngineError.
        """
        wanted = bare(spec)
        with self._changed:
            if spec.id in self.mirror.links:
                raise InvalidValue(f"there is a link {spec.id}", resource=spec.id, remedy="give each its own id")
            # Of a call that failed without an answer the engine may have a link of that id: it goes first.
            number = number_of(self._apply((replace(wanted, has_fd=True),), (fd, *more), remove=(spec.id,)))
            self.mirror.keep(wanted, number, fd, tuple(more))
        return number

    def update(self, spec: LinkSpec) -> None:
        """Replaces an ENI's rules; nothing else can change. Raises InvalidValue, ResourceConflict."""
        wanted = bare(spec)
        with self._changed:
            known = self.mirror.links.get(spec.id)
            if known is None:
                raise InvalidValue(f"no link {spec.id}", resource=spec.id, remedy="add it first")
            number_of(self._apply((wanted,)))
            self.mirror.links[spec.id] = Link(wanted, known.number, known.fd, known.more)

    def remove(self, key: str) -> int:
        """Removes a link with its flows; returns its descriptor, which the caller closes, as the last to do so.

        -1 when there is no such link. Raises EngineError for an ENI that has tunnels.
        """
        with self._changed:
            number_of(self._apply(remove=(key,)))
            if link := self.mirror.links.get(key):
                self.on_removal(link)
            return self.mirror.forget(key)

    def drain(self, key: str, reset: bool) -> None:
        """See Engine.drain()."""
        with self._changed:
            self._ask(lambda conversation: conversation.do(Drain(id=key, reset=reset)))
            self.mirror.draining[key] = reset

    def sync(self, specs: Iterable[LinkSpec], fds: Mapping[str, int] = {}) -> Synced:
        """Sends the full state: what is missing is made, with its descriptor in fds (by id); what is not named removed.

        A descriptor is the mirror's when its link was missing and is not among the errors.
        """
        wanted = [bare(spec) for spec in sorted(specs, key=lambda spec: spec.kind != "eni")]
        with self._changed:
            items = [
                (replace(spec, has_fd=True), (fds[spec.id],))
                if spec.id in fds and spec.id not in self.mirror.links
                else (spec, ())
                for spec in wanted
            ]
            results = self._synced(items)
            errors = {key: messages.exception(result.error) for key, result in results.items() if result.error}
            for spec, (_, given) in zip(wanted, items, strict=True):
                if spec.id not in errors:
                    known = self.mirror.links.get(spec.id)
                    fd, *more = known.fds if known else given or (-1,)
                    self.mirror.keep(spec, results[spec.id].number, fd, tuple(more))
            gone = tuple(link for key, link in self.mirror.links.items() if key not in results)
            for link in gone:
                self.mirror.forget(link.spec.id)
        return Synced(errors, gone)

    # Asking

    def _ask(self, question: Callable[[Conversation], T]) -> T:
        """Asks the engine, or its successor when it dies before it has answered."""
        with self._changed:
            for _ in range(TRIES):
                conversation = self._wait_for_engine()
                try:
                    return question(conversation)
                except ConnectionLost as error:
                    lost = error
                    if self._conversation is conversation:
                        self._disconnect()
                        self.on_lost()
            raise EngineError(f"the engine does not answer: {lost.message}", remedy="see engine.log")

    def _wait_for_engine(self) -> Conversation:
        end = time.monotonic() + self.patience
        while self._conversation is None:
            left = end - time.monotonic()
            if self._closed or left <= 0:
                raise EngineError(self.trouble or "no engine runs")
            self._changed.wait(left)
        return self._conversation

    def _apply(
        self, links: tuple[LinkSpec, ...] = (), fds: Sequence[int] = (), remove: tuple[str, ...] = ()
    ) -> Applied:
        return self._ask(lambda conversation: self._apply_over(conversation, links, fds, False, remove))

    def _apply_over(
        self,
        conversation: Conversation,
        links: tuple[LinkSpec, ...],
        fds: Sequence[int],
        complete: bool,
        remove: tuple[str, ...] = (),
    ) -> Applied:
        self._request += 1
        message = Apply(
            request=self._request, generation=self._generation, links=links, remove=remove, complete=complete
        )
        applied, came = conversation.ask(message, Applied, fds)
        transport.close_all(came)
        if applied.request != self._request or len(applied.results) < len(links) + len(remove):
            raise ConnectionLost("the engine answered another question")
        return applied

    def _synced(self, items: Sequence[Item]) -> dict[str, LinkResult]:
        """Sends the full state in one generation: a successor that comes in between begins another one."""
        for _ in range(TRIES):
            self._generation += 1
            with suppress(_Overtaken):
                return send_state(items, partial(self._send_part, self._generation))
        raise EngineError("the engine was replaced again and again", remedy="see engine.log")

    def _send_part(self, generation: int, links: tuple[LinkSpec, ...], fds: Sequence[int], complete: bool) -> Applied:
        def question(conversation: Conversation) -> Applied:
            if generation != self._generation:
                raise _Overtaken
            return self._apply_over(conversation, links, fds, complete)

        return self._ask(question)

    def _hand_over(self, conversation: Conversation, pid: int, *, inherit: bool) -> list[tuple[Link, Problem]]:
        if conversation.pid != pid or bool(conversation.welcome.regions) is inherit:
            raise EngineError(f"engine {conversation.pid} on {self.path} is not the successor that was started")
        if inherit:
            conversation.do(Inherit(config=self.config, regions=tuple(self.regions)), list(self.regions.values()))
        self._generation += 1
        results = send_state(self.mirror.items(numbered=inherit), partial(self._apply_over, conversation))
        for key, reset in self.mirror.draining.items():
            if results[key].error is None:
                conversation.do(Drain(id=key, reset=reset))
        conversation.do(Start())
        # It goes on from here: nothing fails any more.
        self._disconnect()
        refused = self.mirror.forget_refused(results)
        if not inherit:
            self.mirror.take_memory(conversation)
            self.mirror.renumber(results)
        self._connected(conversation)
        return refused

    # The connection

    def _connected(self, conversation: Conversation) -> None:
        if conversation.pid != self.pid:
            self._forget_process()
            self.pid, self.pidfd = conversation.pid, conversation.pidfd
            self.product = conversation.welcome.product
            conversation.pidfd = -1
        transport.close_all(conversation.regions)
        conversation.regions = []
        self._conversation = conversation
        self._changed.notify_all()

    def _disconnect(self) -> None:
        if self._conversation:
            self._conversation.close()
            self._conversation = None

    def _forget_process(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.pid, self.pidfd = 0, -1


def _has_ended(pidfd: int) -> bool:
    """Whether the process has; a closed descriptor's has, too."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return bool(poll.poll(0))


class _Overtaken(Exception):
    """A successor has got another generation of the full state meanwhile."""
