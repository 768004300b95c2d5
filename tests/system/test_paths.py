"""What an environment sees of its way to a server: hops, path MTU, errors, both ends of connections, fragments.

environment -- engine -- VPC's namespace -- router -- link of MTU 1280 -- far server. The ENI's address lies in the
subnet between the VPC's namespace and the router, which finds it there by ARP.
"""

from __future__ import annotations

import re
import select
import socket
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from hyperplane.model import FlowState, Reason

from .sockets import call_in, checksum_in_software
from .support import Namespaces, eventually, ip
from .traffic import (
    IP_MTU_DISCOVER,
    IP_PMTUDISC_DO,
    IP_PMTUDISC_INTERFACE,
    MIB,
    SOL_UDP,
    UDP_SEGMENT,
    at_end,
    connect_outcome,
    connection,
    datagrams,
    expect_datagrams,
    mtu_of,
    payload,
    receive,
    receive_error,
    send_size_of,
    transfer,
    udp_socket,
)
from .world import World, each, world

NEAR, ROUTER, FAR = "198.19.0.1", "198.19.0.254", "203.0.113.10"
FAR_MTU = 1280
# A segment's payload: less IPv4 and TCP headers, and the timestamp option that Linux always sends (RFC 7323).
TCP_OVERHEAD = 20 + 20 + 12
CLOSED_PORT = 9


@dataclass(frozen=True, slots=True)
class Way:
    """The namespaces on the way; addresses in them: NEAR, ROUTER, FAR."""

    vpc: str
    router: str
    far: str

    def refused_for_size(self) -> int:
        """How often the router has said "fragmentation needed" (FragFails of RFC 4293)."""
        text = call_in(self.router, lambda: Path("/proc/thread-self/net/snmp").read_text())
        names, values = (line.split() for line in text.splitlines() if line.startswith("Ip:"))
        return int(values[names.index("FragFails")])


@pytest.fixture(scope="module")
def way() -> Iterator[Way]:
    with Namespaces() as namespaces:
        made = Way(*(namespaces.make(label) for label in ("vpc", "router", "far")))
        namespaces.connect(made.vpc, f"{NEAR}/24", made.router, f"{ROUTER}/24")
        namespaces.connect(made.router, "203.0.113.1/24", made.far, f"{FAR}/24", mtu=FAR_MTU)
        ip("-n", made.vpc, "route", "add", "default", "via", ROUTER)
        # The far server's SYN-ACK promises as much as an Ethernet takes: the sender has to find out that it is less.
        ip("-n", made.far, "route", "add", "default", "via", "203.0.113.1", "advmss", "1460")
        set_sysctl(made.router, "ip_forward", "1")
        for namespace in (made.vpc, made.router, made.far):
            # To routers all environments are one host, the ENI, which gets one ICMP error a second by default.
            set_sysctl(namespace, "icmp_ratelimit", "0")
        yield made


def set_sysctl(namespace: str, name: str, value: str) -> None:
    call_in(namespace, lambda: Path(f"/proc/sys/net/ipv4/{name}").write_text(value))


@pytest_asyncio.fixture
async def lab(io: str, way: Way, netns_factory: Namespaces) -> AsyncIterator[World]:
    """Three new environments: their kernels have not learnt any path MTU."""
    async with world(way.vpc, io=io) as made:
        await each(made.attach(netns_factory.make("env")) for _ in range(3))
        yield made


async def test_ping_from_environments_with_one_and_the_same_echo_id(lab: World) -> None:
    """RFC 5508 REQ-1: the id is translated like a port."""
    command = ("ping", "-n", "-c", "5", "-i", "0.02", "-e", "77", FAR)
    for output in await each(one.run(*command) for one in lab.environments):
        assert "5 packets transmitted, 5 received" in output
    flows = lab.engine.flows()
    assert {(flow.tunnel, flow.inside_port, flow.packets_in) for flow in flows} == {
        (one.name, 77, 5) for one in lab.environments
    }
    assert len({flow.outside_port for flow in flows}) == 3


@pytest.mark.parametrize("probes", ["", "-I", "-T -p 80"], ids=["udp", "icmp", "tcp"])
async def test_traceroute_shows_every_hop(lab: World, probes: str) -> None:
    """The engine is the first hop, under the ENI's address; errors from further on are translated (RFC 5508 REQ-4)."""
    command = ("traceroute", "-n", "-q", "1", "-w", "5", "-m", "8", *probes.split(), FAR)
    for output in await each(one.run(*command) for one in lab.environments):
        assert re.findall(r"^ *\d+ +(\S+)", output, re.MULTILINE) == [lab.address, NEAR, ROUTER, FAR], output
    assert lab.drops(lab.eni) == {}
    for one in lab.environments:
        assert lab.drops(one.tunnel) == {Reason.TTL_EXCEEDED: 1}


async def test_tracepath_finds_the_path_mtu(lab: World) -> None:
    for output in await each(one.run("tracepath", "-n", FAR) for one in lab.environments):
        assert re.search(rf"{re.escape(ROUTER)} .*pmtu {FAR_MTU}", output), output
        assert f"Resume: pmtu {FAR_MTU} hops 4 back 4" in output


