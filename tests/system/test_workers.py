"""Two workers in one engine: tunnels are spread over them, and what comes back finds the one that has its flow.

Either the kernel brings a packet to the right queue by the steering program, or by what it remembers itself; or all
arrive at one queue, as of a device that was handed in, and are handed over.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
import pytest_asyncio

from hyperplane.linux import steering, tun

from .daemons import SMALL, TestDaemon, declare, start, until
from .support import SERVER as VPC_SERVER
from .support import Namespaces, descriptors, eventually
from .traffic import MIB, connection, datagrams, payload, transfer, udp_socket
from .world import SERVER, World, each, vpc_namespace, world

WAYS = ("steered", "unsteered", "one queue")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How packets come to workers."""
    if request.param != "steered":
        monkeypatch.setattr(steering, "steer", lambda fd, addresses: -1)
    if request.param == "one queue":
        monkeypatch.setattr(tun, "open_queues", lambda device, count: [tun.open_tun(device)])
    return str(request.param)


@pytest_asyncio.fixture
async def lab(io: str, way: str, netns_factory: Namespaces) -> AsyncIterator[World]:
    before = descriptors()
    async with world(vpc_namespace(netns_factory), io=io, workers=2) as made:
        await each(made.attach(netns_factory.make("env")) for _ in range(4))
        yield made
    assert descriptors() == before


async def load(lab: World, seed: int) -> None:
    """Both directions of TCP, and datagrams there and back, in every environment at once."""

    async def stream(namespace: str, number: int) -> None:
        async with connection(namespace, lab.vpc, SERVER) as pair:
            await transfer(pair.client, pair.server, 2 * MIB, number)
            await transfer(pair.server, pair.client, 2 * MIB, number + 1)

    async def ask(namespace: str) -> None:
        with udp_socket(lab.vpc, SERVER) as server, udp_socket(namespace, to=server.getsockname()) as client:
            client.send(b"first")
            _, peer = await asyncio.get_running_loop().sock_recvfrom(server, 100)
            await datagrams(client, server, [payload(number, 300) for number in range(100)])
            await datagrams(server, client, [payload(number, 300) for number in range(100)], to=peer)

    jobs: list[Any] = [stream(one.name, seed + 2 * number) for number, one in enumerate(lab.environments)]
    await each([*jobs, *(ask(one.name) for one in lab.environments)])


async def test_both_work_and_every_packet_finds_its_flow(lab: World, way: str) -> None:
    await load(lab, 1)
    for output in await each(one.run("ping", "-n", "-c", "5", "-i", "0.02", SERVER) for one in lab.environments):
        assert "5 packets transmitted, 5 received" in output
    workers = lab.engine.status().workers
    assert [worker.flows for worker in workers] == [lab.engine.status().flows // 2] * 2
    assert sum(worker.handed_over for worker in workers) == sum(worker.taken_over for worker in workers)
    handed_over = [worker.handed_over > 0 for worker in workers]
    if way == "one queue":
        assert handed_over == [True, False]
        assert workers[1].packets < workers[1].taken_over + workers[0].packets
    if way == "steered":
        assert handed_over == [False, False]
    assert lab.drops(lab.eni) == {}
    assert all(lab.drops(one.tunnel) == {} for one in lab.environments)
    total = lab.engine.counters(lab.eni)
    tunnels = [lab.engine.counters(one.tunnel) for one in lab.environments]
    assert total.packets_in == sum(one.packets_out for one in tunnels)
    assert total.packets_out == sum(one.packets_in for one in tunnels)
    assert total.flows == sum(one.flows for one in tunnels) == len(lab.engine.flows())


async def test_errors_find_the_flow_that_they_are_about(lab: World) -> None:
    """RFC 5508 REQ-4: the packet that an error quotes names the port."""
    closed = 9
    for one in lab.environments:
        with udp_socket(one.name, to=(SERVER, closed)) as client:
            client.send(b"anybody?")
            with pytest.raises(ConnectionRefusedError):
                await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 100), 10)
    assert lab.drops(lab.eni) == {}


async def test_others_come_and_go_meanwhile(lab: World, netns_factory: Namespaces) -> None:
    """Tunnels and ENIs that are added and removed cost those who stay nothing."""
    done = asyncio.Event()

    async def come_and_go() -> None:
        while not done.is_set():
            async with AsyncExitStack() as stack:
                eni = await lab.attachments.open_eni(
                    vpc=lab.vpc, name="other", device="eni7", addresses="198.19.0.251",
                )  # fmt: skip
                stack.push_async_callback(lab.attachments.close_eni, eni)
                for name in others:
                    attachment = await lab.attachments.attach(eni, namespace=name, device="eth7")
                    stack.push_async_callback(lab.attachments.detach, attachment)

    others = [netns_factory.make("other") for _ in range(3)]
    changing = asyncio.create_task(come_and_go())
    try:
        await load(lab, 100)
    finally:
        done.set()
        await changing
    assert lab.drops(lab.eni) == {}
    assert all(lab.drops(one.tunnel) == {} for one in lab.environments)
    await eventually(lambda: len(lab.engine.enis) == 1, what="the other ENI is gone")


async def test_a_daemon_that_comes_and_goes_and_an_engine_that_is_killed(vpc: str, netns_factory: Namespaces) -> None:
    boxes = [netns_factory.make("box") for _ in range(2)]
    with TestDaemon(engine={**SMALL, "workers": 2}) as daemon:
        daemon.start()
        async with daemon.client() as client, AsyncExitStack() as stack:
            await declare(client, vpc)
            for box in boxes:
                await start(client, box)
            pairs = [await stack.enter_async_context(connection(box, vpc, VPC_SERVER)) for box in boxes]

            async def go_on(seed: int) -> None:
                await each(transfer(pair.client, pair.server, MIB, seed) for pair in pairs)
                await each(transfer(pair.server, pair.client, MIB, seed + 1) for pair in pairs)

            await go_on(1)
            daemon.kill()
            await go_on(3)
            daemon.start()
            os.kill(daemon.engine_pid(), signal.SIGKILL)
            await go_on(5)
            status = await until(client.status, lambda found: found.engine is not None and found.engine.restarts == 1)
            assert status.engine
            workers = status.engine.status.workers
            assert [worker.flows for worker in workers] == [1, 1]
            assert all(worker.packets and not worker.handed_over for worker in workers)
            assert 'hyperplane_worker_flows{worker="1"} 1.0' in await client.metrics()
            assert (await client.reconcile()).changes == ()
