"""How much processor time something takes: of the whole machine, so that what the kernel does in interrupts counts
whoever caused it, and of one process with all its threads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

TICK: Final = 1 / os.sysconf("SC_CLK_TCK")  # seconds
# Of the first line of /proc/stat, proc(5): user, nice, system, irq, softirq. The rest is idle, or of guests' hosts.
BUSY: Final = (1, 2, 3, 6, 7)
USER, SYSTEM = 11, 12  # of /proc/PID/stat, after the command's name


@dataclass(frozen=True)
class Processor:
    """Seconds of processor time up to now: of the machine, and of a process (0 without one)."""

    machine: float
    process: float

    @classmethod
    def read(cls, pid: int | None) -> Self:
        words = Path("/proc/stat").read_text().partition("\n")[0].split()
        machine = sum(int(words[field]) for field in BUSY)
        process = 0
        if pid is not None:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            process = int(fields[USER]) + int(fields[SYSTEM])
        return cls(machine * TICK, process * TICK)

    def __sub__(self, before: Processor) -> Processor:
        return Processor(self.machine - before.machine, self.process - before.process)
