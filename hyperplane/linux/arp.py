"""ARP on devices of the calling thread's namespace: who has an address already; telling neighbours of a new one.

Ethernet-like devices only (ARPHRD_ETHER without IFF_NOARP: veth, bridge, VLAN, macvlan, VXLAN, bond, ...). On any other
there is no ARP, and both functions do nothing, as on a device that is down or has no carrier: there is nobody to hear.
Announce when it comes up.

Both block: besides what they say, some 10 ms in which the kernel closes the socket (a grace period of RCU).
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
import time
from array import array
from collections.abc import Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from hyperplane.errors import DeviceError, HyperplaneError, PermissionMissing
from hyperplane.linux import netlink, seen
from hyperplane.linux.namespaces import descriptors_exhausted

ETH_P_ARP, ETH_P_IP = 0x0806, 0x0800  # linux/if_ether.h
ARPHRD_ETHER: Final = 1  # linux/if_arp.h
REQUEST, REPLY = 1, 2  # RFC 826: ares_op$REQUEST, ares_op$REPLY
SIOCGIFFLAGS, SIOCETHTOOL = 0x8913, 0x8946  # linux/sockios.h
ETHTOOL_GLINK: Final = 0x0A  # linux/ethtool.h
PACKET_HOST, PACKET_BROADCAST, PACKET_MULTICAST = 0, 1, 2  # linux/if_packet.h
# linux/if.h
IFF_UP, IFF_LOOPBACK, IFF_RUNNING, IFF_NOARP = 0x01, 0x08, 0x40, 0x80
FLAGS: Final = IFF_UP | IFF_LOOPBACK | IFF_RUNNING | IFF_NOARP
WANTED_FLAGS: Final = IFF_UP | IFF_RUNNING

FRAME: Final = struct.Struct("!HHBBH6s4s6s4s")  # RFC 826, for Ethernet and IPv4
BROADCAST: Final = b"\xff" * 6
NO_MAC: Final = bytes(6)
NO_ADDRESS: Final = IPv4Address(0)

# Seconds after the first announcement at which it is made again. RFC 5227, 2.3: ANNOUNCE_NUM 2, ANNOUNCE_INTERVAL 2 s.
# A Linux neighbour takes the first one, whatever its `locktime`: since 4.13 a gratuitous ARP overrides an entry of any
# age; an older one ignores a new MAC for a second (`locktime`) after the last. What is lost, or waits for a switch
# whose port has just come up, is made good by the second.
ANNOUNCE_AGAIN: Final = (2.0,)

# RFC 5227, 2.1.1 asks PROBE_NUM (3) times, PROBE_MIN (1 s) to PROBE_MAX apart, after a wait of up to PROBE_WAIT (1 s),
# and listens for ANNOUNCE_WAIT (2 s): some 6 s, made for links whose switch port wakes with the host, and for many
# hosts that are switched on together. Here the link is up already and serves a namespace; a host on it answers from its
# kernel within a millisecond. Three times, since a lost frame must not make an address free.
PROBES: Final = 3
PROBE_TIMEOUT: Final = 0.3
SEND_TIMEOUT: Final = 0.1  # seconds for a frame, where the device's queue is full


class Packet(NamedTuple):
    """An ARP packet (RFC 826). MACs are 6 bytes."""

    operation: int
    sender_mac: bytes
    sender: IPv4Address
    target_mac: bytes
    target: IPv4Address


class Holder(NamedTuple):
    """Who has an address: its MAC, as `ip link` writes it.

    by_proxy: it answers ARP requests for the address but no probe, as Linux does for a proxy neighbour: another ENI's
    host, or a router for what is behind it.
    """

    mac: str
    by_proxy: bool


def encode(packet: Packet) -> bytes:
    """What follows the Ethernet header."""
    operation, sender_mac, sender, target_mac, target = packet
    return FRAME.pack(ARPHRD_ETHER, ETH_P_IP, 6, 4, operation, sender_mac, sender.packed, target_mac, target.packed)


def decode(data: bytes) -> Packet | None:
    """None for what is no ARP packet of IPv4 over Ethernet. Padding after it is ignored."""
    if len(data) < FRAME.size:
        return None
    hardware, protocol, mac_length, length, operation, sender_mac, sender, target_mac, target = FRAME.unpack_from(data)
    if (hardware, protocol, mac_length, length) != (ARPHRD_ETHER, ETH_P_IP, 6, 4):
        return None
    return Packet(operation, sender_mac, IPv4Address(sender), target_mac, IPv4Address(target))


def announcements(mac: bytes, address: IPv4Address) -> tuple[Packet, Packet]:
    """Gratuitous ARP: as a request, which RFC 5227 (section 3) wants and Linux itself sends (`arp_notify`), and as a
    reply, since some devices heed only that one. In the reply the target's MAC is the sender's: Linux wants it so."""
    return Packet(REQUEST, mac, address, NO_MAC, address), Packet(REPLY, mac, address, mac, address)


def held(packet: Packet) -> IPv4Address:
    """The address that a packet's sender has, or is about to take and probes for (RFC 5227, 2.1.1)."""
    if packet.sender == NO_ADDRESS and packet.operation == REQUEST:
        return packet.target
    return packet.sender


