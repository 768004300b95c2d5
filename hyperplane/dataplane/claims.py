"""The links that an engine knows, and those that a successor finds in inherited regions and takes over."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv4Address
from typing import Any, get_args

from hyperplane._native import ffi, lib
from hyperplane.dataplane import checks, native
from hyperplane.dataplane.config import EngineConfig
from hyperplane.dataplane.handle import Handle
from hyperplane.dataplane.links import Eni, Link, Tunnel
from hyperplane.errors import AddressInUse, InvalidValue
from hyperplane.model import SecurityGroup, Timers, UdpMapping

# RFC 791 section 3.1: every host takes 576 bytes; a link of less would make nonsense of the MSS clamp.
LEAST_MTU, LARGEST_MTU = 576, 65535
DESCRIPTORS = 0x7FFFFFFF


class Linked(Handle):
    """Links by number, with their names and rules."""

    def __init__(self, config: EngineConfig, make: Callable[[Any, Any], Any]) -> None:
        self._links: dict[int, Link] = {}
        self._taken: set[tuple[Eni, str]] = set()  # names of tunnels: attaching takes as long with 10,000 as with one
        super().__init__(config, make)

    def set_security_groups(self, eni: Eni, groups: Iterable[SecurityGroup]) -> None:
        """Replaces the ENI's rules at once. They are evaluated when a flow begins: flows that exist go on."""
        with self._open() as engine:
            self._known(eni, Eni)
            checked = checks.groups(f"security groups of ENI {eni.name}", groups)
            table, count = native.rule_table(rule for group in checked for rule in group.rules)
            if lib.hp_eni_rules(engine, eni.number, table, count, self._error):
                native.fail(self._error, f"ENI {eni.name}")
            eni._groups[:] = checked

    @property
    def enis(self) -> tuple[Eni, ...]:
        with self._lock:
            return tuple(link for link in self._links.values() if isinstance(link, Eni))

    @property
    def tunnels(self) -> tuple[Tunnel, ...]:
        with self._lock:
            return tuple(link for link in self._links.values() if isinstance(link, Tunnel))

    # Links of inherited regions

    def claim_eni(
        self,
        number: int,
        addresses: str | IPv4Address | Iterable[str | IPv4Address],
        *,
        name: str,
        fd: int = -1,
        mtu: int = 1500,
        security_groups: Iterable[SecurityGroup] = (),
        timers: Timers = Timers(),
        udp_mapping: UdpMapping = "endpoint-independent",
        silent: bool = False,
        queues: Sequence[int] = (),
        steering: int = -1,
    ) -> Eni:
        """Takes over an ENI that exists in inherited regions: its flows go on.

        addresses are those that it has, in their order; everything else may differ from what it was and holds from now
        on, as in add_eni(). Raises InvalidValue, NotATunnel, DeviceError, and EngineError when there is no such ENI to
        claim.
        """
        checks.integer("number of an ENI", number, 1, lib.HP_MAX_LINKS)
        what, config, checked = eni_config(name, addresses, fd, mtu, timers, udp_mapping, silent, queues, steering)
        groups = checks.groups(f"security groups of {what}", security_groups)
        with self._open() as engine:
            if lib.hp_eni_claim(engine, number, config, fd, self._error) < 0:
                native.fail(self._error, what, device=fd >= 0)
            eni = Eni(number, name, checked, mtu, timers, udp_mapping, silent, [])
            self._add(eni)
            self.set_security_groups(eni, groups)
        return eni

    def claim_tunnel(
        self,
        number: int,
        eni: Eni,
        *,
        name: str,
        address: str | IPv4Address,
        fd: int = -1,
        mtu: int = 1500,
        max_flows: int = 0,
    ) -> Tunnel:
        """Takes over a tunnel that exists in inherited regions: its flows go on.

        eni and address are those that it has; the ENI is claimed first. Raises as add_tunnel() does, and EngineError
        when there is no such tunnel to claim.
        """
        checks.integer("number of a tunnel", number, 1, lib.HP_MAX_LINKS)
        what, config, checked = tunnel_config(name, address, fd, mtu, max_flows)
        with self._open() as engine:
            config.eni = self._free_for(eni, name, checked)
            if lib.hp_tunnel_claim(engine, number, config, fd, self._error) < 0:
                native.fail(self._error, what, device=fd >= 0)
            tunnel = Tunnel(number, name, eni, checked, mtu, max_flows)
            self._add(tunnel)
        return tunnel

    def abandon_unclaimed(self) -> int:
        """Removes every link of inherited regions that nobody has claimed, with its flows; returns how many."""
        with self._open() as engine:
            count = lib.hp_engine_abandon(engine, self._error)
            if count < 0:
                native.fail(self._error, "engine")
            return count

    # Within

    def _known(self, link: Any, kinds: Any) -> Any:
        if not isinstance(link, kinds):
            raise InvalidValue(
                f"{link!r} is no link of the kind needed here", remedy="give what add_eni or add_tunnel gave"
            )
        if self._links.get(link.number) is not link:
            remedy = "it has been removed, or belongs to another engine"
            raise InvalidValue(f"{link.name} is not a link of this engine", resource=link.name, remedy=remedy)
        return link

    def _free_for(self, eni: Eni, name: str, address: IPv4Address) -> int:
        """The ENI's number, when a tunnel of that name and address can be its."""
        number: int = self._known(eni, Eni).number
        what = f"tunnel {name}"
        if address in eni.addresses:
            remedy = "give the environment another inside address"
            raise AddressInUse(f"{what}: {address} is an address of ENI {eni.name}", resource=what, remedy=remedy)
        if (eni, name) in self._taken:
            remedy = "give each tunnel of an ENI its own name"
            raise InvalidValue(f"{what}: ENI {eni.name} has one of that name", resource=what, remedy=remedy)
        return number

    def _add(self, link: Link) -> None:
        self._links[link.number] = link
        self._names.note(link.number, lib.hp_link_since(self._engine, link.number), link.name)
        if isinstance(link, Tunnel):
            self._taken.add((link.eni, link.name))


