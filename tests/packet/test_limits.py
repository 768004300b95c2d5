"""Limits that were fixed at start, and links that go away under their flows: a counted refusal, never a silent one."""

from __future__ import annotations

from random import Random

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP

from hyperplane.dataplane import Reason, Verdict

from .lab import ENI, SERVER, Lab, Tcp, datagram, ping, source_port, syn, udp


def test_full_flow_table_refuses_new_flows_and_keeps_the_old() -> None:
    """Established flows are never evicted to make room: flow_table_full, told at once."""
    with Lab(max_flows=4) as lab:
        tcp = Tcp(lab).establish()
        for sport in (1, 2, 3):
            lab.out(udp(sport, 7))
        refusal = lab.refused(syn(9, 80), Reason.FLOW_TABLE_FULL)
        assert str(refusal[TCP].flags) == "RA"
        refusal = lab.refused(udp(9, 7), Reason.FLOW_TABLE_FULL)
        assert (refusal[ICMP].type, refusal[ICMP].code) == (3, 13)
        assert tcp.outside("A", b"still here").verdict == Verdict.FORWARD
        assert lab.engine.status().flows == 4
        lab.later(300)
        assert lab.sweep() == 3
        lab.out(udp(9, 7))
        assert tcp.inside("A", b"and here").verdict == Verdict.FORWARD


@pytest.mark.parametrize("capacity", [1, 2, 3, 10, 11, 100, 1000])
def test_any_capacity_is_used_to_the_last_flow(capacity: int) -> None:
    """Capacity is any number, and all of it can be had, twice."""
    with Lab(max_flows=capacity) as lab:
        for _ in range(2):
            results = lab.send_all(lab.tunnels[0], (udp(sport, 7) for sport in range(1, capacity + 2)))
            assert [result.verdict for result in results[:-1]] == [Verdict.FORWARD] * capacity
            assert results[-1].reason == Reason.FLOW_TABLE_FULL
            lab.later(300)
            assert lab.sweep() == capacity
            assert (lab.engine.status().flows, lab.engine.status().mappings) == (0, 0)