def announce(device: str, addresses: Sequence[IPv4Address]) -> None:
    """Tells the hosts on device's segment that each of addresses is at the device's MAC: who knows the address by
    another MAC has this one from now on, and switches learn where it is.

    Once; announce again after ANNOUNCE_AGAIN, which is the caller's: nothing here waits. Raises DeviceError (no such
    device), PermissionMissing.
    """
    with _opened(device) as arp:
        if arp is None:
            return
        mac = arp.getsockname()[4]
        for address in addresses:
            for packet in announcements(mac, address):
                _send(arp, device, packet)


def probe(
    device: str, addresses: Sequence[IPv4Address], *, timeout: float = PROBE_TIMEOUT
) -> dict[IPv4Address, Holder]:
    """Which of addresses somebody on device's segment has already. Takes timeout seconds, less when all are taken.

    Each is asked for PROBES times, in two ways. An ARP probe (RFC 5227, 2.1.1; sender 0.0.0.0) changes nobody's
    neighbours. But Linux answers none for a proxy neighbour, and that is what another host's ENI is: hence also a
    request, from the device's own address in the subnet when it has one. Who answers for everybody (a router with
    `proxy_arp_pvlan`; the fabric of some clouds) does so for the subnet's own address too, and then has none of them.

    Whoever probes for an address at the same time counts as well, so of two only one finds it free. Answers from this
    namespace's own devices do not: whether an address is local is for the routes to say.

    Raises DeviceError (no such device), PermissionMissing.
    """
    with _opened(device) as arp:
        if arp is None:
            return {}
        mac = arp.getsockname()[4]
        questions = _questions(device, mac, addresses)
        seen = _Seen(mac, addresses, controls={packet.target for packet in questions} - set(addresses))
        begun = time.monotonic()
        for number in range(1, PROBES + 1):
            for packet in questions:
                if not seen.sure(packet.target):
                    _send(arp, device, packet)
            _listen(arp, begun + timeout * number / PROBES, seen)
    return seen.holders()


def _questions(device: str, mac: bytes, addresses: Sequence[IPv4Address]) -> list[Packet]:
    """In the order in which they are asked: what tells who answers for everybody comes first."""
    asked = [(NO_ADDRESS, address) for address in addresses]
    for name, local, subnet in netlink.addresses():
        inside = [address for address in addresses if address in subnet and address != local]
        if name == device and inside:
            asked += [(local, address) for address in inside]
            if subnet.prefixlen < 31:
                asked[:0] = [(sender, subnet.network_address) for sender in (NO_ADDRESS, local)]
    return [Packet(REQUEST, mac, sender, NO_MAC, target) for sender, target in asked]


def _listen(arp: socket.socket, until: float, seen: _Seen) -> None:
    """Takes in what arrives; until that time, or nothing more can be learnt."""
    while not seen.complete() and (left := until - time.monotonic()) > 0:
        arp.settimeout(left)
        try:
            data, (_, _, kind, *_) = arp.recvfrom(2048)
        except TimeoutError:
            return
        except OSError as error:
            if error.errno == errno.ENETDOWN:  # told once, when the device goes down
                return
            raise
        # One that is for another host's MAC, or that has the tag of a VLAN without a device here, is no answer.
        packet = decode(data) if kind in (PACKET_HOST, PACKET_BROADCAST, PACKET_MULTICAST) else None
        if packet is not None:
            seen.take(packet)


