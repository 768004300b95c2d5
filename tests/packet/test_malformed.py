"""Packets that lie: a counted drop of the right reason, and never a read or write outside the packet.

Every packet here lies in a buffer of exactly its size (spare=0): a build with AddressSanitizer sees a byte too much.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP

from hyperplane.dataplane import Link, Reason, Verdict

from .lab import (
    ENI,
    GSO_ECN,
    GSO_TCPV4,
    GSO_TCPV6,
    GSO_UDP,
    GSO_UDP_L4,
    INSIDE,
    NEEDS_CSUM,
    SERVER,
    VNET,
    Lab,
    datagram,
    fold,
    vnet,
)

BUFFER = 69_632  # HP_BUFFER: as long as this means "may be longer"


def header_sum(raw: bytes | bytearray) -> bytes:
    """The packet with a right IPv4 header checksum, however wrong the rest of the header is."""
    packet = bytearray(raw)
    length = min(max((packet[0] & 15) * 4, 20), len(packet))
    packet[10:12] = b"\0\0"
    packet[10:12] = (fold(bytes(packet[:length])) ^ 0xFFFF).to_bytes(2, "big")
    return bytes(packet)


def patched(raw: bytes, at: int, value: bytes) -> bytes:
    return header_sum(raw[:at] + value + raw[at + len(value) :])


TCP_PACKET = bytes(
    IP(src=INSIDE, dst=SERVER) / TCP(sport=1, dport=2, flags="S", options=[("MSS", 1460)]) / b"0123456789"
)
UDP_PACKET = bytes(IP(src=INSIDE, dst=SERVER) / UDP(sport=1, dport=2) / b"0123456789")
ICMP_PACKET = bytes(IP(src=INSIDE, dst=SERVER) / ICMP(id=1) / b"0123456789")
ERROR_PACKET = bytes(IP(src=INSIDE, dst=SERVER) / ICMP(type=3, code=1) / UDP_PACKET)
PACKETS = {"tcp": TCP_PACKET, "udp": UDP_PACKET, "icmp": ICMP_PACKET, "error": ERROR_PACKET}


def both(lab: Lab) -> list[Link]:
    return [lab.tunnels[0], lab.eni]


IP_LIES = [
    ("nothing at all", b"", Reason.MALFORMED_IP),
    ("one byte", b"\x45", Reason.MALFORMED_IP),
    ("19 bytes", UDP_PACKET[:19], Reason.MALFORMED_IP),
    ("version 0", patched(UDP_PACKET, 0, b"\x05"), Reason.MALFORMED_IP),
    ("version 5", patched(UDP_PACKET, 0, b"\x55"), Reason.MALFORMED_IP),
    ("version 15", patched(UDP_PACKET, 0, b"\xf5"), Reason.MALFORMED_IP),
    ("header of 0 bytes", patched(UDP_PACKET, 0, b"\x40"), Reason.MALFORMED_IP),
    ("header of 16 bytes", patched(UDP_PACKET, 0, b"\x44"), Reason.MALFORMED_IP),
    ("header longer than the packet", patched(UDP_PACKET, 0, b"\x4f"), Reason.MALFORMED_IP),
    ("total length 0", patched(UDP_PACKET, 2, b"\0\0"), Reason.MALFORMED_IP),
    ("total length 19", patched(UDP_PACKET, 2, b"\0\x13"), Reason.MALFORMED_IP),
    (
        "total length one too many",
        patched(UDP_PACKET, 2, (len(UDP_PACKET) + 1).to_bytes(2, "big")),
        Reason.MALFORMED_IP,
    ),
    ("total length 65535", patched(UDP_PACKET, 2, b"\xff\xff"), Reason.MALFORMED_IP),
    ("header checksum", UDP_PACKET[:10] + b"\x12\x34" + UDP_PACKET[12:], Reason.BAD_CHECKSUM),
    ("header only, TCP", patched(TCP_PACKET, 2, b"\0\x14")[:20], Reason.MALFORMED_L4),
    ("header only, UDP", patched(UDP_PACKET, 2, b"\0\x14")[:20], Reason.MALFORMED_L4),
    ("header only, ICMP", patched(ICMP_PACKET, 2, b"\0\x14")[:20], Reason.MALFORMED_L4),
]
L4_LIES = [
    ("TCP of 19 bytes", patched(TCP_PACKET[:39], 2, b"\0\x27"), Reason.MALFORMED_L4),
    ("TCP data offset 0", patched(TCP_PACKET, 32, b"\x00"), Reason.MALFORMED_L4),
    ("TCP data offset 4", patched(TCP_PACKET, 32, b"\x40"), Reason.MALFORMED_L4),
    ("TCP data offset beyond the packet", patched(TCP_PACKET, 32, b"\xf0"), Reason.MALFORMED_L4),
    ("UDP of 7 bytes", patched(UDP_PACKET[:27], 2, b"\0\x1b"), Reason.MALFORMED_L4),
    ("UDP length 0", patched(UDP_PACKET, 24, b"\0\0"), Reason.MALFORMED_L4),
    ("UDP length 7", patched(UDP_PACKET, 24, b"\0\7"), Reason.MALFORMED_L4),
    ("UDP length one too many", patched(UDP_PACKET, 24, b"\0\x13"), Reason.MALFORMED_L4),
    ("UDP length 65535", patched(UDP_PACKET, 24, b"\xff\xff"), Reason.MALFORMED_L4),
    ("ICMP of 7 bytes", patched(ICMP_PACKET[:27], 2, b"\0\x1b"), Reason.MALFORMED_L4),
]


@pytest.mark.parametrize(
    ("lie", "packet", "reason"), IP_LIES + L4_LIES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_lengths_that_lie(lab: Lab, lie: str, packet: bytes, reason: Reason) -> None:
    """RFC 1812 section 5.2.2 for the IPv4 header; the transport's own lengths against what is there."""
    for link in both(lab):
        lab.dropped(packet, reason, link, spare=0)
        assert lab.engine.counters(link).drops == {str(reason): 1}, lie


