"""Tunnels that are drained, with real sockets: who is refused, who goes on, and who learns that it is over."""

from __future__ import annotations

import asyncio
import errno
import re
import resource
import select
import socket
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack

import pytest
import pytest_asyncio

from hyperplane.model import Reason

from .sockets import call_in
from .support import DEADLINE, Namespaces, eventually, ip
from .traffic import MIB, Pair, connect_outcome, connection, receive_error, tcp_listener, transfer, udp_socket
from .world import SERVER, Environment, World, each, session, vpc_namespace, world

NOBODY = "198.19.0.99"  # packets to it vanish
MANY = 2000


@pytest_asyncio.fixture
async def lab(io: str, netns_factory: Namespaces) -> AsyncIterator[World]:
    vpc = vpc_namespace(netns_factory)
    ip("-n", vpc, "route", "add", "blackhole", NOBODY)
    async with world(vpc, io=io) as made:
        await each(made.attach(netns_factory.make("env")) for _ in range(2))
        yield made


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def errors_of(sockets: Sequence[socket.socket]) -> dict[str, int]:
    """The errors that sockets come to have, by name and how often, once every one has ended. Nothing is sent."""
    found: dict[str, int] = {}
    waiting = {one.fileno(): one for one in sockets}
    deadline = time.monotonic() + DEADLINE
    with select.epoll() as poll:
        for number in waiting:
            poll.register(number, select.EPOLLERR)
        while waiting:
            left = deadline - time.monotonic()
            assert left > 0, f"{len(waiting)} of {len(sockets)} sockets have heard nothing; others: {found}"
            for number, _ in poll.poll(left):
                name = errno.errorcode[waiting[number].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)]
                found[name] = found.get(name, 0) + 1
                poll.unregister(number)
                del waiting[number]
    return found


def connect_many(lab: World, one: Environment, count: int) -> list[Pair]:
    """Connections that have carried nothing, one after the other."""
    pairs = []
    with ExitStack() as undo:
        listener = undo.enter_context(tcp_listener(lab.vpc, SERVER))
        listener.settimeout(DEADLINE)
        for client in call_in(one.name, lambda: [socket.socket() for _ in range(count)]):
            undo.enter_context(client)
            client.settimeout(DEADLINE)
            client.connect(listener.getsockname())
            pairs.append(Pair(client, undo.enter_context(listener.accept()[0])))
        undo.pop_all()
    listener.close()
    return pairs


def live(lab: World, one: Environment) -> int:
    return lab.engine.counters(one.tunnel).flows


async def test_a_closed_tunnel_refuses_at_once_and_carries_on(lab: World) -> None:
    """The established connection goes on in both directions; TCP and UDP that are new are refused, not left waiting."""
    drained, other = lab.environments
    async with connection(drained.name, lab.vpc, SERVER) as old:
        lab.engine.drain(drained.tunnel, reset=False)
        with tcp_listener(lab.vpc, SERVER) as listener, udp_socket(drained.name, to=(SERVER, 9)) as datagrams:
            target = listener.getsockname()
            assert (await asyncio.to_thread(connect_outcome, drained.name, target, DEADLINE))[0] == "ECONNREFUSED"
            assert (await asyncio.to_thread(connect_outcome, other.name, target, DEADLINE))[0] == "OK"
            datagrams.send(b"hello")
            assert await receive_error(datagrams) == "EHOSTUNREACH"  # net/ipv4/icmp.c: administratively prohibited
        await transfer(old.client, old.server, MIB, seed=1)
        await transfer(old.server, old.client, MIB, seed=2)
        assert lab.drops(drained.tunnel) == {Reason.LINK_DETACHED: 2}
        assert live(lab, drained) == 1


async def test_both_sides_of_an_idle_connection_are_reset(lab: World) -> None:
    """Neither side sends anything: what they hear of it is the engine's doing. The other environment goes on."""
    drained, other = lab.environments
    async with connection(drained.name, lab.vpc, SERVER) as over, connection(other.name, lab.vpc, SERVER) as kept:
        await transfer(over.client, over.server, 1000, seed=1)
        await eventually(lambda: settled(lab, drained))
        lab.engine.drain(drained.tunnel, reset=True)
        assert await asyncio.to_thread(errors_of, [over.client, over.server]) == {"ECONNRESET": 2}
        await eventually(lambda: live(lab, drained) == 0, what="its flow ends")
        await transfer(kept.client, kept.server, MIB, seed=2)
        assert lab.drops(drained.tunnel) == {}
        assert lab.drops(lab.eni) == {}
    await lab.attachments.detach(drained.attachment)


