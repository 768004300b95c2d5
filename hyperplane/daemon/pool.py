"""Fresh environments made before they are asked for: a namespace, its TUN inside, and its tunnel in the engine.

Each is made for one TunnelSpec (ENI, inside address, MTU, ...) and has the id that its environment will have: so a
start takes one without a system call, a thread or a word to the engine. Nobody is in such a namespace, so its tunnel is
silent. The store knows nothing of it, and control does not count it among an ENI's users. What a killed daemon leaves
of it are a link and a namespace that nobody knows, which the next one removes.

`size` are kept in all, in the proportions of the last `size` starts; a function that is declared counts as some of
these. They are made one at a time, in the same threads as everything else, and only while nothing else is done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog
from msgspec.structs import replace

from hyperplane.control import Control, Prepared, TunnelSpec
from hyperplane.control.environments import DEFAULT_DEVICE
from hyperplane.daemon.actuator import Actuator
from hyperplane.daemon.turns import Turns
from hyperplane.daemon.watches import Watches
from hyperplane.daemon.whereabouts import remembered
from hyperplane.errors import HyperplaneError
from hyperplane.linux.namespaces import NamespaceThreads

DECLARED: Final = 8  # a function that is declared counts as one of so many parts of the latest starts
PAUSE: Final = 0.005  # seconds between two supplies
QUIET: Final = 0.02  # seconds after a start in which none is made of which others are ready
RETRY: Final = 5.0  # seconds after one that failed
CLOSED_WITHIN: Final = 5.0  # seconds

log = structlog.get_logger()


@dataclass(eq=False, slots=True)
class _Kind:
    """What is alike. asked: how many of the latest starts were of it."""

    tunnel: TunnelSpec
    ready: deque[Prepared] = field(default_factory=deque)
    asked: int = 0


class Pool:
    """Belongs to the event loop. size: how many are kept; 0: none. knows(id): whether the engine has that link. busy():
    true while starts wait for threads. watch is set once it is there."""

    watch: Watches

    def __init__(
        self,
        size: int,
        control: Control,
        actuator: Actuator,
        threads: NamespaceThreads,
        knows: Callable[[str], bool],
        busy: Callable[[], bool],
    ) -> None:
        self._size = size
        self._control = control
        self._actuator = actuator
        self._turns = Turns(threads, lambda id_, error: None)
        self._knows = knows
        self._busy = busy
        self._kinds: dict[TunnelSpec, _Kind] = {}  # that were asked for lately, or of which some are ready
        self._of: dict[str, _Kind] = {}  # of each that is ready, by its id
        self._asked: deque[_Kind] = deque()  # by the latest starts, as many as the pool has places
        self._declared: frozenset[TunnelSpec] = frozenset()
        self._outdated = True
        self._failing = False
        self._quiet_from = 0.0
        self._changed = asyncio.Event()
        self._supplies: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._size:
            self._supplies = asyncio.get_running_loop().create_task(self._supply())

    def __len__(self) -> int:
        """How many are ready."""
        return len(self._of)

    def __contains__(self, id_: str) -> bool:
        """Whether a link is one that is ready, is being made or removed."""
        return id_ in self._of or id_ in self._turns

    def ids(self) -> tuple[str, ...]:
        """Of those that are ready."""
        return tuple(self._of)

    def namespaces(self) -> dict[str, str]:
        """Of those that are ready, with the ENI of each."""
        return {one.namespace: kind.tunnel.eni for kind in self._kinds.values() for one in kind.ready}

    # Starts

    def find(self, tunnel: TunnelSpec) -> Prepared | None:
        """One that is ready, if any: it can be had by take() in the same turn of the event loop."""
        if not self._size:
            return None
        kind = self._note(tunnel)
        self._quiet_from = asyncio.get_running_loop().time() + QUIET
        self._changed.set()
        while kind.ready:
            if self._knows(kind.ready[0].id):
                return kind.ready[0]
            self.lose(kind.ready[0].id)
        return None

    def take(self, id_: str) -> None:
        """It belongs to its environment from now on; its namespace is watched as that."""
        self._out(id_)

    # What makes them useless

    def review(self) -> None:
        """Functions or ENIs have changed, or links were lost: those that nobody can have any more are given up."""
        self._outdated = True
        self._changed.set()

    def lose(self, id_: str) -> None:
        """Gives one up; nothing for one that is not ready."""
        if id_ in self._of:
            prepared = self._out(id_)
            self.watch.remove(("environment", id_))
            self._turns.then(id_, self._remove(prepared))
            self._changed.set()

    async def withdraw(self, eni: str) -> None:
        """Returns when none is on that ENI, which is to be removed."""
        for id_ in [id_ for id_, kind in self._of.items() if kind.tunnel.eni == eni]:
            self.lose(id_)
        await self._turns.settled(*self._turns)

    async def close(self) -> None:
        """Removes all."""
        if self._supplies:
            self._supplies.cancel()
            with suppress(asyncio.CancelledError):
                await self._supplies
        self._size = 0
        for id_ in self.ids():
            self.lose(id_)
        with suppress(TimeoutError):  # the engine hangs: the next daemon removes what is left
            async with asyncio.timeout(CLOSED_WITHIN):
                await self._turns.settled(*self._turns)
        await self._turns.close()

    # Supplies

    async def _supply(self) -> None:
        while True:
            self._look_again()
            if self._wanting() is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            await asyncio.sleep(PAUSE)
            self._look_again()
            kind = self._wanting()
            if kind is None or self._busy():
                continue
            if kind.ready and asyncio.get_running_loop().time() < self._quiet_from:
                continue
            if len(self) >= self._size:
                self.lose(self._spare().ready[0].id)
            id_ = self._control.environment_id()
            self._turns.then(id_, self._prepare(id_, kind))
            await self._turns.settled(id_)
            if self._failing:
                await asyncio.sleep(RETRY)

    async def _prepare(self, id_: str, kind: _Kind) -> None:
        self._failing = True
        try:
            dns = self._control.resolvers(kind.tunnel.eni)
            namespace = await self._turns.run(self._actuator.prepare, id_, kind.tunnel, dns)
        except HyperplaneError as error:
            log.warning("no namespace could be prepared", error=str(error))
            return
        self._failing = False
        self._look_again()
        prepared = Prepared(id=id_, namespace=namespace.name, internals=remembered(namespace) or {})
        wanted = self._size and self._kinds.get(kind.tunnel) is kind
        if wanted and self._control.resolvers(kind.tunnel.eni) == dns:
            with suppress(HyperplaneError):
                self.watch.add(("environment", id_), namespace)
                kind.ready.append(prepared)
                self._of[id_] = kind
                return
        await self._remove(prepared)

    async def _remove(self, prepared: Prepared) -> None:
        what = f"prepared tunnel {prepared.id}"
        closing = await self._turns.insist(what, self._actuator.detach, prepared.id, prepared.namespace)
        if closing:
            await asyncio.wrap_future(closing)

    def _look_again(self) -> None:
        """At what functions are, if that may have changed."""
        if not self._outdated:
            return
        self._outdated = False
        declared = self._control.tunnels()
        new = [tunnel for tunnel in declared if tunnel not in self._declared]
        self._declared = frozenset(declared)
        useless = {kind for kind in self._kinds.values() if not self._useful(kind.tunnel)}
        self._asked = deque(kind for kind in self._asked if kind not in useless)
        for id_, kind in tuple(self._of.items()):
            if kind in useless or not self._knows(id_):
                self.lose(id_)
        for kind in useless:
            self._kinds.pop(kind.tunnel, None)
        for tunnel in new:
            for _ in range(max(1, self._size // DECLARED)):
                self._note(tunnel)

    def _useful(self, tunnel: TunnelSpec) -> bool:
        """Whether a function could start an environment with it, whatever name of a device that asks for."""
        return replace(tunnel, device=DEFAULT_DEVICE) in self._declared

    def _note(self, tunnel: TunnelSpec) -> _Kind:
        kind = self._kinds.get(tunnel)
        if kind is None:
            kind = self._kinds[tunnel] = _Kind(tunnel)
        kind.asked += 1
        self._asked.append(kind)
        if len(self._asked) > self._size:
            oldest = self._asked.popleft()
            oldest.asked -= 1
            self._forget(oldest)
        return kind

    def _wanting(self) -> _Kind | None:
        """Of which one is to be made next. When all places are taken only where that is worth the removal of another:
        those that are asked for by turns shall not push each other out."""
        wanted = [(kind, share - len(kind.ready)) for kind, share in self._shares().items()]
        kind, short = max(wanted, key=lambda one: (one[1] > 0 and not one[0].ready, one[1]), default=(None, 0))
        if kind is None or short <= 0:
            return None
        if len(self) < self._size or not kind.ready or (short > 1 and self._excess(self._spare()) > 1):
            return kind
        return None

    def _shares(self) -> dict[_Kind, int]:
        """How many places each has; what is left over in dividing is the latest's."""
        if not self._asked:
            return {}
        shares = {kind: self._size * kind.asked // len(self._asked) for kind in self._kinds.values()}
        shares[self._asked[-1]] += self._size - sum(shares.values())
        return shares

    def _spare(self) -> _Kind:
        """Of which there are too many."""
        return max((kind for kind in self._kinds.values() if kind.ready), key=self._excess)

    def _excess(self, kind: _Kind) -> int:
        return len(kind.ready) - self._shares().get(kind, 0)

    def _out(self, id_: str) -> Prepared:
        kind = self._of.pop(id_)
        found = next(one for one in kind.ready if one.id == id_)
        kind.ready.remove(found)
        self._forget(kind)
        return found

    def _forget(self, kind: _Kind) -> None:
        """One that nobody has asked for lately, and of which none is left."""
        if not kind.asked and not kind.ready:
            self._kinds.pop(kind.tunnel, None)
