"""Two workers next to one: what share-nothing threads add, and what one environment's stream costs another."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter

import pytest

from bench import loads
from bench.conftest import EFFORT, Effort, Recorder
from bench.contest import Contest
from bench.figures import replay_clock
from bench.lab import Lab
from bench.rivals import hyperplane, kernel_nft
from bench.test_memory import tables, translated

pytestmark = [
    pytest.mark.benchmark(timer=replay_clock),
    pytest.mark.timeout(600),
    pytest.mark.skipif(not EFFORT.extra, reason="only with `make bench`"),
]

ONE = "one worker"


@pytest.fixture(scope="module")
def contest(lab: Lab, effort: Effort) -> Iterator[Contest]:
    with (
        hyperplane(lab, "io_uring", workers=2) as two,
        hyperplane(lab, "io_uring", workers=1) as one,
        kernel_nft(lab, "kernel-workers") as kernel,
    ):
        one.name = ONE
        yield Contest(lab, two, (one, kernel), effort.fewer_rounds)


def test_in_memory(record: Recorder, effort: Effort) -> None:
    """Two engines' tables, as two workers have them, on two threads at once."""
    at_once: list[float] = []
    alone: list[float] = []
    with tables(1 << 16) as first, tables(1 << 16) as second, ThreadPoolExecutor(2) as threads:
        for _ in range(effort.memory_rounds):
            alone.append(translated(first))
            at_once.append(max(threads.map(translated, (first, second))) / 2)
    record("in memory, 64k flows each, two threads", "ns/packet", "lower", "one thread", at_once, alone)


def test_two_streams(contest: Contest, record: Recorder, effort: Effort) -> None:
    """Two environments send a TCP stream each, at the same time."""
    for pairs in contest.run(lambda lab, rival: loads.two_streams(lab, rival, effort.tcp_seconds)):
        what = "two environments' TCP streams, two workers"
        record(what, "Gb/s", "higher", pairs.rival.name, pairs.ours, pairs.theirs)


def test_latency_beside_bulk(contest: Contest, record: Recorder, effort: Effort) -> None:
    """While another environment, which is another worker's, sends a TCP stream."""
    for pairs in contest.run(lambda lab, rival: loads.question_beside_bulk(lab, rival, effort.seconds)):
        for percentile in ("p50", "p99"):
            ours, theirs = (list(map(attrgetter(percentile), side)) for side in (pairs.ours, pairs.theirs))
            what = f"request/response {percentile} beside a bulk stream, two workers"
            record(what, "us", "lower", pairs.rival.name, ours, theirs)
