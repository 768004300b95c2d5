"""Outside ports and ICMP ids: which mapping for whom, how unpredictable, and what happens when they run out."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, UDP

from hyperplane.dataplane import Reason, Translated, Verdict

from .lab import (
    ENI,
    ENI2,
    INSIDE,
    SERVER,
    SERVER2,
    Lab,
    Tcp,
    datagram,
    echo,
    ipv4,
    ping,
    rewritten,
    source_port,
    syn,
    udp,
)

PORTS = 64_512
FIRST = 1024
PLENTY: dict[str, Any] = {"max_flows": 140_000, "max_mappings": 70_000}


def outside(result: Translated) -> tuple[str, int]:
    """Address and port (ICMP: id) that a forwarded packet leaves with."""
    assert result.verdict == Verdict.FORWARD, result.reason
    raw = result.packet
    at = 24 if raw[9] == 1 else 20
    return ".".join(str(byte) for byte in raw[12:16]), int.from_bytes(raw[at : at + 2], "big")


def ports_of(results: Iterable[Translated]) -> list[int]:
    return [outside(result)[1] for result in results]


# TCP: shared per destination


def test_tcp_takes_every_port_of_a_destination_then_refuses_at_once() -> None:
    """RFC 7857 section 3.2 (port overlapping): 64,512 flows per destination, each tuple once; then ports_exhausted,
    told by RST; another destination has all its ports still; connections that are over give their ports up first."""
    with Lab(tunnels=2, **PLENTY) as lab:
        results = lab.send_all(lab.tunnels[0], (syn(sport, 80) for sport in range(1000, 1000 + PORTS)))
        assert sorted(ports_of(results)) == list(range(FIRST, 65536))
        assert lab.engine.status().dense_destinations == 1
        for tunnel in lab.tunnels:
            answer = lab.refused(syn(999, 80), Reason.PORTS_EXHAUSTED, tunnel)
            assert str(answer["TCP"].flags) == "RA"
        elsewhere = [
            lab.send(lab.tunnels[0], packet)
            for packet in (syn(1000, 81), syn(1000, 80, destination=SERVER2), udp(1000, 80), echo(1000))
        ]
        assert {result.verdict for result in elsewhere} == {Verdict.FORWARD}
        # The same outside port stands for two flows: what tells them apart is the destination.
        used = {
            (flow.outside_port, flow.remote, flow.remote_port) for flow in lab.engine.flows() if flow.protocol == "tcp"
        }
        assert len(used) == PORTS + 2
        by_port = Counter(port for port, _, _ in used)
        assert sorted(by_port.values())[-2:] in ([2, 2], [1, 3])

        reset = struct.pack(">IIBBHHH", 0, 1001, 0x50, 0x14, 0, 0, 0)
        resets = (ipv4(6, struct.pack(">HH", 80, port) + reset, SERVER, ENI) for port in range(FIRST, 65536))
        assert {result.verdict for result in lab.send_all(lab.eni, resets)} == {Verdict.FORWARD}
        lab.refused(syn(999, 80), Reason.PORTS_EXHAUSTED)
        lab.later(2)
        assert outside(lab.send(lab.tunnels[0], syn(999, 80)))[0] == ENI
        lab.later(240)
        lab.sweep()
        assert lab.engine.status().dense_destinations == 0


def test_tcp_spills_over_to_the_second_address() -> None:
    """A second ENI address doubles what one destination can have; the first is used up before."""
    with Lab(tunnels=2, addresses=(ENI, ENI2), **PLENTY) as lab:
        first = [outside(result) for result in lab.send_all(lab.tunnels[0], (syn(n, 80) for n in range(1, PORTS + 1)))]
        (home,) = {address for address, _ in first}
        assert len(set(first)) == PORTS
        more = [outside(result) for result in lab.send_all(lab.tunnels[1], (syn(n, 80) for n in range(1, 2001)))]
        spilled = {address for address, _ in more}
        assert spilled == {ENI, ENI2} - {home}
        assert len(set(first) | set(more)) == PORTS + 2000
        further = [
            outside(result) for result in lab.send_all(lab.tunnels[0], (syn(n, 80) for n in range(PORTS + 1, 65_536)))
        ]
        assert {address for address, _ in further} == spilled
        assert len({*first, *more, *further}) == PORTS + 2000 + len(further)


def test_two_flows_to_one_destination_never_share_a_port(lab: Lab) -> None:
    results = lab.send_all(lab.tunnels[0], (syn(sport, 80) for sport in range(1, 2001)))
    assert len(set(ports_of(results))) == 2000


# UDP: endpoint-independent


def test_udp_mapping_is_endpoint_independent(lab: Lab) -> None:
    """RFC 4787 REQ-1: one inside endpoint, one outside port, whatever the destination."""
    targets = [(SERVER, 7), (SERVER, 8), (SERVER2, 7), (SERVER2, 3478)]
    packets = [udp(5000, port, destination=address) for address, port in targets]
    assert len({outside(result) for result in lab.send_all(lab.tunnels[0], packets)}) == 1
    assert (lab.engine.status().flows, lab.engine.status().mappings) == (4, 1)
    assert outside(lab.send(lab.tunnels[0], udp(5001, 7))) != outside(lab.send(lab.tunnels[0], udp(5000, 7)))


def test_udp_ports_are_exclusive_over_environments() -> None:
    with Lab(tunnels=8) as lab:
        results = [lab.send(tunnel, udp(port, 7)) for tunnel in lab.tunnels for port in range(1, 200)]
        assert len(set(ports_of(results))) == len(results)
        assert min(ports_of(results)) >= FIRST


def test_udp_port_parity_is_preserved(lab: Lab) -> None:
    """RFC 4787 REQ-4: RTP on an even port, RTCP on the odd one."""
    inside = range(2000, 2600)
    results = lab.send_all(lab.tunnels[0], (udp(port, 7) for port in inside))
    assert [port % 2 for port in ports_of(results)] == [port % 2 for port in inside]


def test_udp_port_parity_is_preserved_while_such_ports_last() -> None:
    """RFC 4787 REQ-4: 32,256 ports of an address are even; more slices are leased before parity is given up."""
    with Lab(tunnels=1, max_flows=40_000) as lab:
        results = lab.send_all(lab.tunnels[0], (udp(port, 7) for port in range(2, 2 + 2 * 20_000, 2)))
        assert {port % 2 for port in ports_of(results)} == {0}


def test_endpoint_dependent_mapping_is_a_setting() -> None:
    """Per ENI: no mapping is held, and destinations share ports as TCP does."""
    with Lab(udp_mapping="endpoint-dependent") as lab:
        results = lab.send_all(lab.tunnels[0], (udp(5000, port) for port in range(100, 140)))
        assert len(set(ports_of(results))) > 20
        assert lab.engine.status().mappings == 0
        answer = IP(src=SERVER, dst=ENI) / UDP(sport=100, dport=source_port(results[0].packet)) / b"x"
        assert lab.back(answer)[UDP].dport == 5000


def test_dns_is_endpoint_dependent(lab: Lab) -> None:
    """Port 53 holds no mapping: one environment's resolver must not eat the ports of all."""
    servers = [f"198.19.2.{number}" for number in range(1, 41)]
    results = lab.send_all(lab.tunnels[0], (udp(5353, 53, destination=server) for server in servers))
    assert len(set(ports_of(results))) > 20
    assert lab.engine.status().mappings == 0
    lab.send(lab.tunnels[0], udp(5353, 54))
    assert lab.engine.status().mappings == 1


