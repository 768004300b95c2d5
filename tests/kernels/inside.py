"""The first process of a guest: mounts what an init would, has the work done, reaps what is left, switches off."""

from __future__ import annotations

import ctypes
import os
import subprocess
import traceback
import tty
from typing import Final

from tests.kernels import work

REPORT: Final = "/dev/ttyS1"
POWER_OFF: Final = 0x4321FEDC  # linux/reboot.h
SYSTEM_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def prepare() -> None:
    """As on a machine that has just started: nothing in /run, modules that the kernel can ask for, lo up."""
    os.environ.clear()
    os.environ.update(PATH=SYSTEM_PATH, HOME="/root", LANG="C.UTF-8", TMPDIR="/run/tmp", HYPERPLANE_PATIENCE="10")
    with open("/proc/cmdline", encoding="ascii") as file:
        words = dict(word.partition("=")[::2] for word in file.read().split())
    for place in ("/run", "/dev/shm", "/dev/pts", "/lib/modules"):
        os.makedirs(place, exist_ok=True)
    for what in (
        ["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"],
        ["-t", "tmpfs", "tmpfs", "/dev/shm"],
        ["-t", "devpts", "devpts", "/dev/pts"],
        ["-t", "cgroup2", "cgroup2", "/sys/fs/cgroup"],
        ["--bind", words["modules"], "/lib/modules"],
    ):
        subprocess.run(["mount", *what], check=True)
    for place, mode in (("/run/netns", 0o755), ("/run/tmp", 0o1777)):
        os.mkdir(place)
        os.chmod(place, mode)
    subprocess.run(["modprobe", "tun"], check=True)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    # As systemd has it: tests and engines want more than the kernel's 4,096.
    subprocess.run(["prlimit", f"--pid={os.getpid()}", "--nofile=524288:524288"], check=True)


def main() -> None:
    child = os.fork()
    if child == 0:
        status = 1
        try:
            prepare()
            with open(REPORT, "wb", buffering=0) as report:
                tty.setraw(report.fileno())
                work.run(report.fileno())
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    while os.wait()[0] != child:
        pass  # somebody's orphan: they are ours
    os.sync()
    ctypes.CDLL(None).reboot(POWER_OFF)


if __name__ == "__main__":
    main()
