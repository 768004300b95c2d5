"""What starting one more environment takes through the daemon's API: at the first, the thousandth and the
five-thousandth; a thousand at once; and one from the pool of prepared namespaces.

The daemon says of every start where its time went: in the kernel (namespace, device, routes), waiting for the engine,
waiting for a thread, and its own work, which is what must not grow with the number of environments.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Final

import pytest
import uvloop

from bench.conftest import Recorder
from bench.daemon import Daemon
from bench.figures import Bar, replay_clock
from bench.lab import NETNS, Lab, NamespaceThread, shell
from bench.rivals import SERVER
from bench.veth import VethAttacher
from hyperplane.client import Client
from hyperplane.codec import convert
from hyperplane.resources import Document, Environment, EnvironmentSpec, Timings

pytestmark = [pytest.mark.benchmark(timer=replay_clock), pytest.mark.timeout(600)]

STAGES: Final = (1, 1000, 5000)  # environments that are there when a figure's last one is started
WINDOW: Final = 100  # starts that a figure is taken of
AT_ONCE: Final = 1000
FILLING: Final = 8  # starts under way while the numbers are filled up
POOL: Final = 64
FUNCTION: Final = "bench"
OWN: Final = (Bar("value", 1000.0, "lower"), Bar("ratio", 1.5, "lower"))
USABLE: Final = (Bar("value", 100.0, "lower"),)
RIVAL: Final = "veth by netlink"


@pytest.fixture(scope="module")
def vpc(lab: Lab) -> str:
    name = lab.namespace("api-vpc")
    shell("ip", "-n", name, "address", "add", f"{SERVER}/32", "dev", "lo")
    return name


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon("--pool", str(POOL), "--max-flows", "65536") as made:
        yield made


async def declare(client: Client, vpc: str) -> None:
    document = {
        "vpc": [{"name": "customer", "namespace": vpc}],
        "subnet": [{"name": "private", "vpc": "customer", "cidr": "198.19.0.0/24", "reserved": [f"{SERVER}/32"]}],
        "security_group": [{"name": "all", "vpc": "customer", "rules": ["all"]}],
        "function": [{"name": FUNCTION, "subnets": ["private"], "security_groups": ["all"]}],
    }
    await client.apply(convert(document, Document))


def test_starts_at_the_first_and_at_the_last(record: Recorder, lab: Lab, daemon: Daemon, vpc: str) -> None:
    namespaces = lab.namespaces("api", STAGES[-1] + WINDOW)
    hub, rivals = lab.namespace("api-hub"), lab.namespaces("api-veth", len(STAGES) * WINDOW)
    windows: list[tuple[list[float], list[Timings]]] = []
    veth: list[list[float]] = []

    async def measure() -> None:
        async with Client(path=daemon.socket) as client:
            await declare(client, vpc)
            there = 0
            for stage in STAGES:
                first = max(0, stage - WINDOW)
                await fill(client, namespaces[there:first])
                windows.append(await starts(client, namespaces[first : first + WINDOW]))
                there = first + WINDOW
                veth.append(await asyncio.to_thread(attach_all, rivals[len(veth) * WINDOW :][:WINDOW], len(veth)))

    with NamespaceThread(hub) as thread:
        attacher = thread.call(VethAttacher)

        def attach_all(some: Sequence[str], round_: int) -> list[float]:
            return [
                thread.call(timed, attacher, round_ * WINDOW + number, namespace)
                for number, namespace in enumerate(some)
            ]

        try:
            uvloop.run(measure())
        finally:
            thread.call(attacher.close)
    own = [[one.daemon * 1e6 for one in timings] for _, timings in windows]
    for stage, (seen, timings), there, mine in zip(STAGES, windows, veth, own, strict=True):
        parts = {
            part: statistics.median(getattr(one, part) for one in timings) * 1e6
            for part in ("total", "kernel", "engine", "wait", "daemon")
        }
        name = f"start by API, {stage:,} there"
        record(f"{name}: p50", "us", "lower", RIVAL, *medians(seen, there), parts_us=parts)
        record(f"{name}: p99", "us", "lower", RIVAL, [p99(seen)], [p99(there)])
        record(f"{name}: kernel's p50", "us", "lower", RIVAL, *medians([one.kernel * 1e6 for one in timings], there))
        record(f"{name}: daemon's own p50", "us", "lower", "at the first", *medians(mine, own[0]), bars=OWN)


def test_a_thousand_at_once(record: Recorder, lab: Lab, daemon: Daemon, vpc: str) -> None:
    namespaces = lab.namespaces("once", AT_ONCE)
    hub, rivals = lab.namespace("once-hub"), lab.namespaces("once-veth", AT_ONCE)

    async def all_at_once() -> tuple[float, list[float]]:
        async with Client(path=daemon.socket) as client:
            await declare(client, vpc)
            begin = time.perf_counter()

            async def one(namespace: str) -> float:
                environment = await start(client, namespace)
                assert environment.state == "attached"
                return time.perf_counter() - begin

            took = await asyncio.gather(*map(one, namespaces))
            return time.perf_counter() - begin, took

    seconds, took = uvloop.run(all_at_once())
    with NamespaceThread(hub) as thread:
        attacher = thread.call(VethAttacher)
        begin = time.perf_counter()
        for number, namespace in enumerate(rivals):
            thread.call(timed, attacher, number, namespace)
        rival = time.perf_counter() - begin
        thread.call(attacher.close)
    ordered = sorted(took)
    record(
        f"{AT_ONCE:,} parallel starts", "us", "lower", f"{RIVAL}, one after the other", [seconds / AT_ONCE * 1e6],
        [rival / AT_ONCE * 1e6], seconds=seconds, first=ordered[0], median=ordered[AT_ONCE // 2], last=ordered[-1],
    )  # fmt: skip


def test_from_the_pool(record: Recorder, daemon: Daemon, vpc: str) -> None:
    """Fresh environments that are ready, next to those of a daemon that must make them."""

    async def measure(asked: Daemon, pool: int) -> tuple[list[float], list[Timings]]:
        async with Client(path=asked.socket) as client:
            await declare(client, vpc)
            await filled(client, pool)
            found = await starts(client, [""] * (POOL // 2))
            async for one in client.environments():  # their namespaces outlive the daemon
                await client.end_environment(one.id)
            return found

    seen, pooled = uvloop.run(measure(daemon, POOL))
    with Daemon("--max-flows", "65536") as other:
        theirs_seen, made = uvloop.run(measure(other, 0))
    assert all(one.kernel == one.engine == 0 for one in pooled)
    for name, part, bars in (("device and routes", kernel, ()), ("until it can be used", usable, USABLE)):
        ours, theirs = [part(one) for one in pooled], [part(one) for one in made]
        record(
            f"fresh environment from the pool: {name}", "us", "lower", "a namespace that is made",
            [statistics.median(ours)], [statistics.median(theirs)], bars=bars, p99_us=p99(ours),
            total_us=[statistics.median(one.total for one in some) * 1e6 for some in (pooled, made)],
            by_api_us=[statistics.median(seen), statistics.median(theirs_seen)],
        )  # fmt: skip


def kernel(one: Timings) -> float:
    return max(one.kernel * 1e6, 0.1)  # nothing is left to do when it was prepared: a figure must not be 0


def usable(one: Timings) -> float:
    """From when the daemon has decided until device, routes and engine are the environment's, and that is stored."""
    return (one.total - one.decided) * 1e6


