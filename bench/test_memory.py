"""Translation in memory: the packet path without devices, next to a bare table of the same flows."""

from __future__ import annotations

from typing import Final

import pytest

from bench.conftest import Effort, Recorder
from bench.figures import Bar, replay_clock
from hyperplane._native import ffi, lib

pytestmark = [pytest.mark.benchmark(timer=replay_clock), pytest.mark.timeout(600)]

PACKETS: Final = 1_000_000
BARS: Final = {65_536: (Bar("ratio", 3.0, "lower"),)}


def _ns(function: str, flows: int) -> float:
    error = ffi.new("hp_error *")
    ns: float = getattr(lib, function)(flows, PACKETS, 1, error)
    assert ns >= 0, f"{function} at {flows} flows: {ffi.string(error.text).decode()}"
    return ns


@pytest.mark.parametrize("flows", [1_024, 65_536, 1_048_576], ids=["1k", "64k", "1M"])
def test_translate(flows: int, record: Recorder, effort: Effort, request: pytest.FixtureRequest) -> None:
    """ns per packet, both directions mixed; huge pages when they can be had, for both."""
    translated: list[float] = []
    bare: list[float] = []
    for turn in range(effort.memory_rounds):
        runs = [(bare, "hp_bench_table"), (translated, "hp_bench_translate")]
        for values, function in runs if turn % 2 == 0 else reversed(runs):
            values.append(_ns(function, flows))
    name = f"in memory, {request.node.callspec.id} flows"
    bars = BARS.get(flows, ())
    record(name, "ns/packet", "lower", "bare table", translated, bare, bars=bars, flows=flows, packets=PACKETS)
