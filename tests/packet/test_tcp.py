"""The life of a TCP flow as a NAT sees it (RFC 5382, RFC 7857 section 2, RFC 5961 section 3)."""

from __future__ import annotations

import pytest
from scapy.layers.inet import IP, TCP

from hyperplane.dataplane import FlowState, Reason, SecurityGroup, Timers, Verdict

from .lab import SERVER2, Lab, Tcp

OPENING, ESTABLISHED, CLOSING, RESET = FlowState.OPENING, FlowState.ESTABLISHED, FlowState.CLOSING, FlowState.RESET


def remaining(tcp: Tcp) -> float:
    return (tcp.flow.expires - tcp.lab.now) / 1000


def test_three_way_handshake_and_the_timer_of_each_state(lab: Lab) -> None:
    """RFC 5382 REQ-5: transitory 4 min while opening, 2 h 4 min once established."""
    tcp = Tcp(lab)
    tcp.inside("S")
    assert (tcp.flow.state, remaining(tcp)) == (OPENING, 240)
    tcp.inside("S", seq=1_000_000)  # again
    assert tcp.flow.state == OPENING
    tcp.outside("SA")
    assert (tcp.flow.state, remaining(tcp)) == (OPENING, 240)
    tcp.inside("A")
    assert (tcp.flow.state, remaining(tcp)) == (ESTABLISHED, 7440)


def test_a_syn_and_its_answer_alone_are_no_connection(lab: Lab) -> None:
    """RFC 5382 REQ-5: a scanner with raw sockets acknowledges nothing: partially open, 4 min, not 2 h 4 min."""
    tcp = Tcp(lab)
    tcp.inside("S")
    tcp.outside("SA")
    lab.later(60)
    tcp.outside("SA", seq=tcp.theirs - 1)  # again
    tcp.outside("A", b"220 what a server says first")
    assert (tcp.flow.state, remaining(tcp)) == (OPENING, 240)
    lab.later(239.999)
    assert lab.sweep() == 0
    lab.later(0.001)
    assert lab.sweep() == 1


@pytest.mark.parametrize(("transitory", "established"), [(240, 3), (3, 240), (5, 5)])
def test_the_ack_that_establishes_sets_the_timer(transitory: float, established: float) -> None:
    """It is a segment like any other, and the deadline that stood before it may be later than the new one."""
    with Lab(timers=Timers(tcp_transitory=transitory, tcp_established=established)) as lab:
        tcp = Tcp(lab)
        tcp.inside("S")
        tcp.outside("SA")
        lab.later(min(transitory, established) - 1)
        assert lab.sweep() == 0
        assert (tcp.flow.state, remaining(tcp)) == (OPENING, transitory - min(transitory, established) + 1)
        tcp.inside("A")
        assert (tcp.flow.state, remaining(tcp)) == (ESTABLISHED, established)
        lab.later(established - 0.001)
        assert lab.sweep() == 0
        lab.later(0.001)
        assert lab.sweep() == 1


def test_an_opening_connection_lives_longer_than_a_shorter_established_timer() -> None:
    with Lab(timers=Timers(tcp_transitory=100, tcp_established=2)) as lab:
        tcp = Tcp(lab)
        tcp.inside("S")
        tcp.outside("SA")
        for _ in range(99):
            lab.later(1)
            assert lab.sweep() == 0
        lab.later(1)
        assert lab.sweep() == 1


def test_simultaneous_open(lab: Lab) -> None:
    """RFC 5382 REQ-2: SYNs that cross, then SYN/ACKs that cross, make a connection."""
    tcp = Tcp(lab)
    tcp.inside("S")
    assert tcp.outside("S").verdict == Verdict.FORWARD
    assert tcp.flow.state == OPENING
    assert tcp.inside("SA", seq=tcp.mine - 1).verdict == Verdict.FORWARD
    assert tcp.flow.state == ESTABLISHED
    assert tcp.outside("SA", seq=tcp.theirs - 1).verdict == Verdict.FORWARD
    assert tcp.inside("A", b"data").verdict == Verdict.FORWARD
    assert tcp.flow.state == ESTABLISHED


@pytest.mark.parametrize("first", ["inside", "outside"])
def test_fin_from_both_sides_closes(lab: Lab, first: str) -> None:
    """RFC 7857 section 2.1, RFC 5382 REQ-5: a half-closed connection stays established; then 4 min."""
    tcp = Tcp(lab).establish()
    one, two = (tcp.inside, tcp.outside) if first == "inside" else (tcp.outside, tcp.inside)
    one("FA")
    assert (tcp.flow.state, remaining(tcp)) == (ESTABLISHED, 7440)
    two("A")
    for _ in range(3):
        assert two("A", b"half-closed, still sending").verdict == Verdict.FORWARD
    assert tcp.flow.state == ESTABLISHED
    two("FA")
    assert (tcp.flow.state, remaining(tcp)) == (CLOSING, 240)
    assert one("A").verdict == Verdict.FORWARD
    assert tcp.flow.state == CLOSING


