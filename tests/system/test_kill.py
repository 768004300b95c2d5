"""kill -9 of daemon and engine while packets flow: each test prints connections before, lost, and the longest gap."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from hyperplane.resources import EnvironmentState

from . import traffic
from .daemons import SERVER, TestDaemon, declare, start
from .servers import POSTGRESQL, in_namespace, make_cluster, postgresql, program, server_directory
from .sockets import socket_in
from .support import Namespaces, eventually, ip
from .world import run

CONNECTIONS = 100
SECONDS = 6


@pytest.fixture(scope="module")
def cluster() -> Iterator[Path]:
    with server_directory() as directory:
        yield make_cluster(directory)


@pytest.fixture
def daemon() -> Iterator[TestDaemon]:
    with TestDaemon() as made:
        made.start()
        yield made


@dataclass
class Echoes:
    """Connections over which one byte at a time goes to a server and back. gaps: the longest wait of each, seconds."""

    clients: list[socket.socket]
    gaps: list[float] = field(default_factory=list)
    rounds: int = 0

    async def run(self, until: asyncio.Event) -> int:
        """Returns how many of them broke."""
        results = await asyncio.gather(*(self._go(one, until) for one in self.clients), return_exceptions=True)
        return sum(isinstance(one, BaseException) for one in results)

    async def _go(self, one: socket.socket, until: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        longest = 0.0
        while not until.is_set():
            begun = time.perf_counter()
            await loop.sock_sendall(one, b"x")
            async with asyncio.timeout(20):
                assert await loop.sock_recv(one, 1) == b"x", "the connection ended"
            longest = max(longest, time.perf_counter() - begun)
            self.rounds += 1
            await asyncio.sleep(0.005)
        self.gaps.append(longest)


@asynccontextmanager
async def echoes(box: str, vpc: str, count: int) -> AsyncIterator[Echoes]:
    """Established connections from a namespace to a server in the VPC that gives everything back."""
    loop = asyncio.get_running_loop()
    with ExitStack() as sockets:
        listener = sockets.enter_context(traffic.tcp_listener(vpc, SERVER))
        async with AsyncExitStack() as tasks:
            clients = []
            for _ in range(count):
                client = sockets.enter_context(socket_in(box, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
                await loop.sock_connect(client, listener.getsockname())
                served = sockets.enter_context((await loop.sock_accept(listener))[0])
                task = loop.create_task(_echo(served))
                tasks.push_async_callback(_end, task)
                clients.append(client)
            yield Echoes(clients)


async def _echo(one: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while data := await loop.sock_recv(one, 1024):
            await loop.sock_sendall(one, data)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


def another_engine(daemon: TestDaemon, first: int) -> bool:
    return daemon.engine_pid() not in (0, first)


async def test_the_engine(daemon: TestDaemon, vpc: str, netns_factory: Namespaces) -> None:
    """Its successor has the memory and the descriptors: not one of a hundred connections is lost."""
    box = netns_factory("box")
    async with daemon.client() as client:
        await declare(client, vpc)
        environment = await start(client, box)
        async with echoes(box, vpc, CONNECTIONS) as connections:
            over = asyncio.Event()
            running = asyncio.create_task(connections.run(over))
            await eventually(lambda: connections.rounds > 5 * CONNECTIONS)
            before = len((await client.list_flows(limit=1000)).items)
            first = daemon.engine_pid()
            os.kill(first, signal.SIGKILL)
            await eventually(partial(another_engine, daemon, first))
            rounds = connections.rounds
            await eventually(lambda: connections.rounds > rounds + 5 * CONNECTIONS)
            over.set()
            lost = await running
            after = len((await client.list_flows(limit=1000)).items)
            print(
                f"\nengine killed: {before} connections before, {lost} lost, longest gap {max(connections.gaps):.3f} s"
            )
            assert (before, lost, after) == (CONNECTIONS, 0, CONNECTIONS)
            assert max(connections.gaps) < 5
            status = await client.status()
            assert status.engine
            assert status.engine.restarts == 1
        # The successor is as good as the first: a new connection, another environment, an end.
        async with traffic.connection(box, vpc, SERVER) as pair:
            await traffic.transfer(pair.client, pair.server, 100_000, 1)
        assert (await start(client)).state is EnvironmentState.ATTACHED
        await client.end_environment(environment.id)


async def test_the_engine_again_and_again(daemon: TestDaemon, vpc: str, netns_factory: Namespaces) -> None:
    box = netns_factory("box")
    async with daemon.client() as client:
        await declare(client, vpc)
        await start(client, box)
        async with traffic.connection(box, vpc, SERVER) as pair:
            for number in range(2):
                first = daemon.engine_pid()
                os.kill(first, signal.SIGKILL)
                await eventually(partial(another_engine, daemon, first))
                await traffic.transfer(pair.client, pair.server, 100_000, number)


async def test_both_while_the_daemon_is_away(daemon: TestDaemon, vpc: str, netns_factory: Namespaces) -> None:
    """Nobody is there to inherit: the connections are lost, the environments are not."""
    box = netns_factory("box")
    async with daemon.client() as client:
        await declare(client, vpc)
        environment = await start(client, box)
    daemon.kill()
    daemon.end_engine()
    daemon.start()
    async with daemon.client() as client:
        await client.reconcile()
        found = await client.get_environment(environment.id)
        assert found.state is EnvironmentState.ATTACHED
        async with traffic.connection(box, vpc, SERVER) as pair:
            await traffic.transfer(pair.client, pair.server, 100_000, 1)


async def test_the_daemon(daemon: TestDaemon, cluster: Path, netns_factory: Namespaces) -> None:
    """In the middle of pgbench, which goes on without an error, with no daemon and when the next one is there."""
    vpc, box = netns_factory("vpc"), netns_factory("box")
    ip("-n", vpc, "addr", "add", f"{POSTGRESQL}/32", "dev", "lo")
    ip("-n", vpc, "addr", "add", f"{SERVER}/32", "dev", "lo")
    with postgresql(vpc, cluster):
        async with daemon.client() as client:
            await declare(client, vpc)
            environment = await start(client, box)
        bench = [program("pgbench"), "-h", POSTGRESQL, "-U", "postgres"]
        await run(box, *bench, "-i", "-q", "-s", "1", "postgres")
        async with echoes(box, vpc, CONNECTIONS) as connections:
            over = asyncio.Event()
            running = asyncio.create_task(connections.run(over))
            process = await asyncio.create_subprocess_exec(
                *in_namespace(box, [*bench, "-c", "8", "-T", str(SECONDS), "-P", "1", "postgres"]),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            assert process.stdout
            said = ""
            while "progress: 2" not in said:
                line = (await process.stdout.readline()).decode()
                assert line, f"pgbench ended early:\n{said}"
                said += line
            daemon.kill()
            while "progress: 4" not in said:
                said += (await process.stdout.readline()).decode()
            await asyncio.to_thread(daemon.start)
            said += (await process.stdout.read()).decode()
            assert await process.wait() == 0, said
            over.set()
            lost = await running
    gap = max(connections.gaps)
    print(f"\ndaemon killed: {CONNECTIONS + 8} connections before, {lost} lost, longest gap {gap:.3f} s")
    assert lost == 0
    assert gap < 2
    assert "number of failed transactions: 0" in said, said
    assert not re.search(r"^(pgbench: error|.*aborted)", said, re.M), said
    rates = [float(one) for one in re.findall(r"progress: .*?, ([\d.]+) tps", said)]
    assert min(rates) > 0, said
    async with daemon.client() as client:
        assert (await client.get_environment(environment.id)).state is EnvironmentState.ATTACHED
        assert (await client.reconcile()).changes == ()
