"""What one can see: one reason for each drop, in counters and in the ring; the environment of each flow; right sums."""

from __future__ import annotations

from ipaddress import IPv4Address
from itertools import islice
from typing import Any

import msgspec
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP

from hyperplane.dataplane import FlowState, Reader, Reason, native
from hyperplane.errors import InvalidValue
from hyperplane.model import Flow

from .lab import ENI, GSO_TCPV4, INSIDE, NEEDS_CSUM, SERVER, SERVER2, Lab, Tcp, datagram, ping, syn, udp, vnet


def test_drop_records_say_who_what_and_why(lab: Lab) -> None:
    lab.dropped(IP(src="198.18.0.9", dst=SERVER) / UDP(sport=11, dport=22) / b"abc", Reason.SPOOFED_SOURCE)
    lab.later(1)
    lab.dropped(IP(src=SERVER, dst=ENI) / TCP(sport=33, dport=44, flags="S"), Reason.NO_FLOW, lab.eni)
    lab.refused(IP(src=INSIDE, dst=SERVER) / ICMP(type=13), Reason.UNSUPPORTED_ICMP)
    lab.dropped(b"\x45\0\0", Reason.MALFORMED_IP)
    spoofed, inbound, timestamp, short = lab.engine.drops()
    assert (spoofed.number, spoofed.time, spoofed.link, spoofed.link_number) == (
        1,
        lab.now - 1000,
        "env-0",
        lab.tunnels[0].number,
    )
    assert (spoofed.reason, spoofed.protocol, spoofed.length) == (Reason.SPOOFED_SOURCE, 17, 31)
    assert (str(spoofed.source), spoofed.source_port) == ("198.18.0.9", 11)
    assert (str(spoofed.destination), spoofed.destination_port) == (SERVER, 22)
    assert (inbound.link, inbound.reason, inbound.time) == ("eni0", "no_flow", lab.now)
    assert (str(inbound.source), inbound.source_port, inbound.destination_port) == (SERVER, 33, 44)
    assert (timestamp.protocol, timestamp.source_port, timestamp.destination_port) == (1, 13, 0)
    assert (short.source, short.length, short.number) == (IPv4Address(0), 3, 4)


def test_drop_ring_keeps_the_newest_and_its_numbers_show_the_gap() -> None:
    with Lab(drop_records=64) as lab:
        for number in range(1, 201):
            lab.dropped(IP(src=SERVER, dst=ENI) / UDP(sport=number, dport=2000), Reason.NO_FLOW, lab.eni)
        drops = lab.engine.drops()
        assert [drop.number for drop in drops] == list(range(137, 201))
        assert [drop.source_port for drop in drops] == list(range(137, 201))
        assert [drop.number for drop in lab.engine.drops(after=198)] == [199, 200]
        assert lab.engine.drops(after=200) == []
        assert lab.engine.drops(after=10**9) == []


def test_drop_records_can_be_followed(lab: Lab) -> None:
    """after= the last number seen: nothing twice, nothing missed."""
    seen = 0
    for turn in range(1, 6):
        for _ in range(turn):
            lab.dropped(udp(1, 2, source="198.18.9.9"), Reason.SPOOFED_SOURCE)
        new = lab.engine.drops(after=seen)
        assert [drop.number for drop in new] == list(range(seen + 1, seen + 1 + turn))
        seen = new[-1].number


def test_more_drops_than_are_read_at_once() -> None:
    with Lab(drop_records=4096) as lab:
        lab.send_all(lab.tunnels[0], [udp(port, 2, source="198.18.9.9") for port in range(3000)])
        assert [drop.source_port for drop in lab.engine.drops()] == list(range(3000))


def test_drops_are_named_after_the_link_of_their_time(lab: Lab) -> None:
    """A link number is given out again; a record from before still names who it was."""
    first = lab.add_tunnel("first")
    lab.dropped(udp(1, 2, source="198.18.9.9"), Reason.SPOOFED_SOURCE, first)
    lab.engine.remove(first)
    lab.sweep()
    lab.later(1)
    assert lab.sweep() == 0
    second = lab.add_tunnel("second")
    assert second.number == first.number
    lab.later(0.001)
    lab.dropped(udp(1, 2, source="198.18.9.9"), Reason.SPOOFED_SOURCE, second)
    assert [drop.link for drop in lab.engine.drops()] == ["first", "second"]