def test_a_full_table_finds_every_flow_while_others_come_and_go() -> None:
    """Buckets of the indices overflow when the table is full: an end must hide no other flow, in either direction, and
    no mapping."""
    capacity, random = 5000, Random(11)
    with Lab(max_flows=capacity) as lab:
        live: dict[int, int] = {}  # inside port -> outside port
        for _ in range(4):
            new = random.sample([port for port in range(1, 65536) if port not in live], capacity - len(live))
            for port, result in zip(new, lab.send_all(lab.tunnels[0], [udp(port, 7) for port in new]), strict=True):
                live[port] = source_port(result.packet)
            created = lab.engine.counters(lab.eni).flows_created
            kept = random.sample(sorted(live), capacity // 2)
            lab.later(200)
            lab.send_all(lab.tunnels[0], [udp(port, 7) for port in kept])
            lab.later(100)
            assert lab.sweep() == capacity - len(kept)
            live = {port: live[port] for port in kept}
            again = lab.send_all(lab.tunnels[0], [udp(port, 7) for port in kept])
            assert [source_port(result.packet) for result in again] == list(live.values())
            answers = [udp(7, outside, source=SERVER, destination=ENI) for outside in live.values()]
            arrived = lab.send_all(lab.eni, answers)
            assert [int.from_bytes(result.packet[22:24], "big") for result in arrived] == kept
            assert lab.engine.counters(lab.eni).flows_created == created
            assert lab.engine.status().mappings == len(lab.engine.flows()) == len(kept)


def test_flow_quota_of_a_tunnel() -> None:
    """RFC 6888 REQ-4: a limit per subscriber; others are not touched by it."""
    with Lab(tunnels=1) as lab:
        lab.tunnels.append(lab.add_tunnel("small", max_flows=2))
        lab.out(udp(1, 7), 1)
        lab.out(ping(), 1)
        lab.refused(udp(2, 7), Reason.FLOW_QUOTA, lab.tunnels[1])
        lab.refused(syn(2, 7), Reason.FLOW_QUOTA, lab.tunnels[1])
        lab.out(udp(1, 7), 1)
        lab.out(udp(2, 7), 0)
        lab.later(60)
        assert lab.sweep() == 1
        lab.out(udp(2, 7), 1)
        lab.refused(udp(3, 7), Reason.FLOW_QUOTA, lab.tunnels[1])


@pytest.mark.parametrize(("flags", "fragment"), [("MF", 0), ("MF", 10), (0, 10)])
def test_fragments_are_dropped(lab: Lab, flags: str | int, fragment: int) -> None:
    """Counted under their own reason, in both directions. Of those from inside the first is told (RFC 1122 3.2.2)."""
    if fragment == 0:
        lab.refused(datagram(flags=flags, frag=fragment), Reason.FRAGMENT)
    else:
        lab.dropped(datagram(flags=flags, frag=fragment), Reason.FRAGMENT)
    packet = IP(src=SERVER, dst=ENI, flags=flags, frag=fragment) / UDP(sport=7, dport=2000) / b"12345678"
    lab.dropped(packet, Reason.FRAGMENT, lab.eni)


def test_ipv6_is_dropped(lab: Lab) -> None:
    for packet in (b"\x60" + bytes(39), b"\x60", b"\x6f" + b"\xff" * 100):
        lab.dropped(packet, Reason.UNSUPPORTED_IPV6, spare=0)
        lab.dropped(packet, Reason.UNSUPPORTED_IPV6, lab.eni, spare=0)


def test_removing_a_tunnel_ends_its_flows() -> None:
    """From the removal on nothing passes; the sweep ends the flows and frees ports and mappings."""
    with Lab(tunnels=2) as lab:
        tcp, there = Tcp(lab, tunnel=0).establish(), lab.out(datagram(), 0)
        lab.out(datagram(), 1)
        gone = lab.tunnels[0]
        lab.engine.remove(gone)
        assert lab.engine.tunnels == (lab.tunnels[1],)
        late = IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=there[UDP].sport) / b"late"
        lab.dropped(late, Reason.LINK_DETACHED, lab.eni)
        assert tcp.outside("A", b"late").reason == Reason.LINK_DETACHED
        assert lab.sweep() == 2
        lab.dropped(late, Reason.NO_FLOW, lab.eni)
        assert [flow.tunnel for flow in lab.engine.flows()] == ["env-1"]
        assert lab.engine.status().mappings == 1
        counters = lab.engine.counters(lab.eni)
        assert (counters.flows_created, counters.flows_ended) == (3, 2)


def test_a_new_tunnel_gets_nothing_of_a_removed_one() -> None:
    """Link numbers are given out again only when no flow can name them any more."""
    with Lab(tunnels=1, max_links=2) as lab:
        there = lab.out(datagram())
        lab.engine.remove(lab.tunnels[0])
        with pytest.raises(Exception, match="max_links"):
            lab.add_tunnel("too early")
        lab.sweep()
        lab.tunnels[0] = lab.add_tunnel("env-0")
        late = IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=there[UDP].sport) / b"late"
        lab.dropped(late, Reason.NO_FLOW, lab.eni)
        assert lab.engine.flows() == []
        lab.out(datagram())
        assert lab.engine.counters(lab.tunnels[0]).flows_created == 1


def test_attaching_and_detaching_many_times_leaves_nothing() -> None:
    with Lab(tunnels=0, max_links=4, max_flows=64) as lab:
        for turn in range(50):
            lab.tunnels = [lab.add_tunnel(f"env-{turn}-{number}") for number in range(3)]
            for tunnel in lab.tunnels:
                for result in lab.send_all(tunnel, [udp(1, 7), syn(1, 80), bytes(ping())]):
                    assert result.verdict == Verdict.FORWARD
            for tunnel in lab.tunnels:
                lab.engine.remove(tunnel)
            assert lab.sweep() == 9
        assert (lab.engine.status().flows, lab.engine.status().mappings) == (0, 0)


def test_eni_can_be_removed_and_its_address_used_again() -> None:
    with Lab(tunnels=1, max_addresses=1) as lab:
        lab.out(datagram())
        lab.engine.remove(lab.tunnels[0])
        lab.engine.remove(lab.eni)
        lab.sweep()
        lab.eni = lab.engine.add_eni(ENI, name="eni0", security_groups=lab.eni.security_groups)
        lab.tunnels = [lab.add_tunnel("env")]
        lab.out(datagram())