def test_udp_goes_on_when_exclusive_ports_are_gone() -> None:
    """Scarcity: all 64,512 ports are mapped: further UDP shares ports per destination; a destination that has them all
    refuses; and a mapping's owner that meets a shared port there gets another: no two flows share a tuple."""
    with Lab(tunnels=2, **PLENTY) as lab:
        results = lab.send_all(lab.tunnels[0], (udp(sport, 7) for sport in range(1, PORTS + 1)))
        assert sorted(ports_of(results)) == list(range(FIRST, 65536))
        assert lab.engine.status().mappings == PORTS

        refusal = lab.refused(udp(9, 7), Reason.PORTS_EXHAUSTED, lab.tunnels[1])
        assert (refusal[ICMP].type, refusal[ICMP].code) == (3, 13)
        shared = lab.out(udp(9, 7, destination=SERVER2, payload=b"shared"), 1)
        assert lab.engine.status().mappings == PORTS

        (owner,) = (
            flow for flow in lab.engine.flows() if flow.outside_port == shared[UDP].sport and flow.tunnel == "env-0"
        )
        second = lab.out(udp(owner.inside_port, 7, destination=SERVER2), 0)
        assert second[UDP].sport != shared[UDP].sport
        assert lab.out(udp(owner.inside_port, 7), 0)[UDP].sport == owner.outside_port
        for there, tunnel, inside_port in ((shared, 1, 9), (second, 0, owner.inside_port)):
            answer = IP(src=SERVER2, dst=ENI) / UDP(sport=7, dport=there[UDP].sport) / b"x"
            assert lab.back(answer, tunnel)[UDP].dport == inside_port

        lab.later(300)
        lab.sweep()
        assert (lab.engine.status().flows, lab.engine.status().mappings) == (0, 0)
        assert lab.out(udp(9, 7), 1)[UDP].sport >= FIRST
        assert lab.engine.status().mappings == 1