def test_flow_attributes(lab: Lab) -> None:
    lab.now += 5
    tcp = Tcp(lab).establish()
    begun = lab.now
    lab.later(3)
    tcp.outside("PA", b"hello")
    (flow,) = lab.engine.flows()
    assert (flow.tunnel, flow.tunnel_number) == ("env-0", lab.tunnels[0].number)
    assert (flow.eni, flow.eni_number) == ("eni0", lab.eni.number)
    assert (flow.protocol, flow.state) == ("tcp", FlowState.ESTABLISHED)
    assert (str(flow.inside), flow.inside_port) == (INSIDE, 40_000)
    assert (str(flow.outside), flow.outside_port) == (ENI, tcp.outside_port)
    assert (str(flow.remote), flow.remote_port) == (SERVER, 5432)
    assert (flow.packets_out, flow.bytes_out) == (2, 80)
    assert (flow.packets_in, flow.bytes_in) == (2, 85)
    assert (flow.started, flow.last_seen, flow.expires) == (begun, lab.now, lab.now + 7_440_000)


def test_flow_states_of_udp_and_icmp(lab: Lab) -> None:
    lab.out(datagram())
    lab.out(ping())
    assert {(flow.protocol, flow.state) for flow in lab.engine.flows()} == {("udp", "active"), ("icmp", "active")}


def test_flow_ids_are_never_used_again() -> None:
    with Lab(max_flows=4) as lab:
        seen: set[int] = set()
        for _ in range(20):
            lab.send_all(lab.tunnels[0], [udp(port, 7) for port in range(1, 5)])
            ids = {flow.id for flow in lab.engine.flows()}
            assert len(ids) == 4
            assert not ids & seen
            seen |= ids
            lab.later(300)
            lab.sweep()


def test_flows_of_one_tunnel() -> None:
    with Lab(tunnels=3) as lab:
        for tunnel in range(3):
            lab.send_all(lab.tunnels[tunnel], [udp(port, 7) for port in range(1, 2 + tunnel)])
        assert [len(lab.engine.flows(tunnel=tunnel)) for tunnel in lab.tunnels] == [1, 2, 3]
        assert len(lab.engine.flows()) == 6


def test_more_flows_than_are_read_at_once(lab: Lab) -> None:
    lab.send_all(lab.tunnels[0], [udp(port, 7) for port in range(1, 2001)])
    flows = lab.engine.flows()
    assert sorted(flow.inside_port for flow in flows) == list(range(1, 2001))
    assert len({flow.id for flow in flows}) == 2000


def test_a_page_of_flows_costs_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """From any place on, in the order of flow numbers; what is not asked for is not looked at."""
    with Lab(tunnels=2, max_flows=4096) as lab:
        for port in range(3000):
            lab.send(lab.tunnels[port % 2], udp(1024 + port, 53))
        looked: list[int] = []
        original = native.flow

        def counting(block: Any, names: Any) -> Flow:
            looked.append(block.id)
            return original(block, names)

        monkeypatch.setattr(native, "flow", counting)
        with Reader(lab.engine.config, lab.engine.regions()) as reader:
            assert [flow.id & 0xFFFFFFFF for flow in islice(reader.scan(after=1999), 3)] == [2000, 2001, 2002]
            assert [flow.id & 0xFFFFFFFF for flow in islice(reader.scan(), 2)] == [0, 1]
            number = lab.tunnels[1].number
            found = list(islice(reader.scan(tunnel=number, after=10), 2))
            assert [(flow.id & 0xFFFFFFFF, flow.tunnel_number) for flow in found] == [(11, number), (13, number)]
            assert len(looked) == 7
            assert list(reader.scan(after=2999)) == []
            assert list(reader.scan(after=2**32 - 2)) == []
            with pytest.raises(InvalidValue, match="after"):
                reader.scan(after=2**32)


