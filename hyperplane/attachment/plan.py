"""What `attach()` is asked for: its values checked."""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

from msgspec import Struct

from hyperplane.dataplane import Eni, checks
from hyperplane.errors import AddressInUse, InvalidValue
from hyperplane.linux import tun
from hyperplane.linux.namespaces import Key
from hyperplane.linux.tunnel import Shape

LEAST_MTU, LARGEST_MTU = 576, 65535  # RFC 1122 section 3.3.3; the most a TUN takes
MOST_ROUTES: Final = 64  # the kernel's answers to one batch must fit a socket buffer


class Plan(Struct, frozen=True):
    """A start, checked. vpc: the key of the ENI's namespace. asked: when, by time.perf_counter()."""

    eni: Eni
    vpc: Key
    target: str | int | Path
    by_descriptor: bool
    name: str | None
    address: IPv4Address
    shape: Shape
    max_flows: int
    asked: float


def plan_of(
    eni: Eni,
    vpc: Key,
    *,
    namespace: str | Path | None,
    pid: int | None,
    fd: int | None,
    name: str | None,
    address: str | IPv4Address,
    routed: bool,
    device: str,
    mtu: int,
    routes: Iterable[str | IPv4Network],
    max_flows: int,
) -> Plan:
    """The arguments of `Attachments.attach()`. Raises InvalidValue, AddressInUse."""
    asked = time.perf_counter()
    targets = [one for one in (namespace, pid, fd) if one is not None]
    if len(targets) != 1:
        raise InvalidValue("attach() needs exactly one of namespace, pid and fd", resource="environment")
    inside, shape = _shape(device, address, mtu, _tuple(routes), bool(routed))
    if inside in eni.addresses:
        remedy = "give the environment another inside address"
        raise AddressInUse(f"inside address {inside} is an address of ENI {eni.name}", remedy=remedy)
    return Plan(
        eni=eni,
        vpc=vpc,
        target=targets[0] if pid is None else checks.integer("pid", pid, 1, 1 << 22),
        by_descriptor=fd is not None,
        name=None if name is None else checks.name("tunnel name", name),
        address=inside,
        shape=shape,
        max_flows=max_flows,
        asked=asked,
    )


def _shape(
    device: str, address: str | IPv4Address, mtu: int, routes: tuple[str | IPv4Network, ...], routed: bool
) -> tuple[IPv4Address, Shape]:
    """The inside address, and how the device is set up."""
    try:
        return _known_shape(device, address, mtu, routes, routed)
    except TypeError:  # what has no hash is no value either: this says which
        return _checked_shape(device, address, mtu, routes, routed)


def _checked_shape(
    device: str, address: str | IPv4Address, mtu: int, routes: tuple[str | IPv4Network, ...], routed: bool
) -> tuple[IPv4Address, Shape]:
    name, inside = tun.check_name(device), checks.unicast("inside address", address)
    return inside, Shape(
        device=name,
        address=None if routed else inside,
        mtu=checks.integer("MTU of the tunnel", mtu, LEAST_MTU, LARGEST_MTU),
        routes=tuple(_network(route) for route in routes),
        forwards=routed,
    )


_known_shape = lru_cache(maxsize=256, typed=True)(_checked_shape)  # environments have few


def _tuple(routes: Iterable[str | IPv4Network]) -> tuple[str | IPv4Network, ...]:
    if isinstance(routes, str):
        raise InvalidValue(f"routes are {routes!r}", resource="routes", remedy="give a list of networks")
    given = tuple(routes)
    if len(given) > MOST_ROUTES:
        raise InvalidValue(f"{len(given)} routes", resource="routes", limit=f"{MOST_ROUTES} routes of one device")
    return given


def _network(route: str | IPv4Network) -> IPv4Network:
    try:
        return IPv4Network(route)
    except (ValueError, TypeError) as error:
        raise InvalidValue(f"route: {error}", resource="route", remedy="give networks such as 198.19.0.0/16") from None
