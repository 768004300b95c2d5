"""Namespaces, processes and compiled tools of one run. All of it ends with the run, also one that was killed: the next
run removes what is left of those whose process is gone."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

PREFIX: Final = "hpbench"
NETNS: Final = Path("/run/netns")  # ip-netns(8)
LIBC: Final = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
MS_BIND, MNT_DETACH = 4096, 2  # sys/mount.h
HERE: Final = Path(__file__).parent
BUILD: Final = HERE.parent / "build" / "bench"
CFLAGS: Final = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror")
PATIENCE: Final = 20.0  # seconds that anything may take to become ready


class Lab:
    def __init__(self) -> None:
        self.commands: list[str] = []
        self._namespaces: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []
        _remove_leftovers()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for process in reversed(self._processes):
            stop(process)
        for namespace in reversed(self._namespaces):
            _remove(NETNS / namespace)

    def namespace(self, name: str) -> str:
        """Makes a namespace with its loopback up; returns its full name."""
        full = f"{PREFIX}-{os.getpid()}-{name}"
        shell("ip", "netns", "add", full)
        self._namespaces.append(full)
        shell("ip", "-n", full, "link", "set", "lo", "up")
        return full

    def namespaces(self, name: str, count: int) -> list[str]:
        """Makes many: NAME-0, NAME-1, ... Their loopback stays down. Returns their full names."""
        made = [f"{PREFIX}-{os.getpid()}-{name}-{number}" for number in range(count)]
        with NamespaceThread() as thread:
            for full in made:
                self._namespaces.append(full)
                thread.call(_make, NETNS / full)
        return made

    def run(self, namespace: str, *command: str | Path, timeout: float = PATIENCE) -> Any:
        """Runs a command that prints JSON; returns what it printed. It must succeed."""
        self._note(command)
        done = subprocess.run(_inside(namespace, command), capture_output=True, text=True, timeout=timeout)
        said = f"{done.stdout[-1500:]}{done.stderr[-1500:]}"
        assert done.returncode == 0, f"{Path(command[0]).name} in {namespace} ended with {done.returncode}: {said}"
        return json.loads(done.stdout)

    def start(
        self, namespace: str, *command: str | Path, says: bool = True, output: bool = False
    ) -> subprocess.Popen[str]:
        """Starts a process and waits until its first line says "ready"; or says=False: one that does not, whose words
        nobody reads, or (output) somebody later."""
        self._note(command)
        into = subprocess.PIPE if says or output else subprocess.DEVNULL
        process = subprocess.Popen(
            _inside(namespace, command), stdin=subprocess.PIPE, stdout=into, text=True, bufsize=1
        )
        self._processes.append(process)
        if says:
            line = answer(process)
            assert line == "ready", f"{command[0]} said {line!r} instead of being ready"
        return process

    def tool(self, name: str, *libraries: str) -> Path:
        """A program from bench/tools, compiled when it is newer than what was built; libraries as for the linker."""
        source, program = HERE / "tools" / f"{name}.c", BUILD / name
        if not program.exists() or program.stat().st_mtime < source.stat().st_mtime:
            BUILD.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=BUILD) as scratch:
                shell("gcc", *CFLAGS, "-o", f"{scratch}/{name}", str(source), *libraries)
                os.replace(f"{scratch}/{name}", program)
        return program

    def take_commands(self) -> list[str]:
        """The different commands that were run since the last call."""
        taken, self.commands = self.commands, []
        return taken

    def _note(self, command: tuple[str | Path, ...]) -> None:
        line = " ".join(Path(word).name if isinstance(word, Path) else word for word in command)
        if line not in self.commands:
            self.commands.append(line)


class NamespaceThread(ThreadPoolExecutor):
    """One thread that may change its namespace: that of a named one, or, with "", where it is."""

    def __init__(self, namespace: str = "") -> None:
        super().__init__(1)
        if namespace:
            fd = os.open(NETNS / namespace, os.O_RDONLY | os.O_CLOEXEC)
            try:
                self.call(setns, fd)
            finally:
                os.close(fd)

    def call(self, job: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> T:
        return self.submit(job, *arguments, **named).result()


def setns(fd: int) -> None:
    """Moves the calling thread into the namespace that fd is open on."""
    if LIBC.setns(fd, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


def shell(*command: str) -> str:
    """Runs a command that must succeed; returns what it printed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip()}"
    return done.stdout


def answer(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints; "" when it ended instead. Waits: what is run here always says something."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def stop(process: subprocess.Popen[str]) -> None:
    """Ends a process; by force when it does not want to."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE:.0f} s"
        time.sleep(0.005)


def listens(process: subprocess.Popen[str], namespace: str, port: int) -> bool:
    """Whether a process that was started in a namespace is there, and somebody there listens on a TCP port."""
    assert process.poll() is None, f"the server for port {port} in {namespace} has ended"
    there = Path(f"/proc/{process.pid}")
    if not os.path.samefile(there / "ns/net", NETNS / namespace):
        return False
    for table in ("tcp", "tcp6"):
        lines = (there / "net" / table).read_text().splitlines()[1:]
        if any(line.split()[1].endswith(f":{port:04X}") and line.split()[3] == "0A" for line in lines):
            return True  # 0A: TCP_LISTEN, proc(5)
    return False


def _inside(namespace: str, command: tuple[str | Path, ...]) -> list[str]:
    """The command line that runs a command in a namespace ("": here) and ends with this process, however that ends."""
    # nsenter, since ip-netns(8) mounts a /sys first. Both become the command, so that its process is ours to end.
    enter = ["nsenter", f"--net={NETNS / namespace}", "--"] if namespace else []
    return ["setpriv", "--pdeathsig", "TERM", "--", *enter, *map(str, command)]


def _remove_leftovers() -> None:
    """What runs left behind that were killed."""
    for name in os.listdir(NETNS) if NETNS.is_dir() else ():
        pid = name.removeprefix(f"{PREFIX}-").partition("-")[0]
        if name.startswith(f"{PREFIX}-") and pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            _remove(NETNS / name)


def _make(path: Path) -> None:
    """Makes a namespace with a name, as `ip netns add` does; the calling thread is in it then."""
    if LIBC.unshare(CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    path.touch(mode=0)
    if LIBC.mount(b"/proc/thread-self/ns/net", os.fsencode(path), b"none", MS_BIND, None):
        raise OSError(ctypes.get_errno(), f"bind mount on {path}")


def _remove(path: Path) -> None:
    """As `ip netns del`, which takes ten times as long."""
    LIBC.umount2(os.fsencode(path), MNT_DETACH)
    with suppress(OSError):
        path.unlink()