class _Seen:
    """What was learnt so far."""

    def __init__(self, mac: bytes, addresses: Sequence[IPv4Address], controls: Set[IPv4Address]) -> None:
        self.found: dict[IPv4Address, Holder] = {}
        self._wanted = frozenset(addresses)
        self._controls = controls  # addresses that nobody has: who answers for one answers for all
        self._mac = mac
        self._answer_all: set[Holder] = set()
        self._others: frozenset[bytes] | None = None  # MACs of this namespace's devices

    def take(self, packet: Packet) -> None:
        address = held(packet)
        if packet.sender_mac == self._mac:  # our own frame, come back through a bridge or a hub
            return
        by_proxy = packet.operation == REPLY and packet.target not in (NO_ADDRESS, address)
        holder = Holder(packet.sender_mac.hex(":"), by_proxy)
        if address in self._controls:
            if packet.operation == REPLY:  # no other host's own such question
                self._answer_all.add(holder)
        elif address in self._wanted:
            before = self.found.get(address)
            if (before is None or (before.by_proxy and not by_proxy)) and not self._is_ours(packet.sender_mac):
                self.found[address] = holder

    def sure(self, address: IPv4Address) -> bool:
        """Found, and not only by proxy: then there is no more to learn about it."""
        return address in self.found and not self.found[address].by_proxy

    def complete(self) -> bool:
        return all(self.sure(address) for address in self._wanted)

    def holders(self) -> dict[IPv4Address, Holder]:
        return {address: holder for address, holder in self.found.items() if holder not in self._answer_all}

    def _is_ours(self, mac: bytes) -> bool:
        if self._others is None:  # not before somebody has answered: it is a long list where there are many containers
            self._others = frozenset(link.mac for link in seen.links().values() if link.has_arp)
        return mac in self._others


@contextmanager
def _opened(device: str) -> Iterator[socket.socket | None]:
    """A socket for ARP on device, None where there is nobody to talk to. Raises DeviceError, PermissionMissing."""
    try:
        # A protocol of 0 until it is bound: else it would get other devices' packets in between.
        arp = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, 0)
    except OSError as error:
        raise _refused(device, error) from None
    with arp:
        try:
            arp.bind((device, ETH_P_ARP))
            usable = arp.getsockname()[3] == ARPHRD_ETHER and _is_up(arp, device)
        except OSError as error:
            raise _refused(device, error) from None
        yield arp if usable else None


def _is_up(any_socket: socket.socket, device: str) -> bool:
    """Whether frames get out, and ARP is for this device. Raises OSError."""
    name = device.encode()
    with suppress(OSError):  # a driver need not have it
        # The kernel opens a device's queue up to a second after its carrier came, and until then swallows what is sent.
        # Who asks for the carrier in this way has it done at once (linkwatch_sync_dev() in the kernel).
        value = array("I", [ETHTOOL_GLINK, 0])  # struct ethtool_value
        fcntl.ioctl(any_socket, SIOCETHTOOL, struct.pack("16sP16x", name, value.buffer_info()[0]))
    (flags,) = struct.unpack_from("=16xH", fcntl.ioctl(any_socket, SIOCGIFFLAGS, struct.pack("16s24x", name)))
    return bool(flags & FLAGS == WANTED_FLAGS)


def _send(arp: socket.socket, device: str, packet: Packet) -> None:
    """To everybody. What the device has no room for is lost, as on the wire: it is sent again."""
    arp.settimeout(SEND_TIMEOUT)
    with suppress(TimeoutError):
        try:
            arp.sendto(encode(packet), (device, ETH_P_ARP, 0, ARPHRD_ETHER, BROADCAST))
        except OSError as error:
            if error.errno not in (errno.ENOBUFS, errno.ENETDOWN, errno.ENXIO, errno.ENODEV):  # full, down, deleted
                raise _refused(device, error) from None


def _refused(device: str, error: OSError) -> HyperplaneError:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return descriptors_exhausted("packet socket")
    if error.errno in (errno.EPERM, errno.EACCES):
        remedy = "run as root or with CAP_NET_RAW in the namespace"
        return PermissionMissing(f"device {device}: ARP not permitted", resource=device, remedy=remedy)
    if error.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
        remedy = "allow AF_PACKET (RestrictAddressFamilies= of a systemd unit, CONFIG_PACKET of the kernel)"
        return PermissionMissing(f"device {device}: no packet sockets for ARP", resource=device, remedy=remedy)
    return DeviceError(f"device {device}: ARP: {os.strerror(error.errno or 0)}", resource=device)
