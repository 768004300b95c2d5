"""Who may open a flow: own source address, a destination that exists, a rule; and how the others are told."""

from __future__ import annotations

from collections import Counter

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet

from hyperplane.dataplane import Reason, SecurityGroup, Verdict

from .lab import ENI, ENI2, INSIDE, SERVER, SERVER2, Lab, Tcp, datagram, echo, ping, source_port, syn, udp


def tcp(dport: int = 80, flags: str = "S", dst: str = SERVER, **fields: int) -> Packet:
    return IP(src=INSIDE, dst=dst) / TCP(sport=40_000, dport=dport, flags=flags, **fields)


@pytest.mark.parametrize("source", ["198.18.0.3", SERVER, ENI, "0.0.0.0", "127.0.0.1", "255.255.255.255"])
def test_spoofed_source_is_dropped(lab: Lab, source: str) -> None:
    """RFC 2827: only the environment's own address comes through its tunnel; a forger learns nothing."""
    for layer in (UDP(sport=1, dport=2), TCP(flags="S"), TCP(flags="A"), ICMP(id=1)):
        lab.dropped(IP(src=source, dst=SERVER) / layer, Reason.SPOOFED_SOURCE)
    lab.dropped(IP(src=source, dst=SERVER) / ICMP(type=3, code=3) / datagram(dst=INSIDE), Reason.SPOOFED_SOURCE)


@pytest.mark.parametrize(
    "destination", ["224.0.1.1", "239.1.2.3", "255.255.255.255", "240.0.0.1", "127.0.0.1", "0.0.0.0"]
)
def test_destination_that_cannot_be_reached_through_the_eni(destination: str) -> None:
    """RFC 1812 section 5.3.7: multicast, broadcast, reserved, loopback, this network. Nothing is told about these: an
    RST would have to come from there (section 4.3.2.7)."""
    with Lab(addresses=(ENI, ENI2)) as lab:
        for layer in (UDP(sport=1, dport=2), TCP(flags="S"), ICMP(id=1)):
            lab.dropped(IP(src=INSIDE, dst=destination) / layer, Reason.INVALID_DESTINATION)


@pytest.mark.parametrize("destination", [ENI, ENI2])
def test_the_eni_itself_is_no_destination(destination: str) -> None:
    """There is no way in; who tries learns it at once, as with any other refusal."""
    with Lab(addresses=(ENI, ENI2)) as lab:
        for layer in (UDP(sport=1, dport=2), ICMP(id=1)):
            answer = lab.refused(IP(src=INSIDE, dst=destination) / layer, Reason.INVALID_DESTINATION)
            assert (answer.src, answer[ICMP].type, answer[ICMP].code) == (ENI, 3, 13)
        answer = lab.refused(IP(src=INSIDE, dst=destination) / TCP(flags="S"), Reason.INVALID_DESTINATION)
        assert (answer.src, str(answer[TCP].flags)) == (destination, "RA")
        assert lab.engine.flows() == []


RULES = [
    # rules, packet, allowed
    (["tcp/80"], tcp(80), True),
    (["tcp/80"], tcp(81), False),
    (["tcp/80"], datagram(dport=80), False),
    (["tcp/80"], ping(), False),
    (["tcp"], tcp(65535), True),
    (["tcp"], tcp(1), True),
    (["tcp/8000-8100"], tcp(7999), False),
    (["tcp/8000-8100"], tcp(8000), True),
    (["tcp/8000-8100"], tcp(8100), True),
    (["tcp/8000-8100"], tcp(8101), False),
    (["tcp/80 198.19.0.0/24"], tcp(80), True),
    (["tcp/80 198.19.0.0/24"], tcp(80, dst=SERVER2), False),
    (["tcp/80 198.19.0.80/32"], tcp(80), True),
    (["tcp/80 198.19.0.80"], tcp(80), True),
    (["tcp/80 198.19.0.81/32"], tcp(80), False),
    (["tcp/80 198.19.0.64/27"], tcp(80), True),
    (["tcp/80 198.19.0.96/27"], tcp(80), False),
    (["udp/53"], datagram(dport=53), True),
    (["udp/53"], datagram(dport=54), False),
    (["udp/53"], tcp(53), False),
    (["udp 198.19.0.0/16"], datagram(), True),
    (["icmp"], ping(), True),
    (["icmp/8"], ping(), True),
    (["icmp/13"], ping(), False),
    (["icmp 198.19.1.0/24"], ping(), False),
    (["icmp"], tcp(80), False),
    (["all"], tcp(80), True),
    (["all"], datagram(), True),
    (["all"], ping(), True),
    (["all 0.0.0.0/0"], ping(), True),
    (["all 198.19.0.0/24"], tcp(80), True),
    (["all 198.19.0.0/24"], tcp(80, dst=SERVER2), False),
    (["tcp/22", "udp/53", "tcp/80"], tcp(80), True),
    ([], tcp(80), False),
    ([], datagram(), False),
    ([], ping(), False),
]


