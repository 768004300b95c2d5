"""The two ends that the engine translates between, and what it did to one packet."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address

from msgspec import Struct

from hyperplane.model import Reason, SecurityGroup, Timers, UdpMapping, Verdict


@dataclass(frozen=True, eq=False, slots=True)
class Eni:
    """The shared interface in the VPC, as `Engine.add_eni()` made it; number is its link number.

    security_groups are those of now: `Engine.set_security_groups()` replaces them.
    """

    number: int
    name: str
    addresses: tuple[IPv4Address, ...]
    mtu: int
    timers: Timers
    udp_mapping: UdpMapping
    silent: bool
    _groups: list[SecurityGroup]

    @property
    def security_groups(self) -> tuple[SecurityGroup, ...]:
        return tuple(self._groups)


class Tunnel(Struct, frozen=True, eq=False):
    """The link of one execution environment; address is the environment's own, not necessarily unique.

    max_flows 0 means no limit but the engine's.
    """

    number: int
    name: str
    eni: Eni
    address: IPv4Address
    mtu: int
    max_flows: int


Link = Eni | Tunnel


@dataclass(frozen=True, slots=True)
class Translated:
    """What became of a packet given to `Engine.translate()`.

    forward: packet leaves by link; reply: packet is the engine's answer (RST or ICMP error) to the sender, on link;
    drop: packet is b"" and link the one that it came from. packet is IPv4; vnet is the struct virtio_net_hdr
    (linux/virtio_net.h, 10 bytes) before it.
    """

    verdict: Verdict
    link: Link
    reason: Reason
    packet: bytes
    vnet: bytes
