"""A tunnel that is drained: what is refused, what goes on, how its flows end. The bytes of RSTs: C unit test_reset."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP

from hyperplane.dataplane import Reason, Verdict
from hyperplane.errors import InvalidValue

from .lab import ENI, SERVER, Lab, Tcp, assert_checksums, datagram, echo, ping, syn, udp

GRACE = 0.1  # seconds that a flow stays when its sides have got their RST


def test_no_new_flow_is_taken_and_the_sender_is_told(lab: Lab) -> None:
    """As a security group refuses: TCP by RST, others by ICMP administratively prohibited (RFC 1812 5.2.7.1)."""
    lab.engine.drain(lab.tunnels[0], reset=False)
    assert str(lab.refused(syn(9, 80), Reason.LINK_DETACHED)[TCP].flags) == "RA"
    for packet in (udp(9, 7), datagram(dport=53), ping()):
        refusal = lab.refused(packet, Reason.LINK_DETACHED)
        assert (refusal[ICMP].type, refusal[ICMP].code, refusal.src) == (3, 13, ENI)
    counters = lab.engine.counters(lab.tunnels[0])
    assert (counters.flows_created, counters.flows, counters.drops) == (0, 0, {"link_detached": 4})
    assert counters.refusals_sent == 4


def test_what_is_refused_without_it_keeps_its_reason(lab: Lab) -> None:
    lab.engine.drain(lab.tunnels[0], reset=False)
    lab.dropped(udp(1, 2, source=SERVER), Reason.SPOOFED_SOURCE)
    lab.refused(udp(1, 2, destination=ENI), Reason.INVALID_DESTINATION)
    assert Tcp(lab).inside("A").reason == Reason.TCP_OUT_OF_STATE


def test_a_silent_eni_tells_nobody() -> None:
    with Lab(silent=True) as lab:
        lab.engine.drain(lab.tunnels[0], reset=False)
        lab.dropped(syn(9, 80), Reason.LINK_DETACHED)
        lab.engine.drain(lab.tunnels[0], reset=True)
        lab.dropped(syn(9, 80), Reason.LINK_DETACHED)


def test_flows_that_exist_go_on_in_both_directions(lab: Lab) -> None:
    tcp = Tcp(lab).establish()
    port = lab.out(datagram())[UDP].sport
    opening = Tcp(lab, sport=40_001)
    opening.inside("S")
    lab.engine.drain(lab.tunnels[0], reset=False)
    for _ in range(3):
        assert tcp.inside("PA", b"question").verdict == Verdict.FORWARD
        assert tcp.outside("PA", b"answer").verdict == Verdict.FORWARD
        lab.out(datagram())
        lab.back(IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=port) / b"x")
        lab.later(70)
        assert lab.sweep() == 0
    assert opening.outside("SA").verdict == Verdict.FORWARD
    assert opening.inside("A").verdict == Verdict.FORWARD
    assert lab.engine.counters(lab.tunnels[0]).flows == 3


def test_a_mapping_gets_no_further_destination(lab: Lab) -> None:
    """Endpoint-independent mapping or not: another destination is another flow."""
    lab.out(datagram())
    lab.engine.drain(lab.tunnels[0], reset=False)
    lab.refused(datagram(dst="198.19.1.81"), Reason.LINK_DETACHED)


def test_a_connection_that_is_over_is_not_opened_again(lab: Lab) -> None:
    """RFC 6191 would allow it: but it is a new flow."""
    tcp = Tcp(lab).establish()
    tcp.inside("FA")
    tcp.outside("FA")
    lab.engine.drain(lab.tunnels[0], reset=False)
    assert tcp.inside("A").verdict == Verdict.FORWARD
    refused = tcp.inside("S")
    assert (refused.verdict, refused.reason) == (Verdict.REPLY, Reason.LINK_DETACHED)
    assert tcp.flow.state == "closing"


def test_other_tunnels_notice_nothing() -> None:
    with Lab(tunnels=3) as lab:
        for number in range(3):
            assert Tcp(lab, tunnel=number).establish()
        lab.engine.drain(lab.tunnels[0], reset=False)
        lab.engine.drain(lab.tunnels[1], reset=True)
        for _ in range(2):
            lab.sweep()
            lab.later(GRACE)
        lab.out(datagram(), tunnel=2)
        assert [lab.engine.counters(one).flows for one in lab.tunnels] == [1, 0, 2]
        assert (lab.engine.counters(lab.eni).flows, lab.engine.counters().flows) == (3, 3)
        assert lab.flow(0).state == "established"


def test_reset_ends_every_flow() -> None:
    """UDP, ICMP and what is over at once; TCP after its RSTs and the time to ask again (RFC 5961 section 3.2)."""
    with Lab() as lab:
        Tcp(lab).establish()
        Tcp(lab, sport=40_001).inside("S")
        over = Tcp(lab, sport=40_002).establish()
        over.inside("R")
        lab.out(datagram())
        lab.out(ping())
        tunnel = lab.tunnels[0]
        sent = lab.engine.counters(tunnel).packets_out, lab.engine.counters(lab.eni).packets_out
        lab.engine.drain(tunnel, reset=True)
        assert lab.engine.counters(tunnel).flows == 5
        assert lab.sweep() == 3
        assert lab.engine.counters(tunnel).flows == 2
        assert lab.engine.counters(tunnel).packets_out == sent[0] + 2  # the RSTs
        assert lab.engine.counters(lab.eni).packets_out == sent[1] + 2
        lab.later(GRACE - 0.001)
        assert lab.sweep() == 0
        lab.later(0.001)
        assert lab.sweep() == 2
        assert (lab.engine.status().flows, lab.engine.status().mappings) == (0, 0)
        counters = lab.engine.counters(tunnel)
        assert (counters.flows, counters.flows_created, counters.flows_ended) == (0, 5, 5)
        assert counters.packets_out == sent[0] + 2


def test_reset_refuses_packets_of_both_sides_from_the_moment_on(lab: Lab) -> None:
    """RFC 9293 section 3.10.7.1: a segment gets the RST that it asks for, with the number that it acknowledges."""
    tcp = Tcp(lab).establish()
    port = lab.out(datagram())[UDP].sport
    lab.engine.drain(lab.tunnels[0], reset=True)
    for answer, acknowledged in ((tcp.inside("A", b"x"), tcp.theirs), (tcp.outside("A", b"x"), tcp.mine)):
        assert (answer.verdict, answer.reason) == (Verdict.REPLY, Reason.LINK_DETACHED)
        assert_checksums(answer.packet)
        rst = IP(answer.packet)[TCP]
        assert (str(rst.flags), rst.seq) == ("R", acknowledged)
    assert tcp.inside("R").verdict == Verdict.DROP
    assert tcp.outside("R").verdict == Verdict.DROP
    lab.refused(datagram(), Reason.LINK_DETACHED)
    lab.refused(echo(5), Reason.LINK_DETACHED)
    lab.dropped(IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=port) / b"x", Reason.LINK_DETACHED, lab.eni)
    lab.dropped(udp(1, 2, source=SERVER), Reason.LINK_DETACHED)
    lab.dropped(b"\x45" * 30, Reason.MALFORMED_IP)


def test_reset_of_an_idle_tunnel_needs_no_sweep(lab: Lab) -> None:
    lab.engine.drain(lab.tunnels[0], reset=True)
    assert lab.engine.counters(lab.tunnels[0]).flows == 0
    lab.refused(syn(9, 80), Reason.LINK_DETACHED)
    lab.engine.remove(lab.tunnels[0])
    assert lab.sweep() == 0


def test_ports_of_reset_flows_can_be_used_again() -> None:
    with Lab(tunnels=2) as lab:
        lab.send_all(lab.tunnels[0], (syn(port, 80) for port in range(1, 3001)))
        lab.engine.drain(lab.tunnels[0], reset=True)
        lab.sweep()
        lab.later(GRACE)
        assert lab.sweep() == 3000
        results = lab.send_all(lab.tunnels[1], (syn(port, 80) for port in range(1, 4001)))
        assert {one.verdict for one in results} == {Verdict.FORWARD}


def test_first_closed_then_reset_and_no_way_back(lab: Lab) -> None:
    tcp = Tcp(lab).establish()
    tunnel = lab.tunnels[0]
    lab.engine.drain(tunnel, reset=False)
    lab.engine.drain(tunnel, reset=False)
    assert tcp.inside("A").verdict == Verdict.FORWARD
    lab.engine.drain(tunnel, reset=True)
    lab.engine.drain(tunnel, reset=False)
    assert tcp.inside("A").reason == Reason.LINK_DETACHED


def test_a_tunnel_removed_while_it_is_reset(lab: Lab) -> None:
    """The outside learns it all the same; the number is given out again, to a tunnel that takes flows."""
    Tcp(lab).establish()
    sent = lab.engine.counters(lab.eni).packets_out
    lab.engine.drain(lab.tunnels[0], reset=True)
    lab.engine.remove(lab.tunnels[0])
    assert lab.sweep() == 1
    assert lab.engine.counters(lab.eni).packets_out == sent + 1
    again = lab.add_tunnel("again")
    assert again.number == lab.tunnels[0].number
    lab.tunnels[0] = again
    lab.out(syn(1, 80))


def test_what_cannot_be_drained(lab: Lab) -> None:
    with pytest.raises(InvalidValue, match="kind needed here"):
        lab.engine.drain(lab.eni, reset=True)  # type: ignore[arg-type]
    with pytest.raises(InvalidValue, match="reset is 1"):
        lab.engine.drain(lab.tunnels[0], reset=1)  # type: ignore[arg-type]
    lab.engine.remove(lab.tunnels[0])
    with pytest.raises(InvalidValue, match="not a link of this engine"):
        lab.engine.drain(lab.tunnels[0], reset=False)