def test_a_port_that_comes_back_may_be_shared_somewhere() -> None:
    """An exclusive port becomes free while a flow that shared it goes on: the next owner must not meet that flow, and
    what it could not use is given back."""
    with Lab(tunnels=2, **PLENTY) as lab:
        mine = lab.send_all(lab.tunnels[0], (udp(sport, 7) for sport in range(1, PORTS + 1)))
        shared = lab.out(udp(9, 7, destination=SERVER2), 1)
        owner = 1 + ports_of(mine).index(shared[UDP].sport)
        lab.later(200)
        lab.send_all(lab.tunnels[0], (udp(sport, 7) for sport in range(1, PORTS + 1) if sport != owner))
        lab.out(udp(9, 7, destination=SERVER2), 1)
        lab.later(100)
        assert lab.sweep() == 1
        lab.later(60)
        assert lab.engine.status().mappings == PORTS - 1
        # The only exclusive port left is the one that env-1 shares towards SERVER2.
        elsewhere = lab.out(udp(10, 7, destination=SERVER2), 1)
        assert elsewhere[UDP].sport != shared[UDP].sport
        assert lab.engine.status().mappings == PORTS - 1
        assert lab.out(udp(11, 8, destination=SERVER2), 1)[UDP].sport == shared[UDP].sport
        assert lab.engine.status().mappings == PORTS


def test_udp_goes_on_when_the_mapping_table_is_full() -> None:
    with Lab(max_mappings=2) as lab:
        results = lab.send_all(lab.tunnels[0], (udp(sport, 7) for sport in (1, 2, 3, 4)))
        assert len(set(ports_of(results))) == 4
        assert lab.engine.status().mappings == 2


# ICMP ids


def test_icmp_ids_are_mapped() -> None:
    """RFC 5508 REQ-1: queries of several environments with the same id are told apart; one id keeps its mapping for all
    destinations."""
    with Lab(tunnels=10) as lab:
        ids = [lab.out(ping(identifier=1), tunnel)[ICMP].id for tunnel in range(10)]
        assert len(set(ids)) == 10
        assert [lab.out(ping(identifier=1, dst=SERVER2), tunnel)[ICMP].id for tunnel in range(10)] == ids
        for tunnel, identifier in enumerate(ids):
            answer = IP(src=SERVER, dst=ENI) / ICMP(type=0, id=identifier, seq=1) / b"x"
            assert bytes(lab.back(answer, tunnel)) == rewritten(answer, dst=INSIDE, id=1)
        flow = lab.engine.flows(tunnel=lab.tunnels[3])[0]
        assert (flow.protocol, flow.inside_port, flow.outside_port, flow.remote_port) == ("icmp", 1, ids[3], 0)


def test_icmp_ids_run_out_as_ports_do() -> None:
    """All ids of the environment's address taken: further queries share ids per destination; a destination that has
    them all refuses: only TCP goes over to another address (RFC 4787 REQ-2)."""
    with Lab(tunnels=1, addresses=(ENI, ENI2), **PLENTY) as lab:
        results = lab.send_all(lab.tunnels[0], (echo(identifier) for identifier in range(PORTS)))
        assert len({outside(result) for result in results}) == PORTS
        (home,) = {outside(result)[0] for result in results}
        lab.refused(echo(65_000), Reason.PORTS_EXHAUSTED)
        there = lab.out(echo(65_000, destination=SERVER2))
        assert there.src == home
        answer = IP(src=SERVER2, dst=home) / ICMP(type=0, id=there[ICMP].id)
        assert lab.back(answer)[ICMP].id == 65_000


