"""When ENIs and environments are looked at again, so that what others break is put right within a second.

| looked at | when |
|---|---|
| an ENI | after a notification of its namespace, and every half second: proxy neighbours change without one |
| an environment | in turn with all others, twice a second at most, at a fiftieth of a processor |

What is broken again each time that it was put right (two programs that disagree) is put right ever more seldom.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from hyperplane.errors import HyperplaneError
from hyperplane.linux.namespaces import Key, Namespace, NamespaceThreads
from hyperplane.linux.netwatch import NetworkWatch
from hyperplane.linux.repair import Report

Token = Hashable

DEBOUNCE: Final = 0.05  # seconds from a notification until its namespace is looked at: changes come in bunches
INTERVAL: Final = 0.5  # seconds between two looks at an ENI without a notification
IDLE: Final = 20  # times what looks at all ENIs take is the time until the next: a twentieth of a processor at most
BREATH: Final = 4  # times what looks take is the time until the next: a fifth of a processor at most, whatever happens
COST: Final = 0.005  # seconds of a processor that a look takes at most: what is longer was waiting, for ARP say
SWEEP: Final = 0.5  # seconds that a look at all environments takes at least
SWEEP_IDLE: Final = 50  # times what looks at environments take
CHUNK: Final = 8  # environments looked at in one go
# A fight: the same thing had to be put right so often, each time less than AGAIN seconds after the last.
FIGHT, AGAIN = 5, 1.0
LONGEST: Final = 30.0  # seconds that a thing others insist on is left alone


@dataclass(slots=True)
class _Item:
    """A thing that was put right: how often in a row, when last, and for how long it is left alone then."""

    times: int = 0
    last: float = float("-inf")
    pause: float = 0.0

    def over(self, now: float) -> bool:
        """Whether it has stayed right since."""
        return now - self.last > AGAIN + self.pause


@dataclass(slots=True)
class _Kept:
    """key: of its namespace; None for an environment. not_before: a look waits until then. dirty: it is to be looked
    at; changed: since there was a notification."""

    key: Key | None
    troubles: tuple[str, ...] = ()
    not_before: float = 0.0
    dirty: bool = True
    changed: bool = True
    again: float = float("inf")
    items: dict[str, _Item] = field(default_factory=dict)


class Keeper(Protocol):
    """What knows how ENIs and environments must be, for Upkeep."""

    async def look(self, token: Token, *, thorough: bool) -> Report:
        """Looks at one and puts right what is not. thorough: not only at what changes without a notification. Raises
        HyperplaneError."""

    async def sweep(self, tokens: list[Token]) -> list[Token]:
        """Those of these environments that need look()."""

    def troubled(self, token: Token, troubles: tuple[str, ...]) -> None:
        """Told when they change: what is wrong and cannot be put right; none when all is right again."""

    def disputed(self, token: Token, what: str, pause: float) -> None:
        """Told once: somebody breaks that again and again; it is left alone for pause seconds each time."""


class Upkeep:
    """Belongs to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, threads: NamespaceThreads, keeper: Keeper) -> None:
        self._loop = loop
        self._keeper = keeper
        self._network = NetworkWatch(loop, threads, self._changed)
        self._enis: dict[Token, _Kept] = {}
        self._environments: dict[Token, _Kept] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self.repairs = 0  # things that were put right
        self._start(self._keep_enis())
        self._start(self._keep_environments())

    def add_eni(self, token: Token, namespace: Namespace) -> asyncio.Task[None]:
        """Looks at it soon, and from then on. namespace: the VPC's; it may be closed. What is returned is done when
        notifications are heard."""
        self._enis[token] = _Kept(namespace.key)
        self._wake.set()
        return self._start(self._listen(namespace))

    def add_environment(self, token: Token) -> None:
        self._environments[token] = _Kept(None)

    def remove(self, token: Token) -> None:
        """Nothing for one that is not kept."""
        self._environments.pop(token, None)
        kept = self._enis.pop(token, None)
        if kept and kept.key:
            self._unlisten(kept.key)

    @property
    def troubles(self) -> list[str]:
        """What of ENIs is wrong and cannot be put right, or is broken by others again and again. Nothing of
        environments: what runs in one shall not make the whole look ill."""
        now = self._loop.time()
        found: list[str] = []
        for token, kept in self._enis.items():
            found += kept.troubles
            for what, item in kept.items.items():
                if item.pause and not item.over(now):
                    text = f"somebody else changes {what} again and again"
                    found.append(f"{name_of(token)}: {text}; it is put right every {item.pause:.0f} s")
        return found

    async def close(self) -> None:
        self._network.close()
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ENIs

    def _changed(self, key: Key) -> None:
        for kept in self._enis.values():
            if kept.key == key:
                kept.dirty = kept.changed = True
        self._wake.set()

    async def _listen(self, namespace: Namespace) -> None:
        with suppress(HyperplaneError, OSError):  # without it there is a look every half second
            await self._network.add(namespace.key, namespace.path or namespace.name)
        self._unlisten(namespace.key)
        self._changed(namespace.key)

    def _unlisten(self, key: Key) -> None:
        """When no ENI is left in that namespace."""
        if all(kept.key != key for kept in self._enis.values()):
            self._network.remove(key)

    async def _keep_enis(self) -> None:
        next_all = 0.0
        while True:
            while not self._enis:
                self._wake.clear()
                await self._wake.wait()
            begun = self._loop.time()
            every = begun >= next_all
            for kept in self._enis.values() if every else ():
                kept.dirty = True
            due = [(token, kept) for token, kept in self._enis.items() if _due(kept, begun)]
            await asyncio.gather(*(self._look_at(token, kept) for token, kept in due))
            over = self._loop.time()
            cost = min(over - begun, COST * len(due))
            if every:
                next_all = over + max(INTERVAL, IDLE * cost)
            await asyncio.sleep(BREATH * cost)  # notifications may come without an end
            self._wake.clear()
            if any(kept.dirty and kept.not_before <= self._loop.time() for kept in self._enis.values()):
                continue  # they came meanwhile
            with suppress(TimeoutError):
                async with asyncio.timeout(self._until_next(next_all)):
                    await self._wake.wait()
                    await asyncio.sleep(DEBOUNCE)

    def _until_next(self, next_all: float) -> float:
        times = [next_all]
        for kept in self._enis.values():
            times.append(kept.again)
            if kept.dirty:
                times.append(kept.not_before)
        return max(min(times) - self._loop.time(), DEBOUNCE)

    async def _look_at(self, token: Token, kept: _Kept) -> None:
        thorough = kept.changed or kept.key not in self._network
        kept.dirty, kept.changed, kept.again = False, False, float("inf")
        try:
            report = await self._keeper.look(token, thorough=thorough)
        except HyperplaneError as error:
            report = Report(troubles=(str(error),))
        self._take(token, kept, report)

    # Environments

    async def _keep_environments(self) -> None:
        while True:
            begun = self._loop.time()
            tokens = list(self._environments)
            for place in range(0, len(tokens), CHUNK):
                now = self._loop.time()
                kept = [(one, self._environments.get(one)) for one in tokens[place : place + CHUNK]]
                chunk = [token for token, one in kept if one and one.not_before <= now]
                wrong = await self._keeper.sweep(chunk)
                for token in chunk:
                    if one := self._environments.get(token):
                        if token in wrong:
                            await self._look_at(token, one)
                        else:
                            self._take(token, one, Report())
                await asyncio.sleep(SWEEP_IDLE * min(self._loop.time() - now, COST * len(kept)))
            await asyncio.sleep(max(SWEEP - (self._loop.time() - begun), DEBOUNCE))

    # What came of a look

    def _take(self, token: Token, kept: _Kept, report: Report) -> None:
        now = self._loop.time()
        self.repairs += len(report.differences)
        if kept.troubles != report.troubles:
            kept.troubles = report.troubles
            self._keeper.troubled(token, kept.troubles)
        if report.again is not None:
            kept.again = now + report.again
        kept.items = {what: item for what, item in kept.items.items() if not item.over(now)}
        for difference in report.differences:
            item = kept.items.setdefault(difference.what, _Item())
            item.times, item.last = item.times + 1, now
            if item.times >= FIGHT:
                item.pause = min(2.0 ** (item.times - FIGHT), LONGEST)
                kept.not_before = max(kept.not_before, now + item.pause)
            if item.times == FIGHT:
                self._keeper.disputed(token, difference.what, item.pause)

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _due(kept: _Kept, now: float) -> bool:
    return (kept.dirty and kept.not_before <= now) or kept.again <= now


def name_of(token: Token) -> str:
    """A resource's kind and id."""
    return " ".join(map(str, token)) if isinstance(token, tuple) else str(token)
