"""Addresses, ports and checksums of TCP, UDP and ICMP echo, out and back (RFC 3022 section 4.1, RFC 1624)."""

from __future__ import annotations

import struct

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.packet import Packet

from hyperplane.dataplane import Reason

from .lab import (
    DATA_VALID,
    ENI,
    GSO_ECN,
    GSO_TCPV4,
    GSO_UDP_L4,
    INSIDE,
    NEEDS_CSUM,
    SERVER,
    VNET,
    Lab,
    Tcp,
    assert_checksums,
    datagram,
    ping,
    pseudo,
    rewritten,
    vnet,
)

SYN_OPTIONS = [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0)), ("NOP", None), ("WScale", 7)]


def test_tcp_out_and_back_changes_source_then_destination_and_nothing_else(lab: Lab) -> None:
    """RFC 3022 section 4.1: only addresses, ports, TTL and checksums change; options and payload stay."""
    sent = IP(src=INSIDE, dst=SERVER, id=4711, tos=0x2E) / TCP(sport=40_000, dport=80, flags="S", options=SYN_OPTIONS)
    there = lab.out(sent)
    port = there[TCP].sport
    assert 1024 <= port <= 65535
    assert bytes(there) == rewritten(sent, src=ENI, sport=port)
    answer = IP(src=SERVER, dst=ENI) / TCP(sport=80, dport=port, flags="SA", seq=5, ack=1, options=SYN_OPTIONS)
    assert bytes(lab.back(answer)) == rewritten(answer, dst=INSIDE, dport=40_000)
    data = (
        IP(src=INSIDE, dst=SERVER) / TCP(sport=40_000, dport=80, flags="PA", seq=1, ack=6) / b"GET / HTTP/1.0\r\n\r\n"
    )
    assert bytes(lab.out(data)) == rewritten(data, src=ENI, sport=port)


@pytest.mark.parametrize("size", [0, 1, 2, 511, 1472])
def test_udp_out_and_back(lab: Lab, size: int) -> None:
    sent = datagram(payload=bytes(range(256)) * 6)
    sent[UDP].payload.load = sent[UDP].payload.load[:size]
    there = lab.out(sent)
    assert bytes(there) == rewritten(sent, src=ENI, sport=there[UDP].sport)
    answer = IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=there[UDP].sport) / (b"\xff" * size)
    assert bytes(lab.back(answer)) == rewritten(answer, dst=INSIDE, dport=40_000)


def test_bytes_behind_a_udp_datagram_are_carried_along(lab: Lab) -> None:
    """RFC 768, RFC 9868: the UDP length may end before the packet does; what lies behind is not in the checksum."""
    sent = IP(
        bytes(IP(src=INSIDE, dst=SERVER, len=20 + 8 + 5 + 4) / UDP(sport=9, dport=7, len=13) / b"hello") + b"tail"
    )
    there = lab.out(sent)
    assert bytes(there) == rewritten(sent, src=ENI, sport=there[UDP].sport)
    assert bytes(there).endswith(b"hellotail")
    assert_checksums(bytes(there))


def test_icmp_echo_out_and_back(lab: Lab) -> None:
    """RFC 5508 REQ-1: an echo request's id is mapped, and mapped back in the reply; the sequence number stays."""
    sent = ping(identifier=77, sequence=3)
    there = lab.out(sent)
    assert bytes(there) == rewritten(sent, src=ENI, id=there[ICMP].id)
    answer = IP(src=SERVER, dst=ENI) / ICMP(type=0, id=there[ICMP].id, seq=3) / b"abcdefgh"
    assert bytes(lab.back(answer)) == rewritten(answer, dst=INSIDE, id=77)


def test_an_echo_request_from_outside_is_no_answer_to_ours(lab: Lab) -> None:
    """Nothing may connect in: the id of a live echo flow lets replies in, not requests."""
    there = lab.out(ping())
    lab.dropped(IP(src=SERVER, dst=ENI) / ICMP(type=8, id=there[ICMP].id), Reason.NO_FLOW, lab.eni)


def test_ip_options_are_carried_through(lab: Lab) -> None:
    sent = IP(src=INSIDE, dst=SERVER, options=[IPOption_NOP()] * 4) / UDP(sport=9000, dport=9) / b"options"
    there = lab.out(sent)
    assert there.ihl == 6
    assert bytes(there) == rewritten(sent, src=ENI, sport=there[UDP].sport)