# Pooling, quarantine, prediction


def test_paired_pooling_is_sticky() -> None:
    """RFC 4787 REQ-2: one environment, one ENI address, for all its UDP, ICMP and (while ports last) TCP."""
    with Lab(tunnels=16, addresses=(ENI, ENI2)) as lab:
        homes = set()
        for tunnel in lab.tunnels:
            packets = [make(number, 9) for number in range(1, 40) for make in (udp, syn)] + [echo(n) for n in range(9)]
            (home,) = {outside(result)[0] for result in lab.send_all(tunnel, packets)}
            homes.add(home)
        assert homes == {ENI, ENI2}


def test_port_of_an_ended_mapping_rests() -> None:
    """A late packet for the old owner must not reach the new one: for port_quarantine an ended mapping's port is given
    to nobody, while there are others."""
    with Lab(tunnels=2, port_quarantine=30, **PLENTY) as lab:
        ended = set(ports_of(lab.send_all(lab.tunnels[0], (udp(sport, 7) for sport in range(1, 1001)))))
        lab.later(300)
        assert lab.sweep() == 1000
        lab.later(29.999)
        resting = set(ports_of(lab.send_all(lab.tunnels[1], (udp(sport, 7) for sport in range(1, 30_001)))))
        assert not resting & ended
        lab.later(0.001)
        rested = set(ports_of(lab.send_all(lab.tunnels[1], (udp(sport, 7) for sport in range(30_001, 50_001)))))
        assert rested & ended


def test_a_resting_port_is_better_than_none() -> None:
    with Lab(tunnels=2, **PLENTY) as lab:
        (ended,) = ports_of([lab.send(lab.tunnels[0], udp(4, 7))])
        lab.later(300)
        assert lab.sweep() == 1
        others = ports_of(lab.send_all(lab.tunnels[1], (udp(sport, 7) for sport in range(1, PORTS))))
        assert ended not in others
        assert ports_of([lab.send(lab.tunnels[1], udp(65_000, 7))]) == [ended]


@pytest.mark.parametrize("make", [syn, udp, lambda number, _: echo(number)], ids=["tcp", "udp", "icmp"])
def test_ports_are_unpredictable(make: object) -> None:
    """RFC 6056 section 3.1: with the kernel's randomness (seed 0): many slices, no order, no favourite step. Each bound
    fails by chance less than once in 10^8 runs."""
    assert callable(make)
    sequences = []
    for _ in range(2):
        with Lab(seed=0) as lab:
            sequences.append(ports_of(lab.send_all(lab.tunnels[0], [make(number, 7) for number in range(1000)])))
    ports = sequences[0]
    assert sequences[0] != sequences[1]
    assert all(FIRST <= port <= 65535 for port in ports)
    assert len({(port - FIRST) // 1024 for port in ports}) >= 20
    steps = Counter(after - before for before, after in pairwise(ports))
    assert steps.most_common(1)[0][1] < 12
    assert longest_run(ports) < 15
    assert longest_run([-port for port in ports]) < 15


def longest_run(numbers: list[int]) -> int:
    """Of neighbours in ascending order."""
    best = length = 1
    for before, after in pairwise(numbers):
        length = length + 1 if after > before else 1
        best = max(best, length)
    return best


def test_a_seed_makes_ports_reproducible() -> None:
    runs = []
    for _ in range(2):
        with Lab(seed=99) as lab:
            runs.append(ports_of(lab.send_all(lab.tunnels[0], [udp(number, 7) for number in range(50)])))
    assert runs[0] == runs[1]


def test_a_connection_keeps_its_port_for_life(lab: Lab) -> None:
    tcp = Tcp(lab).establish()
    port = tcp.outside_port
    for _ in range(5):
        lab.later(1000)
        tcp.inside("A", b"x")
        assert tcp.outside_port == port
    assert lab.out(datagram(sport=40_000))[UDP].sport >= FIRST
