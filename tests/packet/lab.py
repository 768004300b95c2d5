"""The laboratory of the packet tests: an engine with a seed, one or more ENIs and tunnels, and a clock in ms.

Packets are scapy's, sent as bytes; what comes out is checked as bytes: scapy builds the expected packet with checksums
of its own making, so a wrong byte anywhere fails. Mass traffic uses `syn()`, `udp()` and `echo()`, which pack bytes.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address
from types import TracebackType
from typing import Any, Self

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import NoPayload, Packet

from hyperplane.dataplane import Engine, Eni, Flow, Link, Reason, SecurityGroup, Timers, Translated, Tunnel, Verdict

INSIDE = "198.18.0.2"
ENI = "198.19.0.5"
ENI2 = "198.19.0.6"
SERVER = "198.19.0.80"
SERVER2 = "198.19.1.81"
ROUTER = "192.0.2.1"
START = (1 << 40) + 1_000_000  # ms: later than any machine has been up; the engine's clock never goes back
ALL = (SecurityGroup.parse("all", ["all"]),)
SMALL: dict[str, Any] = {"max_flows": 4096, "max_links": 64, "max_addresses": 16, "huge_pages": False, "seed": 7}
VNET = bytes(10)
NEEDS_CSUM, DATA_VALID = 1, 2
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 3, 4, 5, 0x80


class Lab:
    """`with Lab(tunnels=2) as lab: answer = lab.out(IP(...) / UDP(...))`; every engine option may be given."""

    def __init__(
        self,
        *,
        tunnels: int = 1,
        addresses: Sequence[str] = (ENI,),
        groups: Iterable[SecurityGroup] = ALL,
        mtu: int = 1500,
        tunnel_mtu: int = 1500,
        timers: Timers = Timers(),
        udp_mapping: Any = "endpoint-independent",
        silent: bool = False,
        start: int = START,
        **options: Any,
    ) -> None:
        self.now = start
        self.engine = Engine(**{**SMALL, **options})
        self.eni = self.engine.add_eni(
            addresses,
            name="eni0",
            mtu=mtu,
            security_groups=groups,
            timers=timers,
            udp_mapping=udp_mapping,
            silent=silent,
        )
        self.tunnels = [self.add_tunnel(f"env-{number}", mtu=tunnel_mtu) for number in range(tunnels)]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()

    def add_tunnel(self, name: str, *, address: str = INSIDE, mtu: int = 1500, max_flows: int = 0) -> Tunnel:
        return self.engine.add_tunnel(self.eni, name=name, address=address, mtu=mtu, max_flows=max_flows)

    def send(self, link: Link, packet: Packet | bytes, *, vnet: bytes = VNET, spare: int = 640) -> Translated:
        """One packet at the present time."""
        return self.engine.translate([(link, vnet + bytes(packet))], now=self.now, vnet=True, spare=spare)[0]

    def send_all(self, link: Link, packets: Iterable[Packet | bytes]) -> list[Translated]:
        return self.engine.translate([(link, bytes(packet)) for packet in packets], now=self.now)

    def out(self, packet: Packet | bytes, tunnel: int = 0, **how: Any) -> Packet:
        """From a tunnel, must leave by its ENI; the packet there."""
        result = self.send(self.tunnels[tunnel], packet, **how)
        assert (result.verdict, result.reason) == (Verdict.FORWARD, Reason.NONE)
        assert result.link is self.tunnels[tunnel].eni
        return IP(result.packet)

    def back(self, packet: Packet | bytes, tunnel: int = 0, **how: Any) -> Packet:
        """From the ENI, must leave by that tunnel; the packet there."""
        result = self.send(self.tunnels[tunnel].eni, packet, **how)
        assert (result.verdict, result.reason) == (Verdict.FORWARD, Reason.NONE)
        assert result.link is self.tunnels[tunnel]
        return IP(result.packet)

    def refused(self, packet: Packet | bytes, reason: Reason, link: Link | None = None, **how: Any) -> Packet:
        """Must be dropped for that reason and answered to its sender; the answer, with verified checksums."""
        sender = link or self.tunnels[0]
        result = self.send(sender, packet, **how)
        assert (result.verdict, result.reason) == (Verdict.REPLY, reason)
        assert result.link is sender
        assert result.vnet == VNET
        assert_checksums(result.packet)
        return IP(result.packet)

    def dropped(self, packet: Packet | bytes, reason: Reason, link: Link | None = None, **how: Any) -> None:
        """Must be dropped for that reason without a word."""
        result = self.send(link or self.tunnels[0], packet, **how)
        assert (result.verdict, result.reason) == (Verdict.DROP, reason)

    def later(self, seconds: float) -> None:
        self.now += round(seconds * 1000)

    def sweep(self) -> int:
        return self.engine.sweep(self.now)

    def flow(self, tunnel: int = 0) -> Flow:
        """The only flow of a tunnel."""
        (flow,) = self.engine.flows(tunnel=self.tunnels[tunnel])
        return flow


def vnet(flags: int = 0, gso: int = 0, header: int = 0, size: int = 0, start: int = 0, offset: int = 0) -> bytes:
    """struct virtio_net_hdr, linux/virtio_net.h."""
    return struct.pack("<BBHHHH", flags, gso, header, size, start, offset)


def assert_checksums(raw: bytes) -> None:
    """Scapy, asked to compute IPv4, TCP, UDP and ICMP checksums anew, gives the same bytes."""
    packet = IP(raw)
    del packet.chksum
    if packet.proto == 17 and packet[UDP].chksum == 0:
        pass  # RFC 768: none
    elif not isinstance(packet.payload, NoPayload):
        del packet.payload.chksum
    assert bytes(packet) == raw


def rewritten(packet: Packet, **changes: Any) -> bytes:
    """The packet with fields changed, TTL one less, and every checksum computed anew by scapy.

    src, dst are IPv4's; sport, dport and id (ICMP) the transport's; options TCP's.
    """
    copy = IP(bytes(packet))
    copy.ttl -= 1
    zero = copy.proto == 17 and copy[UDP].chksum == 0
    for name, value in changes.items():
        setattr(copy if name in ("src", "dst") else copy.payload, name, value)
    del copy.chksum
    if not zero:
        del copy.payload.chksum
    return bytes(copy)


def fold(data: bytes, start: int = 0) -> int:
    """The one's complement sum of 16-bit words (RFC 1071), not complemented."""
    if len(data) % 2:
        data += b"\0"
    total: int = start + sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(source: str, destination: str, protocol: int, length: int) -> int:
    """What a partial checksum holds: the folded sum of the pseudo-header (RFC 9293 section 3.1)."""
    addresses = IPv4Address(source).packed + IPv4Address(destination).packed
    return fold(addresses + struct.pack(">HH", protocol, length))


