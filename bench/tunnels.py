"""A ladder of environments: thousands of tunnels and as many veth pairs, attached step by step.

Both sides have as many namespaces, made beforehand and named as `ip netns` names them. The outer ends of the veth pairs
are in one namespace, the hub, where one rule masquerades for all. Nothing else changes between two steps, so the ladder
is climbed once and every figure is taken on the way.

Ours come first in each step, then the rival's, and not one by one: two seconds after a veth pair was made the kernel
still is at work on its IPv6 addresses, under the lock that attaching needs (RTNL), and that would be counted as ours.
While a ladder is filled up the pairs come first, for the same reason.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, Self, TypeVar

import uvloop

from bench import namespaces
from bench.lab import NETNS, Lab, NamespaceThread, setns, shell
from bench.rivals import ENI_ADDRESS, SERVER
from bench.veth import MASQUERADE, IpAttacher, VethAttacher, outer_address
from hyperplane.attachment import Attachment, Attachments
from hyperplane.dataplane import Eni
from hyperplane.model import SecurityGroup

T = TypeVar("T")

OTHERS: Final = 2  # that come and go at a time, while one is measured
HOMES_OF_OTHERS: Final = 4  # namespaces that each of them goes through
BLOCK: Final = 10  # environments of one side that are measured beside others, before it is the rival's turn
PORT: Final = 7002
SECOND_ADDRESS: Final = "198.19.0.6"  # of an ENI beside the first
PATIENCE: Final = 5.0


@dataclass
class Pairs:
    """Microseconds that each one took: ours, the rival's."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)


@dataclass
class Step:
    """A way to attach, and to detach again: what each took."""

    attach: Pairs = field(default_factory=Pairs)
    kernel: Pairs = field(default_factory=Pairs)  # what of attaching was the kernel's
    detach: Pairs = field(default_factory=Pairs)


