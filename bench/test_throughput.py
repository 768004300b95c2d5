"""End to end: from an environment through the engine to a server, next to the kernel's NAT over veth.

Both ways stand ready all the time, and each load runs over one and then over the other, in an order that changes: what
else the machine does at that time meets both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import pytest

from bench import loads
from bench.conftest import EFFORT, Effort, Recorder
from bench.figures import Bar, replay_clock
from bench.lab import Lab
from bench.rivals import Rival, hyperplane, kernel_nft

pytestmark = [pytest.mark.benchmark(timer=replay_clock), pytest.mark.timeout(600)]

T = TypeVar("T")

TCP_BAR: Final = Bar("ratio", 0.6, "higher")
UDP_BAR: Final = Bar("ratio", 1.0, "higher")


@dataclass(frozen=True)
class Contest:
    lab: Lab
    ours: Rival
    kernel: Rival
    rounds: int

    def run(self, load: Callable[[Lab, Rival], T]) -> tuple[list[T], list[T]]:
        """What a load returned over us and over the kernel, in pairs."""
        ours: list[T] = []
        theirs: list[T] = []
        for turn in range(self.rounds):
            sides = [(ours, self.ours), (theirs, self.kernel)]
            for values, rival in sides if turn % 2 == 0 else reversed(sides):
                values.append(load(self.lab, rival))
        return ours, theirs


@pytest.fixture(scope="module")
def kernel(lab: Lab) -> Rival:
    return kernel_nft(lab)


@pytest.fixture(scope="module", params=EFFORT.io_engines)
def contest(request: pytest.FixtureRequest, lab: Lab, kernel: Rival, effort: Effort) -> Iterator[Contest]:
    with hyperplane(lab, request.param) as ours:
        yield Contest(lab, ours, kernel, effort.rounds)


def _record(record: Recorder, contest: Contest, what: str, *arguments: Any, **more: Any) -> None:
    engine = contest.ours.counted()["status"]
    name = f"{what}, {engine['io']}"
    unit, better, ours, theirs = arguments
    record(name, unit, better, contest.kernel.name, ours, theirs, engine=engine, **more)


@pytest.mark.parametrize("back", [False, True], ids=["out", "back"])
def test_one_tcp_stream(contest: Contest, record: Recorder, effort: Effort, back: bool) -> None:
    ours, theirs = contest.run(lambda lab, rival: loads.tcp(lab, rival, effort.tcp_seconds, back=back))
    what = "one TCP stream back" if back else "one TCP stream"
    _record(record, contest, what, "Gb/s", "higher", ours, theirs, bars=(TCP_BAR,))


def test_udp(contest: Contest, record: Recorder, effort: Effort) -> None:
    ours, theirs = contest.run(lambda lab, rival: loads.udp(lab, rival, effort.seconds))
    _record(record, contest, "UDP 64 B", "Mpps", "higher", ours, theirs, bars=(UDP_BAR,))


def test_latency(contest: Contest, record: Recorder, effort: Effort) -> None:
    ours, theirs = contest.run(lambda lab, rival: loads.question(lab, rival, effort.seconds))
    for percentile in ("p50", "p99"):
        pairs = [[one[f"{percentile}_us"] for one in side] for side in (ours, theirs)]
        _record(record, contest, f"request/response {percentile}", "us", "lower", *pairs)


def test_connections(contest: Contest, record: Recorder, effort: Effort) -> None:
    ours, theirs = contest.run(lambda lab, rival: loads.connections(lab, rival, effort.seconds))
    _record(record, contest, "short connections", "conn/s", "higher", ours, theirs)


if EFFORT.extra:

    def test_four_tcp_streams(contest: Contest, record: Recorder, effort: Effort) -> None:
        ours, theirs = contest.run(lambda lab, rival: loads.tcp(lab, rival, effort.tcp_seconds, streams=4))
        _record(record, contest, "four TCP streams", "Gb/s", "higher", ours, theirs)

    def test_udp_trains(contest: Contest, record: Recorder, effort: Effort) -> None:
        """The sender cuts nothing: trains of 32 datagrams (UDP_SEGMENT)."""
        ours, theirs = contest.run(lambda lab, rival: loads.udp(lab, rival, effort.seconds, segments=32))
        _record(record, contest, "UDP 64 B in trains of 32", "Mpps", "higher", ours, theirs)
