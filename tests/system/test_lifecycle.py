"""Environments that come and go while others work, and many that do nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack

import pytest_asyncio

from hyperplane.model import Counters

from .support import Namespaces, eventually, ip
from .traffic import MIB, Pair, connection, datagrams, transfer, udp_socket
from .world import INSIDE, SERVER, World, each, vpc_namespace, world

IDLE, HOMES = 500, 10


@pytest_asyncio.fixture
async def lab(io: str, netns_factory: Namespaces) -> AsyncIterator[World]:
    async with world(vpc_namespace(netns_factory), io=io) as made:
        await each(made.attach(netns_factory.make("env")) for _ in range(2))
        yield made


async def push(pair: Pair) -> None:
    """Sends and receives without an end."""
    loop = asyncio.get_running_loop()

    async def drain() -> None:
        while await loop.sock_recv(pair.server, MIB):
            pass

    async with asyncio.TaskGroup() as group:
        group.create_task(drain())
        while True:
            await loop.sock_sendall(pair.client, bytes(MIB))


def owners(lab: World) -> set[str]:
    return {flow.tunnel for flow in lab.engine.flows()}


async def test_namespace_deleted_underneath(lab: World, netns_factory: Namespaces) -> None:
    """Its attachment ends with the reason, in the middle of traffic; the other environment notices nothing."""
    doomed, other = lab.environments
    async with connection(doomed.name, lab.vpc, SERVER) as lost, connection(other.name, lab.vpc, SERVER) as kept:
        pushing = asyncio.create_task(push(lost))
        try:
            await transfer(kept.client, kept.server, 8 * MIB, seed=1)
            netns_factory.delete(doomed.name)
            async with asyncio.timeout(30):
                reason = await doomed.attachment.ended
            assert reason == f"namespace {doomed.name} was deleted"
            await transfer(kept.server, kept.client, 8 * MIB, seed=2)
            assert lab.engine.tunnels == (other.tunnel,)
            await eventually(lambda: owners(lab) == {other.name}, what="its flows end")
        finally:
            pushing.cancel()
            await asyncio.wait([pushing])
    again = await lab.attach(netns_factory.make("env"))
    async with connection(again.name, lab.vpc, SERVER) as pair:
        await transfer(pair.client, pair.server, MIB, seed=3)


async def test_vpc_deleted_underneath(lab: World, netns_factory: Namespaces) -> None:
    """Its ENI ends with all that is attached to it; the ENI of another VPC goes on."""
    second_vpc = vpc_namespace(netns_factory)
    second = await lab.attachments.open_eni(vpc=second_vpc, addresses="198.19.0.6", name="second")
    lab.engine.set_security_groups(second, lab.eni.security_groups)
    kept = await lab.attachments.attach(second, namespace=netns_factory.make("env"))
    ends = [lab.attachments.eni_ended(lab.eni), *(one.attachment.ended for one in lab.environments)]
    async with connection(kept.namespace, second_vpc, SERVER) as pair:
        netns_factory.delete(lab.vpc)
        async with asyncio.timeout(30):
            reasons = await asyncio.gather(*ends)
        assert all(f"namespace {lab.vpc} was deleted" in reason for reason in reasons), reasons
        await transfer(pair.client, pair.server, MIB, seed=4)
    assert (lab.engine.enis, lab.engine.tunnels) == ((second,), (kept.tunnel,))


async def test_detach_and_attach_again_while_traffic_flows(lab: World) -> None:
    """Ten times, each in the middle of a connection that so ends; the other environment's loses no byte."""
    coming, staying = lab.environments
    async with connection(staying.name, lab.vpc, SERVER) as kept:
        steady = asyncio.create_task(transfer(kept.client, kept.server, 128 * MIB, seed=5))
        for _ in range(10):
            async with connection(coming.name, lab.vpc, SERVER) as lost:
                pushing = asyncio.create_task(push(lost))
                await eventually(lambda: lab.engine.counters(coming.tunnel).packets_in > 100)
                await lab.attachments.detach(coming.attachment)
                assert await coming.attachment.ended == "detached"
                await eventually(lambda: owners(lab) == {staying.name}, what="its flows end")
                pushing.cancel()
                await asyncio.wait([pushing])
            coming.attachment = await lab.attachments.attach(lab.eni, namespace=coming.name)
        await steady
        assert lab.drops(staying.tunnel) == {}
        await eventually(lambda: owners(lab) == {staying.name}, what="the last one's flows end")


async def test_five_hundred_idle_tunnels_and_a_busy_one(lab: World, netns_factory: Namespaces) -> None:
    """They neither disturb it nor count anything; then each of them sends a datagram."""
    alone = await best_of_three(lab)
    homes = [netns_factory.make("idle") for _ in range(HOMES)]
    idle = await each(
        lab.attachments.attach(
            lab.eni,
            namespace=homes[number % HOMES],
            name=f"idle{number}",
            device=f"tun{number}",
            routes=[f"203.0.113.{number // HOMES}/32"],
        )
        for number in range(IDLE)
    )
    in_company = await best_of_three(lab)
    assert in_company < 3 * alone
    assert all(lab.engine.counters(one.tunnel) == Counters() for one in idle)

    ip("-n", lab.vpc, "addr", "add", "203.0.113.0/24", "dev", "lo")
    with ExitStack() as stack:
        server = stack.enter_context(udp_socket(lab.vpc, "0.0.0.0", port=7))
        for home in homes:
            client = stack.enter_context(udp_socket(home, INSIDE, port=7000))
            for number in range(IDLE // HOMES):
                await datagrams(client, server, [b"awake"], to=(f"203.0.113.{number}", 7))
        flows = [flow for flow in lab.engine.flows() if flow.protocol == "udp"]
    assert {flow.tunnel: str(flow.remote) for flow in flows} == {
        one.tunnel.name: f"203.0.113.{number // HOMES}" for number, one in enumerate(idle)
    }
    assert len(flows) == len({flow.outside_port for flow in flows}) == IDLE
    assert lab.engine.counters().drops == {}


async def best_of_three(lab: World) -> float:
    """Seconds for 64 MiB from the first environment."""
    times = []
    async with connection(lab.environments[0].name, lab.vpc, SERVER) as pair:
        for seed in range(3):
            started = time.perf_counter()
            await transfer(pair.client, pair.server, 64 * MIB, seed)
            times.append(time.perf_counter() - started)
    return min(times)