def test_udp_checksum_zero_stays_zero(lab: Lab) -> None:
    """RFC 768, RFC 4787 section 9: no checksum from the sender is no checksum to the receiver."""
    sent = datagram()
    sent[UDP].chksum = 0
    there = lab.out(sent)
    assert there[UDP].chksum == 0
    assert bytes(there) == rewritten(sent, src=ENI, sport=there[UDP].sport)
    answer = IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=there[UDP].sport, chksum=0) / b"x"
    assert lab.back(answer)[UDP].chksum == 0


@pytest.mark.parametrize("way", ["out", "back"])
def test_udp_checksum_never_becomes_zero(lab: Lab, way: str) -> None:
    """RFC 768: a computed checksum of zero is sent as all ones; an incremental update must not make it "none"."""
    port = lab.out(datagram(payload=b"\0\0"))[UDP].sport
    for word in range(0, 65536, 2571 if way == "out" else 4369):
        assert_checksums(bytes(_udp(lab, way, port, struct.pack(">H", word))))
    # The payload that makes the rewritten sum 0xffff, whose complement is zero.
    seen = _udp(lab, way, port, b"\0\0")[UDP].chksum
    special = _udp(lab, way, port, struct.pack(">H", seen))
    assert special[UDP].chksum == 0xFFFF
    assert_checksums(bytes(special))


def _udp(lab: Lab, way: str, port: int, payload: bytes) -> Packet:
    if way == "out":
        return lab.out(datagram(payload=payload))
    return lab.back(IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=port) / payload)


def test_tcp_checksum_of_every_residue(lab: Lab) -> None:
    """RFC 1624 section 3: eqn. 3 is right also where eqn. 2 of RFC 1141 gives the wrong zero."""
    tcp = Tcp(lab).establish()
    for word in (0, 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF):
        assert_checksums(tcp.inside("A", struct.pack(">H", word)).packet)
    base = IP(tcp.inside("A", b"\0\0", seq=5000).packet)[TCP].chksum
    special = tcp.inside("A", struct.pack(">H", base), seq=5000).packet
    assert_checksums(special)
    assert IP(special)[TCP].chksum == 0


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_partial_checksum_holds_the_new_pseudo_header(lab: Lab, protocol: str) -> None:
    """VIRTIO_NET_HDR_F_NEEDS_CSUM: the field is the pseudo-header's sum: addresses change it, ports do not."""
    layer = TCP(sport=40_000, dport=80, flags="S") if protocol == "tcp" else UDP(sport=40_000, dport=80)
    number, offset = (6, 16) if protocol == "tcp" else (17, 6)
    sent = IP(bytes(IP(src=INSIDE, dst=SERVER) / layer / b"partial"))
    length = len(sent) - 20
    sent.payload.chksum = pseudo(INSIDE, SERVER, number, length)
    header = vnet(NEEDS_CSUM, start=20, offset=offset)
    result = lab.send(lab.tunnels[0], sent, vnet=header)
    there = IP(result.packet)
    assert there.payload.chksum == pseudo(ENI, SERVER, number, length)
    assert result.vnet == vnet(NEEDS_CSUM, 0, 0, 0, 20, offset)  # hdr_len is for super-segments
    answer = IP(bytes(IP(src=SERVER, dst=ENI) / type(layer)(sport=80, dport=there.sport) / b"partial"))
    if protocol == "tcp":
        answer[TCP].flags = "SA"
    answer.payload.chksum = pseudo(SERVER, ENI, number, len(answer) - 20)
    assert lab.back(answer, vnet=header).payload.chksum == pseudo(SERVER, INSIDE, number, len(answer) - 20)


def test_partial_udp_checksum_of_zero_is_a_sum_not_none(lab: Lab) -> None:
    """A sum that happens to be 0 (the same number as 0xffff) is updated: only a full checksum of 0 means none."""
    sent = IP(bytes(datagram()))
    sent[UDP].chksum = 0
    there = lab.out(sent, vnet=vnet(NEEDS_CSUM, start=20, offset=6))
    change = pseudo(ENI, SERVER, 17, 0) - pseudo(INSIDE, SERVER, 17, 0)
    assert there[UDP].chksum % 0xFFFF == change % 0xFFFF
    assert there[UDP].chksum != 0


def test_a_checksum_that_the_kernel_verified_is_kept_so(lab: Lab) -> None:
    """VIRTIO_NET_HDR_F_DATA_VALID goes with the packet or is cleared, and changes nothing else."""
    sent = datagram()
    result = lab.send(lab.tunnels[0], sent, vnet=vnet(DATA_VALID))
    assert result.packet == rewritten(sent, src=ENI, sport=IP(result.packet)[UDP].sport)
    assert result.vnet in (vnet(DATA_VALID), VNET)


