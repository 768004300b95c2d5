"""Namespaces, commands in them, and waiting: what the system tests stand on.

Every namespace has a name that begins with `hpt` and the number of the process that made it: two runs at the same time
do not meet, and a run cleans up after one that was killed.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import count
from typing import Any, Self, TypeVar

from hyperplane.linux.namespaces import Namespace
from hyperplane.model import SecurityGroup

T = TypeVar("T")

PREFIX = f"hpt{os.getpid()}-"
OURS = re.compile(r"hpt(\d+)-")
# How many times longer anything may take: an emulated machine is slow.
PATIENCE = float(os.environ.get("HYPERPLANE_PATIENCE", "1"))
DEADLINE = 10.0 * PATIENCE
# The fixtures `vpc` and `eni`: the server's address there, the ENI's.
SERVER = "198.19.0.80"
ENI = "198.19.0.5"
ALL = (SecurityGroup.parse("all", ["all"]),)
SMALL: dict[str, Any] = {"max_flows": 4096, "max_links": 2048, "huge_pages": False}  # for an Engine

# The fixture `within`: namespace, what to do in it; its result.
Within = Callable[[str, Callable[[Namespace], Any]], Any]


def ip(*arguments: str) -> str:
    """`ip` of iproute2 with these arguments; its output. Fails with what it said."""
    done = subprocess.run(("ip", *arguments), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr.strip()}"
    return done.stdout


def ip_json(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(ip("-j", "-d", *arguments) or "[]")
    return [one for one in found if one]


def namespaces() -> set[str]:
    """What `ip netns list` shows."""
    return {one["name"] for one in ip_json("netns", "list")}


def devices(namespace: str = "") -> set[str]:
    """What `ip link` shows, in a namespace or here."""
    return {one["ifname"] for one in ip_json(*(("-n", namespace) if namespace else ()), "link", "show")}


def descriptors() -> int:
    """How many descriptors this process has open, but for those that looks at devices have for a moment."""

    def count() -> int:
        time.sleep(0.001)
        return len(os.listdir("/proc/self/fd"))

    return min(count() for _ in range(5))


def wait_until(condition: Callable[[], T], deadline: float = DEADLINE, what: str = "") -> T:
    """Polls until condition() is true, at most deadline seconds; returns what it gave."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {deadline} s: {what or getattr(condition, '__name__', condition)}"
        time.sleep(0.005)
    return value


async def eventually(condition: Callable[[], T], deadline: float = DEADLINE, what: str = "") -> T:
    """As wait_until(), for coroutines."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {deadline} s: {what or getattr(condition, '__name__', condition)}"
        await asyncio.sleep(0.005)
    return value


def inside(namespace: str, command: Sequence[str | os.PathLike[str]]) -> list[str]:
    """The command line that runs command in a namespace."""
    return ["ip", "netns", "exec", namespace, *(os.fspath(word) for word in command)]


def run_in(
    namespace: str,
    command: Sequence[str | os.PathLike[str]],
    *,
    stdin: str = "",
    timeout: float = 60,
    check: bool = True,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a namespace until it ends, with its output as text. check: fail unless it exits with 0."""
    options = {"capture_output": True, "text": True, "input": stdin, **options}
    done: subprocess.CompletedProcess[str] = subprocess.run(inside(namespace, command), timeout=timeout, **options)
    if check:
        said = f"{done.stdout or ''}{done.stderr or ''}".strip()
        assert done.returncode == 0, f"{command[0]} in {namespace} exited with {done.returncode}: {said}"
    return done


async def blocking(work: Callable[..., Any], *arguments: Any) -> Any:
    """In a thread, so that the event loop goes on."""
    return await asyncio.to_thread(work, *arguments)


class Namespaces:
    """Makes namespaces and removes them with every process in them. A context manager.

    `make("vpc")` returns the full name. Device `lo` is up. At the end of the `with` block the processes that still
    are in the namespaces are killed (by their numbers), and only those.
    """

    _numbers = count(1)

    def __init__(self) -> None:
        self.names: list[str] = []
        self._processes: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()

    def make(self, label: str = "ns") -> str:
        name = f"{PREFIX}{label}-{next(self._numbers)}"
        self.names.append(name)
        ip("netns", "add", name)
        ip("-n", name, "link", "set", "lo", "up")
        return name

    __call__ = make

    def start_in(
        self, namespace: str, command: Sequence[str | os.PathLike[str]], **options: Any
    ) -> subprocess.Popen[str]:
        """Starts a command in a namespace; it is ended with the namespaces, at the latest."""
        options = {"stdin": subprocess.DEVNULL, "text": True, **options}
        process: subprocess.Popen[str] = subprocess.Popen(inside(namespace, command), **options)
        self._processes.append(process)
        return process

    def connect(self, one: str, address: str, other: str, other_address: str, *, mtu: int = 1500) -> tuple[str, str]:
        """A veth pair between two namespaces, up, with addresses ("198.19.0.1/24"); returns the devices' names."""
        ends = (f"v{next(self._numbers)}a", f"v{next(self._numbers)}b")
        ip(
            "-n",
            one,
            "link",
            "add",
            ends[0],
            "mtu",
            str(mtu),
            "type",
            "veth",
            "peer",
            ends[1],
            "mtu",
            str(mtu),
            "netns",
            other,
        )
        for namespace, device, given in ((one, ends[0], address), (other, ends[1], other_address)):
            ip("-n", namespace, "addr", "add", given, "dev", device)
            ip("-n", namespace, "link", "set", device, "up")
        return ends

    def bridge(self, namespace: str, address: str, device: str = "lan0") -> str:
        """A bridge without ports, up: a segment of its own for an address that a server listens on."""
        ip("-n", namespace, "link", "add", device, "type", "bridge")
        ip("-n", namespace, "addr", "add", address, "dev", device)
        ip("-n", namespace, "link", "set", device, "up")
        return device

    def delete(self, name: str) -> None:
        """Ends a namespace's processes and deletes its name, during a test."""
        _empty(name)
        ip("netns", "del", name)
        self.names.remove(name)

    def remove(self) -> None:
        """Everything, and as much as can be: the first failure is raised when the rest is done."""
        failures = []
        for process in self._processes:
            process.kill()
            process.wait()
            for stream in (process.stdout, process.stderr):
                if stream:
                    stream.close()
        self._processes.clear()
        for name in self.names:
            try:
                if name in namespaces():
                    _empty(name)
                    ip("netns", "del", name)
            except (AssertionError, subprocess.SubprocessError) as error:
                failures.append(error)
        self.names.clear()
        if failures:
            raise failures[0]


def remove_left_over() -> None:
    """Removes the namespaces of test runs that have ended without doing so: their process is no more."""
    for name in namespaces():
        if (match := OURS.match(name)) and not os.path.exists(f"/proc/{match[1]}"):
            _empty(name)
            ip("netns", "del", name)


def _empty(name: str) -> None:
    """Kills what runs in a namespace of ours, and waits until it is gone."""

    def gone() -> bool:
        numbers = [int(one) for one in ip("netns", "pids", name).split()]
        for number in numbers:
            assert number != os.getpid(), "the tests' own process is in a test's namespace"
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        return not numbers

    wait_until(gone, what=f"processes in {name} end")
