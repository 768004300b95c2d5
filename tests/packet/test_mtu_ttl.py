"""What every router does (RFC 1812): TTL, path MTU discovery (RFC 1191), and the MSS clamp that spares it."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet

from hyperplane.dataplane import Reason, Verdict

from .lab import (
    ENI,
    ENI2,
    GSO_TCPV4,
    GSO_UDP_L4,
    INSIDE,
    NEEDS_CSUM,
    SERVER,
    Lab,
    Tcp,
    assert_checksums,
    datagram,
    ping,
    pseudo,
    rewritten,
    vnet,
)


def assert_error(answer: Packet, original: bytes, source: str, icmp_type: int, code: int, mtu: int = 0) -> None:
    """An ICMP error from `source` to the original's sender, quoting it as it was sent (RFC 1812 section 4.3.2.3)."""
    sent = IP(original)
    assert (answer.src, answer.dst, answer.proto) == (source, sent.src, 1)
    assert (answer[ICMP].type, answer[ICMP].code) == (icmp_type, code)
    assert bytes(answer)[24:28] == mtu.to_bytes(4, "big")
    assert bytes(answer)[28:] == original[:548]
    assert len(bytes(answer)) <= 576
    assert answer.ttl > 1


def test_packet_larger_than_the_path_is_answered_with_its_mtu() -> None:
    """RFC 1191 section 4: DF set and larger than the next hop's MTU: fragmentation needed, with that MTU."""
    with Lab(mtu=1400) as lab:
        lab.out(datagram(payload=bytes(1400 - 28), flags="DF"))
        large = bytes(datagram(payload=bytes(1401 - 28), flags="DF"))
        answer = lab.refused(large, Reason.FRAGMENTATION_NEEDED)
        assert_error(answer, large, ENI, 3, 4, 1400)
        assert lab.flow().packets_out == 1


def test_packet_from_outside_larger_than_the_tunnel_is_answered_towards_its_sender() -> None:
    """The sender in the VPC learns the tunnel's MTU from the ENI address, about the packet as it sent it."""
    with Lab(tunnel_mtu=1300) as lab:
        port = lab.out(datagram())[UDP].sport
        large = bytes(IP(src=SERVER, dst=ENI, flags="DF") / UDP(sport=7, dport=port) / bytes(1301 - 28))
        answer = lab.refused(large, Reason.FRAGMENTATION_NEEDED, lab.eni)
        assert_error(answer, large, ENI, 3, 4, 1300)
        lab.back(IP(src=SERVER, dst=ENI, flags="DF") / UDP(sport=7, dport=port) / bytes(1300 - 28))


def test_tcp_and_echo_get_the_same_answer() -> None:
    with Lab(mtu=1400) as lab:
        tcp = Tcp(lab).establish()
        result = tcp.inside("A", bytes(1400))  # without DF
        assert result.verdict == Verdict.FORWARD
        head = IP(src=INSIDE, dst=SERVER, flags="DF")
        segment = bytes(head / TCP(sport=40_000, dport=5432, flags="A", seq=tcp.mine, ack=tcp.theirs) / bytes(1400))
        assert_error(lab.refused(segment, Reason.FRAGMENTATION_NEEDED), segment, ENI, 3, 4, 1400)
        probe = bytes(head / ICMP(id=5) / bytes(1400))
        assert_error(lab.refused(probe, Reason.FRAGMENTATION_NEEDED), probe, ENI, 3, 4, 1400)


def test_without_df_a_large_packet_is_passed_on() -> None:
    """The next kernel on its way fragments it; a TUN takes what is written."""
    with Lab(mtu=1400) as lab:
        sent = datagram(payload=bytes(1472))
        there = lab.out(sent)
        assert bytes(there) == rewritten(sent, src=ENI, sport=there[UDP].sport)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_a_super_segment_is_measured_by_its_segments(protocol: str) -> None:
    """With DF and gso_size, what counts is the wire packet: headers + gso_size."""
    with Lab(mtu=1400) as lab:
        head, offset, number, kind = (40, 16, 6, GSO_TCPV4) if protocol == "tcp" else (28, 6, 17, GSO_UDP_L4)
        layer = TCP(sport=40_000, dport=80, flags="S") if protocol == "tcp" else UDP(sport=40_000, dport=80)
        lab.out(IP(src=INSIDE, dst=SERVER) / layer)
        if protocol == "tcp":
            layer.flags = "A"
        sent = IP(bytes(IP(src=INSIDE, dst=SERVER, flags="DF") / layer / bytes(20_000)))
        sent.payload.chksum = pseudo(INSIDE, SERVER, number, len(sent) - 20)
        lab.out(sent, vnet=vnet(NEEDS_CSUM, kind, head, 1400 - head, 20, offset))
        answer = lab.refused(
            sent, Reason.FRAGMENTATION_NEEDED, vnet=vnet(NEEDS_CSUM, kind, head, 1401 - head, 20, offset)
        )
        assert_error(answer, bytes(sent), ENI, 3, 4, 1400)