@pytest.mark.parametrize(("rules", "packet", "allowed"), RULES, ids=range(len(RULES)))
def test_security_group_rules(rules: list[str], packet: Packet, allowed: bool) -> None:
    """Egress rules as of an EC2 security group: any match admits, nothing else does; a refusal is told at once."""
    with Lab(groups=[SecurityGroup.parse("group", rules)]) as lab:
        if allowed:
            lab.out(packet)
        else:
            lab.refused(packet, Reason.SECURITY_GROUP)
            assert lab.engine.flows() == []


def test_rules_of_several_groups_add_up() -> None:
    groups = [SecurityGroup.parse("a", ["tcp/80"]), SecurityGroup.parse("b", ["udp/53"]), SecurityGroup("empty")]
    with Lab(groups=groups) as lab:
        lab.out(tcp(80))
        lab.out(datagram(dport=53))
        lab.refused(tcp(53), Reason.SECURITY_GROUP)


def test_the_last_of_the_most_rules_counts() -> None:
    """1,024 rules of one ENI."""
    groups = [SecurityGroup.parse(f"g{n}", [f"tcp/{n * 512 + 1000 + i}" for i in range(512)]) for n in range(2)]
    with Lab(groups=groups) as lab:
        lab.out(tcp(1000))
        lab.out(tcp(2023))
        lab.refused(tcp(2024), Reason.SECURITY_GROUP)


def test_new_rules_hold_for_new_flows_and_cut_none() -> None:
    """EC2's connection tracking: a rule that goes away does not cut what it admitted."""
    with Lab(groups=[SecurityGroup.parse("a", ["tcp", "udp"])]) as lab:
        connection = Tcp(lab, dport=80).establish()
        lab.out(datagram(sport=7000))
        lab.engine.set_security_groups(lab.eni, [SecurityGroup.parse("b", ["tcp/443"])])
        assert connection.inside("A", b"still").verdict == Verdict.FORWARD
        assert connection.outside("A", b"here").verdict == Verdict.FORWARD
        lab.out(datagram(sport=7000))
        lab.refused(datagram(sport=7001), Reason.SECURITY_GROUP)
        lab.refused(IP(src=INSIDE, dst=SERVER) / TCP(sport=1, dport=80, flags="S"), Reason.SECURITY_GROUP)
        lab.out(IP(src=INSIDE, dst=SERVER) / TCP(sport=1, dport=443, flags="S"))


def test_rules_are_those_of_the_tunnels_own_eni() -> None:
    with Lab(groups=[SecurityGroup.parse("a", ["tcp/80"])]) as lab:
        other = lab.engine.add_eni(ENI, name="eni1", security_groups=[SecurityGroup.parse("b", ["tcp/443"])])
        tunnel = lab.engine.add_tunnel(other, name="other", address=INSIDE)
        lab.out(tcp(80))
        lab.refused(tcp(443), Reason.SECURITY_GROUP)
        assert lab.send(tunnel, tcp(443)).link is other
        lab.refused(tcp(80), Reason.SECURITY_GROUP, tunnel)


# Refusals


