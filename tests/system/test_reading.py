"""Reads that fail: because the kernel has no way to read without waiting, or somebody else changes a device of ours.

Somebody else is whoever holds a duplicate of its descriptor: here it is taken from the engine (pidfd_getfd(2)).
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import re
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hyperplane.client import Client
from hyperplane.linux.namespaces import LIBC
from hyperplane.linux.tun import TUNGETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ
from hyperplane.model import Status

from .daemons import SERVER, SMALL, TestDaemon, declare, start, until
from .support import Namespaces, blocking, eventually, run_in, wait_until

PIDFD_GETFD = 438  # x86-64 and AArch64 alike
ALL_OFFLOADS, TUNNEL_OFFLOAD = 0x67, 0x80  # TUN_F_UDP_TUNNEL_GSO: Linux 6.17
LOSS = re.compile(r"(\d+) packets transmitted, (\d+) received")


@pytest.fixture(params=["io_uring", "epoll"])
def daemon(request: pytest.FixtureRequest) -> Iterator[TestDaemon]:
    with TestDaemon(engine={**SMALL, "io": request.param}) as made:
        made.start()
        yield made


@pytest.fixture
def epoll() -> Iterator[TestDaemon]:
    with TestDaemon(engine={**SMALL, "io": "epoll"}) as made:
        made.start()
        yield made


def duplicates(pid: int, device: str) -> list[int]:
    """Of the descriptors that a process has of a TUN of that name (in whatever namespace)."""
    process = os.pidfd_open(pid)
    found = []
    try:
        for path in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if os.readlink(path) != "/dev/net/tun":
                    continue
                fd = LIBC.syscall(PIDFD_GETFD, process, int(path.name), 0)
                assert fd >= 0, os.strerror(ctypes.get_errno())
                name = fcntl.ioctl(fd, TUNGETIFF, bytes(40))[:16].rstrip(b"\0").decode()
                found.append(fd) if name == device else os.close(fd)
    finally:
        os.close(process)
    return found


@contextmanager
def duplicate(daemon: TestDaemon, device: str = "eth0") -> Iterator[int]:
    (fd,) = duplicates(daemon.engine_pid(), device)
    try:
        yield fd
    finally:
        os.close(fd)


def ping(namespace: str, count: int = 1, interval: float = 0.02, wait: int = 5) -> int:
    """How many of them are answered. wait: seconds for an answer, which on a busy machine may take one."""
    command = ["ping", "-n", "-q", "-c", str(count), "-i", str(interval), "-W", str(wait), SERVER]
    said = run_in(namespace, command, check=False).stdout
    match = LOSS.search(said)
    assert match, said
    return int(match[2])


async def drops(client: Client) -> dict[str, int]:
    return (await client.status()).traffic.drops


async def engine(client: Client) -> Status:
    process = (await client.status()).engine
    assert process
    return process.status


def set_header(fd: int, size: int) -> None:
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", size))


def set_tunnel_offload(fd: int) -> None:
    """Where the kernel has none of these, it refuses, and there is nothing to mend."""
    with suppress(OSError):
        fcntl.ioctl(fd, TUNSETOFFLOAD, ALL_OFFLOADS | TUNNEL_OFFLOAD)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda fd: set_header(fd, 12), id="a longer header: what is read makes no sense"),
        pytest.param(lambda fd: set_header(fd, 100_000), id="a header longer than any buffer: EINVAL"),
        pytest.param(set_tunnel_offload, id="an offload that needs a longer header: EFAULT"),
    ],
)
async def test_what_others_change_is_set_again(
    daemon: TestDaemon, vpc: str, netns_factory: Namespaces, change: Callable[[int], None]
) -> None:
    """At once, counted and told; nothing else has to happen."""
    box = netns_factory("box")
    async with daemon.client() as client:
        await declare(client, vpc)
        await start(client, box)
        assert ping(box) == 1
        with duplicate(daemon) as fd:
            change(fd)
            answered = ping(box, 50)
            assert answered >= 25, f"{answered} of 50 in the second after that"
            assert ping(box, 5) == 5, (await drops(client), await engine(client), daemon.log[-500:])
        lost = await drops(client)
        broken = {"read_failed", "malformed_ip", "bad_vnet_header", "output_error"}
        if answered < 50:
            assert broken & lost.keys()
            await eventually(lambda: "were changed by others, and set again" in daemon.log)
            health = await until(client.health, lambda found: found.status == "ok")
            assert health.reasons == ()


async def test_a_fight_costs_others_nothing(daemon: TestDaemon, vpc: str, netns_factory: Namespaces) -> None:
    """Somebody changes the header of his device all the time; the environment beside it does not notice."""
    mine, theirs = netns_factory("mine"), netns_factory("theirs")
    async with daemon.client() as client:
        await declare(client, vpc)
        await start(client, theirs, device="hostile0")
        await start(client, mine)
        assert ping(theirs) == ping(mine) == 1
        over = threading.Event()
        with duplicate(daemon, "hostile0") as fd:

            def fight() -> None:
                while not over.wait(0.001):
                    set_header(fd, 100_000)

            fighter = threading.Thread(target=fight)
            fighter.start()
            try:
                noise = blocking(ping, theirs, 1000, 0.002)
                answered, _ = await asyncio.gather(blocking(ping, mine, 100), noise)
            finally:
                over.set()
                fighter.join()
            assert answered == 100
            await eventually(lambda: ping(theirs, 2) == 2)
        status = await engine(client)
        assert status.unreadable + status.mended > 0
        assert status.unreadable < 300, "it rests"


@contextmanager
def faults(pid: int, rule: str) -> Iterator[None]:
    """Within, system calls of a process fail as the rule of strace says."""
    call = rule.partition(":")[0]
    command = ["strace", "-qq", "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={rule}", "-p", str(pid)]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE)

    def traced() -> bool:
        assert tracer.poll() is None, (tracer.stderr or subprocess.DEVNULL, tracer.returncode)
        tasks = Path(f"/proc/{pid}/task").iterdir()
        return all(f"TracerPid:\t{tracer.pid}\n" in (task / "status").read_text() for task in tasks)

    try:
        wait_until(traced, what="every thread is traced")
        yield
    finally:
        tracer.terminate()
        tracer.communicate()


async def test_a_kernel_that_cannot_read_without_waiting(
    epoll: TestDaemon, vpc: str, netns_factory: Namespaces
) -> None:
    """Before Linux 6.4 a TUN refuses RWF_NOWAIT, in reads and writes: there is another way."""
    box, later = netns_factory("box"), netns_factory("later")
    async with epoll.client() as client:
        await declare(client, vpc)
        await start(client, box)
        assert ping(box) == 1
        with faults(epoll.engine_pid(), "preadv2,pwritev2:error=EOPNOTSUPP"):
            assert ping(box, 10) == 10
            await start(client, later)
            assert ping(later, 10) == 10, (await drops(client), (await engine(client)).unreadable)
        assert ping(box, 10) == 10
        assert (await client.health()).status == "ok"
        assert (await engine(client)).unreadable == 0


async def test_reads_that_fail_for_any_other_reason(epoll: TestDaemon, vpc: str, netns_factory: Namespaces) -> None:
    """They are counted and told, by healthz, status and log, and the worker does not spin. Then it works again."""
    box = netns_factory("box")
    async with epoll.client() as client:
        await declare(client, vpc)
        environment = await start(client, box)
        assert ping(box) == 1
        with faults(epoll.engine_pid(), "preadv2:error=EIO"):
            assert ping(box, 3, wait=1) == 0
            health = await until(client.health, lambda found: found.status == "degraded")
            assert f"{environment.id} (EIO)" in health.reasons[0]
            assert health.reasons[0] in (await client.status()).notices
            before = (await engine(client)).loops
            assert ping(box, 20, interval=0.1, wait=1) == 0  # two seconds and more
            after = await engine(client)
            assert after.loops - before < 200
            assert after.failing >= 1
            assert (await drops(client))["read_failed"] == after.unreadable < 200
        await eventually(lambda: "packets are read from a link again" in epoll.log and ping(box) == 1)
        assert (await until(client.health, lambda found: found.status == "ok")).reasons == ()
    line = next(line for line in epoll.log.splitlines() if "packets cannot be read from a link" in line)
    assert '"error": "EIO"' in line
    assert environment.id in line
