"""A virtual machine in a namespace: QEMU without KVM, a small kernel, and an init that fetches a page."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .daemons import ROOT
from .support import inside, ip

IMAGES: Final = ROOT / "build/guest"
TAP: Final = "tap0"


@contextmanager
def machine(namespace: str, log: Path, *, address: str, gateway: str, fetch: str) -> Iterator[None]:
    """One that has this address (with a prefix) on a TAP of the namespace and goes on fetching; log: what it prints, a
    line "guest: ..." with the page's first line, or nothing, for each try."""
    if not (IMAGES / "initramfs.img").exists():
        subprocess.run([ROOT / "tools/guest.sh", IMAGES], check=True, timeout=100)
    ip("-n", namespace, "tuntap", "add", TAP, "mode", "tap")
    words = f"console=ttyS0 quiet panic=-1 address={address} gateway={gateway} fetch={fetch} times=1000"
    command = [
        "qemu-system-x86_64", "-accel", "tcg", "-m", "256", "-nodefaults", "-display", "none", "-no-reboot",
        "-serial", f"file:{log}", "-append", words,
        "-kernel", str(IMAGES / "vmlinuz"), "-initrd", str(IMAGES / "initramfs.img"),
        "-netdev", f"tap,id=net0,ifname={TAP},script=no,downscript=no",
        "-device", "virtio-net-pci,netdev=net0,romfile=",
    ]  # fmt: skip
    process = subprocess.Popen(inside(namespace, command), stdin=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def said(log: Path) -> list[str]:
    """What it has got so far, for each try."""
    text = log.read_text(errors="replace") if log.exists() else ""
    return [line.partition("guest: ")[2] for line in text.splitlines() if "guest: " in line]