async def filled(client: Client, size: int) -> None:
    for _ in range(1000):
        if (await client.status()).pool >= size:
            return
        await asyncio.sleep(0.02)
    raise AssertionError("the pool does not fill up")


def timed(attacher: VethAttacher, number: int, namespace: str) -> float:
    """Microseconds that one veth pair takes, in its thread."""
    begin = time.perf_counter()
    attacher.attach(number, NETNS / namespace)
    return (time.perf_counter() - begin) * 1e6


async def fill(client: Client, namespaces: Sequence[str]) -> None:
    some = asyncio.Semaphore(FILLING)

    async def one(namespace: str) -> None:
        async with some:
            await start(client, namespace)

    await asyncio.gather(*map(one, namespaces))


async def starts(client: Client, namespaces: Sequence[str]) -> tuple[list[float], list[Timings]]:
    """One after the other: microseconds as the client saw them, and what the daemon says."""
    seen, said = [], []
    for namespace in namespaces:
        begin = time.perf_counter()
        environment = await start(client, namespace)
        seen.append((time.perf_counter() - begin) * 1e6)
        said.append(timings(environment))
    return seen, said


async def start(client: Client, namespace: str, device: str = "eth0") -> Environment:
    return await client.start_environment(EnvironmentSpec(function=FUNCTION, namespace=namespace, device=device))


def timings(environment: Environment) -> Timings:
    assert environment.timings is not None
    return environment.timings


def medians(ours: Sequence[float], theirs: Sequence[float], group: int = 20) -> tuple[list[float], list[float]]:
    """Of groups: single starts differ by more than the rivals do."""
    both = tuple(
        [statistics.median(values[first : first + group]) for first in range(0, len(values), group)]
        for values in (ours, theirs)
    )
    return both[0], both[1]


def p99(values: Sequence[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]