@pytest.mark.parametrize("length", range(10))
def test_less_than_a_virtio_header(lab: Lab, length: int) -> None:
    for link in both(lab):
        (result,) = lab.engine.translate([(link, bytes(length))], now=lab.now, vnet=True, spare=0)
        assert (result.verdict, result.reason) == (Verdict.DROP, Reason.MALFORMED_IP)


@pytest.mark.parametrize("name", PACKETS)
def test_every_truncation(lab: Lab, name: str) -> None:
    """The packet cut anywhere, once with its total length as it was, once with the length of what is left."""
    whole = PACKETS[name]
    for length in range(len(whole)):
        for link in both(lab):
            lab.dropped(whole[:length], Reason.MALFORMED_IP, link, spare=0)
        if length >= 20:
            honest = patched(whole[:length], 2, length.to_bytes(2, "big"))
            result = lab.send(lab.tunnels[0], honest, spare=0)
            # ICMP errors have a checksum over all that is cut; a shorter UDP contradicts its own length.
            if name in ("udp", "error"):
                assert result.reason in (Reason.MALFORMED_L4, Reason.BAD_CHECKSUM)
            elif length < 20 + {"tcp": 24, "icmp": 8}[name]:
                assert result.reason == Reason.MALFORMED_L4
            else:
                assert result.verdict == Verdict.FORWARD


def test_bytes_after_the_total_length_are_cut_off(lab: Lab) -> None:
    """Padding of a link below is no part of the packet."""
    there = lab.out(UDP_PACKET + b"padding!")
    assert len(bytes(there)) == len(UDP_PACKET)


def test_a_packet_that_fills_the_buffer_may_be_cut(lab: Lab) -> None:
    packet = datagram(payload=bytes(1000))
    raw = bytes(packet).ljust(BUFFER - 10, b"\0")
    lab.dropped(raw, Reason.TRUNCATED, spare=0)
    lab.out(raw[:-1])


