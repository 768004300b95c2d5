"""ICMP errors in both directions, with the packet that they quote (RFC 5508 REQ-3 to REQ-5, RFC 5382 REQ-9)."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet, Raw

from hyperplane.dataplane import Reason, SecurityGroup, Verdict

from .lab import ENI, INSIDE, ROUTER, SERVER, SERVER2, Lab, Tcp, assert_checksums, datagram, ping, rewritten

FRAGMENTATION_NEEDED = {"type": 3, "code": 4, "nexthopmtu": 1280}
PORT_UNREACHABLE = {"type": 3, "code": 3}
TIME_EXCEEDED = {"type": 11, "code": 0}
PARAMETER_PROBLEM = {"type": 12, "code": 0}
ERRORS = [FRAGMENTATION_NEEDED, PORT_UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM]


def packet_of(protocol: str, payload: bytes = b"0123456789abcdef") -> Packet:
    if protocol == "tcp":
        return IP(src=INSIDE, dst=SERVER, flags="DF") / TCP(sport=40_000, dport=80, flags="S", seq=99) / payload
    if protocol == "udp":
        return datagram(payload=payload, flags="DF")
    return ping(payload=payload)


def error_about(quoted: bytes, source: str, destination: str, error: dict[str, int]) -> Packet:
    return IP(src=source, dst=destination) / ICMP(**error) / Raw(quoted)


def one_hop_less(packet: Packet) -> bytes:
    """The packet as it was when it left us: what a quotation says, translated back."""
    return rewritten(packet)


@pytest.mark.parametrize("error", ERRORS, ids=["frag-needed", "port-unreachable", "time-exceeded", "parameter"])
@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
@pytest.mark.parametrize("quoted", [28, 576], ids=["8-bytes", "whole"])
def test_error_from_outside_reaches_the_sender_with_its_own_packet_quoted(
    lab: Lab, protocol: str, error: dict[str, int], quoted: int
) -> None:
    """RFC 5508 REQ-4, RFC 1191: outer destination, embedded source, id or port, and every checksum are translated;
    type, code, next-hop MTU and the router's address are kept."""
    sent = packet_of(protocol)
    there = lab.out(sent)
    arrived = error_about(bytes(there)[:quoted], ROUTER, ENI, error)
    back = lab.back(arrived)
    expected = IP(bytes(arrived))
    expected[ICMP].remove_payload()
    expected = expected / Raw(one_hop_less(sent)[:quoted])
    assert bytes(back) == rewritten(expected, dst=INSIDE)
    if error is FRAGMENTATION_NEEDED:
        assert back[ICMP].nexthopmtu == 1280


@pytest.mark.parametrize("size", range(28, 49))
def test_error_quoting_any_number_of_bytes(lab: Lab, size: int) -> None:
    """RFC 792: 8 bytes of the transport header at least; its checksum is translated if both its bytes are there."""
    sent = packet_of("tcp")
    quoted = bytes(lab.out(sent))[:size]
    back = lab.back(error_about(quoted, ROUTER, ENI, TIME_EXCEEDED), spare=0)
    known = 36 if size == 37 else size
    assert bytes(back)[28:][:known] == one_hop_less(sent)[:known]
    assert len(bytes(back)) == 28 + size
    assert_checksums(bytes(back))


def test_embedded_udp_checksum_zero_stays_zero(lab: Lab) -> None:
    sent = datagram()
    sent[UDP].chksum = 0
    back = lab.back(error_about(bytes(lab.out(sent)), ROUTER, ENI, PORT_UNREACHABLE))
    assert bytes(back)[28:] == one_hop_less(sent)


def test_embedded_udp_checksum_of_all_ones_does_not_become_none(lab: Lab) -> None:
    """RFC 768: what was sent as 0xffff comes back as 0xffff; 0 would mean that there was no checksum."""
    plain = IP(bytes(datagram(payload=b"\0\0")))
    sent = datagram(payload=plain[UDP].chksum.to_bytes(2, "big"))
    assert IP(bytes(sent))[UDP].chksum == 0xFFFF
    back = lab.back(error_about(bytes(lab.out(sent)), ROUTER, ENI, PORT_UNREACHABLE))
    assert bytes(back)[28:] == one_hop_less(sent)


