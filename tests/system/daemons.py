"""Daemons of the tests' own: sockets and database in a temporary directory, and nothing left afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from hyperplane.client import Client
from hyperplane.daemon.places import Places
from hyperplane.linux.fresh import delete_namespace
from hyperplane.linux.resolvers import remove_resolvers
from hyperplane.resources import (
    Environment,
    EnvironmentSpec,
    Function,
    FunctionSpec,
    FunctionState,
    SecurityGroupSpec,
    SubnetSpec,
    VpcSpec,
)

from .support import DEADLINE, namespaces, wait_until

T = TypeVar("T")

ROOT: Final = Path(__file__).parents[2]
SERVER: Final = "198.19.0.80"
SUBNET: Final = IPv4Network("198.19.0.0/24")
RESERVED: Final = (IPv4Network("198.19.0.64/27"),)
SMALL: Final[dict[str, Any]] = {"max_flows": 8192, "max_links": 2048, "huge_pages": False}
PATIENCE: Final = 30.0  # seconds after which an engine ends that a killed test run has left


class TestDaemon:
    """A context manager. start() and end() it as often as you like; the engine goes on until the end of the block."""

    __test__ = False

    def __init__(self, **options: Any) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="hpt-"))
        self.directory.chmod(0o755)
        self._options: dict[str, Any] = {
            "run_dir": str(self.directory / "run"),
            "state_dir": str(self.directory / "state"),
            "log_format": "json",
            "engine": SMALL,
            "engine_patience": PATIENCE,
            **options,
        }
        instance = self._options.get("instance", "default")
        self.places = Places(instance, self.directory / "run", self.directory / "state")
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self.kill()
            self.end_engine()
        finally:
            for name in namespaces():
                if name.startswith(f"hpenv-{self.places.mark}-"):
                    delete_namespace(name)
                    remove_resolvers(name)
            shutil.rmtree(self.directory)

    # The process

    def spawn(self, point: str = "", *, prefix: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[bytes]:
        """Without waiting for anything. point: where it kills itself."""
        given = json.dumps({**self._options, **options})
        command = [*prefix, sys.executable, "-m", "tests.system.daemon_main", given, *([point] if point else [])]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        return self.process

    def start(self, point: str = "", **options: Any) -> float:
        """Returns the seconds until it was ready."""
        before = self.log.count('"event": "ready"')
        begun = time.perf_counter()
        process = self.spawn(point, **options)

        def ready() -> bool:
            assert process.poll() is None, f"the daemon ended with {process.returncode}:\n{self.log[-2000:]}"
            return self.log.count('"event": "ready"') > before

        wait_until(ready, 20.0, "the daemon is ready")
        return time.perf_counter() - begun

    def refused(self, status: int = 1, **options: Any) -> str:
        """Starts one that cannot start; its one line."""
        size = len(self.log)
        process = self.spawn(**options)
        self.process = None
        assert process.wait(20) == status, self.log[size:]
        lines = [line for line in self.log[size:].splitlines() if line.startswith("hyperplane-nat: ")]
        assert len(lines) == 1, self.log[size:]
        return lines[0]

    def end(self) -> None:
        """By SIGTERM, in order."""
        self._signal(signal.SIGTERM)
        assert self._status == 0, self.log[-2000:]

    def kill(self) -> None:
        self._signal(signal.SIGKILL)

    def killed_itself(self) -> None:
        """Waits until it has."""
        assert self.process
        assert self.process.wait(20) == -signal.SIGKILL, self.log[-2000:]
        self.process = None

    def end_engine(self) -> None:
        if pid := self.engine_pid():
            descriptor = os.pidfd_open(pid)
            try:
                os.kill(pid, signal.SIGKILL)
                wait_until(lambda: _ended(descriptor), 20.0, "the engine has ended")
            finally:
                os.close(descriptor)

    def engine_pid(self) -> int:
        """0 when none listens."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking:
            try:
                asking.connect(str(self.places.engine))
            except OSError:
                return 0
            found = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        pid: int = struct.unpack("3i", found)[0]
        return pid

    @property
    def log_path(self) -> Path:
        return self.directory / "daemon.log"

    @property
    def log(self) -> str:
        with suppress(FileNotFoundError):
            return self.log_path.read_text(errors="replace")
        return ""

    def client(self) -> Client:
        return Client(path=self.places.api)

    def fresh_namespaces(self) -> set[str]:
        return {name for name in namespaces() if name.startswith(f"hpenv-{self.places.mark}-")}

    def stored(self, kind: str) -> list[dict[str, Any]]:
        """The resources of a kind in the database, while no daemon has it open."""
        with sqlite3.connect(self.places.database) as database:
            rows = database.execute("SELECT resource FROM record WHERE kind = ?", (kind,)).fetchall()
        database.close()
        return [json.loads(row[0]) for row in rows]

    def _signal(self, number: signal.Signals) -> None:
        if self.process:
            if self.process.poll() is None:
                self.process.send_signal(number)
            self._status = self.process.wait(20)
            self.process = None


def _ended(pidfd: int) -> bool:
    try:
        signal.pidfd_send_signal(pidfd, 0)
    except ProcessLookupError:
        return True
    with open(f"/proc/self/fdinfo/{pidfd}", encoding="ascii") as file:
        pid = next(int(line.split()[1]) for line in file if line.startswith("Pid:"))
    if pid <= 0:
        return True
    with suppress(OSError), open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0] == "Z"  # its parent, the daemon, has not waited for it
    return True


async def declare(client: Client, vpc: str, *, rules: tuple[str, ...] = ("all",), **function: Any) -> Function:
    """VPC v, subnet s, security group g and function f, Active."""
    await client.create_vpc(VpcSpec(name="v", namespace=vpc))
    await client.create_subnet(SubnetSpec(name="s", vpc="v", cidr=SUBNET, reserved=RESERVED))
    await client.create_security_group(SecurityGroupSpec(name="g", vpc="v", rules=rules))
    await client.create_function(FunctionSpec(name="f", subnets=("s",), security_groups=("g",), **function))
    return await active(client, "f")


async def active(client: Client, name: str) -> Function:
    return await in_state(client, name, FunctionState.ACTIVE)


async def in_state(client: Client, name: str, state: FunctionState) -> Function:
    async def look() -> Function:
        return await client.get_function(name)

    return await until(look, lambda found: found.state is state)


async def until(look: Callable[[], Awaitable[T]], right: Callable[[T], bool], deadline: float = DEADLINE) -> T:
    """What look() gives, once it is right."""
    end = time.monotonic() + deadline
    while not right(found := await look()):
        assert time.monotonic() < end, f"not within {deadline} s; it is still {found}"
        await asyncio.sleep(0.005)
    return found


async def start(client: Client, namespace: str = "", **more: Any) -> Environment:
    return await client.start_environment(EnvironmentSpec(function="f", namespace=namespace, **more))
