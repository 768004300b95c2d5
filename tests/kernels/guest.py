"""A guest: QEMU that translates (TCG), so that it works where there is no KVM, and shows what it is given only.

It has no network device. Its first serial port is the console, which goes to a file; its second brings back records.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from tests.kernels import image
from tests.kernels.packages import Kernel

ROOT: Final = Path(__file__).parents[2]
MEMORY: Final = 2048  # MiB
PROCESSORS: Final = 1  # a second one costs more, in what the two tell each other, than it does
LINE: Final = 1 << 20  # bytes of the longest record


class Record(msgspec.Struct, frozen=True):
    """A line from a guest. kind: fact (of that name), test (of that id), or end. said: why it failed."""

    kind: str
    name: str = ""
    value: str = ""
    ok: bool = True
    seconds: float = 0.0
    said: str = ""


def parse(line: bytes) -> Record | None:
    """None for what is no record."""
    try:
        return msgspec.json.decode(line.strip(), type=Record)
    except msgspec.MsgspecError:
        return None


def command(kernel: Kernel, initramfs: Path, console: Path) -> list[str]:
    words: dict[str, Any] = {
        "accel": "tcg,thread=multi", "cpu": "Nehalem", "smp": PROCESSORS, "m": MEMORY, "display": "none", "nic": "none",
        "monitor": "none", "kernel": kernel.image, "initrd": initramfs,
        "virtfs": "local,path=/,mount_tag=root,security_model=none,readonly=on,multidevs=remap",
    }  # fmt: skip
    options = [word for name, value in words.items() for word in (f"-{name}", str(value))]
    # Mitigations protect nobody here, and cost a translated guest much. A TSC is calibrated wrongly where the host is
    # busy: the guest's time would run several times too fast.
    arguments = f"console=ttyS0 quiet panic=-1 mitigations=off init_on_alloc=0 tsc=unstable modules={kernel.modules}"
    return [
        # A guest ends with this program, however that ends.
        "setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot",
        *options, "-append", arguments, "-serial", f"file:{console}", "-serial", "stdio",
    ]  # fmt: skip


async def run(kernel: Kernel, busybox: Path, directory: Path, tell: Callable[[Record], None], seconds: float) -> str:
    """A guest from its start to its end. Each record is told as it comes. Returns what is wrong, "" for nothing."""
    initramfs, console = directory / "initramfs", directory / "console.log"
    _make(kernel, busybox, initramfs)
    return await follow(command(kernel, initramfs, console), tell, seconds, console)


def _make(kernel: Kernel, busybox: Path, initramfs: Path) -> None:
    initramfs.parent.mkdir(parents=True, exist_ok=True)
    words = {"tree": str(ROOT), "python": sys.executable}
    initramfs.write_bytes(image.build(Path(kernel.modules, kernel.release), busybox, words))


async def follow(words: Sequence[str], tell: Callable[[Record], None], seconds: float, log: Path) -> str:
    """Runs a command whose standard output are records, until it ends or the seconds are over; log: where more is said.

    Returns what is wrong, "" for nothing.
    """
    process = await asyncio.create_subprocess_exec(
        *words, cwd=ROOT, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, limit=LINE, start_new_session=True
    )
    assert process.stdout
    assert process.stderr
    complaints = asyncio.create_task(process.stderr.read())
    ended = False
    try:
        async with asyncio.timeout(seconds):
            async for line in process.stdout:
                if record := parse(line):
                    ended = ended or record.kind == "end"
                    tell(record)
            said = (await complaints).decode(errors="replace").strip()
            await process.wait()
    except TimeoutError:
        return f"not finished within {seconds:.0f} s; see {log}"
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return "" if ended else f"{said[-1000:] or 'it ended before its tests did'}; see {log}"