@pytest.mark.parametrize("protocol", ["udp", "icmp", "tcp"])
@pytest.mark.parametrize("error", [PORT_UNREACHABLE, FRAGMENTATION_NEEDED, TIME_EXCEEDED])
def test_error_from_inside_names_the_eni(lab: Lab, protocol: str, error: dict[str, int]) -> None:
    """RFC 5508 REQ-5: an environment refuses a packet: the server sees the ENI as author and in the quotation."""
    there = lab.out(packet_of(protocol))
    answer: Packet = IP(src=SERVER, dst=ENI)
    if protocol == "udp":
        answer = answer / UDP(sport=7, dport=there[UDP].sport) / b"surprise"
    elif protocol == "tcp":
        answer = answer / TCP(sport=80, dport=there[TCP].sport, flags="SA", ack=100)
    else:
        answer = answer / ICMP(type=0, id=there[ICMP].id, seq=1)
    delivered = lab.back(answer)
    arrived = error_about(bytes(delivered), INSIDE, SERVER, error)
    out = lab.out(arrived)
    expected = IP(bytes(arrived))
    expected[ICMP].remove_payload()
    expected = expected / Raw(one_hop_less(answer))
    assert bytes(out) == rewritten(expected, src=ENI)


def test_error_with_a_wrong_icmp_checksum_is_dropped(lab: Lab) -> None:
    """RFC 5508 REQ-3: silently."""
    arrived = error_about(bytes(lab.out(datagram())), ROUTER, ENI, PORT_UNREACHABLE)
    arrived = IP(bytes(arrived))
    arrived[ICMP].chksum ^= 1
    lab.dropped(arrived, Reason.BAD_CHECKSUM, lab.eni)


def test_error_whose_quoted_ip_header_has_a_wrong_checksum_is_dropped(lab: Lab) -> None:
    """RFC 5508 REQ-3 a: silently."""
    quoted = bytearray(bytes(lab.out(datagram())))
    quoted[10] ^= 1
    lab.dropped(error_about(bytes(quoted), ROUTER, ENI, PORT_UNREACHABLE), Reason.BAD_CHECKSUM, lab.eni)


def test_error_with_a_wrong_transport_checksum_inside_is_translated(lab: Lab) -> None:
    """RFC 5508 REQ-3 c: the quoted transport checksum is not validated; it stays exactly as wrong as it was."""
    sent = IP(bytes(packet_of("udp")))
    sent[UDP].chksum ^= 0x0101
    back = lab.back(error_about(bytes(lab.out(sent)), ROUTER, ENI, PORT_UNREACHABLE))
    expected = IP(bytes(sent))
    expected.ttl -= 1
    del expected.chksum
    assert bytes(back)[28:] == bytes(expected)


@pytest.mark.parametrize("protocol", ["tcp", "udp", "icmp"])
def test_error_about_a_packet_that_no_flow_sent_is_dropped(lab: Lab, protocol: str) -> None:
    """RFC 5508 REQ-4: no mapping, no translation; from outside nobody learns why."""
    quoted = IP(bytes(packet_of(protocol)))
    quoted.src = ENI
    del quoted.chksum
    lab.dropped(error_about(bytes(quoted), ROUTER, ENI, PORT_UNREACHABLE), Reason.ICMP_NO_FLOW, lab.eni)
    quoted.src, quoted.dst = SERVER, INSIDE
    del quoted.chksum
    lab.dropped(error_about(bytes(quoted), INSIDE, SERVER, PORT_UNREACHABLE), Reason.ICMP_NO_FLOW)


def test_error_about_another_environments_flow_is_dropped() -> None:
    """An environment cannot speak about packets that another one received."""
    with Lab(tunnels=2) as lab:
        there = lab.out(datagram(), 0)
        delivered = lab.back(IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=there[UDP].sport) / b"x", 0)
        error = error_about(bytes(delivered), INSIDE, SERVER, PORT_UNREACHABLE)
        lab.dropped(error, Reason.ICMP_NO_FLOW, lab.tunnels[1])
        assert lab.out(error, 0).src == ENI


def test_error_from_inside_goes_to_the_author_of_the_quoted_packet_only(lab: Lab) -> None:
    """RFC 792: an error is sent to the source of the packet; to anyone else it would pass the security group by."""
    there = lab.out(datagram())
    delivered = bytes(lab.back(IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=there[UDP].sport) / b"x"))
    result = lab.send(lab.tunnels[0], error_about(delivered, INSIDE, SERVER2, PORT_UNREACHABLE))
    assert result.verdict != Verdict.FORWARD
    assert result.reason in (Reason.ICMP_NO_FLOW, Reason.SECURITY_GROUP)


def test_error_from_inside_about_a_packet_that_it_sent_itself_is_dropped(lab: Lab) -> None:
    """The quotation must be of a packet that the environment received, not of one that it sent."""
    sent = datagram()
    lab.out(sent)
    lab.dropped(error_about(bytes(sent), INSIDE, SERVER, PORT_UNREACHABLE), Reason.ICMP_NO_FLOW)


