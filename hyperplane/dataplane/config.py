"""An engine's sizes and options, as a value that one process hands to another."""

from __future__ import annotations

from typing import Any

import msgspec

from hyperplane._native import ffi, lib
from hyperplane.dataplane import checks, native
from hyperplane.model import LONGEST_TIMER, Io

UINT64 = 0xFFFFFFFFFFFFFFFF


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What `Engine(...)` takes, and means there. A successor and a reader need the engine's own: the first five sizes
    of the tables and workers must be the same, a successor may have other values for the rest.
    """

    max_flows: int = 262_144
    max_mappings: int = 0
    max_links: int = 16_384
    max_addresses: int = 256
    drop_records: int = 4096
    io: Io = "auto"
    buffers: int = 256
    refusal_rate: int = 100
    port_quarantine: float = 30.0
    huge_pages: bool = True
    spin: int = 50
    seed: int = 0
    workers: int = 1
    pin: str = ""


def compiled(config: EngineConfig) -> Any:
    """hp_config *, every value checked; raises InvalidValue."""
    block = ffi.new("hp_config *")
    block.max_flows = checks.integer("max_flows", config.max_flows, 1, lib.HP_MAX_FLOWS)
    block.max_mappings = checks.integer("max_mappings", config.max_mappings, 0, lib.HP_MAX_FLOWS)
    block.max_links = checks.integer("max_links", config.max_links, 2, lib.HP_MAX_LINKS)
    block.max_addresses = checks.integer("max_addresses", config.max_addresses, 1, 65_536)
    block.drop_records = checks.integer("drop_records", config.drop_records, 1, 1 << 24)
    block.buffers = checks.power_of_two("buffers", config.buffers, 64, 32_768)
    block.io = native.IO[checks.choice("io", config.io, native.IO)]
    block.refusal_rate = checks.integer("refusal_rate", config.refusal_rate, 1, 1_000_000)
    block.port_quarantine = checks.milliseconds("port_quarantine", config.port_quarantine, LONGEST_TIMER)
    block.huge_pages = checks.instance("huge_pages", config.huge_pages, bool)
    block.spin = checks.integer("spin", config.spin, 0, 1000)
    block.seed = checks.integer("seed", config.seed, 0, UINT64)
    block.workers = checks.integer("workers", config.workers, 1, lib.HP_MAX_WORKERS)
    pins = checks.cpus("pin", config.pin, lib.HP_MAX_WORKERS)
    block.pin_count = len(pins)
    block.pins = pins
    return block