@pytest.mark.parametrize(
    ("flags", "payload", "expected"),
    [
        ("S", b"", ("RA", 0, 1001)),
        ("S", b"fast open", ("RA", 0, 1010)),
        ("F", b"", ("RA", 0, 1001)),
        ("", b"data", ("RA", 0, 1004)),
        ("A", b"", ("R", 5000, 0)),
        ("PA", b"data", ("R", 5000, 0)),
        ("FA", b"", ("R", 5000, 0)),
        ("SA", b"", ("R", 5000, 0)),
    ],
)
def test_refusal_of_tcp_is_a_reset(lab: Lab, flags: str, payload: bytes, expected: tuple[str, int, int]) -> None:
    """RFC 9293 section 3.10.7.1: sequence number 0 and ack past the segment, or the segment's own ack as sequence."""
    lab.engine.set_security_groups(lab.eni, [])
    reason = Reason.SECURITY_GROUP if flags == "S" else Reason.TCP_OUT_OF_STATE
    sent = tcp(5432, flags, seq=1000, ack=5000 if "A" in flags else 0) / payload
    answer = lab.refused(sent, reason)
    assert (answer.src, answer.dst, answer[TCP].sport, answer[TCP].dport) == (SERVER, INSIDE, 5432, 40_000)
    assert (str(answer[TCP].flags), answer[TCP].seq, answer[TCP].ack) == expected
    assert len(answer) == 40
    assert answer.ttl > 1


@pytest.mark.parametrize("flags", ["R", "RA", "RS"])
def test_a_reset_is_never_answered(lab: Lab, flags: str) -> None:
    """RFC 9293 section 3.10.7.1: an incoming segment containing a RST is discarded."""
    lab.dropped(tcp(80, flags, seq=1), Reason.TCP_OUT_OF_STATE)


def test_refusal_sequence_wraps(lab: Lab) -> None:
    lab.engine.set_security_groups(lab.eni, [])
    assert lab.refused(tcp(80, seq=0xFFFFFFFF), Reason.SECURITY_GROUP)[TCP].ack == 0


@pytest.mark.parametrize("packet", [datagram(payload=bytes(700)), ping()], ids=["udp", "icmp"])
def test_refusal_of_udp_and_echo_is_icmp_administratively_prohibited(lab: Lab, packet: Packet) -> None:
    """RFC 1812 section 5.2.7.1: type 3 code 13, from the ENI address, quoting the packet."""
    lab.engine.set_security_groups(lab.eni, [])
    answer = lab.refused(packet, Reason.SECURITY_GROUP)
    assert (answer.src, answer.dst, answer[ICMP].type, answer[ICMP].code) == (ENI, INSIDE, 3, 13)
    assert bytes(answer)[28:] == bytes(packet)[:548]


def test_tcp_from_inside_without_syn_and_flow_is_reset(lab: Lab) -> None:
    """The side that goes on after an idle drop learns it (RFC 5382 section 4): reason tcp_out_of_state."""
    answer = lab.refused(tcp(80, "PA", seq=7, ack=99) / b"go on", Reason.TCP_OUT_OF_STATE)
    assert (str(answer[TCP].flags), answer[TCP].seq) == ("R", 99)
    assert lab.engine.flows() == []


def test_silent_eni_refuses_without_a_word() -> None:
    """silent: policy refusals are not told; what a router owes (TTL, MTU) still is."""
    with Lab(groups=[SecurityGroup.parse("a", ["udp/7"])], silent=True, mtu=1400) as lab:
        lab.dropped(tcp(80), Reason.SECURITY_GROUP)
        lab.dropped(tcp(80, "A"), Reason.TCP_OUT_OF_STATE)
        lab.dropped(ping(), Reason.SECURITY_GROUP)
        lab.dropped(datagram(dport=8), Reason.SECURITY_GROUP)
        lab.refused(datagram(ttl=1), Reason.TTL_EXCEEDED)
        lab.refused(datagram(payload=bytes(1400), flags="DF"), Reason.FRAGMENTATION_NEEDED)
        assert lab.engine.counters(lab.tunnels[0]).refusals_sent == 2