def test_fin_twice_from_one_side_closes_nothing(lab: Lab) -> None:
    tcp = Tcp(lab).establish()
    tcp.inside("FA")
    tcp.inside("FA", seq=tcp.mine - 1)
    assert tcp.flow.state == ESTABLISHED


@pytest.mark.parametrize("side", ["inside", "outside"])
def test_valid_reset_ends_the_connection_after_its_timer(lab: Lab, side: str) -> None:
    """RFC 7857 section 2.2: an RST is translated, and the flow stays for 4 min in case that it is lost."""
    tcp = Tcp(lab).establish()
    send = tcp.inside if side == "inside" else tcp.outside
    assert send("R").verdict == Verdict.FORWARD
    assert (tcp.flow.state, remaining(tcp)) == (RESET, 240)
    lab.later(239)
    assert lab.sweep() == 0
    lab.later(1)
    assert lab.sweep() == 1


def test_reset_with_data_still_in_flight_is_valid(lab: Lab) -> None:
    """The RST follows data that the other side has not acknowledged yet: inside its window."""
    tcp = Tcp(lab).establish()
    tcp.outside("PA", bytes(1000))
    tcp.outside("R")
    assert tcp.flow.state == RESET


def test_refused_connection_is_reset(lab: Lab) -> None:
    """A closed port answers a SYN with RST/ACK, sequence number 0 (RFC 9293 section 3.10.7.1)."""
    tcp = Tcp(lab)
    tcp.inside("S")
    assert tcp.outside("RA", seq=0).verdict == Verdict.FORWARD
    assert tcp.flow.state == RESET


@pytest.mark.parametrize("side", ["inside", "outside"])
@pytest.mark.parametrize("distance", [-1, -100_000, 65_536, 1 << 30, 1 << 31, -(1 << 30)])
def test_reset_outside_the_window_changes_nothing(lab: Lab, side: str, distance: int) -> None:
    """RFC 5961 section 3.2, RFC 7857 section 2.2: off-path attackers do not know the number (no scaling here)."""
    tcp = Tcp(lab).establish()
    send, number = (tcp.inside, tcp.mine) if side == "inside" else (tcp.outside, tcp.theirs)
    send("R", seq=(number + distance) % (1 << 32))
    assert (tcp.flow.state, remaining(tcp)) == (ESTABLISHED, 7440)


def test_reset_window_follows_the_scale_option(lab: Lab) -> None:
    """RFC 7323 section 2.3: what the receiver may have announced is 65,535 << its scale."""
    for sport, beyond in ((1000, 0), (1001, 1)):
        tcp = Tcp(lab, sport=sport)
        tcp.inside("S", options=[("NOP", None), ("WScale", 3)])
        tcp.outside("SA", options=[("NOP", None), ("WScale", 0)])
        tcp.inside("A")
        tcp.outside("R", seq=tcp.theirs + (65_535 << 3) + beyond)
        assert tcp.flow.state == (ESTABLISHED if beyond else RESET)


def test_the_window_moves_with_acknowledgments(lab: Lab) -> None:
    """An old sequence number that was valid once is none now; the numbers wrap."""
    tcp = Tcp(lab)
    tcp.theirs = 0xFFFFFF00
    tcp.establish()
    for _ in range(3):
        tcp.outside("PA", bytes(1000))
        tcp.theirs %= 1 << 32
        tcp.inside("A")
    tcp.outside("R", seq=0xFFFFFF01)
    assert tcp.flow.state == ESTABLISHED
    tcp.outside("R")
    assert tcp.flow.state == RESET


def test_an_old_acknowledgment_does_not_move_the_window_back(lab: Lab) -> None:
    tcp = Tcp(lab).establish()
    before = tcp.theirs
    tcp.outside("PA", bytes(1000))
    tcp.inside("A")
    tcp.inside("A", ack=before)  # out of order
    tcp.outside("R", seq=before)
    assert tcp.flow.state == ESTABLISHED


