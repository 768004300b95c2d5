"""What is not translated, and what its sender inside is told: protocols, ICMP types, fragments, source routes."""

from __future__ import annotations

from collections import Counter

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet, Raw

from hyperplane.dataplane import Reason, Verdict

from .lab import ENI, INSIDE, SERVER, Lab, datagram, echo, ipv4

SCTP, UDP_LITE, GRE, ESP = 132, 136, 47, 50
PROTOCOLS = [0, 2, 4, 41, GRE, ESP, 89, SCTP, UDP_LITE, 255]
LOOSE = b"\x83\7\4\xc6\x13\0\x63\0"


def other(protocol: int = SCTP, payload: bytes = bytes(40), **ip: object) -> Packet:
    return IP(**{"src": INSIDE, "dst": SERVER, **ip}, proto=protocol) / Raw(payload)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_other_protocols_are_told_to_be_unreachable(lab: Lab, protocol: int) -> None:
    """RFC 792, RFC 1122 section 3.2.2.1: type 3 code 2, which Linux hands to the program as ENOPROTOOPT."""
    sent = other(protocol)
    answer = lab.refused(sent, Reason.UNSUPPORTED_PROTOCOL)
    assert (answer.src, answer.dst, answer[ICMP].type, answer[ICMP].code) == (ENI, INSIDE, 3, 2)
    assert bytes(answer)[28:] == bytes(sent)
    assert lab.engine.flows() == []
    assert lab.engine.counters(lab.tunnels[0]).drops == {"unsupported_protocol": 1}
    assert lab.engine.counters(lab.tunnels[0]).refusals_sent == 1


@pytest.mark.parametrize("payload", [0, 1, 4, 7, 8, 1400])
def test_a_packet_shorter_than_what_is_quoted_is_quoted_whole(lab: Lab, payload: int) -> None:
    """A GRE header has 4 bytes, and a scan of protocols (nmap -sO) sends none: RFC 792 quotes what there is."""
    sent = other(GRE, bytes(payload))
    answer = lab.refused(sent, Reason.UNSUPPORTED_PROTOCOL)
    assert bytes(answer)[28:] == bytes(sent)[:548]


@pytest.mark.parametrize(
    ("kind", "packet"),
    [
        ("a later fragment", other(frag=10)),
        ("the last fragment", other(frag=10, flags=0)),
        ("to a group", other(dst="239.1.2.3")),
        ("to everybody", other(dst="255.255.255.255")),
        ("to class E", other(dst="240.1.2.3")),
        ("to loopback", other(dst="127.0.0.1")),
        ("to this network", other(dst="0.0.0.1")),
        ("forged", other(src="198.18.0.3")),
        ("from nobody", other(src="0.0.0.0")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_told_nothing(lab: Lab, kind: str, packet: Packet) -> None:
    """RFC 1122 section 3.2.2, RFC 1812 section 4.3.2.7; and a forger learns nothing."""
    lab.dropped(packet, Reason.FRAGMENT if "fragment" in kind else Reason.UNSUPPORTED_PROTOCOL)
    assert lab.engine.counters().refusals_sent == 0


@pytest.mark.parametrize("protocol", [SCTP, GRE])
def test_the_vpc_is_told_nothing(lab: Lab, protocol: int) -> None:
    lab.dropped(IP(src=SERVER, dst=ENI, proto=protocol) / bytes(40), Reason.UNSUPPORTED_PROTOCOL, lab.eni)
    lab.dropped(IP(src=SERVER, dst=ENI, flags="MF") / UDP() / bytes(40), Reason.FRAGMENT, lab.eni)
    lab.dropped(IP(src=SERVER, dst=ENI) / ICMP(type=13), Reason.UNSUPPORTED_ICMP, lab.eni)
    lab.dropped(IP(src=SERVER, dst=ENI, options=LOOSE) / UDP(), Reason.SOURCE_ROUTE, lab.eni)


def test_a_silent_eni_tells_nobody() -> None:
    with Lab(silent=True) as lab:
        lab.dropped(other(), Reason.UNSUPPORTED_PROTOCOL)
        lab.dropped(IP(src=INSIDE, dst=SERVER) / ICMP(type=13), Reason.UNSUPPORTED_ICMP)
        lab.dropped(datagram(flags="MF"), Reason.FRAGMENT)
        lab.dropped(IP(src=INSIDE, dst=SERVER, options=LOOSE) / UDP(), Reason.SOURCE_ROUTE)
        lab.dropped(IP(src=INSIDE, dst=ENI) / TCP(flags="S"), Reason.INVALID_DESTINATION)


def test_as_many_as_other_refusals() -> None:
    """One bucket for all that a tunnel is told."""
    with Lab(refusal_rate=10) as lab:
        packets = [ipv4(SCTP, bytes(12), INSIDE, SERVER) for _ in range(50)]
        verdicts = Counter(result.verdict for result in lab.send_all(lab.tunnels[0], packets))
        assert verdicts == {Verdict.REPLY: 10, Verdict.DROP: 40}
        assert lab.engine.counters(lab.tunnels[0]).drops == {"unsupported_protocol": 50}


@pytest.mark.parametrize("kind", [13, 15, 17, 42])
def test_queries_that_are_not_translated_are_told(lab: Lab, kind: int) -> None:
    """Timestamp, information, address mask (RFC 792, RFC 950), extended echo (RFC 8335): they ask, so they may be
    answered, and the protocol as such is translated: administratively prohibited."""
    answer = lab.refused(IP(src=INSIDE, dst=SERVER) / ICMP(type=kind) / bytes(12), Reason.UNSUPPORTED_ICMP)
    assert (answer.src, answer[ICMP].type, answer[ICMP].code) == (ENI, 3, 13)


@pytest.mark.parametrize("protocol", [1, 6, 17, SCTP])
def test_the_first_fragment_is_told(lab: Lab, protocol: int) -> None:
    """Whoever sends datagrams that are too large learns it at once (and not after a time-out of its own)."""
    payload = echo(7)[20:] if protocol == 1 else bytes(40)
    answer = lab.refused(other(protocol, payload, flags="MF"), Reason.FRAGMENT)
    assert (answer.src, answer[ICMP].type, answer[ICMP].code) == (ENI, 3, 13)


@pytest.mark.parametrize("kind", [3, 4, 5, 11, 12, 0, 14, 200])
def test_no_part_of_an_icmp_error_is_answered(lab: Lab, kind: int) -> None:
    """RFC 1122 section 3.2.2, though its type is not looked at otherwise."""
    error = ICMP(type=kind) / bytes(40)
    lab.dropped(IP(src=INSIDE, dst=SERVER, flags="MF") / error, Reason.FRAGMENT)
    lab.dropped(IP(src=INSIDE, dst=SERVER, options=LOOSE) / error, Reason.SOURCE_ROUTE)
    lab.dropped(IP(src=INSIDE, dst=SERVER, flags="MF", proto=1), Reason.FRAGMENT, spare=640)


def test_a_source_route_is_told_to_have_failed(lab: Lab) -> None:
    """RFC 1812 section 5.2.7.1: type 3 code 5."""
    for layer in (UDP(sport=1, dport=2), TCP(flags="S"), ICMP(id=1)):
        answer = lab.refused(IP(src=INSIDE, dst=SERVER, options=LOOSE) / layer, Reason.SOURCE_ROUTE)
        assert (answer.src, answer[ICMP].type, answer[ICMP].code) == (ENI, 3, 5)
    lab.dropped(IP(src=INSIDE, dst=SERVER, options=LOOSE, frag=9) / UDP(), Reason.SOURCE_ROUTE)
