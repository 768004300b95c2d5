"""Tunnels by the thousand: what attaching and detaching one more takes, next to veth pairs by netlink and by `ip`; what
an idle one costs; what one can do beside all the others, next to one that is alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import partial
from operator import attrgetter
from typing import Final

import pytest

from bench import loads, namespaces
from bench.conftest import EFFORT, Effort, Recorder
from bench.contest import in_turns
from bench.figures import Bar, replay_clock
from bench.lab import Lab, shell
from bench.rivals import ENI_ADDRESS, HARMLESS_DROPS, LATENCY_PORT, SERVER, SERVERS_LIVE, Rival
from bench.tunnels import Ladder, Pairs
from hyperplane.attachment import Attachment, Attachments
from hyperplane.dataplane import Engine
from hyperplane.model import SecurityGroup

pytestmark = [pytest.mark.benchmark(timer=replay_clock), pytest.mark.timeout(600)]

STAGES: Final = tuple(one for one in (1, 1000, 10_000) if one <= EFFORT.environments)
QUICK: Final = EFFORT.name == "quick"

WINDOW: Final = 100  # environments that a figure is taken of: the last ones of a stage
DETACHED: Final = 10 if QUICK else 40  # of these, detached again
BY_IP: Final = 10 if QUICK else 20  # next to `ip`: each of its commands takes as long as all of ours
BESIDE: Final = 10 if QUICK else 40  # beside others that come and go
ROUNDS: Final = 2 if QUICK else 3  # of each load
GROUP: Final = 20  # environments that one median is of: single ones differ by more than the rivals do
NETLINK, BY_COMMANDS = "veth by netlink", "veth by ip"
# Of what bench/goals.py does not name: the kernel's part, and fewer idle tunnels.
FASTER: Final = (Bar("ratio", 0.5, "lower", 0.2),)
UNDISTURBED: Final = (Bar("ratio", 0.95, "higher", 1.0),)


@pytest.fixture(scope="module")
def ladder(lab: Lab) -> Iterator[Ladder]:
    with Ladder(lab, EFFORT.environments) as made:
        yield made


@pytest.fixture(scope="module")
def firsts(ladder: Ladder) -> list[float]:
    """Microseconds that attaching each of the first took."""
    return []


@pytest.mark.parametrize("stage", STAGES)
def test_attach_and_detach(ladder: Ladder, record: Recorder, firsts: list[float], stage: int) -> None:
    ladder.climb(max(0, stage - WINDOW))
    step = ladder.step(ladder.netlink, WINDOW, DETACHED)
    firsts[:] = firsts or step.attach.ours
    in_threads = ladder.step_in_threads(DETACHED)
    commands = ladder.step(ladder.commands, BY_IP, BY_IP)
    beside = ladder.step_beside_others(BESIDE)
    faster = FASTER if stage > 1 else ()
    name = f"{{}}, {stage:,} there"
    percentiles(record, name.format("attach"), NETLINK, step.attach)
    percentiles(record, name.format("attach in a thread"), NETLINK, in_threads.attach)
    kernel = medians(step.kernel.ours), medians(step.kernel.theirs)
    record(name.format("attach: the kernel's part, p50"), "us", "lower", NETLINK, *kernel, bars=faster)
    if stage > 1:
        ours, first = medians(step.attach.ours), medians(firsts)
        record(f"attach p50, {stage:,} there", "us", "lower", "at the first", ours, first)
    percentiles(record, name.format("attach while others come and go"), NETLINK, beside.attach)
    percentiles(record, name.format("attach"), BY_COMMANDS, commands.attach)
    percentiles(record, name.format("detach"), NETLINK, step.detach)
    percentiles(record, name.format("detach while others come and go"), NETLINK, beside.detach)
    percentiles(record, name.format("detach"), BY_COMMANDS, commands.detach)
    if stage == STAGES[-1]:
        each = {kind: value / 1024 for kind, value in ladder.each.items()}
        record("memory of an idle tunnel", "KiB", "lower", NETLINK, [each["ours"]], [each["veth"]], each_kib=each)


def test_one_beside_all(ladder: Ladder, record: Recorder, lab: Lab, effort: Effort) -> None:
    """Ours alone and ours beside all, two engines in this process, in turns."""
    ladder.climb(ladder.top)
    assert len(ladder.attachments.attachments()) == ladder.top
    assert ladder.reach() == ladder.top
    alone = Alone(lab)
    ladder.run(alone.open(Attachments()))
    crowd = Rival(f"beside {ladder.top:,} idle", ladder.homes[0], ladder.vpc)
    for rival in (crowd, alone.rival):
        serve(lab, rival)
    try:
        for name, unit, load in (
            ("one TCP stream", "Gb/s", lambda rival: loads.tcp(lab, rival, effort.tcp_seconds).gbps),
            ("UDP 64 B", "Mpps", lambda rival: loads.udp(lab, rival, effort.seconds)),
        ):
            ours, theirs = in_turns(ROUNDS, partial(load, crowd), partial(load, alone.rival))
            record(
                f"{name} beside {ladder.top:,} idle tunnels", unit, "higher", "alone", ours, theirs, bars=UNDISTURBED
            )
        if effort.extra:
            ask = partial(loads.question, lab, seconds=effort.seconds)
            asked = in_turns(ROUNDS, partial(ask, crowd), partial(ask, alone.rival))
            for percentile in ("p50", "p99"):
                here, there = (list(map(attrgetter(percentile), side)) for side in asked)
                name = f"request/response {percentile} beside {ladder.top:,} idle tunnels"
                record(name, "us", "lower", "alone", here, there)
        for engine in (ladder.attachments.engine, alone.attachments.engine):
            check(engine)
    finally:
        ladder.run(alone.attachments.close())


def test_all_go_away(ladder: Ladder, record: Recorder) -> None:
    """What each takes when all end at once, next to one that ends."""
    count = len(ladder.attachments.attachments())
    assert count, "nothing is attached"
    one = statistics.median([ladder.run(ladder.ours.detach(number)) for number in range(5)])
    seconds = ladder.close()
    assert not namespaces.having(ladder.homes, "eth0"), "devices are left"
    each = seconds / (count - 5) * 1e6
    record(f"{count:,} end at once, each", "us", "lower", "one that ends alone", [each], [one], seconds=seconds)


class Alone:
    """An engine with one tunnel and nothing else."""

    def __init__(self, lab: Lab) -> None:
        client, server = (lab.namespace(f"alone-{role}") for role in ("client", "server"))
        shell("ip", "-n", server, "address", "add", f"{SERVER}/32", "dev", "lo")
        self.rival = Rival("alone", client, server)

    async def open(self, attachments: Attachments) -> Attachment:
        self.attachments = await attachments.__aenter__()
        everything = SecurityGroup.parse("everything", ["all"])
        eni = await attachments.open_eni(vpc=self.rival.server, addresses=ENI_ADDRESS, security_groups=[everything])
        return await attachments.attach(eni, namespace=self.rival.client)


def serve(lab: Lab, rival: Rival) -> None:
    lab.start(rival.server, lab.tool("tcp_latency"), "serve", SERVER, str(LATENCY_PORT), str(SERVERS_LIVE))


def check(engine: Engine) -> None:
    bad = {reason: count for reason, count in engine.counters().drops.items() if reason not in HARMLESS_DROPS}
    assert not bad, f"packets were dropped: {bad}: the measurement is void"


def percentiles(record: Recorder, name: str, rival: str, took: Pairs) -> None:
    each = {"ours": took.ours, "theirs": took.theirs}
    record(f"{name}: p50", "us", "lower", rival, medians(took.ours), medians(took.theirs), each_us=each)
    record(f"{name}: p99", "us", "lower", rival, [p99(took.ours)], [p99(took.theirs)])


def medians(values: Sequence[float]) -> list[float]:
    return [statistics.median(values[first : first + GROUP]) for first in range(0, len(values), GROUP)]


def p99(values: Sequence[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]