def test_answer_quotes_what_fits_the_buffer() -> None:
    with Lab(mtu=1400) as lab:
        large = bytes(datagram(payload=bytes(1401 - 28), flags="DF"))
        result = lab.send(lab.tunnels[0], large, spare=0)
        assert result.verdict == Verdict.REPLY
        assert_checksums(result.packet)
        short = bytes(datagram(payload=b"x", ttl=1))
        tight = lab.send(lab.tunnels[0], short, spare=0)
        assert tight.reason == Reason.TTL_EXCEEDED
        if tight.verdict == Verdict.REPLY:  # RFC 792: with less than header + 8 bytes it says nothing
            assert_checksums(tight.packet)
            assert len(tight.packet) >= 28 + 28


def test_ttl_is_decremented_in_both_directions(lab: Lab) -> None:
    """RFC 1812 section 5.3.1."""
    for ttl in (2, 64, 255):
        there = lab.out(datagram(ttl=ttl))
        assert there.ttl == ttl - 1
        back = lab.back(IP(src=SERVER, dst=ENI, ttl=ttl) / UDP(sport=7, dport=there[UDP].sport))
        assert back.ttl == ttl - 1


@pytest.mark.parametrize("ttl", [0, 1])
@pytest.mark.parametrize("kind", ["udp", "tcp", "icmp"])
def test_ttl_that_ends_here_is_answered_from_the_eni_address(lab: Lab, ttl: int, kind: str) -> None:
    """RFC 1812 section 5.3.1, RFC 792: time exceeded: traceroute sees the ENI as a hop; nothing is forwarded."""
    sent = {
        "udp": datagram(sport=33_000, dport=33_434, ttl=ttl),
        "tcp": IP(src=INSIDE, dst=SERVER, ttl=ttl) / TCP(sport=33_000, dport=80, flags="S"),
        "icmp": IP(src=INSIDE, dst=SERVER, ttl=ttl) / ICMP(id=1),
    }[kind]
    answer = lab.refused(sent, Reason.TTL_EXCEEDED)
    assert_error(answer, bytes(sent), ENI, 11, 0)
    assert lab.engine.counters(lab.eni).packets_out == 0


def test_ttl_that_ends_here_from_outside(lab: Lab) -> None:
    port = lab.out(datagram())[UDP].sport
    sent = bytes(IP(src=SERVER, dst=ENI, ttl=1) / UDP(sport=7, dport=port) / b"x")
    assert_error(lab.refused(sent, Reason.TTL_EXCEEDED, lab.eni), sent, ENI, 11, 0)


def test_an_unsolicited_packet_learns_nothing_from_its_ttl_or_size(lab: Lab) -> None:
    """From outside without a flow: no answer, whatever else is wrong with the packet."""
    with Lab(tunnel_mtu=1300) as small:
        for packet in (
            IP(src=SERVER, dst=ENI, ttl=1) / UDP(sport=7, dport=2000) / b"x",
            IP(src=SERVER, dst=ENI, flags="DF") / UDP(sport=7, dport=2000) / bytes(1400),
        ):
            assert small.send(small.eni, packet).verdict == Verdict.DROP


def test_with_two_addresses_the_answer_comes_from_the_eni_and_quotes_the_packet() -> None:
    """RFC 1812 section 4.3.2.4: from an address of the interface; the quotation names the one that was written to."""
    with Lab(addresses=(ENI, ENI2), tunnels=4, tunnel_mtu=1300) as lab:
        used = set()
        for tunnel in range(4):
            there = lab.out(datagram(), tunnel)
            used.add(there.src)
            large = bytes(
                IP(src=SERVER, dst=there.src, flags="DF") / UDP(sport=7, dport=there[UDP].sport) / bytes(1400)
            )
            answer = lab.refused(large, Reason.FRAGMENTATION_NEEDED, lab.eni)
            assert answer.src in (ENI, ENI2)
            assert_error(answer, large, answer.src, 3, 4, 1300)
        assert used == {ENI, ENI2}


# MSS


