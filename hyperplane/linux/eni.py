"""The ENI's device: a TUN in the VPC's namespace to which the ENI's addresses are routed, and all that this takes.

The addresses are not put on the device: the kernel would answer for them itself. Where an address lies on a shared
segment (VLAN, bridge, VXLAN: linux.segments), nobody on it would find the address, so the namespace answers ARP for it
on that device (a proxy neighbour, without the delay of up to 0.8 s that proxies have by default), forwards between that
device and the ENI, and tells the neighbours (linux.arp). These settings are per device; the namespace's own
(net.ipv4.ip_forward) is left alone. Where the address is reached by a route, forwarding is the business of whoever set
up the route.

`EniDevice.put_right()` is the one description of all this: it makes it, takes it over from a predecessor, and puts
right what others have changed since, segments that came or went included. What was set is set back when the ENI goes,
unless another ENI still needs it or somebody else has set it since.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Final, NamedTuple

from msgspec.structs import replace

from hyperplane.errors import AddressInUse, HyperplaneError, InvalidValue, NamespaceNotFound, PermissionMissing
from hyperplane.linux import arp, netlink, repair, rtnl, segments, steering, tun
from hyperplane.linux.device import Shape
from hyperplane.linux.namespaces import Namespace, NamespaceThreads, open_namespace
from hyperplane.linux.repair import Difference, Report
from hyperplane.linux.segments import Segment
from hyperplane.linux.settings import SETTINGS, forwarding, proxy_delay

RTN_UNICAST: Final = rtnl.RTN_UNICAST
THOROUGH_AGAIN: Final = 10.0  # seconds after which segments are looked for without a notification
PROBE_AGAIN: Final = 30.0  # seconds after which an address that somebody has on a segment is looked for again


class _Place(NamedTuple):
    """Where an ENI address is answered for. number: the device's index, another one when it is made again."""

    device: str
    number: int
    address: IPv4Address


