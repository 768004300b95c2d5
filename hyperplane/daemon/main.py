"""The daemon process: the instance's lock and directories, logs, signals, and what systemd is told."""

from __future__ import annotations

import asyncio
import fcntl
import grp
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import structlog
import uvloop

from hyperplane import __version__
from hyperplane.daemon import sd_notify
from hyperplane.daemon.logs import configure
from hyperplane.daemon.options import GROUP, DaemonOptions
from hyperplane.daemon.parts import Daemon
from hyperplane.daemon.places import Places
from hyperplane.daemon.points import NO_POINTS, CommitPoints
from hyperplane.errors import AlreadyRunning, DeviceError, HyperplaneError, InvalidValue, PermissionMissing

__all__ = ["DaemonOptions", "run"]

CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21  # linux/capability.h
TUN: Final = "/dev/net/tun"
ENDS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = structlog.get_logger()


def run(options: DaemonOptions, point: CommitPoints = NO_POINTS) -> int:
    """The whole life of a daemon; 0 when it was asked to end. One that cannot start says why in one line: 1, or 2
    when it was asked for something that cannot be."""
    try:
        configure(options.log_format, options.log_level)
        places = Places(options.instance, options.run_dir, options.state_dir)
        gid = group_id(options.group)
        check_privileges()
        with ExitStack() as undo:
            make_directory(places.run, undo)
            with locked(places.lock, places.instance, f"a daemon of instance {places.instance} runs already"):
                make_directory(places.state, undo, 0o700)
                state = str(places.state)
                with locked(places.state_lock, state, f"a daemon with another run directory has {state}"):
                    uvloop.run(_serve(options, places, gid, point))
                    undo.pop_all()  # the engine goes on in them
        return 0
    except HyperplaneError as error:
        print(f"hyperplane-nat: {error}", file=sys.stderr, flush=True)
        return 2 if isinstance(error, InvalidValue) else 1


async def _serve(options: DaemonOptions, places: Places, gid: int | None, point: CommitPoints) -> None:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in ENDS:
        loop.add_signal_handler(number, asked.set)
    async with Daemon(options, places, gid, point):
        log.info("ready", instance=options.instance, version=__version__, socket=str(places.api))
        sd_notify.notify(sd_notify.READY)
        alive = asyncio.create_task(_tell_alive())
        try:
            await asked.wait()
        finally:
            alive.cancel()
        log.info("stopping; the engine goes on")
        sd_notify.notify(sd_notify.STOPPING)


async def _tell_alive() -> None:
    """While the event loop turns."""
    interval = sd_notify.watchdog_interval()
    while interval:
        sd_notify.notify(sd_notify.ALIVE)
        await asyncio.sleep(interval)


def group_id(group: str) -> int | None:
    """None: only the process's own. Raises InvalidValue."""
    try:
        return grp.getgrnam(group or GROUP).gr_gid
    except KeyError:
        if not group:
            return None
    remedy = f"make it (groupadd --system {group}), or give another one"
    raise InvalidValue(f"there is no group {group}", resource="group", remedy=remedy)


def check_privileges() -> None:
    """Raises PermissionMissing."""
    effective = 0
    with suppress(OSError), open("/proc/self/status", encoding="ascii") as file:
        effective = next(int(line.split()[1], 16) for line in file if line.startswith("CapEff:"))
    for name, number in (("CAP_NET_ADMIN", CAP_NET_ADMIN), ("CAP_SYS_ADMIN", CAP_SYS_ADMIN)):
        if not effective >> number & 1:
            remedy = "run it as root, or give it the capability (AmbientCapabilities=)"
            raise PermissionMissing(f"the daemon lacks {name}", resource="daemon", remedy=remedy)
    if not os.access(TUN, os.R_OK | os.W_OK):
        remedy = "load the module (modprobe tun), or give the container /dev/net/tun"
        problem = "is not there" if not os.path.exists(TUN) else "may not be opened"
        raise PermissionMissing(f"{TUN} {problem}", resource=TUN, remedy=remedy)


def make_directory(path: Path, undo: ExitStack, mode: int = 0o755) -> None:
    """With those above it; undo removes what was made, with what is in it by then. Raises DeviceError."""
    missing = [one for one in (path, *path.parents) if not one.exists()]
    try:
        for one in reversed(missing):
            one.mkdir()
            one.chmod(mode if one == path else 0o755)  # whatever the umask is: the group has to get to the socket
            undo.callback(shutil.rmtree, one, ignore_errors=True)
    except OSError as error:
        message = f"directory {path} cannot be made: {error.strerror}"
        remedy = "run as root, or give another one (HYPERPLANE_RUN_DIR, HYPERPLANE_STATE_DIR)"
        raise DeviceError(message, resource=str(path), remedy=remedy) from None


@contextmanager
def locked(path: Path, what: str, problem: str) -> Iterator[None]:
    """Holds the file, and with it what it stands for: the lock ends with the process, however that ends. problem: that
    another has it. Raises AlreadyRunning, DeviceError.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        message = f"{path} cannot be opened: {error.strerror}"
        raise DeviceError(message, resource=str(path), remedy="run as root") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 32, 0).decode("ascii", "replace").strip()
            message = f"{problem} (pid {holder or 'unknown'})"
            remedy = "stop it, or give this one another --instance"
            raise AlreadyRunning(message, resource=what, remedy=remedy) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        yield
        os.ftruncate(fd, 0)
    finally:
        os.close(fd)