async def test_ping_learns_what_fits(lab: World) -> None:
    one = lab.environments[0]
    ping = ("ping", "-n", "-i", "0.02", "-M", "do", "-c", "2")
    output = await one.run(*ping, "-s", "1400", FAR, status=1)
    assert f"From {ROUTER} icmp_seq=1 Frag needed and DF set (mtu = {FAR_MTU})" in output
    assert "2 received" in await one.run(*ping, "-s", str(FAR_MTU - 28), FAR)


async def test_tcp_discovers_the_path_mtu(lab: World, way: Way) -> None:
    """RFC 1191: super-segments of 1500-byte packets run into the small link; the router's errors reach the sender."""
    before = way.refused_for_size()
    async with connection(lab.environments[0].name, way.far, FAR) as pair:
        assert send_size_of(pair.client) == 1500 - TCP_OVERHEAD
        await transfer(pair.client, pair.server, 16 * MIB, seed=1)
        assert (mtu_of(pair.client), send_size_of(pair.client)) == (FAR_MTU, FAR_MTU - TCP_OVERHEAD)
        assert way.refused_for_size() > before
        await transfer(pair.server, pair.client, 16 * MIB, seed=2)
    assert lab.engine.counters().drops == {}


async def test_mss_is_clamped_to_the_mtu_of_the_eni(io: str, way: Way, netns_factory: Namespaces) -> None:
    """Both kernels believe in 1500 bytes all the way; neither sends more than fits, so nobody has to discover it."""
    before = way.refused_for_size()
    async with world(way.vpc, io=io, mtu=FAR_MTU) as lab:
        one = await lab.attach(netns_factory.make("env"))
        async with connection(one.name, way.router, ROUTER) as pair:
            assert mtu_of(pair.client) == mtu_of(pair.server) == 1500
            assert send_size_of(pair.client) == send_size_of(pair.server) == FAR_MTU - TCP_OVERHEAD
            await transfer(pair.client, pair.server, 4 * MIB, seed=3)
            await transfer(pair.server, pair.client, 4 * MIB, seed=4)
        async with connection(one.name, way.far, FAR) as pair:
            await transfer(pair.client, pair.server, 4 * MIB, seed=5)
        assert lab.engine.counters().drops == {}, lab.engine.drops()
    assert way.refused_for_size() == before


async def test_a_server_is_told_the_mtu_of_the_tunnel(io: str, way: Way, netns_factory: Namespaces) -> None:
    """The engine's own "fragmentation needed" towards the VPC; a datagram that may be fragmented passes whole."""
    async with world(way.vpc, io=io) as lab:
        one = await lab.attach(netns_factory.make("env"), mtu=FAR_MTU)
        with udp_socket(way.router, ROUTER) as server, udp_socket(one.name, to=server.getsockname()) as client:
            await datagrams(client, server, [b"hello"])
            (flow,) = lab.engine.flows()
            server.connect((lab.address, flow.outside_port))
            server.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
            server.send(payload(0, 1400))
            assert await receive_error(server) == "EMSGSIZE"
            assert mtu_of(server) == FAR_MTU
            assert lab.drops(lab.eni) == {Reason.FRAGMENTATION_NEEDED: 1}
            await datagrams(server, client, [payload(1, FAR_MTU - 28)])
            server.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_INTERFACE)  # no DF, whatever was learnt
            await datagrams(server, client, [payload(2, 1400)])
            assert lab.drops(lab.eni) == {Reason.FRAGMENTATION_NEEDED: 1}


@pytest.mark.parametrize("segments", [1, 40], ids=["single", "super-packet"])
async def test_an_environment_is_told_the_mtu_of_the_eni(
    io: str, way: Way, netns_factory: Namespaces, segments: int
) -> None:
    async with world(way.vpc, io=io, mtu=FAR_MTU) as lab:
        one = await lab.attach(netns_factory.make("env"))
        with udp_socket(way.router, ROUTER) as server, udp_socket(one.name, to=server.getsockname()) as client:
            client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
            client.setsockopt(SOL_UDP, UDP_SEGMENT, 1400)
            client.send(bytes(1400 * segments))
            assert await receive_error(client) == "EMSGSIZE"
            assert mtu_of(client) == FAR_MTU
            client.setsockopt(SOL_UDP, UDP_SEGMENT, 0)
            await datagrams(client, server, [payload(1, FAR_MTU - 28)])
        assert lab.drops(one.tunnel) == {Reason.FRAGMENTATION_NEEDED: 1}


async def test_error_from_inside_reaches_the_server(lab: World, way: Way) -> None:
    """RFC 5508 REQ-5: the environment's kernel says that nobody listens there any more."""
    with udp_socket(way.router, ROUTER) as server:
        with udp_socket(lab.environments[0].name, to=server.getsockname()) as client:
            await datagrams(client, server, [b"hello"])
        (flow,) = lab.engine.flows()
        server.connect((lab.address, flow.outside_port))
        server.send(b"too late")
        assert await receive_error(server) == "ECONNREFUSED"
    assert lab.engine.counters().drops == {}


