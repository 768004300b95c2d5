"""`python -m tests.kernels`: this machine's kernel and those of the packages; exit code 1 when something fails."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from tests.kernels import guest, packages, report
from tests.kernels.guest import ROOT, Record
from tests.kernels.packages import Kernel, Kernels, NoKernels
from tests.kernels.report import Report

DIRECTORY: Final = ROOT / "build" / "kernels"
SECONDS: Final = 900.0  # for one guest
AT_ONCE: Final = max(1, (os.cpu_count() or 1))
# As a guest has it: nothing but lo, and no namespace's name.
APART: Final = (
    "unshare", "--net", "--mount", "sh", "-c",
    'mount -t tmpfs none /run && mkdir /run/netns && ip link set lo up && exec "$@"', "sh",
)  # fmt: skip


def main() -> int:
    try:
        kernels = packages.prepare(DIRECTORY)
    except NoKernels as problem:
        print(f"kernels: {problem}", file=sys.stderr)
        return 1
    begun = time.monotonic()
    try:
        reports = asyncio.run(_all(kernels))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print("kernels: interrupted; every guest has ended", file=sys.stderr)
        return 130
    print(f"\n{report.table(reports)}\n")
    for name in kernels.missing:
        print(f"{name} has no kernel here")
    if failed := report.failures(reports):
        print(failed)
    good = all(one.good for one in reports)
    print(f"kernels: {'everything passed' if good else 'FAILED'}, {time.monotonic() - begun:.0f} s")
    return 0 if good else 1


async def _all(kernels: Kernels) -> list[Report]:
    task = asyncio.current_task()
    assert task
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    room = asyncio.Semaphore(AT_ONCE)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_guest(one, Path(kernels.busybox), room)) for one in kernels.kernels]
        tasks.append(group.create_task(_here(room)))
    return [one.result() for one in tasks]


async def _guest(kernel: Kernel, busybox: Path, room: asyncio.Semaphore) -> Report:
    made = Report(f"{report.series(kernel.release)} {kernel.origin}")
    async with room:
        print(f"kernels: {kernel.release} of {kernel.origin}", flush=True)
        made.problem = await guest.run(
            kernel, busybox, DIRECTORY / "guests" / kernel.origin, lambda one: _tell(made, one), SECONDS
        )
    return made


async def _here(room: asyncio.Semaphore) -> Report:
    """The same in namespaces of its own on the kernel that runs: what the others are compared with."""
    made = Report(f"{report.series(os.uname().release)} here")
    reading, writing = os.pipe()
    async with room:
        log = DIRECTORY / "here.log"
        with open(log, "wb") as output, open(reading, "rb") as records:
            process = await asyncio.create_subprocess_exec(
                *APART, sys.executable, "-m", "tests.kernels.work", str(writing), cwd=ROOT, pass_fds=[writing],
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
            os.close(writing)
            try:
                while line := await asyncio.to_thread(records.readline):
                    if record := guest.parse(line):
                        _tell(made, record)
                if status := await process.wait():
                    made.problem = f"ended with {status}: {log}"
            finally:
                with suppress(ProcessLookupError):
                    process.terminate()
                await process.wait()
    return made


def _tell(made: Report, record: Record) -> None:
    made.take(record)
    if record.kind == "test" and not record.ok:
        print(f"kernels: {made.name}: FAILED {record.name}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
