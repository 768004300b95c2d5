"""End to end: from an environment through the engine to a server, next to the same through others.

All of them stand ready all the time, and each load runs over one after the other (bench/contest.py): what else the
machine does at that time meets all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from operator import attrgetter
from typing import Final, TypeVar

import pytest

from bench import loads
from bench.conftest import EFFORT, Effort, Recorder
from bench.contest import Contest, Pairs
from bench.figures import Better, replay_clock
from bench.lab import Lab
from bench.rivals import Rival, bare_forwarder, hyperplane, kernel_nft
from bench.usermode import pasta, slirp4netns

pytestmark = [pytest.mark.benchmark(timer=replay_clock), pytest.mark.timeout(600)]

T = TypeVar("T")

FLOWS: Final = 64
TRAIN: Final = 32
MTUS: Final = (1500, 65520)  # of those in user mode; ours, the kernel's and the bare forwarder's devices have 1500

# Who meets whom: the kernel and the bare forwarder; those in user mode; the kernel again, by our engine on epoll, and
# by one that sleeps as soon as it is done, where waking is what costs.
MAIN, USER_MODE, EPOLL, SLEEPING = "main", "user mode", "epoll", "without spinning"
ALL: Final = (MAIN, USER_MODE, EPOLL) if EFFORT.extra else (MAIN,)
ENGINES: Final = tuple(one for one in ALL if one != USER_MODE)
WAITING: Final = (*ALL, SLEEPING) if EFFORT.extra else ALL


@pytest.fixture(scope="module")
def ours(lab: Lab) -> Iterator[Rival]:
    with hyperplane(lab, "io_uring") as made:
        yield made


@pytest.fixture(scope="module")
def kernel(lab: Lab) -> Iterator[Rival]:
    with kernel_nft(lab) as made:
        yield made


@pytest.fixture(scope="module")
def contest(request: pytest.FixtureRequest, lab: Lab, effort: Effort, ours: Rival, kernel: Rival) -> Iterator[Contest]:
    with ExitStack() as stack:
        if request.param == MAIN:
            yield Contest(lab, ours, (kernel, stack.enter_context(bare_forwarder(lab))), effort.rounds)
        elif request.param == USER_MODE:
            rivals = [stack.enter_context(start(lab, mtu)) for start in (pasta, slirp4netns) for mtu in MTUS]
            yield Contest(lab, ours, rivals, effort.fewer_rounds)
        elif request.param == SLEEPING:
            made = stack.enter_context(hyperplane(lab, "io_uring", spin=0))
            yield Contest(lab, made, (kernel,), effort.rounds, SLEEPING)
        else:
            made = stack.enter_context(hyperplane(lab, "epoll"))
            yield Contest(lab, made, (kernel,), effort.fewer_rounds, EPOLL)


class Scribe:
    """Records a figure for each rival of a contest."""

    def __init__(self, record: Recorder, contest: Contest) -> None:
        self._record = record
        self._how = contest.how
        self._engine = contest.ours.counted()["status"]

    def __call__(
        self, what: str, unit: str, better: Better, results: list[Pairs[T]], value: Callable[[T], float]
    ) -> None:
        """value: that of a load's result."""
        name = f"{what}, {self._how}" if self._how else what
        for pairs in results:
            ours, theirs = ([value(one) for one in side] for side in (pairs.ours, pairs.theirs))
            self._record(name, unit, better, pairs.rival.name, ours, theirs, engine=self._engine)


@pytest.fixture
def note(record: Recorder, contest: Contest) -> Scribe:
    return Scribe(record, contest)


def itself(value: float) -> float:
    return value


WAYS: Final = ("out", "back") if EFFORT.extra else ("out",)
both_ways: Final = pytest.mark.parametrize("back", [way == "back" for way in WAYS], ids=WAYS)


