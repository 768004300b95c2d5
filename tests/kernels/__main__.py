"""`python -m tests.kernels [NAME ...]`: this machine's kernel and those of the packages, or those of these names only.

Prints one table; exit code 1 when anything fails, 130 when it was interrupted.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from tests.kernels import guest, measured, packages, report
from tests.kernels.guest import ROOT, Record
from tests.kernels.packages import ORIGINS, Kernel, Kernels, NoKernels
from tests.kernels.report import Report

DIRECTORY: Final = ROOT / "build" / "kernels"
SECONDS: Final = 1200.0  # for one guest, on a machine that has much else to do
AT_ONCE: Final = os.cpu_count() or 1  # of guests, which have one processor each
HERE: Final = "here"
# As a guest has it: nothing but lo, and no namespace's name.
APART: Final = (
    "setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child",
    "--mount-proc", "sh", "-c", 'mount -t tmpfs none /run && mkdir /run/netns && ip link set lo up && exec "$@"', "sh",
)  # fmt: skip


def main() -> int:
    options = _options()
    try:
        kernels = packages.prepare(DIRECTORY)
    except NoKernels as problem:
        print(f"kernels: {problem}", file=sys.stderr)
        return 1
    begun = time.monotonic()
    reports: list[Report] = []
    interrupted = False
    try:
        asyncio.run(_all(kernels, options.names, reports))
    except (KeyboardInterrupt, asyncio.CancelledError):
        interrupted = True
    print(f"\n{report.table(reports)}\n")
    if interrupted:
        print("kernels: interrupted; every guest has ended", file=sys.stderr)
        return 130
    for name in kernels.missing:
        print(f"{name}: the archive has no kernel there")
    if options.record:
        measured.record(reports)
    known = measured.read()
    for series in measured.unknown(known, reports):
        print(f"Linux {series} is not in docs/service.md: python -m tests.kernels --record writes what was measured")
    wrong = [*measured.differences(known, reports), *report.failures(reports)]
    print("".join(f"{line}\n" for line in wrong), end="")
    good = not wrong and all(one.good for one in reports)
    print(f"kernels: {'everything passed' if good else 'FAILED'}, {time.monotonic() - begun:.0f} s")
    return 0 if good else 1


def _options() -> argparse.Namespace:
    names = (HERE, *(one.name for one in ORIGINS))
    parser = argparse.ArgumentParser(prog="python -m tests.kernels", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which: {', '.join(names)}")
    parser.add_argument("--record", action="store_true", help="write what was measured into docs/service.md")
    options = parser.parse_args()
    if wrong := set(options.names) - set(names):
        parser.error(f"no such kernel: {', '.join(sorted(wrong))}; there are {', '.join(names)}")
    return options


async def _all(kernels: Kernels, names: Sequence[str], reports: list[Report]) -> None:
    """reports: filled, also as far as it came when it is cancelled."""
    task = asyncio.current_task()
    assert task
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    room = asyncio.Semaphore(AT_ONCE)
    async with asyncio.TaskGroup() as group:
        if not names or HERE in names:
            release = os.uname().release
            reports.append(Report(f"{report.series(release)} {HERE}"))
            group.create_task(_here(release, room, reports[-1]))
        for one in kernels.kernels:
            if not names or one.origin in names:
                reports.append(Report(f"{report.series(one.release)} {one.origin}"))
                group.create_task(_guest(one, Path(kernels.busybox), room, reports[-1]))


async def _guest(kernel: Kernel, busybox: Path, room: asyncio.Semaphore, made: Report) -> None:
    async with room:
        print(f"kernels: {kernel.release} of {kernel.origin}", flush=True)
        begun = time.monotonic()
        directory = DIRECTORY / "guests" / kernel.origin
        made.problem = await guest.run(kernel, busybox, directory, lambda one: _tell(made, one), SECONDS)
        made.seconds = time.monotonic() - begun
        print(f"kernels: {made.name}: {len(made.tests)} tests, {made.seconds:.0f} s", flush=True)


async def _here(release: str, room: asyncio.Semaphore, made: Report) -> None:
    """The same in namespaces of its own on the kernel that runs: what the others are compared with."""
    async with room:
        print(f"kernels: {release} {HERE}", flush=True)
        begun = time.monotonic()
        log = DIRECTORY / "here.log"
        words = [*APART, sys.executable, "-m", "tests.kernels.work", str(log)]
        made.problem = await guest.follow(words, lambda one: _tell(made, one), SECONDS, log)
        made.seconds = time.monotonic() - begun


def _tell(made: Report, record: Record) -> None:
    made.take(record)
    if record.kind == "test" and not record.ok:
        print(report.failed(made.name, record), flush=True)


if __name__ == "__main__":
    sys.exit(main())
