"""The ENI's device: a TUN in the VPC's namespace to which the ENI's addresses are routed, and all that this takes.

The addresses are not put on the device: the kernel would answer for them itself. Where an address lies in the subnet of
another device there (a shared segment: VLAN, bridge, VXLAN), nobody on the segment would find it, so the namespace
answers ARP for it on that device (a proxy neighbour, without the delay of up to 0.8 s that proxies have by default) and
forwards between that device and the ENI. These settings are per device; the namespace's own (net.ipv4.ip_forward) is
left alone. Where the address is reached by a route, forwarding is the business of whoever set up the route.

What was set is set back when the ENI goes, unless another ENI still needs it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Final

from hyperplane.errors import AddressInUse, HyperplaneError, InvalidValue
from hyperplane.linux import netlink, rtnl, settings, steering, tun
from hyperplane.linux.namespaces import Key, Namespace, NamespaceThreads, open_namespace
from hyperplane.linux.settings import SETTINGS

RTN_UNICAST: Final = rtnl.RTN_UNICAST
FORWARDING: Final = "/proc/sys/net/ipv4/conf/{}/forwarding"
SEGMENT_SETTINGS: Final = {FORWARDING: "1", "/proc/sys/net/ipv4/neigh/{}/proxy_delay": "0"}


@dataclass(frozen=True, slots=True)
class EniDevice:
    """A made ENI device. fd and more: its only descriptors; when steered, the last is that of the array that does it.

    segments: on which other device each address is answered for.
    """

    device: str
    fd: int
    addresses: tuple[IPv4Address, ...]
    namespace: Namespace
    segments: tuple[tuple[str, IPv4Address], ...]
    more: tuple[int, ...] = ()
    steered: bool = False

    @property
    def queues(self) -> int:
        return 1 + len(self.more) - self.steered


def create_eni(
    namespace: Namespace, *, device: str, addresses: Sequence[IPv4Address], mtu: int, queues: int = 1
) -> EniDevice:
    """Makes the ENI's device, in a thread that is in the namespace.

    Raises AddressInUse (local there, or routed to something else), InvalidValue, DeviceError, PermissionMissing; then
    nothing is left of it. The descriptors are for the engine, then for the reaper, after `withdraw_eni()`. queues: how
    many the engine has workers; the device has them, or one.
    """
    tun.check_name(device)
    segments = _segments(namespace, addresses)
    with ExitStack() as undo:
        fd, *more = tun.open_queues(device, queues)
        undo.callback(os.close, fd)
        for further in more:
            undo.callback(os.close, further)
        table = steering.steer(fd, addresses) if more else -1
        if table >= 0:
            more.append(table)
            undo.callback(os.close, table)
        routes = [IPv4Network(address) for address in addresses]
        netlink.configure(device, mtu=mtu, address=None, routes=routes)
        for segment, address in segments:
            # Undone in the opposite order: a setting stays while a proxy neighbour of the segment needs it.
            for setting, value in SEGMENT_SETTINGS.items():
                SETTINGS.hold(namespace.key, setting.format(segment), value)
                undo.callback(_give_back, namespace.key, segment, setting)
            undo.callback(_remove_proxy, segment, address)
            netlink.add_proxy(segment, address)
        if segments:
            settings.write(FORWARDING.format(device), "1")  # goes with the device
        undo.pop_all()
    return EniDevice(device, fd, tuple(addresses), namespace.closed(), tuple(segments), tuple(more), steered=table >= 0)


def adopt_eni(namespace: Namespace, *, device: str, fd: int, addresses: Sequence[IPv4Address]) -> EniDevice:
    """A device that a predecessor of this process made, in a thread that is in its namespace; changes nothing there but
    what is missing. Raises DeviceError, PermissionMissing."""
    segments = _subnets(addresses)
    for segment, address in segments:
        for setting, value in SEGMENT_SETTINGS.items():
            SETTINGS.hold(namespace.key, setting.format(segment), value)
        if address not in netlink.proxies(segment):
            netlink.add_proxy(segment, address)
    return EniDevice(device, fd, tuple(addresses), namespace.closed(), tuple(segments))


def clear_leftovers(namespace: Namespace, addresses: Sequence[IPv4Address]) -> None:
    """What a predecessor set for addresses whose device is no more, in a thread that is in the namespace."""
    for segment, address in _subnets(addresses):
        _remove_proxy(segment, address)
        needed = _needed(segment)
        for setting in SEGMENT_SETTINGS:
            SETTINGS.release_inherited(namespace.key, setting.format(segment), restore=not needed)


def withdraw_eni(eni: EniDevice, threads: NamespaceThreads) -> None:
    """Sets back everything but the device itself, which goes with its descriptor. In one of threads. Raises nothing."""
    if not eni.segments:
        return
    with suppress(OSError, HyperplaneError):
        try:
            fd = tun.namespace_of(eni.fd)  # also when the namespace has lost its name
        except OSError:  # somebody deleted the device
            with open_namespace(eni.namespace.path or eni.namespace.name) as found:
                if found.key != eni.namespace.key:
                    return
                fd = os.dup(found.fd)
        try:
            with threads.inside(fd):
                for segment, address in eni.segments:
                    _remove_proxy(segment, address)
                    for setting in SEGMENT_SETTINGS:
                        _give_back(eni.namespace.key, segment, setting)
        finally:
            os.close(fd)


def _segments(namespace: Namespace, addresses: Sequence[IPv4Address]) -> list[tuple[str, IPv4Address]]:
    """For each address the other devices in whose subnet it lies. Raises AddressInUse, InvalidValue."""
    found = []
    present = netlink.addresses()
    for address in addresses:
        for device, local, subnet in present:
            if address == local:
                message = f"{address} is the address of device {device} in namespace {namespace.name}"
                remedy = "give the ENI an address of its own"
                raise AddressInUse(message, resource=str(address), remedy=remedy)
            if address not in subnet or subnet.prefixlen == 32:
                continue
            if subnet.prefixlen < 31 and address in (subnet.network_address, subnet.broadcast_address):
                limit = "a unicast address of one host"
                raise InvalidValue(
                    f"{address} is no host's in {subnet} on {device}", resource=str(address), limit=limit
                )
            found.append((device, address))
        _check_route(namespace, address)
    return found


def _subnets(addresses: Sequence[IPv4Address]) -> list[tuple[str, IPv4Address]]:
    """As _segments(), without a check."""
    present = [(device, subnet) for device, _, subnet in netlink.addresses() if subnet.prefixlen < 32]
    return [(device, address) for address in addresses for device, subnet in present if address in subnet]


def _check_route(namespace: Namespace, address: IPv4Address) -> None:
    """Refuses an address that is local, or that a route of its own leads to already. Raises AddressInUse."""
    route = netlink.match(address)
    if route is None:
        return
    where = f"in namespace {namespace.name}"
    if route.type != RTN_UNICAST:
        remedy = "`ip route get` shows by which route"
        raise AddressInUse(f"{address} is local or broadcast {where}", resource=str(address), remedy=remedy)
    if route.prefix_length == 32:
        message = f"{address} is routed to device {route.device or '?'} already {where}"
        raise AddressInUse(message, resource=str(address), remedy="give the ENI an address of its own")


def _remove_proxy(segment: str, address: IPv4Address) -> None:
    with suppress(OSError, HyperplaneError):  # the device is gone, and the neighbour with it
        netlink.remove_proxy(segment, address)


def _give_back(key: Key, segment: str, setting: str) -> None:
    """Restores a setting of a segment, unless an ENI of another process on the same segment needs it."""
    SETTINGS.release(key, setting.format(segment), restore=not _needed(segment))


def _needed(segment: str) -> bool:
    try:
        return bool(netlink.proxies(segment))
    except OSError:
        return False
