"""A device of ours compared with what it must be, and put right: name, MTU, address, up, routes.

One description for an ENI's device and an environment's, `Shape`: what the device was made by is what it is compared
with, at every look. What is right is not touched, and what others have added to it stays.
"""

from __future__ import annotations

import os
from ipaddress import IPv4Address, IPv4Network
from typing import NamedTuple

from hyperplane.errors import DeviceError, HyperplaneError
from hyperplane.linux import netlink, seen, tun
from hyperplane.linux.device import Shape
from hyperplane.linux.namespaces import Key, key_of
from hyperplane.linux.settings import forwarding

DELETED = "deleted"
MOVED = "moved to another namespace"


class Difference(NamedTuple):
    """what: "MTU", "route 0.0.0.0/0", or a sysctl's name, say. found, wanted: in words or values."""

    what: str
    found: str
    wanted: str


class Report(NamedTuple):
    """What one look came to. differences: what was put right. troubles: what could not be, in words for the operator.
    again: seconds until one more look is needed whatever happens, None for none."""

    differences: tuple[Difference, ...] = ()
    troubles: tuple[str, ...] = ()
    again: float | None = None


class DeviceLost(HyperplaneError):
    """The device behind a descriptor is gone from its namespace; .message is DELETED or MOVED."""


def check_place(fd: int, key: Key) -> None:
    """Whether the device of a TUN descriptor is in the namespace with that key. Raises DeviceLost."""
    try:
        namespace = tun.namespace_of(fd)
    except OSError:
        raise DeviceLost(DELETED) from None
    try:
        found = key_of(namespace)
    finally:
        os.close(namespace)
    if found != key:
        raise DeviceLost(MOVED)


class Comparison(NamedTuple):
    """What compare() found, and what repairs it."""

    link: seen.Link
    differences: tuple[Difference, ...]
    mtu: int
    address: IPv4Address | None
    forwards: bool
    routes: tuple[IPv4Network, ...]


def compare(fd: int, shape: Shape) -> Comparison:
    """The device of a TUN descriptor with what shape says, in a thread that is in its namespace; changes nothing.

    Raises DeviceLost, OSError.
    """
    try:
        name, _ = tun.device_of(fd)
    except OSError:
        raise DeviceLost(DELETED) from None
    link = seen.link(name)
    if link is None:
        raise DeviceLost(DELETED)
    return compare_link(link, shape)


def compare_link(link: seen.Link, shape: Shape) -> Comparison:
    """As compare(), for a device that was found otherwise."""
    differences = []
    if link.name != shape.device:
        differences.append(Difference("name", link.name, shape.device))
    if link.mtu != shape.mtu:
        differences.append(Difference("MTU", str(link.mtu), str(shape.mtu)))
    address = shape.address if shape.address and shape.address not in seen.addresses(link.index) else None
    if address:
        differences.append(Difference(f"address {address}", "missing", "set"))
    forwards = shape.forwards and not link.forwards
    if forwards:
        differences.append(Difference(forwarding(shape.device).name, "0", "1"))
    if not link.up:
        differences.append(Difference("link", "down", "up"))
    present = {(one.network, one.source) for one in seen.routes(link.index) if one.direct and not one.metric}
    routes = tuple(one for one in shape.routes if (one, shape.address) not in present)
    differences += [Difference(f"route {one}", "missing", "set") for one in routes]
    return Comparison(link, tuple(differences), shape.mtu if link.mtu != shape.mtu else 0, address, forwards, routes)


def put_right(fd: int, shape: Shape) -> list[Difference]:
    """Makes the device of a TUN descriptor what shape says, in a thread that is in its namespace; returns what was not.

    Raises DeviceLost, DeviceError, PermissionMissing.
    """
    try:
        found = compare(fd, shape)
        differences = list(found.differences)
        if found.link.name != shape.device:
            netlink.rename(found.link.index, shape.device)  # it is down then, and its routes are gone
            found = compare(fd, shape)
        if found.mtu or found.address or found.forwards or found.routes or not found.link.up:
            netlink.repair(
                shape.device,
                found.link.index,
                mtu=found.mtu,
                address=found.address,
                forwards=found.forwards,
                up=not found.link.up,
                routes=found.routes,
                source=shape.address,
            )
    except OSError as error:
        raise DeviceError(f"device {shape.device}: {os.strerror(error.errno or 0)}", resource=shape.device) from None
    return differences