def syn_with(options: list[Any], flags: str = "S", **ports: int) -> Packet:
    return IP(src=INSIDE, dst=SERVER) / TCP(flags=flags, options=options, **{"sport": 40_000, "dport": 80, **ports})


def mss_of(packet: Packet) -> int:
    return next(int(value) for name, value in packet[TCP].options if name == "MSS")


@pytest.mark.parametrize(("offered", "clamped"), [(1460, 1360), (1361, 1360), (1360, 1360), (1359, 1359), (536, 536)])
def test_mss_of_a_syn_is_lowered_to_the_path_never_raised(offered: int, clamped: int) -> None:
    """RFC 6691 section 2, RFC 4459 section 3.2: the smaller MTU of both links less 40 bytes of headers."""
    with Lab(mtu=1400) as lab:
        there = lab.out(syn_with([("MSS", offered)]))
        assert mss_of(there) == clamped
        assert_checksums(bytes(there))
        answer = IP(src=SERVER, dst=ENI) / TCP(
            sport=80, dport=there[TCP].sport, flags="SA", ack=1, options=[("MSS", offered)]
        )
        back = lab.back(answer)
        assert mss_of(back) == clamped
        assert_checksums(bytes(back))


def test_mss_follows_the_tunnels_mtu_too() -> None:
    with Lab(mtu=9000, tunnel_mtu=1300) as lab:
        assert mss_of(lab.out(syn_with([("MSS", 8960)]))) == 1260


@pytest.mark.parametrize(
    "before", [[("NOP", None)], [("NOP", None)] * 3, [("WScale", 7)], [("SAckOK", b""), ("NOP", None)]]
)
def test_mss_at_any_offset(before: list[Any]) -> None:
    """An option at an odd offset straddles two words of the checksum."""
    with Lab(mtu=1400) as lab:
        sent = syn_with([*before, ("MSS", 1460)])
        there = lab.out(sent)
        options = [*before, ("MSS", 1360)]
        assert bytes(there) == rewritten(syn_with(options), src=ENI, sport=there[TCP].sport)


def test_mss_with_a_partial_checksum_leaves_the_checksum_to_the_kernel() -> None:
    with Lab(mtu=1400) as lab:
        sent = IP(bytes(syn_with([("MSS", 1460)])))
        sent[TCP].chksum = pseudo(INSIDE, SERVER, 6, 24)
        there = lab.out(sent, vnet=vnet(NEEDS_CSUM, start=20, offset=16))
        assert (mss_of(there), there[TCP].chksum) == (1360, pseudo(ENI, SERVER, 6, 24))


def test_only_a_syn_is_clamped_and_a_syn_without_mss_stays_so() -> None:
    with Lab(mtu=1400) as lab:
        plain = syn_with([])
        port = lab.out(plain)[TCP].sport
        assert bytes(lab.out(plain)) == rewritten(plain, src=ENI, sport=port)
        data = syn_with([("MSS", 1460)], flags="A")
        assert bytes(lab.out(data)) == rewritten(data, src=ENI, sport=port)


@pytest.mark.parametrize(
    "options",
    [
        b"\x02",
        b"\x02\x04\x05",
        b"\x01\x02\x04\x05",
        b"\x01\x01\x02\x04",
        b"\x01\x01\x01\x02",
        b"\x02\x03\x05\x00",
        b"\x02\x00\x05\xb4",
        b"\x02\x01\x05\xb4",
        b"\x03\x28\x02\x04",
        b"\x00\x02\x04\x05",
    ],
)
@pytest.mark.parametrize("payload", [b"", b"\xff\xff\xff"])
def test_broken_tcp_options_are_left_alone(options: bytes, payload: bytes) -> None:
    """A length of 0, or one beyond the header, ends the search: payload is no option; the receiver judges it."""
    with Lab(mtu=1400) as lab:
        tail = options.ljust(4, b"\0") + payload
        sent = IP(src=INSIDE, dst=SERVER) / TCP(sport=40_000, dport=80, flags="S", dataofs=6)
        raw = bytearray(bytes(sent) + tail)
        raw[2:4] = len(raw).to_bytes(2, "big")
        packet = IP(bytes(raw))
        del packet.chksum
        result = lab.send(lab.tunnels[0], bytes(packet), spare=0)
        assert result.verdict == Verdict.FORWARD
        assert result.packet[40:] == tail


def test_ping_of_the_eni_path_still_counts_hops(lab: Lab) -> None:
    """traceroute -I: each TTL above 1 goes on, TTL 1 is ours."""
    assert lab.out(ping()).ttl == 63