async def test_checksums_are_right_where_software_fills_them_in(io: str, netns_factory: Namespaces) -> None:
    """Between kernels that trust each other a wrong partial checksum stays unseen: here one computes it, one checks it.

    The other way the engine gets complete ones.
    """
    vpc, host, namespace = (netns_factory.make(label) for label in ("vpc", "host", "env"))
    devices = netns_factory.connect(vpc, f"{NEAR}/24", host, f"{ROUTER}/24")
    for where, device in zip((vpc, host), devices, strict=True):
        checksum_in_software(where, device)
    async with world(vpc, io=io) as lab:
        one = await lab.attach(namespace)
        async with connection(one.name, host, ROUTER) as pair:
            await transfer(pair.client, pair.server, 4 * MIB, seed=9)
            await transfer(pair.server, pair.client, 4 * MIB, seed=10)
        sent = [payload(number, 1000) for number in range(40)]
        with udp_socket(host, ROUTER) as server, udp_socket(one.name, to=server.getsockname()) as client:
            await datagrams(client, server, sent)
            (flow,) = (flow for flow in lab.engine.flows() if flow.protocol == "udp")
            await datagrams(server, client, sent, to=(lab.address, flow.outside_port))
            client.setsockopt(SOL_UDP, UDP_SEGMENT, 1000)
            client.send(b"".join(sent))
            await expect_datagrams(server, sent)
        assert lab.engine.counters().drops == {}


async def test_half_closed_connection_goes_on(lab: World, way: Way) -> None:
    """RFC 9293 3.6: one direction ends, the other carries on for as long as it likes."""
    async with connection(lab.environments[0].name, way.vpc, NEAR) as pair:
        await transfer(pair.client, pair.server, MIB, seed=6)
        pair.client.shutdown(socket.SHUT_WR)
        assert await at_end(pair.server)
        await transfer(pair.server, pair.client, 8 * MIB, seed=7)
        (flow,) = lab.engine.flows()
        assert flow.state == FlowState.ESTABLISHED
        pair.server.shutdown(socket.SHUT_WR)
        assert await at_end(pair.client)
    await eventually(lambda: [flow.state for flow in lab.engine.flows()] == [FlowState.CLOSING])


async def test_reset_reaches_the_other_end(lab: World, way: Way) -> None:
    """A socket closed with unread data sends RST instead of FIN (RFC 2525 2.17)."""
    async with connection(lab.environments[0].name, way.vpc, NEAR) as pair:
        await transfer(pair.client, pair.server, 10, seed=8)
        pair.server.send(b"never read")
        await eventually(lambda: select.select([pair.client], [], [], 0)[0], what="data arrives")
        pair.client.close()
        with pytest.raises(ConnectionResetError):
            await receive(pair.server, 1)
    assert [flow.state for flow in lab.engine.flows()] == [FlowState.RESET]


async def test_closed_port_is_refused_at_once(lab: World) -> None:
    """The server's RST or port unreachable, not the engine's: the first packet is answered, none is repeated."""
    one = lab.environments[0]
    for address in (NEAR, FAR):
        assert connect_outcome(one.name, (address, CLOSED_PORT), 30)[0] == "ECONNREFUSED"
        with udp_socket(one.name, to=(address, CLOSED_PORT)) as client:
            client.send(b"anybody there?")
            assert await receive_error(client) == "ECONNREFUSED"
    seen = {}
    for flow in lab.engine.flows():
        seen[str(flow.remote), flow.protocol] = flow.packets_out, flow.packets_in, flow.state
    for address in (NEAR, FAR):
        assert seen[address, "tcp"] == (1, 1, FlowState.RESET)
        assert seen[address, "udp"] == (1, 0, FlowState.ACTIVE)  # an ICMP error is no packet of the flow
    assert lab.engine.counters().drops == {}


async def test_fragments_are_dropped_with_their_reason(lab: World, way: Way) -> None:
    """Today's limit, in both directions: IPv4 fragments are not put together."""
    one = lab.environments[0]
    output = await one.run("ping", "-n", "-c", "1", "-W", "0.2", "-s", "3000", NEAR, status=1)
    assert "1 packets transmitted, 0 received" in output
    assert f"From {lab.address} icmp_seq=1 Packet filtered" in output
    assert lab.drops(one.tunnel) == {Reason.FRAGMENT: 3}
    assert lab.engine.counters(one.tunnel).refusals_sent == 1  # about the first of them
    with udp_socket(way.vpc, NEAR) as server, udp_socket(one.name, to=server.getsockname()) as client:
        await datagrams(client, server, [b"hello"])
        (flow,) = lab.engine.flows()
        server.sendto(bytes(3000), (lab.address, flow.outside_port))
        await eventually(lambda: lab.drops(lab.eni) == {Reason.FRAGMENT: 3}, what="three fragments dropped")
        await datagrams(server, client, [b"a datagram in one piece"], to=(lab.address, flow.outside_port))
    assert {(drop.link, drop.reason) for drop in lab.engine.drops()} == {
        (one.name, Reason.FRAGMENT),
        (lab.eni.name, Reason.FRAGMENT),
    }