def test_error_about_an_error_is_never_translated_nor_answered(lab: Lab) -> None:
    """RFC 1122 section 3.2.2."""
    inner = bytes(error_about(bytes(lab.out(datagram())), ENI, SERVER, PORT_UNREACHABLE))
    outer = error_about(inner, ROUTER, ENI, TIME_EXCEEDED)
    result = lab.send(lab.eni, outer)
    assert (result.verdict, result.packet) == (Verdict.DROP, b"")
    assert result.reason in (Reason.ICMP_NO_FLOW, Reason.UNSUPPORTED_PROTOCOL, Reason.UNSUPPORTED_ICMP)


def test_an_error_is_never_answered_with_an_error(lab: Lab) -> None:
    """RFC 1122 section 3.2.2: not even when its own TTL runs out or its flow is unknown."""
    there = lab.out(datagram())
    arrived = error_about(bytes(there), ROUTER, ENI, PORT_UNREACHABLE)
    arrived.ttl = 1
    lab.dropped(arrived, Reason.TTL_EXCEEDED, lab.eni)
    delivered = lab.back(IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=there[UDP].sport) / b"x")
    ours = error_about(bytes(delivered), INSIDE, SERVER, PORT_UNREACHABLE)
    ours.ttl = 1
    lab.dropped(ours, Reason.TTL_EXCEEDED)


def test_error_about_a_later_fragment_is_dropped(lab: Lab) -> None:
    """Its first bytes are payload, not ports."""
    quoted = IP(bytes(lab.out(datagram())))
    quoted.frag = 100
    del quoted.chksum
    result = lab.send(lab.eni, error_about(bytes(quoted), ROUTER, ENI, PORT_UNREACHABLE))
    assert result.verdict == Verdict.DROP
    assert result.reason in (Reason.MALFORMED_L4, Reason.FRAGMENT, Reason.ICMP_NO_FLOW)


@pytest.mark.parametrize("quoted", [0, 1, 19, 20, 27])
def test_error_that_quotes_too_little_is_malformed(lab: Lab, quoted: int) -> None:
    """RFC 792: internet header + 64 bits."""
    there = bytes(lab.out(datagram()))
    lab.dropped(error_about(there[:quoted], ROUTER, ENI, PORT_UNREACHABLE), Reason.MALFORMED_L4, lab.eni, spare=0)


@pytest.mark.parametrize("icmp_type", [4, 5, 9, 10, 14, 16, 18, 40, 43])
def test_other_icmp_is_not_translated(lab: Lab, icmp_type: int) -> None:
    """RFC 5508 REQ-10; redirect and source quench (RFC 6633) mean nothing beyond the NAT. What may be an error, or
    answers, is not answered (RFC 1122 section 3.2.2)."""
    body = Raw(bytes(lab.out(datagram())))
    lab.dropped(IP(src=ROUTER, dst=ENI) / ICMP(type=icmp_type) / body, Reason.UNSUPPORTED_ICMP, lab.eni)
    lab.dropped(IP(src=INSIDE, dst=SERVER) / ICMP(type=icmp_type) / body, Reason.UNSUPPORTED_ICMP)


@pytest.mark.parametrize("error", ERRORS)
def test_error_ends_no_flow(lab: Lab, error: dict[str, int]) -> None:
    """RFC 4787 REQ-12, RFC 5382 REQ-10: an ICMP error ends neither a UDP mapping nor a TCP connection."""
    tcp = Tcp(lab).establish()
    udp = lab.out(datagram(sport=5000))
    segment = tcp.inside("A", b"data")
    before = {flow.id: (flow.state, flow.expires) for flow in lab.engine.flows()}
    lab.later(1)
    lab.back(error_about(segment.packet, ROUTER, ENI, error))
    lab.back(error_about(bytes(udp), ROUTER, ENI, error))
    assert {flow.id: (flow.state, flow.expires) for flow in lab.engine.flows()} == before
    assert tcp.outside("A", b"more").verdict == Verdict.FORWARD
    assert lab.out(datagram(sport=5000))[UDP].sport == udp[UDP].sport


def test_errors_need_no_security_group_rule() -> None:
    """An error about a packet of a flow belongs to the flow."""
    with Lab(groups=[SecurityGroup.parse("udp", ["udp/7"])]) as lab:
        there = lab.out(datagram())
        delivered = lab.back(IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=there[UDP].sport) / b"x")
        assert lab.out(error_about(bytes(delivered), INSIDE, SERVER, PORT_UNREACHABLE)).src == ENI
