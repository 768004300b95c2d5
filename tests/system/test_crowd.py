"""Some hundred environments at once: they come together, each of them works, and all go without a trace."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from hyperplane.linux.fresh import delete_namespace, fresh_namespace
from hyperplane.linux.namespaces import NamespaceThreads

from .support import DEADLINE, PREFIX, Namespaces, Within, descriptors, eventually
from .traffic import SECONDS, udp_socket
from .world import SERVER, World, each, vpc_namespace, world

COUNT = 300
PORT = 7


@pytest.fixture
def homes(threads: NamespaceThreads) -> Iterator[list[str]]:
    names = [f"{PREFIX}crowd-{number}" for number in range(COUNT)]

    def make(name: str) -> None:
        with fresh_namespace(name, threads):
            pass

    try:
        for name in names:
            threads.submit(make, name).result(DEADLINE)
        yield names
    finally:
        for name in names:
            delete_namespace(name)


async def test_hundreds_come_work_and_go(io: str, netns_factory: Namespaces, homes: list[str], within: Within) -> None:
    """A descriptor each while they are there, and none afterwards; a third is detached, of a third the namespace is
    deleted, the last third goes with the engine."""
    vpc = vpc_namespace(netns_factory)
    before = descriptors()
    async with world(vpc, io=io) as lab:
        empty = tun_descriptors()
        environments = await each(lab.attach(home) for home in homes)
        assert tun_descriptors() == empty + COUNT
        await ask_each(lab, homes)

        third = COUNT // 3
        detached, doomed = environments[:third], environments[third : 2 * third]
        await each(lab.attachments.detach(one.attachment) for one in detached)
        for one in doomed:
            delete_namespace(one.name)
        async with asyncio.timeout(60):
            reasons = await asyncio.gather(*(one.attachment.ended for one in doomed))
        assert reasons == [f"namespace {one.name} was deleted" for one in doomed]
        await eventually(lambda: tun_descriptors() == empty + third, what="the devices of those that went are closed")
        assert {one.name for one in lab.engine.tunnels} == set(homes[2 * third :])
        await ask_each(lab, homes[2 * third :])
    assert descriptors() == before
    for home in (*homes[:third], *homes[2 * third :]):
        assert within(home, lambda _: socket.if_nameindex()) == [(1, "lo")]


def tun_descriptors() -> int:
    """Of this process: looks at devices have others for a moment."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself
            count += os.readlink(f"/proc/self/fd/{name}") == "/dev/net/tun"
    return count


async def ask_each(lab: World, homes: list[str]) -> None:
    """A datagram from every environment and one back; then each has a flow, and a port, of its own."""
    loop = asyncio.get_running_loop()
    with udp_socket(lab.vpc, SERVER, port=PORT) as server:
        async with asyncio.timeout(SECONDS):
            for home in homes:
                with udp_socket(home, to=(SERVER, PORT)) as client:
                    client.send(home.encode())
                    data, source = await loop.sock_recvfrom(server, 64)
                    assert data == home.encode()
                    await loop.sock_sendto(server, b"back", source)
                    assert await loop.sock_recv(client, 64) == b"back"
    await eventually(lambda: {one.tunnel for one in lab.engine.flows()} == set(homes), what="the flows of others end")
    assert len({one.outside_port for one in lab.engine.flows()}) >= len(homes)
    assert lab.engine.counters().drops == {}
