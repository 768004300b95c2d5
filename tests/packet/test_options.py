"""IPv4 options: those that carry addresses show no side of the NAT to the other (RFC 7126)."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet, Raw

from hyperplane.dataplane import Reason

from .lab import ENI, INSIDE, NEEDS_CSUM, ROUTER, SERVER, Lab, datagram, fold, ping, pseudo, rewritten, vnet

HERE, THERE = IPv4Address(INSIDE).packed, IPv4Address(SERVER).packed
# As `ping -R` sends it, with the sender's own address recorded: RFC 791 section 3.1.
RECORD = b"\7\x0b\x08" + HERE + THERE
STAMPS = b"\x44\x0c\x0d\1" + HERE + b"\0\0\0\x2a"  # time stamps with addresses; full
PRESPECIFIED = b"\x44\x0c\5\3" + HERE + bytes(4)
BARE_STAMPS = b"\x44\x08\5\0" + bytes(4)  # without addresses, and blanked as well
TRACEROUTE = b"\x52\x0c\0\1\0\0\xff\xff" + HERE  # RFC 1393
EXTENSION = b"\x93\x0a" + HERE + HERE  # IPv7 addresses, obsolete (RFC 6814)
BROADCAST = b"\x95\6" + HERE  # selective directed broadcast, obsolete (RFC 6814)
CARRYING = [RECORD, STAMPS, PRESPECIFIED, BARE_STAMPS, TRACEROUTE, EXTENSION, BROADCAST]
ALERT = b"\x94\4\0\0"  # RFC 2113
SECURITY = b"\x82\x0b" + bytes(9)  # RFC 1108
QUICK_START = b"\x19\x08\0\0" + bytes(4)  # RFC 4782
UNKNOWN = b"\xde\6abcd"
HARMLESS = [ALERT, SECURITY, QUICK_START, UNKNOWN, b"\1\1\1\1"]
SEND = {"udp": UDP(sport=4000, dport=7) / b"hello", "tcp": TCP(sport=4000, dport=7, flags="S"), "icmp": ICMP(id=9)}


def padded(options: bytes) -> bytes:
    return options + bytes(-len(options) % 4)


def blank(options: bytes) -> bytes:
    return padded(b"\1" * len(options))


def blanked(packet: Packet, options: bytes, **changes: object) -> bytes:
    """What leaves: the same with these options, and every checksum of scapy's own making."""
    raw = bytearray(rewritten(packet, **changes))
    raw[20 : 20 + len(options)] = options
    again = IP(bytes(raw))
    del again.chksum
    return bytes(again)


@pytest.mark.parametrize("layer", SEND)
@pytest.mark.parametrize("option", CARRYING, ids=lambda option: str(option[0]))
def test_options_that_carry_addresses_are_blanked_on_the_way_out(lab: Lab, option: bytes, layer: str) -> None:
    """`ping -R` works, and shows the VPC nothing: NOPs in the place of the option, lengths and checksums right."""
    sent = IP(bytes(IP(src=INSIDE, dst=SERVER, options=padded(option)) / SEND[layer]))
    there = lab.out(sent, spare=0)
    port = {"id": there[ICMP].id} if layer == "icmp" else {"sport": there.payload.sport}
    assert bytes(there) == blanked(sent, blank(option), src=ENI, **port)
    assert HERE not in bytes(there)


@pytest.mark.parametrize("option", CARRYING, ids=lambda option: str(option[0]))
def test_and_on_the_way_in(lab: Lab, option: bytes) -> None:
    port = lab.out(datagram())[UDP].sport
    answer = IP(bytes(IP(src=SERVER, dst=ENI, options=padded(option)) / UDP(sport=7, dport=port) / b"x"))
    assert bytes(lab.back(answer, spare=0)) == blanked(answer, blank(option), dst=INSIDE, dport=40_000)


@pytest.mark.parametrize("option", HARMLESS, ids=lambda option: str(option[0]))
def test_other_options_pass_as_they_are(lab: Lab, option: bytes) -> None:
    """RFC 1812 section 5.3.13: options that a router does not know are passed on unchanged; RFC 7126 sections 4.8
    (router alert) and 4.12 (security)."""
    sent = IP(bytes(IP(src=INSIDE, dst=SERVER, options=padded(option)) / UDP(sport=4000, dport=7)))
    there = lab.out(sent, spare=0)
    assert bytes(there) == blanked(sent, padded(option), src=ENI, sport=there[UDP].sport)


