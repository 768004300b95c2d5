"""What is not translated: other protocols are answered, options show the VPC no inside address, and what a kernel says
to its own link is no drop."""

from __future__ import annotations

import socket
import sqlite3
from collections.abc import AsyncIterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest
import pytest_asyncio

from hyperplane.errors import InvalidSecurityGroup
from hyperplane.model import Reason
from hyperplane.resources import FunctionState, SecurityGroupSpec

from .daemons import TestDaemon, declare, in_state, start
from .sockets import call_in
from .support import Namespaces, eventually, ip, run_in
from .traffic import connect_outcome, receive_error, tcp_listener
from .world import INSIDE, SERVER, World, vpc_namespace, world

ETH_P_ALL, IP_RECVERR = 3, 11  # linux/if_ether.h, linux/in.h
FORWARDING = "net.ipv6.conf.all.forwarding=1"
PROTOCOLS = {"SCTP": 132, "GRE": 47, "UDP-Lite": 136}


@pytest_asyncio.fixture
async def lab(io: str, netns_factory: Namespaces) -> AsyncIterator[World]:
    """One environment."""
    async with world(vpc_namespace(netns_factory), io=io) as made:
        await made.attach(netns_factory.make("env"))
        yield made


def raw_socket(namespace: str, protocol: int) -> socket.socket:
    def connected() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
        made.setblocking(False)
        made.connect((SERVER, 0))
        return made

    return call_in(namespace, connected)


def capture(namespace: str) -> socket.socket:
    """Sees every packet on every device there."""

    def opened() -> socket.socket:
        made = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        made.setblocking(False)
        return made

    return call_in(namespace, opened)


def captured(sniffer: socket.socket) -> list[bytes]:
    found = []
    while True:
        try:
            found.append(sniffer.recv(65536))
        except BlockingIOError:
            return found


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_other_protocols_are_answered(lab: World, protocol: str) -> None:
    """The kernel turns "protocol unreachable" into an error of the socket at once (net/ipv4/icmp.c)."""
    one = lab.environments[0]
    with raw_socket(one.name, PROTOCOLS[protocol]) as client:
        client.send(bytes(12))
        assert await receive_error(client) == "ENOPROTOOPT"
    assert lab.drops(one.tunnel) == {Reason.UNSUPPORTED_PROTOCOL: 1}
    assert lab.engine.counters(lab.eni).packets_out == 0


@pytest.mark.parametrize("option", [["-R"], ["-T", "tsandaddr"], ["-T", "tsonly"]], ids=" ".join)
async def test_ping_with_options_works_and_shows_no_inside_address(lab: World, option: list[str]) -> None:
    """The environment's kernel writes its own address into the option (net/ipv4/ip_options.c)."""
    one = lab.environments[0]
    with capture(lab.vpc) as sniffer, capture(one.name) as inside:
        assert "1 received" in await one.run("ping", "-n", "-c", "1", "-W", "5", *option, SERVER)
        shown = [packet for packet in captured(sniffer) if IPv4Address(INSIDE).packed in packet]
        sent = [packet for packet in captured(inside) if packet[0] == 0x4F or packet[0] > 0x45]
    assert sent, "ping has sent options"
    assert shown == []
    assert lab.engine.counters().drops == {}


async def test_a_source_route_is_told_to_have_failed(lab: World) -> None:
    one = lab.environments[0]

    def routed() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x83\7\4" + IPv4Address(SERVER).packed + b"\0")
        made.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)  # else it is no error that ends a socket
        made.connect((SERVER, 7))
        return made

    with call_in(one.name, routed) as client:
        client.send(b"by that way")
        assert await receive_error(client) == "ENOTSUP"  # EOPNOTSUPP: Python knows one name
    assert lab.drops(one.tunnel) == {Reason.SOURCE_ROUTE: 1}


async def test_an_idle_kernel_is_no_drop(lab: World) -> None:
    """A link-local address has it solicit routers, and look whether the address is anybody's; forwarding has it report
    its groups (MLD); who joins a group is reported (IGMP); and the VPC's kernel does the like on the ENI's device."""
    one = lab.environments[0]
    for namespace in (one.name, lab.vpc):
        run_in(namespace, ["sysctl", "-qw", FORWARDING])
    await eventually(lambda: lab.engine.counters(one.tunnel).ignored > 0, what="MLD is ignored")
    await eventually(lambda: lab.engine.counters(lab.eni).ignored > 0, what="MLD of the VPC is ignored")
    run_in(one.name, ["sysctl", "-qw", FORWARDING.replace("=1", "=0")])
    before = lab.engine.counters(one.tunnel).ignored
    ip("-n", one.name, "addr", "add", "fe80::2/64", "dev", "eth0")
    await eventually(lambda: lab.engine.counters(one.tunnel).ignored > before, what="solicitations are ignored")

    def join() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        group = socket.inet_aton("224.0.0.251") + IPv4Address(INSIDE).packed
        made.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
        made.sendto(b"a query", ("224.0.0.251", 5353))
        return made

    before = lab.engine.counters(one.tunnel).ignored
    with call_in(one.name, join):
        await eventually(
            lambda: lab.engine.counters(one.tunnel).ignored >= before + 2, what="IGMP and mDNS are ignored"
        )
    counters = lab.engine.counters()
    assert (counters.drops, counters.refusals_sent, lab.engine.drops()) == ({}, 0, [])


async def test_ipv6_that_somebody_wants_delivered_is_a_drop(lab: World) -> None:
    one = lab.environments[0]
    ip("-n", one.name, "addr", "add", "2001:db8::2/64", "dev", "eth0")
    await one.run("ping", "-6", "-n", "-c", "1", "-W", "0.2", "2001:db8::9", status=1)
    assert lab.drops(one.tunnel) == {Reason.UNSUPPORTED_IPV6: 1}


async def test_a_rule_that_lets_nothing_out_is_refused_but_a_stored_one_is_loaded(netns_factory: Namespaces) -> None:
    """Databases may hold what could be declared before."""
    vpc, namespace = vpc_namespace(netns_factory), netns_factory.make("env")
    with TestDaemon() as daemon:
        daemon.start()
        async with daemon.client() as client:
            await declare(client, vpc)
            for rule in ("icmp/13", "tcp/80 127.0.0.0/8", "udp 224.0.0.251"):
                with pytest.raises(InvalidSecurityGroup, match="can never let anything out"):
                    await client.update_security_group("g", SecurityGroupSpec(name="g", vpc="v", rules=(rule,)))
        daemon.end()
        daemon.end_engine()
        edit_rules(daemon.places.database, '"all"', '"icmp/13","tcp/8080"')
        daemon.start()
        async with daemon.client() as client:
            await in_state(client, "f", FunctionState.ACTIVE)
            assert (await client.get_security_group("g")).rules == ("icmp/13", "tcp/8080")
            await start(client, namespace)
            with tcp_listener(vpc, SERVER, port=8080):
                assert connect_outcome(namespace, (SERVER, 8080), 30)[0] == "OK"
                assert connect_outcome(namespace, (SERVER, 8081), 30)[0] == "ECONNREFUSED"


def edit_rules(path: Path, before: str, after: str) -> None:
    with sqlite3.connect(path) as database:
        changed = database.execute(
            "UPDATE record SET resource = replace(resource, ?, ?) WHERE kind = 'security-group'", (before, after)
        )
        assert changed.rowcount == 1
    database.close()
