"""Properties over packets and histories that nobody wrote down: hypothesis makes them.

A failing example is printed as code; `derandomize` keeps runs alike, so that a red build is red again.
"""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet

from hyperplane.dataplane import Reason, Tunnel, Verdict

from .lab import (
    ENI,
    ENI2,
    GSO_TCPV4,
    GSO_UDP_L4,
    INSIDE,
    NEEDS_CSUM,
    SERVER,
    SERVER2,
    Lab,
    assert_checksums,
    echo,
    ipv4,
    pseudo,
    rewritten,
    syn,
    udp,
    vnet,
)

MANY = settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], database=None
)
ports = st.integers(1, 65535)
remotes = st.sampled_from([SERVER, SERVER2, "192.0.2.77", "203.0.113.255"])
header = st.fixed_dictionaries(
    {
        "ttl": st.integers(2, 255),
        "tos": st.integers(0, 255),
        "id": st.integers(0, 65535),
        "flags": st.sampled_from(["", "DF"]),
    }
)
options = st.lists(
    st.sampled_from([("NOP", None), ("MSS", 1400), ("WScale", 7), ("SAckOK", b""), ("Timestamp", (1, 2))]), max_size=4
)


@st.composite
def exchanges(draw: st.DrawFn) -> tuple[Packet, Packet]:
    """A packet that opens a flow, and an answer as the server sends it to whoever it saw (filled in by the test)."""
    remote, payload = draw(remotes), draw(st.binary(max_size=200))
    out, back = IP(src=INSIDE, dst=remote, **draw(header)), IP(src=remote, dst=ENI, **draw(header))
    kind = draw(st.sampled_from(["tcp", "udp", "icmp"]))
    if kind == "icmp":
        one = ICMP(id=draw(st.integers(0, 65535)), seq=draw(st.integers(0, 65535)))
        return out / one / payload, back / ICMP(type=0, seq=one.seq) / draw(st.binary(max_size=200))
    sport, dport = draw(ports), draw(ports)
    if kind == "udp":
        return out / UDP(sport=sport, dport=dport) / payload, back / UDP(sport=dport) / draw(st.binary(max_size=200))
    numbers = st.integers(0, 2**32 - 1)
    opening = TCP(sport=sport, dport=dport, flags="S", seq=draw(numbers), options=draw(options))
    answer = TCP(sport=dport, flags="SA", seq=draw(numbers), ack=(opening.seq + 1) % 2**32, options=draw(options))
    return out / opening / payload, back / answer / draw(st.binary(max_size=200))


@MANY
@given(exchange=exchanges(), workers=st.sampled_from([1, 2]))
def test_in_out_in_is_the_identity(exchange: tuple[Packet, Packet], workers: int) -> None:
    """RFC 3022 section 4.1: what comes back is what the server sent, with the environment's own address and port in
    place of ours; both ways byte for byte, every checksum as scapy computes it."""
    sent, answer = exchange
    with Lab(workers=workers, tunnels=workers) as lab:
        tunnel = workers - 1
        there = lab.out(sent, tunnel)
        assert there.src == ENI
        if ICMP in there:
            outside, inside = there[ICMP].id, sent[ICMP].id
            assert bytes(there) == rewritten(sent, src=ENI, id=outside)
            answer[ICMP].id = outside
            expected = rewritten(answer, dst=INSIDE, id=inside)
        else:
            outside, inside = there.payload.sport, sent.payload.sport
            assert bytes(there) == rewritten(sent, src=ENI, sport=outside)
            answer.payload.dport = outside
            expected = rewritten(answer, dst=INSIDE, dport=inside)
        assert bytes(lab.back(answer, tunnel)) == expected
        assert_checksums(bytes(there))
        # and what the server quotes in an error is what the environment sent
        error = IP(src=answer.src, dst=ENI) / ICMP(type=3, code=1) / bytes(there)[:548]
        assert bytes(lab.back(error, tunnel))[28:] == rewritten(sent)[:548]


