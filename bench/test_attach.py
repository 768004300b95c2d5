"""What attaching one more environment takes, at the first and at the thousandth, next to a veth pair by netlink.

Both have as many namespaces, made beforehand and named as `ip netns` names them. They are attached in turns: one by
`Attachments.attach()`, one by veth. The last environment must reach a server, or nothing was attached.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from dataclasses import dataclass, field
from typing import Final

import pytest
import uvloop

from bench.conftest import Effort, Recorder
from bench.figures import Bar, replay_clock
from bench.lab import NETNS, Lab, NamespaceThread, shell
from bench.rivals import ENI_ADDRESS, SERVER
from bench.veth import VethAttacher, outer_address
from hyperplane.attachment import Attachment, Attachments
from hyperplane.dataplane import Eni
from hyperplane.model import SecurityGroup

pytestmark = [pytest.mark.benchmark(timer=replay_clock), pytest.mark.timeout(600)]

RIVAL: Final = "veth by netlink"
STAGES: Final = (100, 1000, 3000)  # environments attached when a figure is taken
WINDOW: Final = 200  # attachments before that, at most, which it is taken of
GROUP: Final = 20  # attachments that one median is of: single ones differ by more than the rivals do
BARS: Final = (Bar("value", 1000.0, "lower"), Bar("ratio", 1.0, "lower"))
PORT: Final = 7002
PATIENCE: Final = 5.0


@dataclass
class Times:
    """Microseconds that each attachment took, in order."""

    ours: list[float] = field(default_factory=list)
    veth: list[float] = field(default_factory=list)
    attachments: list[Attachment] = field(default_factory=list)
    closing: float = 0.0


def test_attach(record: Recorder, lab: Lab, effort: Effort) -> None:
    times = uvloop.run(_attach_all(lab, effort.environments))
    for stage in STAGES:
        if stage > effort.environments:
            break
        window = slice(max(0, stage - WINDOW), stage)
        ours, veth = times.ours[window], times.veth[window]
        name = f"attach, {stage:,} there"
        timings = [one.timings for one in times.attachments[window]]
        parts = {
            part: statistics.median(getattr(one, part) for one in timings) * 1e6
            for part in ("wait", "device", "netlink", "engine")
        }
        details = {"parts_us": parts, "seconds_to_close_all": times.closing, "each_us": {"ours": ours, "theirs": veth}}
        record(f"{name}: p50", "us", "lower", RIVAL, _medians(ours), _medians(veth), bars=BARS, **details)
        record(f"{name}: p99", "us", "lower", RIVAL, [_p99(ours)], [_p99(veth)])


async def _attach_all(lab: Lab, count: int) -> Times:
    vpc, hub = lab.namespace("attach-vpc"), lab.namespace("attach-hub")
    shell("ip", "-n", vpc, "address", "add", f"{SERVER}/32", "dev", "lo")
    ours, veth = lab.namespaces("attach-tun", count), lab.namespaces("attach-veth", count)
    times = Times()
    everything = SecurityGroup.parse("everything", ["all"])
    with NamespaceThread(hub) as thread:
        attacher = thread.call(VethAttacher)
        async with Attachments() as attachments:
            eni = await attachments.open_eni(vpc=vpc, addresses=ENI_ADDRESS, security_groups=[everything])
            for number in range(count):
                for side in ("ours", "veth") if number % 2 == 0 else ("veth", "ours"):
                    if side == "ours":
                        await _attach_ours(attachments, eni, ours[number], times)
                    else:
                        await _attach_veth(thread, attacher, number, veth[number], times)
            for number in (0, count - 1):
                _reach(ours[number], vpc, SERVER)
                _reach(veth[number], hub, outer_address(number))
            assert not attachments.engine.counters().drops.get("security_group"), "the engine refused the echo"
            before = time.perf_counter()
        times.closing = time.perf_counter() - before
        thread.call(attacher.close)
    return times


async def _attach_ours(attachments: Attachments, eni: Eni, namespace: str, times: Times) -> None:
    before = time.perf_counter()
    attachment = await attachments.attach(eni, namespace=namespace)
    times.ours.append((time.perf_counter() - before) * 1e6)
    times.attachments.append(attachment)


async def _attach_veth(
    thread: NamespaceThread, attacher: VethAttacher, number: int, namespace: str, times: Times
) -> None:
    """Timed in its thread: handing it over is no part of it."""

    def attach() -> float:
        before = time.perf_counter()
        attacher.attach(number, NETNS / namespace)
        return (time.perf_counter() - before) * 1e6

    times.veth.append(await asyncio.get_running_loop().run_in_executor(thread, attach))


def _reach(environment: str, there: str, address: str) -> None:
    """Sends a datagram from an environment to an address and one back."""
    with (
        NamespaceThread(there) as server,
        NamespaceThread(environment) as client,
        server.call(_socket) as far,
        client.call(_socket) as near,
    ):
        far.bind((address, PORT))
        near.sendto(b"there", (address, PORT))
        data, source = far.recvfrom(64)
        assert data == b"there", f"{environment}: {data!r} arrived"
        far.sendto(b"back", source)
        assert near.recv(64) == b"back", f"{environment}: something else came back"


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(PATIENCE)
    return made


def _medians(values: list[float]) -> list[float]:
    return [statistics.median(values[first : first + GROUP]) for first in range(0, len(values), GROUP)]


def _p99(values: list[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]