@dataclass(slots=True)
class _Heard:
    """What neighbours of a segment know. announce: times at which they are told again (time.monotonic())."""

    mac: bytes
    ups: int
    announce: list[float] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class EniDevice:
    """A made ENI device. fd and more: its only descriptors; when steered, the last is the array's that does it."""

    shape: Shape
    fd: int
    addresses: tuple[IPv4Address, ...]
    namespace: Namespace
    more: tuple[int, ...] = ()
    steered: bool = False
    _served: dict[_Place, _Heard] = field(default_factory=dict)
    _present: dict[_Place, Segment] = field(default_factory=dict)
    _looked: float = float("-inf")  # when _present was found
    _taken: dict[_Place, tuple[str, float]] = field(default_factory=dict)  # on a segment: who has it, found when
    _said: tuple[str, ...] = ()  # why a segment cannot work
    _mute: str = ""  # why neighbours cannot be told
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def device(self) -> str:
        return self.shape.device

    @property
    def queues(self) -> int:
        return 1 + len(self.more) - self.steered

    @property
    def segments(self) -> tuple[tuple[str, IPv4Address], ...]:
        """On which other device each address is answered for."""
        return tuple((place.device, place.address) for place in self._served)

    def put_right(self, *, thorough: bool = True, clear: Collection[_Place] = ()) -> Report:
        """Compares with the kernel, puts right what is not as it must be, and tells neighbours what they do not know.

        In a thread that is in the VPC's namespace; takes arp.PROBE_TIMEOUT where a segment is new and not in clear:
        there nobody has the address. thorough: not only at what changes without a notification of the kernel's. Raises
        DeviceLost, DeviceError, PermissionMissing; what was put right before stays so.
        """
        with self._lock:
            repair.check_place(self.fd, self.namespace.key)
            differences = []
            if thorough or time.monotonic() - self._looked > THOROUGH_AGAIN:
                # A namespace may have a million routes: the kernel goes through them to find ours.
                differences += repair.put_right(self.fd, self.shape)
                self._find_segments()
            self._look_for_others([place for place in self._present if place not in clear])
            for place, segment in self._present.items():
                if place not in self._taken:
                    differences += self._serve(place, segment)
            if self._served and not self.shape.forwards:
                self.shape = replace(self.shape, forwards=True)
                differences += repair.put_right(self.fd, self.shape)
            again = self._announce()
            return Report(tuple(differences), tuple(self._troubles()), again)

    def _find_segments(self) -> None:
        found = segments.find(self.addresses)
        self._present = {_Place(one.device, one.link.index, one.address): one for one in found}
        for place in [place for place in self._served if place not in self._present]:
            renamed = _Place(_name(place.number), place.number, place.address)
            if renamed in self._present and renamed not in self._served:
                self._rename(place, renamed)
            else:
                self._leave(place)
        self._taken = {place: one for place, one in self._taken.items() if place in self._present}
        self._said = tuple(segments.troubles(found))
        self._looked = time.monotonic()

    def forget(self) -> None:
        """For one whose namespace is gone. In any thread."""
        with self._lock:
            for place in self._served:
                SETTINGS.forget((self, place))
            self._served.clear()

    def withdraw(self) -> None:
        """Sets back everything but the device itself, in a thread that is in the VPC's namespace. Raises nothing."""
        with self._lock:
            for place in tuple(self._served):
                self._leave(place)

    def _look_for_others(self, places: Iterable[_Place]) -> None:
        """Who else has an address on a segment that is new; what a predecessor answered for is ours."""
        now = time.monotonic()
        again = {place for place, (_, since) in self._taken.items() if now - since > PROBE_AGAIN}
        new = [place for place in places if place not in self._served and (place not in self._taken or place in again)]
        for device in dict.fromkeys(place.device for place in new):
            ours = netlink.proxies(device)
            unknown = {place.address: place for place in new if place.device == device and place.address not in ours}
            holders = _holders(device, tuple(unknown)) if unknown else {}
            for address, place in unknown.items():
                self._taken.pop(place, None)
                if address in holders:
                    self._taken[place] = (str(holders[address].mac), time.monotonic())

    def _serve(self, place: _Place, segment: Segment) -> list[Difference]:
        differences = []
        for setting in (forwarding(place.device), proxy_delay(place.device)):
            if (was := SETTINGS.hold(self.namespace.key, setting, (self, place))) is not None:
                differences.append(Difference(setting.name, was, setting.value))
        heard = self._served.get(place)
        if place.address not in netlink.proxies(place.device):
            differences.append(Difference(f"proxy neighbour {place.address} on {place.device}", "missing", "set"))
            netlink.add_proxy(place.device, place.address)
            heard = None
        if heard is None or (heard.mac, heard.ups) != (segment.link.mac, segment.link.ups):
            now = time.monotonic()
            times = [now, *(now + later for later in arp.ANNOUNCE_AGAIN)]
            self._served[place] = _Heard(segment.link.mac, segment.link.ups, times)
        return differences

    def _leave(self, place: _Place) -> None:
        """Undoes _serve(). A setting stays while a proxy neighbour of the segment needs it."""
        del self._served[place]
        key, holder = self.namespace.key, (self, place)
        if _index(place.device) != place.number:  # it is gone with its settings; perhaps another one has its name
            SETTINGS.forget(holder)
            return
        _remove_proxy(place.device, place.address)
        needed = _needed(place.device)
        for setting in (forwarding(place.device), proxy_delay(place.device)):
            SETTINGS.release(key, setting, holder, restore=not needed)

    def _rename(self, place: _Place, renamed: _Place) -> None:
        self._served[renamed] = self._served.pop(place)
        for setting in (forwarding, proxy_delay):
            old, new = setting(place.device), setting(renamed.device)
            SETTINGS.rename(self.namespace.key, old, new, (self, place), (self, renamed))

    def _announce(self) -> float | None:
        """Tells neighbours what is due; returns the seconds until more is."""
        now = time.monotonic()
        devices: dict[str, list[IPv4Address]] = {}
        later: list[float] = []
        for place, heard in self._served.items():
            if heard.announce and heard.announce[0] <= now:
                devices.setdefault(place.device, []).append(place.address)
                heard.announce = [at for at in heard.announce if at > now]
            later += heard.announce[:1]
        for device, addresses in devices.items():
            try:
                arp.announce(device, addresses)
                self._mute = ""
            except PermissionMissing as error:
                self._mute = f"neighbours are neither asked nor told where ENI addresses are: {error}"
            except (HyperplaneError, OSError):  # it goes down just now: announced when it comes up
                continue
        return max(min(later) - now, 0.0) if later else None

    def _troubles(self) -> Iterable[str]:
        yield from self._said
        if self._mute:
            yield self._mute
        for place, (mac, _) in self._taken.items():
            yield (
                f"{mac} has {place.address} on {place.device} too: it is not answered for there; take it from that"
                " host, or reserve it in the subnet and apply again"
            )
        for address in self.addresses:
            route = netlink.match(address)
            if route is None or route.device != self.device:
                to = f"device {route.device}" if route and route.device else "nowhere"
                yield f"{address} is routed to {to}, not to {self.device}; see `ip route get {address}` and `ip rule`"


def create_eni(
    namespace: Namespace,
    *,
    device: str,
    addresses: Sequence[IPv4Address],
    mtu: int,
    queues: int = 1,
    again: bool = False,
) -> EniDevice:
    """Makes the ENI's device, in a thread that is in the namespace; takes arp.PROBE_TIMEOUT on a shared segment.

    Raises AddressInUse (local there, routed to something else, or another host's on a segment), InvalidValue,
    DeviceError, PermissionMissing; then nothing is left of it. The descriptors are for the engine, then for the reaper,
    after `withdraw_eni()`. queues: how many the engine has workers; the device has them, or one. again: the
    addresses are this ENI's, whoever has made a route for them meanwhile.
    """
    tun.check_name(device)
    _check_addresses(namespace, addresses, again)
    clear = _places(addresses)
    if not again:
        _check_neighbours(clear)
    with ExitStack() as undo:
        fd, *more = tun.open_queues(device, queues)
        undo.callback(os.close, fd)
        for further in more:
            undo.callback(os.close, further)
        table = steering.steer(fd, addresses) if more else -1
        if table >= 0:
            more.append(table)
            undo.callback(os.close, table)
        shape = eni_shape(device, addresses, mtu)
        netlink.configure(device, mtu=mtu, address=None, routes=() if again else shape.routes)
        made = EniDevice(shape, fd, tuple(addresses), namespace.closed(), tuple(more), steered=table >= 0)
        undo.callback(made.withdraw)
        made.put_right(clear=clear)
        undo.pop_all()
    return made


