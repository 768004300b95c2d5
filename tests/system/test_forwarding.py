"""The whole path of a packet: environment, the daemon's devices, its engine with the I/O that the kernel has, VPC.

`make test-kernels` runs it on each kernel, so it asks for nothing that one of them may lack.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Final

import pytest

from hyperplane.client import Client

from . import traffic
from .daemons import SERVER, TestDaemon, active, declare, start, until
from .support import Namespaces
from .world import run

STREAM: Final = 1 << 20
DATAGRAMS: Final = 200


@pytest.fixture(scope="module")
def daemon() -> Iterator[TestDaemon]:
    with TestDaemon() as made:
        made.start()
        yield made


@asynccontextmanager
async def attached(client: Client, vpc: str, box: str) -> AsyncIterator[None]:
    """box reaches vpc; afterwards nothing is declared."""
    await declare(client, vpc)
    environment = await start(client, box)
    yield
    await client.end_environment(environment.id)
    await client.delete_function("f")
    for delete, name in ((client.delete_security_group, "g"), (client.delete_subnet, "s"), (client.delete_vpc, "v")):
        await delete(name)


async def test_tcp(daemon: TestDaemon, vpc: str, netns_factory: Namespaces) -> None:
    box = netns_factory("box")
    async with daemon.client() as client, attached(client, vpc, box), traffic.connection(box, vpc, SERVER) as pair:
        await traffic.transfer(pair.client, pair.server, STREAM, 1)
        await traffic.transfer(pair.server, pair.client, STREAM, 2)


async def test_udp(daemon: TestDaemon, vpc: str, netns_factory: Namespaces) -> None:
    """Each datagram by itself, and trains of them that the sender's kernel leaves together (UDP_SEGMENT)."""
    box = netns_factory("box")
    sent = [traffic.payload(number, 300) for number in range(DATAGRAMS)]
    async with daemon.client() as client, attached(client, vpc, box):
        function = await active(client, "f")
        (eni,) = [eni async for eni in client.enis() if eni.id in function.enis]
        with traffic.udp_socket(vpc, SERVER) as server, traffic.udp_socket(box, to=server.getsockname()) as inside:
            await traffic.datagrams(inside, server, sent)
            (flow,) = [flow async for flow in client.flows()]
            server.connect((str(eni.addresses[0]), flow.outside_port))
            await traffic.datagrams(server, inside, sent)
            for one, other in ((inside, server), (server, inside)):
                one.setsockopt(traffic.SOL_UDP, traffic.UDP_SEGMENT, 300)
                for train in range(0, DATAGRAMS, 40):
                    one.send(b"".join(sent[train : train + 40]))
                await traffic.expect_datagrams(other, sent)


async def test_icmp(daemon: TestDaemon, vpc: str, netns_factory: Namespaces) -> None:
    """Echo; and the error that a closed port is answered with."""
    box = netns_factory("box")
    async with daemon.client() as client, attached(client, vpc, box):
        for _ in range(3):  # one at a time: ping waits for the last of several for two round trips only
            assert "1 received" in await run(box, "ping", "-n", "-c", "1", "-W", "30", SERVER)
        with traffic.udp_socket(box, to=(SERVER, 9)) as inside:
            inside.send(b"anybody?")
            assert await traffic.receive_error(inside) == "ECONNREFUSED"


async def test_an_engine_that_is_killed(daemon: TestDaemon, vpc: str, netns_factory: Namespaces) -> None:
    """A connection goes on with the successor, and a new one is made."""
    box = netns_factory("box")
    async with daemon.client() as client, attached(client, vpc, box):
        async with traffic.connection(box, vpc, SERVER) as pair:
            await traffic.transfer(pair.client, pair.server, STREAM, 1)
            killed = daemon.engine_pid()
            os.kill(killed, signal.SIGKILL)
            await traffic.transfer(pair.server, pair.client, STREAM, 2)
            await traffic.transfer(pair.client, pair.server, STREAM, 3)
        await until(client.status, lambda now: now.engine is not None and now.engine.restarts == 1)
        assert daemon.engine_pid() not in (0, killed)
        async with traffic.connection(box, vpc, SERVER) as pair:
            await traffic.transfer(pair.client, pair.server, STREAM, 4)
