"""An environment's TUN with its address and routes, made by one call of C: csrc/device.c says why."""

from __future__ import annotations

import errno
import os
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from msgspec import Struct

from hyperplane._native import ffi, lib
from hyperplane.errors import DeviceError, HyperplaneError
from hyperplane.linux import netlink, rtnl, tun
from hyperplane.linux.jobs import HalfWay
from hyperplane.linux.namespaces import descriptors_exhausted, entry_refused
from hyperplane.linux.reaper import Reaper


class Shape(Struct, frozen=True):
    """How a device is set up, whichever namespace it is in.

    address None: an ENI's, to which its addresses are routed, or an environment's where what is behind the namespace
    has the address, a microVM's guest for instance. forwards: whether net.ipv4.conf.DEVICE.forwarding must be 1.
    """

    device: str
    address: IPv4Address | None
    mtu: int
    routes: tuple[IPv4Network, ...]
    forwards: bool = False


class MadeDevice(Struct, frozen=True):
    """fd: its only descriptor. Seconds that the kernel took for opening it, and for MTU, address, up and routes."""

    fd: int
    opening: float
    configuring: float


def make_device(shape: Shape, reaper: Reaper, *, environment: int = -1, home: int = -1) -> MadeDevice:
    """Makes it in a network namespace, as tun.open_tun() and netlink.configure() would.

    environment, home: descriptors of that namespace and of the calling thread's own, where it is when this returns;
    without them it is made in the latter. Raises DeviceError, PermissionMissing; HalfWay with one of them once the
    device was made: then the reaper closes it.
    """
    template, _ = _template(shape)
    made = ffi.new("hp_device *", template[0])
    made.environment = environment
    made.home = home
    try:
        if lib.hp_device_make(made):
            raise _failure(shape.device, made.step, made.error)
        if made.refusals_length:
            refusals = netlink.refusals_in(bytes(ffi.buffer(made.refusals, made.refusals_length)))
            netlink.check_configuration(
                shape.device, shape.mtu, shape.address, shape.routes, refusals, routed=shape.forwards
            )
    except BaseException as error:
        if made.fd < 0:
            raise
        raise HalfWay(error, reaper.close(made.fd)) from None
    return MadeDevice(made.fd, made.opening_ns * 1e-9, made.configuring_ns * 1e-9)


@lru_cache(maxsize=256)  # environments have few shapes
def _template(shape: Shape) -> tuple[Any, tuple[Any, ...]]:
    """hp_device * without its namespace, and what it points to."""
    batch = rtnl.configuration(shape.mtu, shape.address, shape.routes, routed=shape.forwards)
    messages, places = ffi.new("uint8_t[]", bytes(batch.data)), ffi.new("uint32_t[]", batch.places)
    values = {
        "name": tun.check_name(shape.device).encode(),
        "offloads": tun.OFFLOADS,
        "batch": messages,
        "batch_length": len(batch.data),
        "messages": batch.count,
        "places": places,
        "place_count": len(batch.places),
    }
    return ffi.new("hp_device *", values), (messages, places)


def _failure(device: str, step: int, number: int) -> HyperplaneError:
    what = f"device {device}"
    if step == lib.HP_DEVICE_ENTER:
        return entry_refused(number)
    if step == lib.HP_DEVICE_OPEN:
        return tun.open_error(device, number)
    if number in (errno.EMFILE, errno.ENFILE):
        return descriptors_exhausted(what)
    return DeviceError(f"{what}: netlink refused: {os.strerror(number)}", resource=what)
