"""What is refused, why, and who is told: spoofed sources, security groups, quotas, and every way in."""

from __future__ import annotations

import select
import socket
from collections.abc import AsyncIterator
from ipaddress import IPv4Address

import pytest_asyncio

from hyperplane.dataplane import SecurityGroup
from hyperplane.model import Reason

from .support import Namespaces, eventually, ip
from .traffic import (
    MIB,
    at_end,
    connect_outcome,
    connection,
    datagrams,
    expect_datagrams,
    receive_error,
    tcp_listener,
    transfer,
    udp_socket,
)
from .world import INSIDE, OTHER_SERVER, SERVER, Environment, World, each, run, vpc_namespace, world

ALLOWED, FORBIDDEN = 8080, 8081
WEB = (SecurityGroup.parse("web", [f"tcp/{ALLOWED}", f"udp/{ALLOWED}", "icmp/8 198.19.0.10/32"]),)
SHORT, LONG = 0.3, 30.0  # seconds: to see that nothing comes; that suffice in any case


@pytest_asyncio.fixture
async def lab(io: str, netns_factory: Namespaces) -> AsyncIterator[World]:
    """Two environments; one TCP and one UDP port is allowed, and ping to SERVER."""
    async with world(vpc_namespace(netns_factory), io=io, security_groups=WEB) as made:
        await each(made.attach(netns_factory.make("env")) for _ in range(2))
        yield made


async def test_spoofed_source_is_dropped_without_an_answer(lab: World) -> None:
    """Whether it is nobody's address, a server's or the ENI's own: it comes from no environment of ours."""
    one = lab.environments[0]
    sources = ("198.18.0.99", OTHER_SERVER, lab.address)
    for source in sources:
        ip("-n", one.name, "addr", "add", f"{source}/32", "dev", "lo")
        assert connect_outcome(one.name, (SERVER, ALLOWED), SHORT, source=(source, 4000))[0] == "TIMEOUT"
        with udp_socket(one.name, source, port=4000) as client:
            client.sendto(b"from somebody else", (SERVER, ALLOWED))
    await eventually(lambda: lab.drops(one.tunnel) == {Reason.SPOOFED_SOURCE: 2 * len(sources)})
    assert lab.engine.counters(one.tunnel).refusals_sent == 0
    assert lab.engine.counters(lab.eni).packets_out == 0
    seen = {(drop.link, drop.protocol, str(drop.source), drop.source_port) for drop in lab.engine.drops()}
    assert seen == {(one.name, protocol, source, 4000) for source in sources for protocol in (6, 17)}
    assert {(str(drop.destination), drop.destination_port) for drop in lab.engine.drops()} == {(SERVER, ALLOWED)}


async def test_forbidden_port_is_refused_at_once_unless_the_eni_is_silent(
    lab: World, netns_factory: Namespaces
) -> None:
    silent = await lab.attachments.open_eni(
        vpc=lab.vpc, addresses="198.19.0.6", name="silent", device="eni1", security_groups=WEB, silent=True
    )
    namespace = netns_factory.make("env")
    mute = Environment(namespace, await lab.attachments.attach(silent, namespace=namespace))
    one = lab.environments[0]
    with tcp_listener(lab.vpc, SERVER, port=FORBIDDEN):
        tries = [connect_outcome(one.name, (SERVER, FORBIDDEN), LONG) for _ in range(5)]
        assert {outcome for outcome, _ in tries} == {"ECONNREFUSED"}
        outcome, waited = connect_outcome(namespace, (SERVER, FORBIDDEN), SHORT)
        assert outcome == "TIMEOUT"
        assert min(seconds for _, seconds in tries) < waited / 10
    counters = lab.engine.counters(one.tunnel)
    assert (counters.drops, counters.refusals_sent) == ({"security_group": 5}, 5)
    counters = lab.engine.counters(mute.tunnel)
    assert (counters.drops, counters.refusals_sent) == ({"security_group": 1}, 0)
    records = [(drop.link, drop.reason, str(drop.destination), drop.destination_port) for drop in lab.engine.drops()]
    assert records == [(who, Reason.SECURITY_GROUP, SERVER, FORBIDDEN) for who in [*[one.name] * 5, namespace]]
    assert lab.engine.flows() == []