@pytest.mark.parametrize("kind", [GSO_TCPV4, GSO_TCPV4 | GSO_ECN], ids=["tso", "tso-ecn"])
def test_tso_super_segment_is_one_lookup_and_many_wire_packets(lab: Lab, kind: int) -> None:
    """A TCP super-segment leaves with its GSO fields as they came; counters count its segments."""
    tcp = Tcp(lab).establish()
    payload = bytes(5 * 1448 + 100)
    sent = IP(src=INSIDE, dst=SERVER, flags="DF") / TCP(
        sport=40_000, dport=5432, flags="A", seq=tcp.mine, ack=tcp.theirs
    )
    sent = IP(bytes(sent / payload))
    sent[TCP].chksum = pseudo(INSIDE, SERVER, 6, len(sent) - 20)
    header = vnet(NEEDS_CSUM, kind, 40, 1448, 20, 16)
    before = lab.engine.counters(lab.tunnels[0]).packets_in, lab.engine.counters(lab.eni).packets_out
    result = lab.send(lab.tunnels[0], sent, vnet=header)
    assert result.vnet == header
    there = IP(result.packet)
    assert there[TCP].chksum == pseudo(ENI, SERVER, 6, len(sent) - 20)
    assert (there.src, there[TCP].sport, bytes(there[TCP].payload)) == (ENI, tcp.outside_port, payload)
    after = lab.engine.counters(lab.tunnels[0]).packets_in, lab.engine.counters(lab.eni).packets_out
    assert (after[0] - before[0], after[1] - before[1]) == (6, 6)
    assert tcp.flow.packets_out == 2 + 6


def test_uso_super_segment_counts_its_datagrams(lab: Lab) -> None:
    """VIRTIO_NET_HDR_GSO_UDP_L4: the UDP length is the whole's, gso_size the payload of one datagram."""
    sent = IP(bytes(datagram(payload=bytes(3 * 1200))))
    sent[UDP].chksum = pseudo(INSIDE, SERVER, 17, len(sent) - 20)
    header = vnet(NEEDS_CSUM, GSO_UDP_L4, 28, 1200, 20, 6)
    result = lab.send(lab.tunnels[0], sent, vnet=header)
    assert result.vnet == header
    there = IP(result.packet)
    assert (there[UDP].len, there[UDP].chksum) == (3608, pseudo(ENI, SERVER, 17, 3608))
    assert lab.engine.counters(lab.tunnels[0]).packets_in == 3
    assert lab.engine.counters(lab.eni).packets_out == 3
    assert lab.flow().packets_out == 3


def test_the_largest_packet_passes(lab: Lab) -> None:
    """65,535 bytes, as a TSO super-segment: the most that IPv4 can say."""
    tcp = Tcp(lab).establish()
    head = IP(src=INSIDE, dst=SERVER) / TCP(sport=40_000, dport=5432, flags="A", seq=tcp.mine, ack=tcp.theirs)
    sent = IP(bytes(head / bytes(65_535 - 40)))
    sent[TCP].chksum = pseudo(INSIDE, SERVER, 6, 65_515)
    there = lab.out(sent, vnet=vnet(NEEDS_CSUM, GSO_TCPV4, 40, 1448, 20, 16))
    assert len(bytes(there)) == 65_535
    assert there[TCP].chksum == pseudo(ENI, SERVER, 6, 65_515)


def test_a_batch_is_translated_in_order(lab: Lab) -> None:
    """More than one batch of 64 at once; the flow made by the first packet serves the rest."""
    packets: list[Packet] = [datagram(payload=struct.pack(">H", number)) for number in range(200)]
    results = lab.send_all(lab.tunnels[0], packets)
    assert [int.from_bytes(result.packet[-2:], "big") for result in results] == list(range(200))
    assert len({result.packet[20:22] for result in results}) == 1
    assert lab.flow().packets_out == 200


def test_identical_inside_addresses_on_many_tunnels_are_kept_apart() -> None:
    """Twenty environments, one inside address, one inside port, one destination: each has its own way back."""
    with Lab(tunnels=20) as lab:
        ports = [lab.out(datagram(), tunnel)[UDP].sport for tunnel in range(20)]
        tcp = [Tcp(lab, tunnel=tunnel) for tunnel in range(20)]
        for connection in tcp:
            connection.inside("S")
        assert len(set(ports)) == 20
        assert len({connection.outside_port for connection in tcp}) == 20
        for tunnel in reversed(range(20)):
            answer = IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=ports[tunnel]) / b"answer"
            assert bytes(lab.back(answer, tunnel)) == rewritten(answer, dst=INSIDE, dport=40_000)
            assert tcp[tunnel].outside("SA").link is lab.tunnels[tunnel]
        assert {flow.tunnel for flow in lab.engine.flows()} == {f"env-{number}" for number in range(20)}