@MANY
@given(
    protocol=st.sampled_from(["tcp", "udp"]),
    sport=ports,
    dport=ports,
    remote=remotes,
    payload=st.integers(1, 5000),
    size=st.integers(40, 1460),  # at most 125 segments: Linux makes no more of one datagram
)
def test_partial_checksums_and_segments(
    protocol: str, sport: int, dport: int, remote: str, payload: int, size: int
) -> None:
    """A super-segment keeps its GSO fields, has the partial checksum of the new addresses, counts its segments."""
    number, offset, gso = (6, 16, GSO_TCPV4) if protocol == "tcp" else (17, 6, GSO_UDP_L4)
    layer = TCP(sport=sport, dport=dport, flags="S") if protocol == "tcp" else UDP(sport=sport, dport=dport)
    sent = IP(bytes(IP(src=INSIDE, dst=remote) / layer / bytes(payload)))
    sent.payload.chksum = pseudo(INSIDE, remote, number, len(sent) - 20)
    length = 40 if protocol == "tcp" else 28
    promise = vnet(NEEDS_CSUM, gso, length, size, 20, offset)
    with Lab() as lab:
        result = lab.send(lab.tunnels[0], sent, vnet=promise, spare=0)
        assert (result.verdict, result.vnet) == (Verdict.FORWARD, promise)
        there = IP(result.packet)
        assert there.payload.chksum == pseudo(ENI, remote, number, len(sent) - 20)
        assert lab.engine.counters(lab.eni).packets_out == -(-payload // size)


@st.composite
def broken(draw: st.DrawFn) -> tuple[bytes, bytes]:
    """A virtio_net_hdr and a packet, right at first, then with bytes changed, cut off or added."""
    quoted = udp(1, 7, source=ENI)
    start = draw(
        st.sampled_from(
            [
                syn(1, 80),
                udp(1, 7, payload=b"x" * 30),
                echo(1),
                bytes(IP(src=INSIDE, dst=SERVER) / ICMP(type=3, code=3) / quoted),
                bytes(IP(src=INSIDE, dst=SERVER) / TCP(flags="S", options=[("MSS", 1460), ("WScale", 7)])),
                ipv4(6, struct.pack(">HHIIBBHHH", 80, 1024, 1, 1, 0x50, 4, 0, 0, 0), SERVER, ENI),
            ]
        )
    )
    packet, promise = (
        bytearray(start),
        bytearray(draw(st.sampled_from([vnet(), vnet(NEEDS_CSUM, GSO_TCPV4, 40, 9, 20, 16)]))),
    )
    for target in (packet, promise):
        for at, value in draw(st.lists(st.tuples(st.integers(0, len(target) - 1), st.integers(0, 255)), max_size=4)):
            target[at] = value
    if draw(st.booleans()):
        del packet[draw(st.integers(0, len(packet))) :]
    packet += draw(st.binary(max_size=8))
    if draw(st.booleans()) and len(packet) >= 20:
        packet[2:4] = len(packet).to_bytes(2, "big")
    if draw(st.booleans()) and len(packet) >= 20:  # so that it gets past the header checksum
        length = min(max((packet[0] & 15) * 4, 20), len(packet))
        packet[10:12] = b"\0\0"
        total = sum(struct.unpack(f">{length // 2}H", packet[: length // 2 * 2]))
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        packet[10:12] = (total ^ 0xFFFF).to_bytes(2, "big")
    return bytes(promise), bytes(packet)


@settings(MANY, max_examples=400)
@given(packets=st.lists(st.tuples(st.booleans(), broken()), min_size=1, max_size=5), workers=st.sampled_from([1, 2]))
def test_whatever_comes_has_one_verdict_and_is_counted(
    packets: list[tuple[bool, tuple[bytes, bytes]]], workers: int
) -> None:
    """No packet crashes the engine, leaves it without a reason, or leaves larger than it came; under ASan none is read
    beyond its end."""
    with Lab(workers=workers, tunnels=workers) as lab:
        for inward, (promise, packet) in packets:
            link = lab.eni if inward else lab.tunnels[-1]
            result = lab.send(link, packet, vnet=promise, spare=0)
            assert (result.verdict == Verdict.FORWARD) == (result.reason == Reason.NONE)
            assert len(result.packet) <= len(packet)
            if result.verdict == Verdict.FORWARD:
                assert result.link is not link
                assert len(result.packet) == int.from_bytes(result.packet[2:4], "big")
            elif result.verdict == Verdict.REPLY:
                assert_checksums(result.packet)
        total = lab.engine.counters()
        assert sum(total.drops.values()) == len(lab.engine.drops())
        assert lab.engine.status().flows == len(lab.engine.flows()) == total.flows_created


TIMERS = {"tcp": 240.0, "udp": 300.0, "dns": 30.0, "icmp": 60.0}
CAPACITY = 24
Key = tuple[str, str, int, str, int]  # tunnel, protocol, inside port, remote, remote port


class FlowTable(RuleBasedStateMachine):
    """The flow set against a dict: random packets in both directions, time, removals of tunnels, a table that fills up.

    TCP flows stay opening here (no answers but data), so one timer is enough for them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.lab = Lab(tunnels=0, addresses=(ENI, ENI2), max_flows=CAPACITY, max_links=8, drop_records=64)
        self.model: dict[Key, int] = {}  # when it ends
        self.named = 0

    def teardown(self) -> None:
        self.lab.engine.close()

    @initialize()
    def begin(self) -> None:
        for _ in range(3):
            self.attach()

    def attach(self) -> None:
        self.named += 1
        self.lab.tunnels.append(self.lab.add_tunnel(f"env-{self.named}"))

    def refresh(self, key: Key) -> None:
        kind = "dns" if key[1] == "udp" and key[4] == 53 else key[1]
        self.model[key] = self.lab.now + round(TIMERS[kind] * 1000)

    @rule(
        number=st.integers(0, 2),
        protocol=st.sampled_from(["tcp", "udp", "icmp"]),
        sport=st.integers(1, 4),
        remote=st.sampled_from([SERVER, SERVER2]),
        dport=st.sampled_from([53, 80]),
    )
    def out(self, number: int, protocol: str, sport: int, remote: str, dport: int) -> None:
        tunnel = self.lab.tunnels[number]
        packet: dict[str, Any] = {
            "tcp": syn(sport, dport, destination=remote),
            "udp": udp(sport, dport, destination=remote),
            "icmp": echo(sport, destination=remote),
        }
        key = (tunnel.name, protocol, sport, remote, 0 if protocol == "icmp" else dport)
        result = self.lab.send(tunnel, packet[protocol])
        if key in self.model or len(self.model) < CAPACITY:
            assert result.verdict == Verdict.FORWARD
            self.refresh(key)
        else:
            assert result.reason == Reason.FLOW_TABLE_FULL

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def back(self, data: st.DataObject) -> None:
        """An answer to any live flow reaches its own tunnel; UDP is not refreshed by it."""
        flow = data.draw(st.sampled_from(sorted(self.lab.engine.flows(), key=lambda one: one.id)))
        remote, outside = str(flow.remote), str(flow.outside)
        if flow.protocol == "icmp":
            packet = echo(flow.outside_port, source=remote, destination=outside, kind=0)
        elif flow.protocol == "udp":
            packet = udp(flow.remote_port, flow.outside_port, source=remote, destination=outside)
        else:
            segment = struct.pack(">HHIIBBHHH", flow.remote_port, flow.outside_port, 1, 1, 0x50, 0x10, 0, 0, 0)
            packet = ipv4(6, segment, remote, outside)
        result = self.lab.send(self.lab.eni, packet)
        assert result.verdict == Verdict.FORWARD
        assert isinstance(result.link, Tunnel)
        assert (result.link.name, result.link.number) == (flow.tunnel, flow.tunnel_number)
        if flow.protocol != "udp":
            self.refresh((flow.tunnel, flow.protocol, flow.inside_port, remote, flow.remote_port))

    @rule(seconds=st.sampled_from([0.001, 1, 29.999, 30, 59, 60, 239, 240, 299, 300, 10_000]))
    def wait(self, seconds: float) -> None:
        self.lab.later(seconds)
        over = {key for key, end in self.model.items() if end <= self.lab.now}
        assert self.lab.sweep() == len(over)
        for key in over:
            del self.model[key]

    @rule(number=st.integers(0, 2))
    def replace_tunnel(self, number: int) -> None:
        gone = self.lab.tunnels.pop(number)
        self.lab.engine.remove(gone)
        over = {key for key, end in self.model.items() if key[0] == gone.name or end <= self.lab.now}
        assert self.lab.sweep() == len(over)
        for key in over:
            del self.model[key]
        self.attach()

    @invariant()
    def the_table_agrees_with_the_model(self) -> None:
        flows = self.lab.engine.flows()
        seen = {
            (flow.tunnel, flow.protocol, flow.inside_port, str(flow.remote), flow.remote_port): flow.expires
            for flow in flows
        }
        assert seen == self.model
        assert len(flows) == len(self.model) == self.lab.engine.status().flows

    @invariant()
    def no_two_flows_share_an_outside_tuple(self) -> None:
        flows = self.lab.engine.flows()
        tuples = {(one.protocol, one.outside, one.outside_port, one.remote, one.remote_port) for one in flows}
        assert len(tuples) == len(flows)

    @invariant()
    def mappings_are_those_of_the_live_flows(self) -> None:
        """RFC 4787 REQ-1: one outside port for each inside endpoint of UDP (but DNS) and each echo id."""
        endpoints: dict[tuple[str, str, int], set[tuple[str, int]]] = {}
        for flow in self.lab.engine.flows():
            if flow.protocol == "icmp" or (flow.protocol == "udp" and flow.remote_port != 53):
                outside = (str(flow.outside), flow.outside_port)
                endpoints.setdefault((flow.tunnel, flow.protocol, flow.inside_port), set()).add(outside)
        assert all(len(ports_used) == 1 for ports_used in endpoints.values())
        assert self.lab.engine.status().mappings == len(endpoints)


TestFlowTable = FlowTable.TestCase
TestFlowTable.settings = settings(MANY, max_examples=120, stateful_step_count=60)