@pytest.mark.parametrize("end", ["fin", "rst"])
def test_syn_from_inside_reopens_an_ended_flow(lab: Lab, end: str) -> None:
    """RFC 6191 section 2, RFC 7857 section 2: same 4-tuple, new connection; the peer decides whether to take it."""
    tcp = Tcp(lab).establish()
    if end == "fin":
        tcp.inside("FA")
        tcp.outside("FA")
        tcp.inside("A")
    else:
        tcp.outside("R")
    port, ended = tcp.outside_port, tcp.flow
    lab.later(10)
    tcp.mine += 1_000_000
    assert tcp.inside("S").verdict == Verdict.FORWARD
    # A connection of its own, for whoever attributes and bills it.
    assert tcp.flow.id != ended.id
    assert (tcp.flow.packets_out, tcp.flow.packets_in) == (1, 0)
    assert tcp.flow.started > ended.started
    assert (tcp.outside_port, tcp.flow.state, remaining(tcp)) == (port, OPENING, 240)
    tcp.theirs += 5_000_000
    tcp.outside("SA")
    tcp.inside("A")
    assert (tcp.flow.state, remaining(tcp)) == (ESTABLISHED, 7440)
    assert len(lab.engine.flows()) == 1
    tcp.outside("FA")
    assert tcp.flow.state == ESTABLISHED


def test_reopening_asks_the_security_group_again(lab: Lab) -> None:
    tcp = Tcp(lab).establish()
    tcp.outside("R")
    lab.engine.set_security_groups(lab.eni, [SecurityGroup.parse("other", ["tcp/1"])])
    result = tcp.inside("S")
    assert (result.verdict, result.reason) == (Verdict.REPLY, Reason.SECURITY_GROUP)


def test_reopening_needs_no_further_flow_of_the_quota() -> None:
    """The flow is there already: a tunnel at its limit may use it again."""
    with Lab(tunnels=0) as lab:
        lab.tunnels.append(lab.add_tunnel("env", max_flows=1))
        tcp = Tcp(lab).establish()
        tcp.outside("R")
        assert tcp.inside("S").verdict == Verdict.FORWARD


@pytest.mark.parametrize("end", ["fin", "rst"])
def test_syn_from_outside_reopens_nothing(lab: Lab, end: str) -> None:
    """An ended flow is no way in."""
    tcp = Tcp(lab).establish()
    if end == "fin":
        tcp.inside("FA")
        tcp.outside("FA")
    else:
        tcp.inside("R")
    result = tcp.outside("S")
    assert (result.verdict, result.reason) == (Verdict.DROP, Reason.NO_FLOW)


def test_syn_on_an_established_flow_is_passed_and_cuts_nothing(lab: Lab) -> None:
    """RFC 5961 section 4: the peer answers with a challenge ACK; a clone that lost its connection then resets it."""
    tcp = Tcp(lab).establish()
    assert tcp.inside("S", seq=77).verdict == Verdict.FORWARD
    assert tcp.flow.state == ESTABLISHED
    assert tcp.outside("A").verdict == Verdict.FORWARD
    assert tcp.inside("R", seq=tcp.mine, ack=0).verdict == Verdict.FORWARD
    assert tcp.flow.state == RESET
    assert tcp.inside("S").verdict == Verdict.FORWARD
    assert tcp.flow.state == OPENING


def test_data_keeps_an_established_flow_from_either_side(lab: Lab) -> None:
    """RFC 5382 REQ-5: idle means that nothing passes in either direction."""
    tcp = Tcp(lab).establish()
    for send in (tcp.inside, tcp.outside, tcp.inside, tcp.outside):
        lab.later(7000)
        assert lab.sweep() == 0
        send("A", b"keep")
    lab.later(7439.999)
    assert lab.sweep() == 0
    lab.later(0.001)
    assert lab.sweep() == 1
    result = tcp.inside("A", b"too late")
    assert (result.verdict, result.reason) == (Verdict.REPLY, Reason.TCP_OUT_OF_STATE)


def test_profile_with_short_timers() -> None:
    """The 350 s profile of NAT gateways, and the rest, are settable per ENI."""
    with Lab(timers=Timers(tcp_established=350, tcp_transitory=20, tcp_closing=5)) as lab:
        tcp = Tcp(lab)
        tcp.inside("S")
        assert remaining(tcp) == 20
        tcp.outside("SA")
        assert remaining(tcp) == 20
        tcp.inside("A")
        assert remaining(tcp) == 350
        tcp.inside("A")
        tcp.inside("R")
        assert remaining(tcp) == 5


def test_two_connections_that_differ_in_the_server_only(lab: Lab) -> None:
    one, two = Tcp(lab).establish(), Tcp(lab, sport=40_001, server=SERVER2).establish()
    one.outside("R")
    assert (one.flow.state, two.flow.state) == (RESET, ESTABLISHED)


def test_urgent_and_ecn_bits_pass(lab: Lab) -> None:
    """RFC 3168: ECE and CWR on a SYN do not make it anything else."""
    tcp = Tcp(lab)
    result = tcp.inside("SEC")
    assert str(IP(result.packet)[TCP].flags) == "SEC"
    assert tcp.flow.state == OPENING
