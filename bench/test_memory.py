"""Translation in memory: the packet path without devices, next to a bare table of the same flows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from bench.conftest import Effort, Recorder
from bench.figures import Bar, replay_clock
from hyperplane._native import ffi, lib

pytestmark = [pytest.mark.benchmark(timer=replay_clock), pytest.mark.timeout(600)]

PACKETS: Final = 1_000_000
SIZES: Final = {"256": 256, "1k": 1 << 10, "64k": 1 << 16, "1M": 1 << 20, "16M": (1 << 24) - 1}
TRAFFIC: Final = {"udp": lib.HP_BENCH_UDP, "tcp": lib.HP_BENCH_TCP}
BARS: Final = {"64k": (1.6, 1.2), "1M": (1.5, 1.15), "16M": (1.4, 1.1)}  # must, goal


@contextmanager
def _tables(flows: int, traffic: int) -> Iterator[Any]:
    """An engine and a bare table with the same flows; on huge pages when they can be had, both."""
    error = ffi.new("hp_error *")
    bench = lib.hp_bench_new(flows, traffic, 1, error)
    assert bench, ffi.string(error.text).decode()
    try:
        yield bench
    finally:
        lib.hp_bench_free(bench)


def _ns(function: str, *arguments: Any) -> float:
    error = ffi.new("hp_error *")
    ns: float = getattr(lib, function)(*arguments, error)
    assert ns >= 0, f"{function}: {ffi.string(error.text).decode()}"
    return ns


@pytest.mark.parametrize("traffic", list(TRAFFIC))
@pytest.mark.parametrize("size", list(SIZES))
def test_translate(size: str, traffic: str, record: Recorder, effort: Effort) -> None:
    """ns per packet, both directions mixed: datagrams of 64 bytes, or TCP's data segments and ACKs."""
    if effort.name == "quick" and size not in ("64k", "1M"):
        pytest.skip("only with `make bench`")
    translated: list[float] = []
    bare: list[float] = []
    with _tables(SIZES[size], TRAFFIC[traffic]) as bench:
        for turn in range(effort.memory_rounds):
            runs = [(bare, "hp_bench_table"), (translated, "hp_bench_translate")]
            for values, function in runs if turn % 2 == 0 else reversed(runs):
                values.append(_ns(function, bench, PACKETS))
        memory = ffi.new("hp_memory *")
        lib.hp_bench_memory(bench, memory)
    must, goal = BARS.get(size, (0.0, 0.0))
    record(
        f"in memory, {size} flows, {traffic.upper()}",
        "ns/packet",
        "lower",
        "bare table",
        translated,
        bare,
        bars=(Bar("ratio", must, "lower"),) if must else (),
        goal=goal,
        flows=SIZES[size],
        packets=PACKETS,
        huge_bytes=memory.huge_bytes,
        bytes=memory.bytes,
    )
