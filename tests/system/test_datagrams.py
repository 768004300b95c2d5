"""Payloads arrive as they were sent, datagrams one by one, whatever was put together and taken apart on the way.

A sender's kernel hands the engine super-packets (UDP_SEGMENT); the engine joins equal datagrams, and TCP segments of a
sender without segmentation offload, itself.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from hyperplane.linux.rtnl import ENI_QUEUE

from .support import Namespaces
from .traffic import (
    MIB,
    SO_NO_CHECK,
    SOL_UDP,
    UDP_SEGMENT,
    connection,
    datagrams,
    expect_datagrams,
    payload,
    transfer,
    udp_socket,
)
from .world import SERVER, World, each, vpc_namespace, world

ENVIRONMENTS = 3
SEGMENT, SEGMENTS, BURSTS = 1400, 44, 20
STREAM = 8 * MIB


@pytest_asyncio.fixture
async def lab(io: str, netns_factory: Namespaces) -> AsyncIterator[World]:
    async with world(vpc_namespace(netns_factory), io=io) as made:
        await each(made.attach(netns_factory.make("env")) for _ in range(ENVIRONMENTS))
        yield made


async def outside_port(lab: World, client: socket.socket, server: socket.socket) -> int:
    """Begins a flow; where the server answers to."""
    await datagrams(client, server, [b"hello"])
    inside_port = client.getsockname()[1]
    (flow,) = (flow for flow in lab.engine.flows() if flow.inside_port == inside_port)
    return flow.outside_port


@pytest.mark.parametrize("last", [SEGMENT, 100], ids=["equal", "short-end"])
async def test_segmented_datagrams_both_ways(lab: World, last: int) -> None:
    """USO: the engine reads a burst of 44 datagrams as one packet."""
    sizes = [*[SEGMENT] * (SEGMENTS - 1), last]
    before, read = lab.engine.counters(), lab.engine.status().packets
    with udp_socket(lab.vpc, SERVER) as server, udp_socket(lab.environments[0].name, to=server.getsockname()) as client:
        server.connect((lab.address, await outside_port(lab, client, server)))
        for one, other in ((client, server), (server, client)):
            one.setsockopt(SOL_UDP, UDP_SEGMENT, SEGMENT)
            for burst in range(BURSTS):
                sent = [payload(burst * SEGMENTS + number, size) for number, size in enumerate(sizes)]
                one.send(b"".join(sent))
                await expect_datagrams(other, sent)
    after = lab.engine.counters()
    assert after.drops == {}
    on_the_wire = after.packets_in - before.packets_in
    assert on_the_wire == 2 * BURSTS * SEGMENTS + 1
    assert on_the_wire > 10 * (lab.engine.status().packets - read)


async def test_trains_that_follow_each_other(lab: World) -> None:
    """Several bursts may leave as one; no datagram is longer, shorter or elsewhere in the row for it."""
    sent = [payload(number, 64) for number in range(12 * 32)]
    with udp_socket(lab.vpc, SERVER) as server, udp_socket(lab.environments[0].name, to=server.getsockname()) as client:
        server.connect((lab.address, await outside_port(lab, client, server)))
        for one, other in ((client, server), (server, client)):
            one.setsockopt(SOL_UDP, UDP_SEGMENT, 64)
            for train in range(0, len(sent), 32):
                one.send(b"".join(sent[train : train + 32]))
            await expect_datagrams(other, sent)
    assert lab.engine.counters().drops == {}


async def test_bursts_of_equal_datagrams_from_all_environments_at_once(lab: World) -> None:
    """What the engine joins leaves it in order, and never two environments' in one."""
    sent = [payload(number, 64) for number in range(ENI_QUEUE // ENVIRONMENTS)]  # those of all fit the ENI's queue

    async def exchange(namespace: str) -> None:
        with udp_socket(lab.vpc, SERVER) as server, udp_socket(namespace, to=server.getsockname()) as client:
            back = (lab.address, await outside_port(lab, client, server))
            await datagrams(client, server, sent)
            await datagrams(server, client, sent, to=back)

    before = lab.engine.status()
    await each(exchange(one.name) for one in lab.environments)
    after = lab.engine.status()
    assert lab.engine.counters().drops == {}
    assert after.packets - before.packets >= ENVIRONMENTS * (2 * len(sent) + 1)
    assert after.writes - before.writes < after.packets - before.packets


async def test_datagrams_of_all_sizes_keep_their_order(lab: World) -> None:
    """Runs of equal ones, interrupted by longer, shorter, and the longest and shortest ones."""
    sizes = [*[200] * 70, 199, 200, 201, *[4] * 5, 1472, 1471, *[1472] * 50, *range(4, 300), *range(300, 4, -1)]
    sent = [payload(number, size) for number, size in enumerate(sizes)]
    with udp_socket(lab.vpc, SERVER) as server, udp_socket(lab.environments[0].name, to=server.getsockname()) as client:
        back = (lab.address, await outside_port(lab, client, server))
        for start in range(0, len(sent), 400):
            await datagrams(client, server, sent[start : start + 400])
            await datagrams(server, client, sent[start : start + 400], to=back)
    assert lab.engine.counters().drops == {}


async def test_flood_from_one_environment_leaves_the_others_their_way(lab: World) -> None:
    flooder, one, other = lab.environments

    def flood() -> None:
        for _ in range(150_000):
            client.send(bytes(64))

    with udp_socket(lab.vpc, SERVER) as sink, udp_socket(flooder.name, to=sink.getsockname()) as client:
        client.setblocking(True)
        flooding = asyncio.get_running_loop().run_in_executor(None, flood)
        async with connection(one.name, lab.vpc, SERVER) as pair:
            pinging = asyncio.create_task(other.run("ping", "-n", "-c", "20", "-i", "0.01", SERVER))
            await transfer(pair.client, pair.server, 4 * MIB, seed=1)
            await transfer(pair.server, pair.client, 4 * MIB, seed=2)
        assert "20 received" in await pinging
        await flooding
    assert lab.engine.counters().drops == {}


async def test_datagrams_without_checksum(lab: World) -> None:
    """RFC 768: a checksum of 0 is none, and stays none; nothing is joined on its word."""
    sent = [payload(number, 300) for number in range(100)]
    with udp_socket(lab.vpc, SERVER) as server, udp_socket(lab.environments[0].name, to=server.getsockname()) as client:
        back = (lab.address, await outside_port(lab, client, server))
        for one in (client, server):
            one.setsockopt(socket.SOL_SOCKET, SO_NO_CHECK, 1)
        await datagrams(client, server, sent)
        await datagrams(server, client, sent, to=back)
    assert lab.engine.counters().drops == {}


async def test_tcp_segments_of_a_sender_without_offload(lab: World) -> None:
    """Each segment comes by itself; those in a row leave together, and the stream is what was sent."""
    sender, other = lab.environments[0], lab.environments[1]
    await sender.run("ip", "link", "set", "dev", "eth0", "gso_max_segs", "1")
    before, counted = lab.engine.status(), lab.engine.counters()
    async with (
        connection(sender.name, lab.vpc, SERVER) as pair,
        connection(other.name, lab.vpc, SERVER) as beside,
    ):
        await asyncio.gather(
            transfer(pair.client, pair.server, STREAM, seed=3),
            transfer(beside.server, beside.client, STREAM, seed=4),
        )
    after = lab.engine.status()
    assert lab.engine.counters().drops == {}
    assert lab.engine.counters().packets_in - counted.packets_in > 2 * STREAM // 1500
    assert after.packets - before.packets > STREAM // 1500
    assert after.writes - before.writes < after.packets - before.packets
