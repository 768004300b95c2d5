"""The data plane: a thin, typed binding over the engine in C (csrc/). docs/api.md describes it with an example.

No method opens a device, resolves a name or decides a policy: descriptors and rules come from the caller.
"""

from hyperplane._native import ffi, lib
from hyperplane.dataplane import native
from hyperplane.dataplane.config import EngineConfig
from hyperplane.dataplane.engine import Engine
from hyperplane.dataplane.links import Eni, Link, Translated, Tunnel
from hyperplane.dataplane.reader import Reader
from hyperplane.model import (
    Counters,
    Drop,
    Flow,
    FlowState,
    Memory,
    Reason,
    Rule,
    SecurityGroup,
    Status,
    Timers,
    Verdict,
    WorkerStatus,
)

__all__ = [
    "Counters",
    "Drop",
    "Engine",
    "EngineConfig",
    "Eni",
    "Flow",
    "FlowState",
    "Link",
    "Memory",
    "Reader",
    "Reason",
    "Rule",
    "SecurityGroup",
    "Status",
    "Timers",
    "Translated",
    "Tunnel",
    "Verdict",
    "WorkerStatus",
    "io_engines",
    "now",
]


def now() -> int:
    """CLOCK_BOOTTIME in milliseconds, the clock of flows and drops."""
    return lib.hp_now()


def io_engines() -> dict[str, str]:
    """The I/O engines, best first; the value is "" or why that one cannot run here."""
    return {name: ffi.string(lib.hp_io_probe(number)).decode() for name, number in native.IO.items() if name != "auto"}
