"""What is done on a kernel: its facts, then the tests; each a record on a descriptor as soon as it is known."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Final

import msgspec

from tests.kernels import facts
from tests.kernels.guest import ROOT, Record
from tests.kernels.selection import ITEMS, SYSTEM

REPORT_VARIABLE: Final = "HYPERPLANE_KERNEL_REPORT"  # the descriptor that reporting.py writes to
# Plugins that these tests do not use, and that take seconds to import in a guest.
PLUGINS: Final = (
    "-p", "no:schemathesis", "-p", "no:benchmark", "-p", "no:hypothesispytest", "-p", "no:anyio",
    "-p", "tests.kernels.reporting",
)  # fmt: skip
TIMEOUT: Final = 300  # seconds for one test


def run(report: int, *, timeout: int = TIMEOUT) -> None:
    """Both halves; the last record is `end`, whose value is pytest's status."""
    found = facts.measure()
    for name, value in found.items():
        say(report, Record("fact", name, value))
    tests = [f"{SYSTEM}{one}" for tests in ITEMS.values() for one in tests]
    left_out = ["-k", "not [io_uring"] if found["packet I/O"] != "io_uring" else []
    options = ["--color=no", "-overbosity_assertions=2", f"--timeout={timeout}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *PLUGINS, *options, *left_out, *tests],
        cwd=ROOT, env={**os.environ, REPORT_VARIABLE: str(report)}, pass_fds=[report], check=False,
    )  # fmt: skip
    say(report, Record("end", value=str(done.returncode)))


def say(report: int, record: Record) -> None:
    os.write(report, msgspec.json.encode(record) + b"\n")


if __name__ == "__main__":
    report = os.dup(sys.stdout.fileno())
    with open(sys.argv[1], "wb") as log:  # of what the tests print
        os.dup2(log.fileno(), sys.stdout.fileno())
    run(report)