@pytest.mark.parametrize(
    ("lie", "packet", "header"),
    [
        ("start 0", UDP_PACKET, vnet(NEEDS_CSUM, start=0, offset=6)),
        ("start in the IPv4 header", UDP_PACKET, vnet(NEEDS_CSUM, start=10, offset=6)),
        ("start beyond the packet", UDP_PACKET, vnet(NEEDS_CSUM, start=65535, offset=6)),
        ("start one too far", UDP_PACKET, vnet(NEEDS_CSUM, start=21, offset=6)),
        ("offset of TCP for UDP", UDP_PACKET, vnet(NEEDS_CSUM, start=20, offset=16)),
        ("offset of UDP for TCP", TCP_PACKET, vnet(NEEDS_CSUM, start=20, offset=6)),
        ("offset beyond the packet", TCP_PACKET, vnet(NEEDS_CSUM, start=20, offset=65535)),
        ("ICMP has no partial checksum", ICMP_PACKET, vnet(NEEDS_CSUM, start=20, offset=2)),
        ("GSO without checksum", TCP_PACKET, vnet(0, GSO_TCPV4, 44, 1000, 20, 16)),
        ("GSO of TCP for UDP", UDP_PACKET, vnet(NEEDS_CSUM, GSO_TCPV4, 28, 1000, 20, 6)),
        ("GSO of UDP for TCP", TCP_PACKET, vnet(NEEDS_CSUM, GSO_UDP_L4, 44, 1000, 20, 16)),
        ("GSO of UDP fragments (UFO)", UDP_PACKET, vnet(NEEDS_CSUM, GSO_UDP, 28, 1000, 20, 6)),
        ("GSO of TCP over IPv6", TCP_PACKET, vnet(NEEDS_CSUM, GSO_TCPV6, 44, 1000, 20, 16)),
        ("GSO unknown", TCP_PACKET, vnet(NEEDS_CSUM, 7, 44, 1000, 20, 16)),
        ("GSO none with ECN", TCP_PACKET, vnet(NEEDS_CSUM, GSO_ECN, 44, 1000, 20, 16)),
        ("GSO of UDP with ECN", UDP_PACKET, vnet(NEEDS_CSUM, GSO_UDP_L4 | GSO_ECN, 28, 1000, 20, 6)),
        ("GSO of ICMP", ICMP_PACKET, vnet(NEEDS_CSUM, GSO_UDP_L4, 28, 1000, 20, 2)),
        ("GSO size 0", TCP_PACKET, vnet(NEEDS_CSUM, GSO_TCPV4, 44, 0, 20, 16)),
        ("TCP segments of 7 bytes", TCP_PACKET, vnet(NEEDS_CSUM, GSO_TCPV4, 44, 7, 20, 16)),
        ("129 UDP segments", bytes(datagram(payload=bytes(129))), vnet(NEEDS_CSUM, GSO_UDP_L4, 28, 1, 20, 6)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_virtio_header_that_lies(lab: Lab, lie: str, packet: bytes, header: bytes) -> None:
    """linux/virtio_net.h: a wrong offset would make the kernel write a checksum over other bytes."""
    lab.dropped(packet, Reason.BAD_VNET_HEADER, vnet=header, spare=0)
    assert lab.engine.flows() == [], lie


def test_as_many_segments_as_linux_makes(lab: Lab) -> None:
    """UDP_MAX_SEGMENTS, linux/udp.h."""
    lab.out(bytes(datagram(payload=bytes(128))), vnet=vnet(NEEDS_CSUM, GSO_UDP_L4, 28, 1, 20, 6), spare=0)
    assert lab.engine.counters(lab.eni).packets_out == 128


@pytest.mark.parametrize("size", [8, 9, 10, 11, 65535])
def test_gso_size_is_a_number_of_segments(lab: Lab, size: int) -> None:
    """Ten bytes of payload: two segments down to one; counters do not overflow. 8: TCP_MIN_GSO_SIZE, net/tcp.h."""
    lab.out(TCP_PACKET, vnet=vnet(NEEDS_CSUM, GSO_TCPV4, 44, size, 20, 16), spare=0)
    assert lab.engine.counters(lab.eni).packets_out == max(1, -(-10 // size))


def test_gso_header_length_that_lies_is_put_right(lab: Lab) -> None:
    """hdr_len is a hint (virtio 1.2 section 5.1.6.2): what leaves says what is true."""
    result = lab.send(lab.tunnels[0], TCP_PACKET, vnet=vnet(NEEDS_CSUM, GSO_TCPV4, 9999, 9, 20, 16), spare=0)
    assert result.vnet == vnet(NEEDS_CSUM, GSO_TCPV4, 44, 9, 20, 16)


def test_offsets_with_ip_options(lab: Lab) -> None:
    """csum_start counts the options; 20 is a lie then."""
    packet = IP(src=INSIDE, dst=SERVER, options=b"\1\1\1\1") / UDP(sport=1, dport=2)
    lab.dropped(packet, Reason.BAD_VNET_HEADER, vnet=vnet(NEEDS_CSUM, start=20, offset=6), spare=0)
    lab.out(packet, vnet=vnet(NEEDS_CSUM, start=24, offset=6), spare=0)


@pytest.mark.parametrize(
    "option", [b"\x83\7\4\xc6\x13\0\x63\0", b"\1\1\x44\4\5\0\x89\3\4\0\0\0"], ids=["loose", "strict"]
)
def test_source_route_is_dropped(lab: Lab, option: bytes) -> None:
    """RFC 7126 sections 4.3 and 4.4: the destination that the rules were asked about would not be the last one."""
    packet = IP(src=INSIDE, dst=SERVER, options=option) / UDP(sport=1, dport=2)
    lab.dropped(packet, Reason.SOURCE_ROUTE, spare=0)
    assert lab.engine.flows() == []


@pytest.mark.parametrize("option", [b"\x44\0\0\0", b"\x44\xff\0\0", b"\1\1\1\x44", b"\0\x83\3\4"])
def test_other_options_pass_even_broken(lab: Lab, option: bytes) -> None:
    lab.out(IP(src=INSIDE, dst=SERVER, options=option) / UDP(sport=1, dport=2), spare=0)


QUOTE_LIES: list[tuple[str, Callable[[bytes], bytes]]] = [
    ("version 6", lambda quote: b"\x65" + quote[1:]),
    ("header of 16 bytes", lambda quote: b"\x44" + quote[1:]),
    ("header longer than the quote", lambda quote: b"\x4f" + quote[1:28]),
    ("header up to the end", lambda quote: b"\x47" + quote[1:28]),
    ("27 bytes", lambda quote: quote[:27]),
    ("nothing", lambda quote: b""),
]


@pytest.mark.parametrize(("lie", "change"), QUOTE_LIES, ids=[name for name, _ in QUOTE_LIES])
def test_quotation_that_lies(lab: Lab, lie: str, change: Callable[[bytes], bytes]) -> None:
    """An ICMP error whose embedded header does not fit what is there."""
    sent = bytes(lab.out(datagram()))
    error = IP(src="192.0.2.1", dst=ENI) / ICMP(type=3, code=3) / change(sent)
    lab.dropped(error, Reason.MALFORMED_L4, lab.eni, spare=0)
    assert lab.engine.counters(lab.eni).drops == {"malformed_l4": 1}, lie


def test_embedded_total_length_is_not_believed(lab: Lab) -> None:
    """The quotation is shorter than the packet that it quotes, and may claim any length."""
    quoted = patched(bytes(lab.out(datagram())), 2, b"\xff\xff")
    error = IP(src="192.0.2.1", dst=ENI) / ICMP(type=3, code=3) / quoted
    assert bytes(lab.back(error, spare=0))[30:32] == b"\xff\xff"


def test_a_drop_leaves_no_bytes_behind(lab: Lab) -> None:
    result = lab.send(lab.tunnels[0], UDP_PACKET[:-1], vnet=VNET)
    assert (result.packet, result.vnet, result.link) == (b"", b"", lab.tunnels[0])