@dataclass(frozen=True)
class Memory:
    """Of the whole machine, and of this process alone, in bytes."""

    used: int
    resident: int

    @classmethod
    def now(cls) -> Memory:
        table = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        total, available = (int(table[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(total - available, pages * os.sysconf("SC_PAGE_SIZE"))


class Side(Protocol):
    """One way to attach environment `number`. Both return microseconds; kernel: of the last attach, the kernel's."""

    kernel: float

    async def attach(self, number: int) -> float: ...

    async def detach(self, number: int) -> float: ...


class Ours:
    """The clock runs as for the caller, the event loop and its threads included."""

    def __init__(self, attachments: Attachments, eni: Eni, homes: Sequence[str]) -> None:
        self._attachments = attachments
        self._eni = eni
        self._homes = homes
        self.attached: dict[int, Attachment] = {}
        self.kernel = 0.0

    async def attach(self, number: int) -> float:
        before = time.perf_counter()
        attachment = await self._attachments.attach(self._eni, namespace=self._homes[number])
        took = (time.perf_counter() - before) * 1e6
        self.attached[number] = attachment
        self.kernel = attachment.timings.kernel * 1e6
        return took

    async def detach(self, number: int) -> float:
        before = time.perf_counter()
        await self._attachments.detach(self.attached.pop(number))
        return (time.perf_counter() - before) * 1e6


class Veth:
    """In a thread of its own in the hub. The clock runs there: handing a job over is no part of it."""

    def __init__(self, hub: str, homes: Sequence[str], kind: Callable[[], VethAttacher | IpAttacher]) -> None:
        self._homes = homes
        self._thread = NamespaceThread(hub)
        self._attacher = self._thread.call(kind)
        self.kernel = 0.0

    async def attach(self, number: int) -> float:
        took = await self._timed(self._attacher.attach, number, NETNS / self._homes[number])
        self.kernel = self._attacher.kernel * 1e6
        return took

    async def detach(self, number: int) -> float:
        return await self._timed(self._attacher.detach, number)

    def close(self) -> None:
        self._thread.call(self._attacher.close)
        self._thread.shutdown()

    async def _timed(self, job: Callable[..., None], *arguments: Any) -> float:
        def timed() -> float:
            before = time.perf_counter()
            job(*arguments)
            return (time.perf_counter() - before) * 1e6

        return await asyncio.get_running_loop().run_in_executor(self._thread, timed)


class _Turn(NamedTuple):
    """One side's, with others of its kind that come and go; and where it is noted what attaching and detaching took."""

    side: Side
    others: Sequence[Side]
    attach: list[float]
    detach: list[float]


class Ladder:
    """A context manager; `top` environments of each side can be attached."""

    def __init__(self, lab: Lab, top: int) -> None:
        self.top = top
        self.there = 0
        self.each: dict[str, float] = {}  # bytes of memory that each environment took, by side
        self._others = range(top, top + OTHERS * HOMES_OF_OTHERS)
        self.vpc, self.hub = lab.namespace("tunnels-vpc"), lab.namespace("tunnels-hub")
        shell("ip", "-n", self.vpc, "address", "add", f"{SERVER}/32", "dev", "lo")
        shell("ip", "netns", "exec", self.hub, "nft", MASQUERADE)
        with ThreadPoolExecutor(2) as pool:
            many = partial(lab.namespaces, count=self._others.stop)
            self.homes, self.rivals = pool.map(many, ("tunnels-tun", "tunnels-veth"))
        self._runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)

    def __enter__(self) -> Self:
        self.run(self._open())
        return self

    def __exit__(self, *error: object) -> None:
        if self.attachments.enis:
            self.close()
        for side in (self.netlink, self.commands, *self._others_netlink):
            side.close()
        self._runner.close()
        namespaces.remove([*self.homes, *self.rivals], self.hub)

    def run(self, job: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(job)

    def close(self) -> float:
        """Ends all tunnels; returns the seconds until their devices were gone."""
        self.run(self._threaded.close())
        begun = time.perf_counter()
        self.run(self.attachments.close())
        return time.perf_counter() - begun

    def climb(self, number: int) -> None:
        """Attaches environments until so many are there on both sides, one side after the other."""

        async def fill(side: Side) -> None:
            for one in range(self.there, number):
                await side.attach(one)

        for name, side in (("veth", self.netlink), ("ours", self.ours)):
            before = Memory.now()
            self.run(fill(side))
            after = Memory.now()
            if number - self.there > self.top // 2:  # else what else the machine does weighs more
                self.each[name] = (after.used - before.used) / (number - self.there)
                self.each[f"{name}, this process"] = (after.resident - before.resident) / (number - self.there)
        self.there = number

    def step(self, rival: Side, count: int, detached: int) -> Step:
        """Attaches the next environments of both sides, and detaches the last ones of them again."""
        numbers = range(self.there, self.there + count)
        self.there += count - detached
        return self.run(self._step(self.ours, rival, numbers, detached))

    def step_in_threads(self, count: int) -> Step:
        """The same, by netlink, all detached again: ours never in the event loop's thread."""
        return self.run(self._step(self.in_threads, self.netlink, range(self.there, self.there + count), count))

    def step_beside_others(self, count: int) -> Step:
        """The same, by netlink, while others come and go: ours beside ours, veth pairs beside veth pairs."""
        return self.run(self._step_beside_others(range(self.there, self.there + count)))

    async def _open(self) -> None:
        self.attachments = await Attachments().__aenter__()
        everything = SecurityGroup.parse("everything", ["all"])
        eni = await self.attachments.open_eni(vpc=self.vpc, addresses=ENI_ADDRESS, security_groups=[everything])
        self.ours = Ours(self.attachments, eni, self.homes)
        self._threaded = await Attachments(self.attachments.engine, in_loop=False).__aenter__()
        other = await self._threaded.open_eni(vpc=self.vpc, addresses=SECOND_ADDRESS, name="eni1", device="eni1")
        self.in_threads = Ours(self._threaded, other, self.homes)
        self.netlink, self.commands = (Veth(self.hub, self.rivals, kind) for kind in (VethAttacher, IpAttacher))
        self._others_netlink = [Veth(self.hub, self.rivals, VethAttacher) for _ in range(OTHERS)]

    async def _step(self, mine: Side, rival: Side, numbers: Sequence[int], detached: int) -> Step:
        step = Step()
        ours = (mine, step.attach.ours, step.kernel.ours, step.detach.ours)
        theirs = (rival, step.attach.theirs, step.kernel.theirs, step.detach.theirs)
        for side, attach, kernel, detach in (ours, theirs):
            for number in numbers:
                attach.append(await side.attach(number))
                kernel.append(side.kernel)
            for number in numbers[len(numbers) - detached :]:
                detach.append(await side.detach(number))
        return step

    async def _step_beside_others(self, numbers: Sequence[int]) -> Step:
        step = Step()
        ours = _Turn(self.ours, [self.ours] * OTHERS, step.attach.ours, step.detach.ours)
        theirs = _Turn(self.netlink, self._others_netlink, step.attach.theirs, step.detach.theirs)
        for turn, first in enumerate(range(0, len(numbers), BLOCK)):
            for side, others, attach, detach in turns(turn, ours, theirs):
                async with self._coming_and_going(others):
                    for number in numbers[first : first + BLOCK]:
                        attach.append(await side.attach(number))
                        detach.append(await side.detach(number))
        return step

    @asynccontextmanager
    async def _coming_and_going(self, sides: Sequence[Side]) -> AsyncIterator[None]:
        over = False

        async def come_and_go(side: Side, numbers: Iterator[int]) -> None:
            while not over:
                number = next(numbers)
                await side.attach(number)
                await side.detach(number)

        async with asyncio.TaskGroup() as group:
            for place, side in enumerate(sides):
                group.create_task(come_and_go(side, cycle(self._others[place::OTHERS])))
            await asyncio.sleep(0)  # they have begun
            yield
            over = True

    def reach(self) -> int:
        """A datagram from every tunnel to the server, and one back; returns how many tunnels that were."""
        homes = [self.homes[number] for number in sorted(self.ours.attached)]
        exchange(homes, self.vpc, lambda _: SERVER)
        numbers = (0, self.there - 1)
        exchange([self.rivals[number] for number in numbers], self.hub, lambda place: outer_address(numbers[place]))
        return len(homes)


def turns(number: int, ours: T, theirs: T) -> tuple[T, T]:
    return (ours, theirs) if number % 2 == 0 else (theirs, ours)


def exchange(environments: Sequence[str], there: str, address: Callable[[int], str]) -> None:
    """Sends a datagram from each environment to an address, by its place, and one back."""
    with NamespaceThread(there) as server, NamespaceThread() as client, server.call(_socket) as far:
        far.bind(("", PORT))
        for place, environment in enumerate(environments):
            with client.call(_socket_in, environment) as near:
                near.sendto(b"there", (address(place), PORT))
                data, source = far.recvfrom(64)
                assert data == b"there", f"{environment}: {data!r} arrived"
                far.sendto(b"back", source)
                assert near.recv(64) == b"back", f"{environment}: something else came back"


def _socket_in(environment: str) -> socket.socket:
    fd = os.open(NETNS / environment, os.O_RDONLY | os.O_CLOEXEC)
    try:
        setns(fd)
    finally:
        os.close(fd)
    return _socket()


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    return made
