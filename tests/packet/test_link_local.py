"""What kernels and daemons say to their own link for ever is ignored: counted apart, and no record of a drop."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RS,
    IPv6,
    IPv6ExtHdrHopByHop,
    RouterAlert,
)
from scapy.packet import Packet

from hyperplane.dataplane import Link, Reason, Verdict

from .lab import INSIDE, Lab, datagram

OWN = "fe80::aeaa:6108:c7d5:b2b1"
CHATTER = {
    "router solicitation": IPv6(src=OWN, dst="ff02::2") / ICMPv6ND_RS(),
    "MLD": IPv6(src=OWN, dst="ff02::16") / IPv6ExtHdrHopByHop(options=[RouterAlert()]) / ICMPv6MLReport2(),
    "duplicate address detection": IPv6(src="::", dst="ff02::1:ffd5:b2b1") / ICMPv6ND_NS(tgt=OWN),
    "neighbor advertisement": IPv6(src=OWN, dst="fe80::1") / ICMPv6ND_NA(tgt=OWN),
    "mDNS over IPv6": IPv6(src=OWN, dst="ff02::fb") / UDP(sport=5353, dport=5353) / b"query",
    "DHCPv6": IPv6(src=OWN, dst="ff02::1:2") / UDP(sport=546, dport=547) / b"solicit",
    "interface-local": IPv6(src=OWN, dst="ff01::1") / UDP(sport=1, dport=2),
    "IGMP": IP(src=INSIDE, dst="224.0.0.22", ttl=1, options=b"\x94\4\0\0", proto=2) / bytes(16),
    "mDNS": IP(src=INSIDE, dst="224.0.0.251", ttl=255) / UDP(sport=5353, dport=5353) / b"query",
    "LLMNR": IP(src=INSIDE, dst="224.0.0.252", ttl=1) / UDP(sport=5355, dport=5355) / b"query",
    "of another's address": IP(src="172.17.0.2", dst="224.0.0.251") / UDP(sport=5353, dport=5353) / b"query",
    "ICMP router solicitation": IP(src=INSIDE, dst="224.0.0.2", ttl=1) / ICMP(type=10),
    "DHCP": IP(src="0.0.0.0", dst="255.255.255.255") / UDP(sport=68, dport=67) / BOOTP() / DHCP(options=["end"]),
}
WANTED = {
    "IPv6 to a host": (IPv6(src=OWN, dst="2001:db8::1") / ICMPv6EchoRequest(), Reason.UNSUPPORTED_IPV6),
    "IPv6 to a site's group": (IPv6(src=OWN, dst="ff05::2") / UDP(), Reason.UNSUPPORTED_IPV6),
    "IPv6 to a global group": (IPv6(src=OWN, dst="ff0e::101") / UDP(), Reason.UNSUPPORTED_IPV6),
    "SSDP": (IP(src=INSIDE, dst="239.255.255.250") / UDP(sport=1, dport=1900), Reason.INVALID_DESTINATION),
    "a routed group": (IP(src=INSIDE, dst="224.0.1.1") / UDP(sport=123, dport=123), Reason.INVALID_DESTINATION),
    "a broadcast": (IP(src=INSIDE, dst="255.255.255.255") / UDP(sport=9, dport=9), Reason.INVALID_DESTINATION),
    "TCP to port 67": (IP(src=INSIDE, dst="255.255.255.255") / TCP(dport=67), Reason.INVALID_DESTINATION),
}


def sides(lab: Lab) -> list[Link]:
    return [lab.tunnels[0], lab.eni]


@pytest.mark.parametrize("kind", CHATTER)
def test_what_is_for_the_link_only_is_no_drop(lab: Lab, kind: str) -> None:
    """RFC 4291 section 2.7, RFC 5771 section 4: no router ever passes it on, from either side."""
    for number, link in enumerate(sides(lab), 1):
        result = lab.send(link, CHATTER[kind])
        assert (result.verdict, result.reason) == (Verdict.DROP, Reason.LINK_LOCAL)
        counters = lab.engine.counters(link)
        assert (counters.ignored, counters.drops, counters.refusals_sent) == (1, {}, 0)
        assert counters.packets_in == 1
        assert lab.engine.counters().ignored == number
    assert lab.engine.drops() == []
    assert lab.engine.flows() == []


@pytest.mark.parametrize("kind", WANTED)
def test_what_somebody_wants_delivered_is_a_drop(lab: Lab, kind: str) -> None:
    packet, reason = WANTED[kind]
    lab.dropped(packet, reason)
    assert lab.engine.counters().drops == {str(reason): 1}
    assert lab.engine.counters().ignored == 0
    assert [drop.reason for drop in lab.engine.drops()] == [reason]


def test_drop_records_have_no_gap_where_something_was_ignored(lab: Lab) -> None:
    """Numbers of records tell what was overwritten; what was ignored takes none."""
    for packet in (CHATTER["MLD"], datagram(dst="240.0.0.1"), CHATTER["mDNS"], datagram(dst="240.0.0.1")):
        lab.send(lab.tunnels[0], packet)
    assert [drop.number for drop in lab.engine.drops()] == [1, 2]


@pytest.mark.parametrize("length", range(1, 41))
def test_ipv6_cut_short_says_nothing_about_its_destination(lab: Lab, length: int) -> None:
    whole = bytes(CHATTER["router solicitation"])
    result = lab.send(lab.tunnels[0], whole[:length], spare=0)
    assert result.reason == (Reason.LINK_LOCAL if length == 40 else Reason.UNSUPPORTED_IPV6)


@pytest.mark.parametrize("destination", ["fe7f::1", "fec0::1", "ff03::1", "ff12::1:3", "fe80::", "febf::1"])
def test_scopes(lab: Lab, destination: str) -> None:
    """RFC 4291 sections 2.4 and 2.7: fe80::/10, and groups of scope 1 and 2 whatever their flags."""
    local = IPv6Address(destination).is_link_local or destination.startswith("ff12")
    result = lab.send(lab.tunnels[0], IPv6(src=OWN, dst=destination) / UDP())
    assert result.reason == (Reason.LINK_LOCAL if local else Reason.UNSUPPORTED_IPV6)


def test_packets_that_lie_are_drops_wherever_they_go(lab: Lab) -> None:
    packet: Packet = IP(bytes(CHATTER["mDNS"]))
    packet.chksum ^= 1
    lab.dropped(packet, Reason.BAD_CHECKSUM)
    lab.dropped(IP(src=INSIDE, dst="224.0.0.251", len=60) / UDP(), Reason.MALFORMED_IP)


def test_on_a_tunnel_that_is_being_reset(lab: Lab) -> None:
    """Everything else is refused there as link_detached."""
    tunnel = lab.tunnels[0]
    lab.out(datagram())
    lab.engine.drain(tunnel, reset=True)
    assert lab.send(tunnel, CHATTER["mDNS"]).reason == Reason.LINK_LOCAL
    assert lab.send(tunnel, CHATTER["MLD"]).reason == Reason.LINK_LOCAL
    assert lab.engine.counters(tunnel).drops == {}