async def test_forbidden_udp_and_ping_are_told_so(lab: World) -> None:
    """ICMP "administratively prohibited" (RFC 1812 5.2.7.1), from the ENI's address."""
    one = lab.environments[0]
    with udp_socket(one.name, to=(SERVER, FORBIDDEN)) as client:
        client.send(b"hello")
        assert await receive_error(client) == "EHOSTUNREACH"
    output = await one.run("ping", "-n", "-c", "1", "-W", "5", OTHER_SERVER, status=1)
    assert f"From {lab.address} icmp_seq=1 Packet filtered" in output
    assert "1 received" in await one.run("ping", "-n", "-c", "1", SERVER)
    assert lab.drops(one.tunnel) == {Reason.SECURITY_GROUP: 2}


async def test_nothing_connects_in(lab: World) -> None:
    """Dropped without a word, although somebody listens inside on that very port."""
    inside = lab.environments[0].name
    with tcp_listener(inside, INSIDE, port=22) as listener, udp_socket(inside, INSIDE, port=22) as receiver:
        assert connect_outcome(lab.vpc, (lab.address, 22), SHORT, source=(SERVER, 5000))[0] == "TIMEOUT"
        with udp_socket(lab.vpc, SERVER, port=5000) as other:
            other.sendto(b"hello", (lab.address, 22))
        await run(lab.vpc, "ping", "-n", "-c", "1", "-W", "0.2", "-I", SERVER, lab.address, status=1)
        await eventually(lambda: lab.drops(lab.eni) == {Reason.NO_FLOW: 3})
        assert select.select([listener, receiver], [], [], 0) == ([], [], [])
    tcp, udp, _ = lab.engine.drops()
    for drop, protocol in ((tcp, socket.IPPROTO_TCP), (udp, socket.IPPROTO_UDP)):
        assert (drop.link, drop.reason, drop.protocol) == (lab.eni.name, Reason.NO_FLOW, protocol)
        assert (str(drop.source), drop.source_port) == (SERVER, 5000)
        assert (str(drop.destination), drop.destination_port) == (lab.address, 22)
    counters = lab.engine.counters()
    assert (counters.refusals_sent, counters.packets_out) == (0, 0)


async def test_no_way_in_through_the_port_of_a_live_connection(lab: World) -> None:
    """Filtering is address-and-port-dependent (RFC 4787 REQ-8), for TCP and for UDP's endpoint-independent mappings."""
    one = lab.environments[0]
    async with connection(one.name, lab.vpc, SERVER, port=ALLOWED) as pair:
        (flow,) = lab.engine.flows()
        for source in ((OTHER_SERVER, ALLOWED), (SERVER, ALLOWED + 1)):
            assert connect_outcome(lab.vpc, (lab.address, flow.outside_port), SHORT, source=source)[0] == "TIMEOUT"
        await transfer(pair.client, pair.server, MIB, seed=1)
    with udp_socket(lab.vpc, SERVER, port=ALLOWED) as server, udp_socket(one.name, INSIDE) as client:
        await datagrams(client, server, [b"hello"], to=(SERVER, ALLOWED))
        (flow,) = (flow for flow in lab.engine.flows() if flow.protocol == "udp")
        back = (lab.address, flow.outside_port)
        for source in ((OTHER_SERVER, ALLOWED), (SERVER, ALLOWED + 1)):
            with udp_socket(lab.vpc, source[0], port=source[1]) as other:
                other.sendto(b"let me in", back)
        await datagrams(server, client, [b"the only datagram that arrives"], to=back)
    assert lab.drops(lab.eni) == {Reason.NO_FLOW: 4}


async def test_the_eni_itself_and_other_environments_are_no_destinations(lab: World) -> None:
    """What one environment sends to the ENI's address must not come out at another's."""
    one, other = lab.environments
    with udp_socket(lab.vpc, SERVER, port=ALLOWED) as server, udp_socket(other.name, INSIDE) as client:
        await datagrams(client, server, [b"hello"], to=(SERVER, ALLOWED))
        (flow,) = lab.engine.flows()
        with udp_socket(one.name, to=(lab.address, flow.outside_port)) as neighbour:
            neighbour.send(b"hello, neighbour")
            assert await receive_error(neighbour) == "EHOSTUNREACH"
        assert connect_outcome(one.name, (lab.address, flow.outside_port), LONG)[0] == "ECONNREFUSED"
        assert lab.drops(one.tunnel) == {Reason.INVALID_DESTINATION: 2}
        await datagrams(server, client, [b"the only datagram that arrives"], to=(lab.address, flow.outside_port))