def settled(lab: World, one: Environment) -> bool:
    """Every byte has been acknowledged, a delayed ACK included (tcp_delack_min): the server has sent two packets."""
    (flow,) = lab.engine.flows(tunnel=one.tunnel)
    return flow.packets_in >= 2


async def push(source: socket.socket) -> None:
    while True:
        await asyncio.get_running_loop().sock_sendall(source, bytes(MIB))


async def pull(sink: socket.socket) -> None:
    while await asyncio.get_running_loop().sock_recv(sink, MIB):
        pass


async def test_both_sides_of_a_busy_connection_are_reset(lab: World) -> None:
    """Their numbers have moved on when the RST arrives: challenge ACKs are answered (RFC 5961 section 3.2)."""
    drained = lab.environments[0]
    async with connection(drained.name, lab.vpc, SERVER) as pair:
        ends = (pair.client, pair.server)
        work = [asyncio.create_task(job(one)) for one in ends for job in (push, pull)]
        await eventually(lambda: lab.engine.counters(drained.tunnel).bytes_in > 20 * MIB, what="traffic flows")
        lab.engine.drain(drained.tunnel, reset=True)
        done, pending = await asyncio.wait(work, timeout=DEADLINE)
        for task in pending:
            task.cancel()
        failures = {type(task.exception()) for task in done}
        assert not pending, f"{len(pending)} of {len(work)} wait for ever"
        assert failures <= {ConnectionResetError, BrokenPipeError, type(None)}, failures
        assert ConnectionResetError in failures
    await eventually(lambda: live(lab, drained) == 0, what="its flow ends")


async def test_a_side_that_has_yet_to_acknowledge_is_reset(lab: World) -> None:
    """It has received more than it has said: it answers the RST with a challenge ACK, and that is answered."""
    drained = lab.environments[0]
    async with connection(drained.name, lab.vpc, SERVER) as pair:
        await transfer(pair.client, pair.server, 100, seed=1)
        await transfer(pair.server, pair.client, 100, seed=2)
        pair.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)  # tcp(7): acknowledges 40 ms later
        pair.client.send(b"one more")
        assert await asyncio.get_running_loop().sock_recv(pair.server, 100) == b"one more"
        lab.engine.drain(drained.tunnel, reset=True)
        assert await asyncio.to_thread(errors_of, [pair.client, pair.server]) == {"ECONNRESET": 2}


async def test_a_connection_that_is_being_opened_is_refused(lab: World) -> None:
    drained = lab.environments[0]
    opening = asyncio.create_task(asyncio.to_thread(connect_outcome, drained.name, (NOBODY, 80), DEADLINE))
    await eventually(lambda: live(lab, drained) == 1, what="its SYN passes")
    lab.engine.drain(drained.tunnel, reset=True)
    assert (await opening)[0] == "ECONNREFUSED"
    await eventually(lambda: live(lab, drained) == 0, what="its flow ends")


@pytest.mark.usefixtures("many_descriptors")
async def test_thousands_of_connections_are_reset_while_others_lose_nothing(lab: World) -> None:
    drained, other = lab.environments
    pairs = await asyncio.to_thread(connect_many, lab, drained, MANY)
    try:
        assert live(lab, drained) == MANY
        async with session(other.name, "ping", "-i", "0.005", "-w", "3", SERVER) as ping:
            for _ in range(5):
                await ping.ask("")
            lab.engine.drain(drained.tunnel, reset=True)
            ends = [one for pair in pairs for one in (pair.client, pair.server)]
            assert await asyncio.to_thread(errors_of, ends) == {"ECONNRESET": 2 * MANY}
            await eventually(lambda: live(lab, drained) == 0, what="its flows end")
            assert ping.process.stdout
            async with asyncio.timeout(30):
                report = (await ping.process.stdout.read()).decode()
        sent, received = (int(number) for number in re.findall(r"(\d+) packets transmitted, (\d+) received", report)[0])
        assert sent == received > 100, report[-300:]
        counters = lab.engine.counters(drained.tunnel)
        assert (counters.flows_ended, counters.drops) == (MANY, {})
    finally:
        for pair in pairs:
            pair.client.close()
            pair.server.close()