def ipv4(protocol: int, payload: bytes, source: str, destination: str, ttl: int = 64) -> bytes:
    head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0x4000, ttl, protocol, 0)
    addresses = IPv4Address(source).packed + IPv4Address(destination).packed
    checksum = fold(head + addresses) ^ 0xFFFF
    return head[:10] + struct.pack(">H", checksum) + addresses + payload


def syn(sport: int, dport: int, source: str = INSIDE, destination: str = SERVER, sequence: int = 1000) -> bytes:
    """A SYN without options; its TCP checksum is left 0, which no NAT looks at."""
    return ipv4(6, struct.pack(">HHIIBBHHH", sport, dport, sequence, 0, 0x50, 2, 65535, 0, 0), source, destination)


def udp(sport: int, dport: int, source: str = INSIDE, destination: str = SERVER, payload: bytes = b"") -> bytes:
    return ipv4(17, struct.pack(">HHHH", sport, dport, 8 + len(payload), 0) + payload, source, destination)


def echo(identifier: int, source: str = INSIDE, destination: str = SERVER, kind: int = 8) -> bytes:
    body = struct.pack(">BBHHH", kind, 0, 0, identifier, 1)
    return ipv4(1, body[:2] + struct.pack(">H", fold(body) ^ 0xFFFF) + body[4:], source, destination)


def source_port(raw: bytes) -> int:
    """Of a packet with a 20-byte header."""
    return int.from_bytes(raw[20:22], "big")


class Tcp:
    """One TCP connection as both ends see it, for tests of states: sequence numbers are kept right.

    `inside()` and `outside()` send a segment and give what happened; flags as scapy writes them.
    """

    def __init__(self, lab: Lab, sport: int = 40_000, dport: int = 5432, tunnel: int = 0, server: str = SERVER) -> None:
        self.lab, self.sport, self.dport, self.tunnel, self.server = lab, sport, dport, tunnel, server
        self.mine, self.theirs = 1_000_000, 9_000_000
        self.outside_port = 0

    def inside(self, flags: str, payload: bytes = b"", **fields: Any) -> Translated:
        values = {"seq": self.mine, "ack": self.theirs if "A" in flags else 0, "window": 1000, **fields}
        packet = IP(src=INSIDE, dst=self.server) / TCP(sport=self.sport, dport=self.dport, flags=flags, **values)
        result = self.lab.send(self.lab.tunnels[self.tunnel], packet / payload)
        if result.verdict == Verdict.FORWARD:
            self.outside_port = source_port(result.packet)
            if "seq" not in fields:
                self.mine += len(payload) + ("S" in flags) + ("F" in flags)
        return result

    def outside(self, flags: str, payload: bytes = b"", **fields: Any) -> Translated:
        values = {"seq": self.theirs, "ack": self.mine if "A" in flags else 0, "window": 1000, **fields}
        ports = {"sport": self.dport, "dport": self.outside_port}
        packet = IP(src=self.server, dst=str(self.lab.eni.addresses[0])) / TCP(flags=flags, **ports, **values)
        result = self.lab.send(self.lab.eni, packet / payload)
        if result.verdict == Verdict.FORWARD and "seq" not in fields:
            self.theirs += len(payload) + ("S" in flags) + ("F" in flags)
        return result

    def establish(self) -> Self:
        for result in (self.inside("S"), self.outside("SA"), self.inside("A")):
            assert result.verdict == Verdict.FORWARD
        return self

    @property
    def flow(self) -> Flow:
        (flow,) = (one for one in self.lab.engine.flows() if one.inside_port == self.sport)
        return flow


def ping(identifier: int = 77, sequence: int = 1, payload: bytes = b"abcdefgh", dst: str = SERVER) -> Packet:
    return IP(src=INSIDE, dst=dst) / ICMP(id=identifier, seq=sequence) / payload


def datagram(sport: int = 40_000, dport: int = 7, payload: bytes = b"hello", dst: str = SERVER, **ip: Any) -> Packet:
    return IP(src=INSIDE, dst=dst, **ip) / UDP(sport=sport, dport=dport) / payload


__all__ = ["ALL", "ENI", "ENI2", "INSIDE", "ROUTER", "SERVER", "SERVER2", "START", "Eni", "Lab", "Tcp", "Tunnel"]