def eni_config(
    name: str,
    addresses: str | IPv4Address | Iterable[str | IPv4Address],
    fd: int,
    mtu: int,
    timers: Timers,
    udp_mapping: UdpMapping,
    silent: bool,
    queues: Sequence[int],
    steering: int,
) -> tuple[str, Any, tuple[IPv4Address, ...]]:
    """What it is called in errors, hp_eni_config *, and its addresses; everything checked."""
    checks.name("ENI name", name)
    what = f"ENI {name}"
    config = ffi.new("hp_eni_config *")
    checked = checks.addresses(f"address of {what}", addresses)
    config.addresses = [int(address) for address in checked] + [0] * (lib.HP_ENI_ADDRESSES - len(checked))
    config.address_count = len(checked)
    config.mtu = checks.integer(f"MTU of {what}", mtu, LEAST_MTU, LARGEST_MTU)
    config.udp_mapping = native.UDP_MAPPINGS[checks.choice(f"UDP mapping of {what}", udp_mapping, get_args(UdpMapping))]
    config.silent = checks.instance(f"silent of {what}", silent, bool)
    native.set_timers(config.timers, checks.instance(f"timers of {what}", timers, Timers))
    checks.integer(f"descriptor of {what}", fd, -1, DESCRIPTORS)
    checks.integer(f"number of further queues of {what}", len(queues), 0, lib.HP_MAX_WORKERS - 1)
    config.queue_count = len(queues)
    for place, queue in enumerate(queues):
        config.queues[place] = checks.integer(f"descriptor of a queue of {what}", queue, 0, DESCRIPTORS)
    config.steered = checks.integer(f"steering of {what}", steering, -1, DESCRIPTORS) >= 0
    config.steering = steering
    return what, config, checked


def tunnel_config(
    name: str, address: str | IPv4Address, fd: int, mtu: int, max_flows: int, trusted: bool = False
) -> tuple[str, Any, IPv4Address]:
    """What it is called in errors, hp_tunnel_config * without the ENI, and its address; everything checked."""
    checks.name("tunnel name", name)
    what = f"tunnel {name}"
    config = ffi.new("hp_tunnel_config *")
    checked = checks.unicast(f"address of {what}", address)
    config.address = int(checked)
    config.mtu = checks.integer(f"MTU of {what}", mtu, LEAST_MTU, LARGEST_MTU)
    config.max_flows = checks.integer(f"max_flows of {what}", max_flows, 0, lib.HP_MAX_FLOWS)
    config.trusted = checks.instance(f"trusted of {what}", trusted, bool)
    checks.integer(f"descriptor of {what}", fd, -1, DESCRIPTORS)
    return what, config, checked
