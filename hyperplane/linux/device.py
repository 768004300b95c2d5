"""An environment's TUN with its address and routes, made by one call of C: csrc/device.c says why."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from hyperplane._native import ffi, lib
from hyperplane.errors import DeviceError, HyperplaneError
from hyperplane.linux import netlink, tun
from hyperplane.linux.jobs import HalfWay
from hyperplane.linux.namespaces import descriptors_exhausted
from hyperplane.linux.reaper import Reaper


@dataclass(frozen=True, slots=True)
class Shape:
    """How an environment's device is set up, whichever namespace it is in."""

    device: str
    address: IPv4Address
    mtu: int
    routes: tuple[IPv4Network, ...]


@dataclass(frozen=True, slots=True)
class MadeDevice:
    """fd: its only descriptor. Seconds that the kernel took for opening it, and for MTU, address, up and routes."""

    fd: int
    opening: float
    configuring: float


def make_device(shape: Shape, reaper: Reaper) -> MadeDevice:
    """Makes it in the namespace of the calling thread, as tun.open_tun() and netlink.configure() would.

    Raises DeviceError, PermissionMissing; HalfWay with one of them once the device was made: then the reaper closes it.
    """
    tun.check_name(shape.device)
    batch = netlink.configuration(shape.mtu, shape.address, shape.routes)
    data, answers = bytearray(batch.data), bytearray(lib.HP_DEVICE_ANSWERS)
    places = _places(tuple(batch.places))
    with ffi.from_buffer("uint8_t[]", data) as messages, ffi.from_buffer("uint8_t[]", answers) as room:
        made = ffi.new(
            "hp_device *",
            {
                "name": shape.device.encode(),
                "offloads": tun.OFFLOADS,
                "batch": messages,
                "batch_length": len(data),
                "messages": batch.count,
                "places": places,
                "place_count": len(batch.places),
                "answers": room,
            },
        )
        failed = lib.hp_device_make(made)
    try:
        if failed:
            raise _failure(shape.device, made.step, made.error)
        refusals = netlink.refusals_in(bytes(answers[: made.answers_length]))
        netlink.check_configuration(shape.device, shape.mtu, shape.address, shape.routes, refusals)
    except HyperplaneError as error:
        if made.fd < 0:
            raise
        raise HalfWay(error, reaper.close(made.fd)) from None
    return MadeDevice(made.fd, made.opening_ns * 1e-9, made.configuring_ns * 1e-9)


@lru_cache(maxsize=256)
def _places(places: tuple[int, ...]) -> Any:
    return ffi.new("uint32_t[]", places)


def _failure(device: str, step: int, number: int) -> HyperplaneError:
    what = f"device {device}"
    if step == lib.HP_DEVICE_OPEN:
        return tun.open_error(device, number)
    if number in (errno.EMFILE, errno.ENFILE):
        return descriptors_exhausted(what)
    refused = "TUN header size" if step == lib.HP_DEVICE_HEADER else "netlink"
    return DeviceError(f"{what}: {refused} refused: {os.strerror(number)}", resource=what)
