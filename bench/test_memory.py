"""The packet path in memory, without devices: what packets of known flows cost, new flows, and flows that just are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from bench.conftest import Effort, Recorder
from bench.contest import in_turns
from bench.figures import replay_clock
from hyperplane._native import ffi, lib

pytestmark = [pytest.mark.benchmark(timer=replay_clock), pytest.mark.timeout(600)]

PACKETS: Final = 1_000_000
CREATIONS: Final = 300_000
SIZES: Final = {"256": 256, "1k": 1 << 10, "64k": 1 << 16, "1M": 1 << 20, "16M": (1 << 24) - 1}
TRAFFIC: Final = {"UDP": lib.HP_BENCH_UDP, "TCP": lib.HP_BENCH_TCP}
BARE_BYTES: Final = 2 * (64 + 4 / 0.625)  # a line and a slot of the index for each direction
KNOWN: Final = "a packet of a known flow"


@contextmanager
def tables(flows: int, traffic: int = lib.HP_BENCH_UDP) -> Iterator[Any]:
    """An engine and a bare table with the same flows; on huge pages when they can be had, both."""
    error = ffi.new("hp_error *")
    bench = lib.hp_bench_new(flows, traffic, 1, error)
    assert bench, ffi.string(error.text).decode()
    try:
        yield bench
    finally:
        lib.hp_bench_free(bench)


def _ns(function: Callable[..., float], *arguments: Any) -> float:
    error = ffi.new("hp_error *")
    ns = function(*arguments, error)
    assert ns >= 0, f"{function} {arguments}: {ffi.string(error.text).decode()}"
    return ns


def translated(bench: Any) -> float:
    """ns for a packet of a known flow."""
    return _ns(lib.hp_bench_translate, bench, PACKETS)


@pytest.mark.parametrize("traffic", list(TRAFFIC))
@pytest.mark.parametrize("size", list(SIZES))
def test_translate(size: str, traffic: str, record: Recorder, effort: Effort) -> None:
    """Both directions mixed, in random order: datagrams of 64 bytes, or TCP's data segments and ACKs."""
    if effort.name == "quick" and size not in ("64k", "1M"):
        pytest.skip("only with `make bench`")
    flows = SIZES[size]
    memory = ffi.new("hp_memory *")
    with tables(flows, TRAFFIC[traffic]) as bench:
        here, there = in_turns(
            effort.memory_rounds,
            lambda: translated(bench),
            lambda: _ns(lib.hp_bench_table, bench, PACKETS),
        )
        lib.hp_bench_memory(bench, memory)
    udp = traffic == "UDP"
    name = f"in memory, {size} flows" + ("" if udp else f", {traffic}")
    sizes = {"flows": flows, "packets": PACKETS, "bytes": memory.bytes, "huge_bytes": memory.huge_bytes}
    record(name, "ns/packet", "lower", "bare table", here, there, **sizes)
    if udp and size == "1M":
        record("bytes per flow", "bytes", "lower", "bare table", [memory.bytes / flows], [BARE_BYTES])


def _next_to_a_packet(name: str, ours: Callable[[], float], record: Recorder, rounds: int) -> None:
    """In ns, at a million flows."""
    with tables(SIZES["1M"], lib.HP_BENCH_TCP) as bench:
        here, there = in_turns(rounds, ours, lambda: translated(bench))
    record(name, "ns", "lower", KNOWN, here, there, flows=SIZES["1M"])


@pytest.mark.parametrize("dense", [False, True], ids=["many destinations", "one destination"])
def test_create(dense: bool, record: Recorder, effort: Effort) -> None:
    """A SYN until it has left: admission, port, flow, translation. A million other flows are there."""
    name = "flow creation, 90 % of the ports taken" if dense else "flow creation, 1M flows"
    _next_to_a_packet(
        name,
        lambda: _ns(lib.hp_bench_create, SIZES["1M"], int(dense), CREATIONS, 1),
        record,
        effort.memory_rounds,
    )


def test_keep(record: Recorder, effort: Effort) -> None:
    """What the sweep takes for each flow in a second in which nothing happens, with a timer of five minutes."""
    name = "keeping a flow for a second, 1M flows"
    _next_to_a_packet(name, lambda: _ns(lib.hp_bench_keep, SIZES["1M"], 1), record, effort.memory_rounds)


def test_end(record: Recorder, effort: Effort) -> None:
    """What the sweep takes for each flow whose time is over, all of them in a row."""
    name = "ending a flow, 1M flows"
    _next_to_a_packet(name, lambda: _ns(lib.hp_bench_end, SIZES["1M"], 1), record, effort.memory_rounds)
