"""What is idle ends at its time, not before: RFC 4787 REQ-5 and REQ-6, RFC 5382 REQ-5, RFC 5508 REQ-2."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.inet import ICMP, IP, UDP

from hyperplane.dataplane import Reason, Timers

from .lab import ENI, SERVER, Lab, Tcp, datagram, ping, udp


def opening(lab: Lab) -> None:
    Tcp(lab).inside("S")


def established(lab: Lab) -> None:
    Tcp(lab).establish()


def closing(lab: Lab) -> None:
    tcp = Tcp(lab).establish()
    tcp.inside("FA")
    tcp.outside("FA")


def reset(lab: Lab) -> None:
    Tcp(lab).establish().inside("R")


def plain_udp(lab: Lab) -> None:
    lab.out(datagram())


def dns(lab: Lab) -> None:
    lab.out(datagram(dport=53))


def icmp(lab: Lab) -> None:
    lab.out(ping())


Begin = Callable[[Lab], None]
CLASSES: list[tuple[Begin, float]] = [
    (opening, 240),
    (established, 7440),
    (closing, 240),
    (reset, 240),
    (plain_udp, 300),
    (dns, 30),
    (icmp, 60),
]
SHORT = Timers(tcp_transitory=4, tcp_established=350, tcp_closing=3, udp=120.5, dns=0.001, icmp=1.25)
SHORTER = [4, 350, 3, 3, 120.5, 0.001, 1.25]


def expire_exactly(lab: Lab, begin: Begin, seconds: float) -> None:
    begin(lab)
    (flow,) = lab.engine.flows()
    assert flow.expires == lab.now + round(seconds * 1000)
    lab.later(seconds - 0.001)
    assert lab.sweep() == 0
    lab.later(0.001)
    assert lab.sweep() == 1
    assert lab.engine.flows() == []
    assert lab.engine.status().mappings == 0


@pytest.mark.parametrize(("begin", "seconds"), CLASSES)
def test_default_timer_of_each_class(lab: Lab, begin: Begin, seconds: float) -> None:
    """RFC 5382 REQ-5, RFC 7857 section 2, RFC 4787 REQ-5, RFC 5508 REQ-2; DNS 30 s."""
    expire_exactly(lab, begin, seconds)


@pytest.mark.parametrize(
    ("begin", "seconds"), [(one[0], seconds) for one, seconds in zip(CLASSES, SHORTER, strict=True)]
)
def test_every_timer_is_settable_per_eni(begin: Begin, seconds: float) -> None:
    with Lab(timers=SHORT) as lab:
        expire_exactly(lab, begin, seconds)


@pytest.mark.parametrize(("begin", "seconds"), CLASSES)
def test_timers_work_where_32_bits_of_milliseconds_wrap(begin: Begin, seconds: float) -> None:
    """Flows keep the low 32 bits of their times: every 49.7 days these start anew."""
    with Lab(start=(1 << 41) - 10_000) as lab:
        expire_exactly(lab, begin, seconds)


@pytest.mark.parametrize(("begin", "seconds"), CLASSES)
@pytest.mark.parametrize("days", [13, 26, 40, 51])
def test_flows_end_however_late_the_sweep_comes(lab: Lab, begin: Begin, seconds: float, days: int) -> None:
    """A host that was suspended for a month (CLOCK_BOOTTIME goes on) has no flow left from before."""
    begin(lab)
    lab.later(days * 86_400)
    assert lab.sweep() == 1, f"idle for {days} days, {seconds} s allowed"


def test_udp_is_refreshed_from_inside_only(lab: Lab) -> None:
    """RFC 4787 REQ-6: an outsider cannot keep a mapping alive."""
    port = lab.out(datagram())[UDP].sport
    answer = IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=port) / b"x"
    lab.later(200)
    lab.back(answer)
    assert lab.flow().last_seen == lab.now
    assert lab.flow().expires == lab.now + 100_000
    lab.later(99.999)
    lab.back(answer)
    assert lab.sweep() == 0
    lab.later(0.001)
    assert lab.sweep() == 1
    lab.dropped(answer, Reason.NO_FLOW, lab.eni)

    lab.out(datagram())
    for _ in range(5):
        lab.later(299)
        lab.out(datagram())
        assert lab.sweep() == 0


def test_dns_answers_do_not_refresh_either(lab: Lab) -> None:
    port = lab.out(datagram(dport=53))[UDP].sport
    lab.later(29)
    lab.back(IP(src=SERVER, dst=ENI) / UDP(sport=53, dport=port) / b"x")
    lab.later(1)
    assert lab.sweep() == 1


def test_a_mapping_lives_as_long_as_its_last_flow(lab: Lab) -> None:
    """RFC 4787 REQ-1: the outside port stays while any destination is in use, and is known by nothing after."""
    first = lab.out(udp(5000, 7))[UDP].sport
    lab.later(200)
    assert lab.out(udp(5000, 8))[UDP].sport == first
    lab.later(100)
    assert lab.sweep() == 1
    assert (lab.engine.status().flows, lab.engine.status().mappings) == (1, 1)
    assert lab.out(udp(5000, 7))[UDP].sport == first
    lab.later(300)
    assert lab.sweep() == 2
    assert lab.engine.status().mappings == 0


def test_echo_replies_refresh(lab: Lab) -> None:
    """RFC 5508 REQ-2: the query session's timer."""
    there = lab.out(ping())
    for _ in range(3):
        lab.later(59)
        lab.back(IP(src=SERVER, dst=ENI) / ICMP(type=0, id=there[ICMP].id))
        assert lab.sweep() == 0
    lab.later(60)
    assert lab.sweep() == 1


def test_each_flow_has_its_own_timer(lab: Lab) -> None:
    for second in range(100):
        lab.out(udp(1000 + second, 7))
        lab.later(1)
    for remaining in range(100, 0, -1):
        assert lab.engine.status().flows == remaining
        lab.later(200 if remaining == 100 else 1)
        assert lab.sweep() == 1
    assert lab.engine.status().flows == 0


def test_time_never_goes_back(lab: Lab) -> None:
    """hp_translate(): an earlier time is an error, not a flow that seems idle for weeks."""
    lab.out(datagram())
    lab.now -= 1
    with pytest.raises(ValueError, match="go back"):
        lab.send(lab.tunnels[0], datagram())
    with pytest.raises(ValueError, match="go back"):
        lab.sweep()
