"""ARP packets as bytes; scapy says what is right."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.l2 import ARP

from hyperplane.linux import arp
from hyperplane.linux.arp import NO_ADDRESS, NO_MAC, REPLY, REQUEST, Packet

MAC, OTHER = bytes.fromhex("02a1b2c3d4e5"), bytes.fromhex("06ffeeddccbb")
ADDRESS, HOST = IPv4Address("198.19.0.5"), IPv4Address("198.19.0.80")

macs = st.binary(min_size=6, max_size=6)
packets = st.builds(Packet, st.integers(0, 65535), macs, st.ip_addresses(v=4), macs, st.ip_addresses(v=4))


def by_scapy(packet: Packet) -> bytes:
    operation, sender_mac, sender, target_mac, target = packet
    return bytes(
        ARP(op=operation, hwsrc=sender_mac.hex(":"), psrc=str(sender), hwdst=target_mac.hex(":"), pdst=str(target))
    )


@given(packets, st.binary(max_size=20))
def test_both_ways(packet: Packet, padding: bytes) -> None:
    """Ethernet pads a frame to 60 bytes, so more may follow."""
    data = arp.encode(packet)
    assert data == by_scapy(packet)
    assert arp.decode(data + padding) == packet


@given(st.binary(max_size=64))
def test_whatever_arrives(data: bytes) -> None:
    packet = arp.decode(data)
    assert packet is None or arp.encode(packet) == data[: arp.FRAME.size]


@pytest.mark.parametrize("place", [1, 3, 4, 5], ids=["hardware", "protocol", "length of MACs", "length of addresses"])
def test_not_ipv4_over_ethernet(place: int) -> None:
    data = bytearray(bytes(ARP()).ljust(60, b"\0"))
    assert arp.decode(bytes(data)) is not None
    data[place] += 1
    assert arp.decode(bytes(data)) is None


def test_announcements() -> None:
    request, reply = (ARP(arp.encode(packet)) for packet in arp.announcements(MAC, ADDRESS))
    for one in (request, reply):
        assert (one.psrc, one.pdst, one.hwsrc) == (str(ADDRESS), str(ADDRESS), MAC.hex(":"))
    assert (request.op, request.hwdst) == (REQUEST, NO_MAC.hex(":"))  # RFC 5227, 2.3
    assert (reply.op, reply.hwdst) == (REPLY, MAC.hex(":"))


@pytest.mark.parametrize(
    ("packet", "address"),
    [
        (Packet(REPLY, OTHER, ADDRESS, MAC, NO_ADDRESS), ADDRESS),  # the answer to a probe
        (Packet(REPLY, OTHER, ADDRESS, MAC, HOST), ADDRESS),
        (Packet(REQUEST, OTHER, ADDRESS, NO_MAC, HOST), ADDRESS),  # it asks for somebody, and says who it is
        (Packet(REQUEST, OTHER, ADDRESS, NO_MAC, ADDRESS), ADDRESS),  # an announcement
        (Packet(REQUEST, OTHER, NO_ADDRESS, NO_MAC, ADDRESS), ADDRESS),  # somebody else's probe
        (Packet(REQUEST, OTHER, HOST, NO_MAC, ADDRESS), HOST),  # who asks for an address does not have it
        (Packet(REPLY, OTHER, NO_ADDRESS, MAC, ADDRESS), NO_ADDRESS),
    ],
)
def test_who_has_it(packet: Packet, address: IPv4Address) -> None:
    assert arp.held(packet) == address