@both_ways
@pytest.mark.parametrize("contest", ALL, indirect=True)
def test_one_tcp_stream(contest: Contest, note: Scribe, effort: Effort, back: bool) -> None:
    seconds = (
        effort.tcp_seconds if len(contest.rivals) == 2 else 1
    )  # not all are near enough to each other to need more
    results = contest.run(lambda lab, rival: loads.tcp(lab, rival, seconds, back=back))
    what = "one TCP stream back" if back else "one TCP stream"
    note(what, "Gb/s", "higher", results, attrgetter("gbps"))
    note(f"{what}: CPU, all", "CPU s/GB", "lower", results, attrgetter("machine"))
    in_user_space = [pairs for pairs in results if pairs.rival.process is not None]
    note(f"{what}: CPU, data plane", "CPU s/GB", "lower", in_user_space, attrgetter("process"))


@pytest.mark.parametrize("segments", [1, TRAIN], ids=["plain", "trains"])
@pytest.mark.parametrize("contest", ENGINES, indirect=True)
def test_udp(contest: Contest, note: Scribe, effort: Effort, segments: int) -> None:
    """In trains: the sender cuts nothing (UDP_SEGMENT)."""
    results = contest.run(lambda lab, rival: loads.udp(lab, rival, effort.seconds, segments=segments))
    note("UDP 64 B" if segments == 1 else f"UDP 64 B in trains of {segments}", "Mpps", "higher", results, itself)


@pytest.mark.parametrize("contest", [MAIN], indirect=True)
def test_udp_mixed(contest: Contest, note: Scribe, effort: Effort) -> None:
    results = contest.run(lambda lab, rival: loads.udp(lab, rival, effort.seconds, flows=FLOWS))
    note(f"UDP 64 B, {FLOWS} flows mixed", "Mpps", "higher", results, itself)


# What a wake-up costs depends on what else runs, and changes within seconds: so latency takes many short turns.
@pytest.mark.parametrize("contest", WAITING, indirect=True)
def test_latency(contest: Contest, note: Scribe, effort: Effort) -> None:
    results = contest.run(lambda lab, rival: loads.question(lab, rival, effort.seconds / 2), times=2)
    for percentile in ("p50", "p99"):
        note(f"request/response {percentile}", "us", "lower", results, attrgetter(percentile))


@pytest.mark.parametrize("contest", WAITING, indirect=True)
def test_connections(contest: Contest, note: Scribe, effort: Effort) -> None:
    results = contest.run(lambda lab, rival: loads.connections(lab, rival, effort.seconds / 2), times=2)
    note("short connections", "conn/s", "higher", results, itself)


if EFFORT.extra:

    @both_ways
    @pytest.mark.parametrize("contest", [MAIN], indirect=True)
    def test_four_tcp_streams(contest: Contest, note: Scribe, effort: Effort, back: bool) -> None:
        results = contest.run(lambda lab, rival: loads.tcp(lab, rival, effort.tcp_seconds, streams=4, back=back))
        note("four TCP streams back" if back else "four TCP streams", "Gb/s", "higher", results, attrgetter("gbps"))

    @pytest.mark.parametrize(("segments", "flows"), [(1, 1), (TRAIN, 1), (1, FLOWS)], ids=["plain", "trains", "mixed"])
    @pytest.mark.parametrize("contest", [MAIN], indirect=True)
    def test_udp_large(contest: Contest, note: Scribe, effort: Effort, segments: int, flows: int) -> None:
        """As large as a device takes."""
        results = contest.run(
            lambda lab, rival: loads.udp(lab, rival, effort.seconds, size=1400, segments=segments, flows=flows)
        )
        how = f" in trains of {segments}" if segments > 1 else f", {flows} flows mixed" if flows > 1 else ""
        note(f"UDP 1400 B{how}", "Mpps", "higher", results, itself)

    @pytest.mark.parametrize("contest", [MAIN], indirect=True)
    def test_latency_beside_bulk(contest: Contest, note: Scribe, effort: Effort) -> None:
        """While another environment's TCP stream takes all it can get."""
        results = contest.run(lambda lab, rival: loads.question_beside_bulk(lab, rival, effort.seconds))
        for percentile in ("p50", "p99"):
            what = f"request/response {percentile} beside a bulk stream"
            note(what, "us", "lower", results, attrgetter(percentile))
        note("the bulk stream beside request/response", "Gb/s", "higher", results, attrgetter("bulk"))