def test_counters_add_up() -> None:
    """Every packet that came in either left, or was dropped for one reason; the sum is the sum of the links."""
    with Lab(tunnels=2) as lab:
        one, two = lab.tunnels
        ports = [lab.out(udp(n, 7, payload=bytes(n)), 0)[UDP].sport for n in range(1, 11)]
        for port in ports[:4]:
            lab.back(IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=port) / b"four", 0)
        lab.dropped(IP(src=SERVER2, dst=ENI) / UDP(sport=7, dport=ports[0]), Reason.NO_FLOW, lab.eni)
        lab.refused(datagram(ttl=1), Reason.TTL_EXCEEDED, two)
        lab.dropped(udp(1, 2, source=SERVER), Reason.SPOOFED_SOURCE, two)

        first, second, eni = (lab.engine.counters(link) for link in (one, two, lab.eni))
        assert (first.packets_in, first.bytes_in) == (10, 10 * 28 + sum(range(1, 11)))
        assert (first.packets_out, first.bytes_out) == (4, 4 * 32)
        assert (first.flows_created, first.flows_ended, first.drops, first.refusals_sent) == (10, 0, {}, 0)
        assert (second.packets_in, second.packets_out, second.refusals_sent) == (2, 1, 1)
        assert second.drops == {"ttl_exceeded": 1, "spoofed_source": 1}
        assert (eni.packets_in, eni.packets_out, eni.bytes_out) == (5, 10, first.bytes_in)
        assert (eni.drops, eni.flows_created) == ({"no_flow": 1}, 10)

        total = lab.engine.counters()
        links = first + second + eni
        once = {"flows_created": eni.flows_created, "flows": eni.flows}
        assert total == msgspec.structs.replace(links, **once)
        dropped = sum(total.drops.values())
        assert total.packets_in + total.refusals_sent == total.packets_out + dropped
        assert len(lab.engine.drops()) == dropped
        lab.later(300)
        assert lab.sweep() == 10
        assert lab.engine.counters(one).flows_ended == lab.engine.counters(lab.eni).flows_ended == 10


def test_counters_of_a_dropped_super_segment(lab: Lab) -> None:
    """In: its wire packets; a drop is one drop; nothing leaves."""
    lab.engine.set_security_groups(lab.eni, [])
    packet = IP(src=INSIDE, dst=SERVER) / TCP(sport=1, dport=2, flags="S") / bytes(1000)
    lab.refused(packet, Reason.SECURITY_GROUP, vnet=vnet(NEEDS_CSUM, GSO_TCPV4, 40, 100, 20, 16))
    counters = lab.engine.counters(lab.tunnels[0])
    assert (counters.packets_in, counters.drops, counters.packets_out) == (10, {"security_group": 1}, 1)


def test_status_follows(lab: Lab) -> None:
    before = lab.engine.status()
    assert (before.running, before.io, before.flows, before.flows_high, before.mappings) == (False, "none", 0, 0, 0)
    lab.send_all(lab.tunnels[0], [udp(1, 7), udp(1, 8), udp(2, 7), syn(1, 80)])
    after = lab.engine.status()
    assert (after.flows, after.flows_high, after.mappings, after.dense_destinations) == (4, 4, 2, 0)
    lab.later(300)
    lab.sweep()
    assert (lab.engine.status().flows, lab.engine.status().flows_high) == (0, 4)


@pytest.mark.parametrize("reason", ["security_group", "no_flow"])
def test_reasons_are_one_word_everywhere(lab: Lab, reason: str) -> None:
    """The same word in the verdict, the counters and the ring; it compares equal to its text."""
    if reason == "no_flow":
        result = lab.send(lab.eni, udp(1, 2, source=SERVER, destination=ENI))
    else:
        lab.engine.set_security_groups(lab.eni, [])
        result = lab.send(lab.tunnels[0], udp(1, 2))
    (record,) = lab.engine.drops()
    assert result.reason == record.reason == reason
    assert list(lab.engine.counters().drops) == [reason]