def eni_shape(device: str, addresses: Sequence[IPv4Address], mtu: int) -> Shape:
    return Shape(device, None, mtu, tuple(IPv4Network(address) for address in addresses))


def adopt_eni(namespace: Namespace, *, device: str, fd: int, addresses: Sequence[IPv4Address], mtu: int) -> EniDevice:
    """A device that a predecessor of this process made; put_right() takes over what was set for it."""
    return EniDevice(eni_shape(device, addresses, mtu), fd, tuple(addresses), namespace.closed())


def clear_leftovers(namespace: Namespace, addresses: Sequence[IPv4Address]) -> None:
    """What a predecessor set for addresses whose device is no more, in a thread that is in the namespace."""
    for segment in segments.find(addresses):
        _remove_proxy(segment.device, segment.address)
        needed = _needed(segment.device)
        for setting in (forwarding(segment.device), proxy_delay(segment.device)):
            SETTINGS.release_inherited(namespace.key, setting, restore=not needed)


def withdraw_eni(eni: EniDevice, threads: NamespaceThreads) -> None:
    """Sets back everything but the device itself, which goes with its descriptor. In one of threads. Raises nothing."""
    if not eni.segments:
        return
    try:
        with ExitStack() as closing:
            fd = _namespace_fd(eni)
            closing.callback(os.close, fd)
            with threads.inside(fd):
                eni.withdraw()
    except (OSError, HyperplaneError):  # the namespace is gone, and with it what was set
        eni.forget()


def _namespace_fd(eni: EniDevice) -> int:
    """Also when the namespace has lost its name, or the device was deleted or moved away. Raises OSError,
    NamespaceNotFound."""
    with suppress(HyperplaneError):
        repair.check_place(eni.fd, eni.namespace.key)
        return tun.namespace_of(eni.fd)
    with open_namespace(eni.namespace.path or eni.namespace.name) as found:
        if found.key != eni.namespace.key:
            raise NamespaceNotFound(f"namespace {eni.namespace.name} is another one", resource=eni.namespace.name)
        return os.dup(found.fd)


def _check_addresses(namespace: Namespace, addresses: Sequence[IPv4Address], again: bool) -> None:
    """Raises AddressInUse, InvalidValue."""
    present = netlink.addresses()
    for address in addresses:
        for device, local, subnet in present:
            if address == local:
                message = f"{address} is the address of device {device} in namespace {namespace.name}"
                remedy = "give the ENI an address of its own"
                raise AddressInUse(message, resource=str(address), remedy=remedy)
            if subnet.prefixlen < 31 and address in (subnet.network_address, subnet.broadcast_address):
                limit = "a unicast address of one host"
                raise InvalidValue(
                    f"{address} is no host's in {subnet} on {device}", resource=str(address), limit=limit
                )
        if not again:
            _check_route(namespace, address)


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


def _places(addresses: Sequence[IPv4Address]) -> list[_Place]:
    return [_Place(one.device, one.link.index, one.address) for one in segments.find(addresses)]


def _check_neighbours(places: Sequence[_Place]) -> None:
    """Refuses an address that a host on a segment has (RFC 5227). Raises AddressInUse."""
    for device in dict.fromkeys(place.device for place in places):
        holders = _holders(device, tuple(place.address for place in places if place.device == device))
        for address, holder in holders.items():
            proxy = ", which answers for others (another ENI's host, or a router)" if holder.by_proxy else ""
            message = f"{address} is in use on {device} by {holder.mac}{proxy}"
            remedy = "reserve it in the subnet, or give another address"
            raise AddressInUse(message, resource=str(address), remedy=remedy)


def _holders(device: str, addresses: Sequence[IPv4Address]) -> dict[IPv4Address, arp.Holder]:
    """None where ARP is not permitted: then nobody can be asked, and put_right() says so."""
    try:
        return arp.probe(device, addresses)
    except PermissionMissing:
        return {}


def _remove_proxy(segment: str, address: IPv4Address) -> None:
    with suppress(OSError, HyperplaneError):  # the device is gone, and the neighbour with it
        netlink.remove_proxy(segment, address)


def _needed(segment: str) -> bool:
    """Whether an ENI of another process on the same segment needs its settings."""
    try:
        return bool(netlink.proxies(segment))
    except OSError:
        return False


def _index(device: str) -> int:
    """0 when there is no such device."""
    try:
        return socket.if_nametoindex(device)
    except OSError:
        return 0


def _name(index: int) -> str:
    """Empty when there is no such device."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""