async def test_new_security_groups_hold_for_new_connections_and_cut_none(lab: World) -> None:
    one = lab.environments[0]
    async with connection(one.name, lab.vpc, SERVER, port=ALLOWED) as pair:
        with tcp_listener(lab.vpc, OTHER_SERVER, port=FORBIDDEN), tcp_listener(lab.vpc, OTHER_SERVER, port=ALLOWED):
            lab.engine.set_security_groups(lab.eni, [SecurityGroup.parse("new", [f"tcp/{FORBIDDEN}"])])
            assert connect_outcome(one.name, (OTHER_SERVER, FORBIDDEN), LONG)[0] == "OK"
            assert connect_outcome(one.name, (OTHER_SERVER, ALLOWED), LONG)[0] == "ECONNREFUSED"
        await transfer(pair.client, pair.server, MIB, seed=2)
        await transfer(pair.server, pair.client, MIB, seed=3)
        pair.client.shutdown(socket.SHUT_WR)
        assert await at_end(pair.server)


async def test_flow_quota_of_one_environment_is_nobody_elses(lab: World, netns_factory: Namespaces) -> None:
    few = await lab.attach(netns_factory.make("env"), max_flows=5)
    clients = []
    try:
        with udp_socket(lab.vpc, SERVER, port=ALLOWED) as server:
            for _ in range(5):
                clients.append(udp_socket(few.name, to=(SERVER, ALLOWED)))
                await datagrams(clients[-1], server, [b"hello"])
            clients.append(udp_socket(few.name, to=(SERVER, ALLOWED)))
            clients[-1].send(b"one too many")
            assert await receive_error(clients[-1]) == "EHOSTUNREACH"
            assert connect_outcome(few.name, (SERVER, ALLOWED), LONG)[0] == "ECONNREFUSED"
            await datagrams(clients[0], server, [b"the first flow goes on"])
            for _ in range(10):
                clients.append(udp_socket(lab.environments[0].name, to=(SERVER, ALLOWED)))
                await datagrams(clients[-1], server, [b"hello"])
    finally:
        for client in clients:
            client.close()
    assert lab.drops(few.tunnel) == {Reason.FLOW_QUOTA: 2}
    assert lab.drops(lab.environments[0].tunnel) == {}


async def test_two_vpcs_with_the_same_addresses_stay_apart(lab: World, netns_factory: Namespaces) -> None:
    """Same server address, same ENI address, same inside address: the environment's ENI decides."""
    second_vpc, namespace = vpc_namespace(netns_factory), netns_factory.make("env")
    second = await lab.attachments.open_eni(vpc=second_vpc, addresses=lab.address, name="second", security_groups=WEB)
    await lab.attachments.attach(second, namespace=namespace)
    with (
        udp_socket(lab.vpc, SERVER, port=ALLOWED) as here,
        udp_socket(second_vpc, SERVER, port=ALLOWED) as there,
        udp_socket(lab.environments[0].name, INSIDE, port=7000, to=(SERVER, ALLOWED)) as one,
        udp_socket(namespace, INSIDE, port=7000, to=(SERVER, ALLOWED)) as other,
    ):
        for client, server, text in ((one, here, b"first"), (other, there, b"second")):
            await datagrams(client, server, [text])
        flows = {flow.tunnel: flow for flow in lab.engine.flows()}
        assert {name: flow.eni for name, flow in flows.items()} == {
            lab.environments[0].name: lab.eni.name,
            namespace: "second",
        }
        here.sendto(b"back", (lab.address, flows[lab.environments[0].name].outside_port))
        there.sendto(b"back as well", (lab.address, flows[namespace].outside_port))
        await expect_datagrams(one, [b"back"])
        await expect_datagrams(other, [b"back as well"])
    assert {flow.outside for flow in flows.values()} == {IPv4Address(lab.address)}