def test_between_others(lab: Lab) -> None:
    """Only the options themselves; what stands behind the end of options is none."""
    options = b"\1" + ALERT + RECORD + BARE_STAMPS + b"\1\0" + b"\7\7\4"
    sent = IP(bytes(IP(src=INSIDE, dst=SERVER, options=padded(options)) / UDP(sport=4000, dport=7)))
    there = lab.out(sent, spare=0)
    expected = b"\1" + ALERT + b"\1" * 19 + b"\1\0" + b"\7\7\4"
    assert bytes(there) == blanked(sent, padded(expected), src=ENI, sport=there[UDP].sport)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (b"\7\xff\4" + HERE + b"\0", b"\1" * 8),
        (b"\7\0\4" + HERE + b"\0", b"\1" * 8),
        (b"\7\1\4" + HERE + b"\0", b"\1" * 8),
        (b"\1\1\1\7", b"\1\1\1\1"),
        (b"\x52\x0d" + HERE + bytes(2), b"\1" * 8),
        (b"\x94\xff\7\7" + HERE, b"\x94\xff\7\7" + HERE),
    ],
)
def test_an_option_that_lies_about_its_length_takes_the_rest(lab: Lab, options: bytes, expected: bytes) -> None:
    sent = IP(bytes(IP(src=INSIDE, dst=SERVER, options=b"\1" * len(options)) / UDP(sport=4000, dport=7)))
    lying = bytes(sent)[:20] + options + bytes(sent)[20 + len(options) :]
    lying = (
        lying[:10] + ((fold(lying[:10] + b"\0\0" + lying[12 : 20 + len(options)])) ^ 0xFFFF).to_bytes(2) + lying[12:]
    )
    there = bytes(lab.out(lying, spare=0))
    assert there[20 : 20 + len(options)] == expected
    assert fold(there[: 20 + len(options)]) == 0xFFFF


def test_with_a_partial_checksum(lab: Lab) -> None:
    """TCP's is the kernel's to finish: it stands behind the options, and covers none of them."""
    sent = IP(bytes(IP(src=INSIDE, dst=SERVER, options=padded(RECORD)) / TCP(sport=4000, dport=7, flags="S")))
    sent[TCP].chksum = pseudo(INSIDE, SERVER, 6, 20)
    result = lab.send(lab.tunnels[0], sent, vnet=vnet(NEEDS_CSUM, start=32, offset=16), spare=0)
    there = IP(result.packet)
    assert there[TCP].chksum == pseudo(ENI, SERVER, 6, 20)
    assert bytes(there)[20:32] == blank(RECORD)


@pytest.mark.parametrize("option", CARRYING, ids=lambda option: str(option[0]))
def test_in_what_an_icmp_error_from_inside_quotes(lab: Lab, option: bytes) -> None:
    """A kernel records its address in a packet that it receives, and may quote it."""
    there = lab.out(datagram())
    answer = IP(src=SERVER, dst=ENI) / UDP(sport=7, dport=there[UDP].sport) / b"surprise"
    received = IP(bytes(lab.back(answer)))
    received.options, received.ihl, received.len = [], None, None
    quoted = IP(src=SERVER, dst=INSIDE, ttl=received.ttl, options=padded(option)) / received[UDP]
    error = IP(src=INSIDE, dst=SERVER, options=padded(option)) / ICMP(type=3, code=3) / Raw(bytes(quoted))
    out = lab.out(error, spare=0)
    assert HERE not in bytes(out)
    header = 20 + len(padded(option))
    assert bytes(out)[20:header] == blank(option)
    inner = bytes(out)[header + 8 :]
    assert inner[20:header] == blank(option)
    for packet in (IP(bytes(out)), IP(inner)):
        before = packet.chksum
        del packet.chksum
        assert IP(bytes(packet)).chksum == before
    whole = IP(bytes(out))
    del whole[ICMP].chksum
    assert bytes(whole) == bytes(out)


@pytest.mark.parametrize("option", CARRYING, ids=lambda option: str(option[0]))
def test_in_what_an_icmp_error_from_outside_quotes(lab: Lab, option: bytes) -> None:
    """What has been recorded behind us is the VPC's. The sender knows its packet by addresses and ports."""
    there = lab.out(IP(src=INSIDE, dst=SERVER, options=padded(option)) / UDP(sport=4000, dport=7) / b"x")
    quoted = bytearray(bytes(there))
    quoted[20 : 20 + len(option)] = option
    arrived = IP(bytes(quoted))
    del arrived.chksum
    back = lab.back(IP(src=ROUTER, dst=ENI) / ICMP(type=11) / Raw(bytes(arrived)), spare=0)
    assert bytes(back)[48 : 48 + len(padded(option))] == blank(option)
    inner = IP(bytes(back)[28:])
    assert (inner.src, inner.dst, inner[UDP].sport) == (INSIDE, SERVER, 4000)


def test_our_own_answers_quote_the_packet_as_it_was_sent(lab: Lab) -> None:
    """They go to its sender, who knows its own address."""
    sent = IP(src=INSIDE, dst=SERVER, ttl=1, options=padded(RECORD)) / UDP(sport=4000, dport=7)
    assert bytes(lab.refused(sent, Reason.TTL_EXCEEDED))[28:] == bytes(sent)


def test_ping_is_answered(lab: Lab) -> None:
    there = lab.out(IP(src=INSIDE, dst=SERVER, options=padded(RECORD)) / ping()[ICMP])
    back = lab.back(IP(src=SERVER, dst=ENI) / ICMP(type=0, id=there[ICMP].id, seq=1))
    assert (back.dst, back[ICMP].id) == (INSIDE, 77)