def test_refusals_are_limited_per_tunnel_and_second() -> None:
    """RFC 1812 section 4.3.2.8: a rate limit; one noisy environment does not use up another's."""
    with Lab(tunnels=2, groups=(), refusal_rate=10) as lab:
        first = Counter(result.verdict for result in lab.send_all(lab.tunnels[0], [syn(n, 80) for n in range(100)]))
        assert first == {Verdict.REPLY: 10, Verdict.DROP: 90}
        pings = Counter(result.verdict for result in lab.send_all(lab.tunnels[0], [echo(n) for n in range(5)]))
        assert pings == {Verdict.DROP: 5}
        lab.refused(syn(1, 80), Reason.SECURITY_GROUP, lab.tunnels[1])
        lab.later(0.5)
        half = Counter(result.verdict for result in lab.send_all(lab.tunnels[0], [udp(n, 80) for n in range(100)]))
        assert half == {Verdict.REPLY: 5, Verdict.DROP: 95}
        lab.later(3600)
        later = Counter(result.verdict for result in lab.send_all(lab.tunnels[0], [udp(n, 80) for n in range(100)]))
        assert later == {Verdict.REPLY: 10, Verdict.DROP: 90}
        assert lab.engine.counters(lab.tunnels[0]).refusals_sent == 25
        assert lab.engine.counters(lab.tunnels[0]).drops == {"security_group": 305}


# No way in


@pytest.mark.parametrize(
    "layer",
    [
        TCP(sport=80, dport=3000, flags="S"),
        TCP(sport=80, dport=3000, flags="SA"),
        TCP(sport=80, dport=3000, flags="A"),
        TCP(sport=80, dport=3000, flags="R"),
        UDP(sport=7, dport=3000),
        ICMP(type=8, id=3000),
        ICMP(type=0, id=3000),
    ],
)
def test_nothing_connects_in(lab: Lab, layer: Packet) -> None:
    """RFC 5382 REQ-4: an unsolicited SYN is not answered for 6 s at least (here: never); the like for all else."""
    lab.dropped(IP(src=SERVER, dst=ENI) / layer, Reason.NO_FLOW, lab.eni)
    assert lab.engine.counters(lab.eni).drops == {"no_flow": 1}
    assert lab.engine.counters(lab.eni).refusals_sent == 0


def test_a_live_mapping_lets_nobody_else_in(lab: Lab) -> None:
    """Address-and-port-dependent filtering (RFC 4787 section 5): only the endpoint that was written to may answer."""
    port = lab.out(datagram())[UDP].sport
    lab.back(IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=port))
    lab.dropped(IP(src=SERVER, dst=ENI) / UDP(sport=8, dport=port), Reason.NO_FLOW, lab.eni)
    lab.dropped(IP(src=SERVER2, dst=ENI) / UDP(sport=7, dport=port), Reason.NO_FLOW, lab.eni)
    lab.dropped(IP(src=SERVER, dst=ENI) / TCP(sport=7, dport=port, flags="S"), Reason.NO_FLOW, lab.eni)
    connection = Tcp(lab).establish()
    for source, sport in ((SERVER2, 5432), (SERVER, 5433)):
        stranger = IP(src=source, dst=ENI) / TCP(sport=sport, dport=connection.outside_port, flags="A")
        lab.dropped(stranger, Reason.NO_FLOW, lab.eni)


def test_another_eni_is_no_way_in_either(lab: Lab) -> None:
    """The key of a flow holds its ENI: the same packet on another ENI, even of the same address, finds nothing."""
    port = lab.out(datagram())[UDP].sport
    other = lab.engine.add_eni(ENI, name="eni1")
    answer = IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=port)
    lab.dropped(answer, Reason.NO_FLOW, other)
    lab.back(answer)


def test_environments_do_not_reach_each_other_through_the_eni() -> None:
    """A packet to the ENI's address and another's outside port goes nowhere."""
    with Lab(tunnels=2) as lab:
        port = lab.out(datagram(), 0)[UDP].sport
        lab.refused(IP(src=INSIDE, dst=ENI) / UDP(sport=7, dport=port), Reason.INVALID_DESTINATION, lab.tunnels[1])


def test_an_echo_reply_that_nobody_asked_for_goes_nowhere(lab: Lab) -> None:
    lab.dropped(IP(src=INSIDE, dst=SERVER) / ICMP(type=0, id=4), Reason.NO_FLOW)
    assert source_port(lab.send(lab.tunnels[0], udp(5, 6)).packet) >= 1024
