"""An environment's tunnel device: a TUN in its namespace with address and routes, or one that a platform hands in."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from hyperplane.errors import InvalidValue
from hyperplane.linux import tun
from hyperplane.linux.device import MadeDevice, Shape, make_device
from hyperplane.linux.namespaces import Key, Namespace, NamespaceThreads, open_namespace
from hyperplane.linux.reaper import Reaper

__all__ = ["Shape", "TunnelDevice", "build_tunnel", "make_tunnel", "take_tunnel"]


class TunnelDevice(Struct, frozen=True):
    """A made device; fd is its only descriptor, or with namespace None a duplicate of the platform's.

    opened: seconds for finding and entering the namespace and opening the TUN; configured: for MTU, address, up and
    routes; kernel: of both, those inside system calls.
    """

    fd: int
    device: str
    namespace: Namespace | None
    opened: float = 0.0
    configured: float = 0.0
    kernel: float = 0.0


def make_tunnel(
    target: str | int | Path,
    shape: Shape,
    threads: NamespaceThreads,
    reaper: Reaper,
    *,
    vpc: Key | None = None,
    check: Callable[[Namespace], None] | None = None,
) -> TunnelDevice:
    """Makes the device in an existing namespace (as for `open_namespace()`).

    The calling thread is one of threads, or another one in their home. vpc: the namespace that it must not be. check:
    raises for one that may not be used. Raises NamespaceNotFound, InvalidValue, DeviceError, PermissionMissing; HalfWay
    with one of them once the device was made: then the reaper closes it.
    """
    begun = time.perf_counter()
    with open_namespace(target) as namespace:
        if namespace.key == vpc:
            message = f"namespace {namespace.name} is the VPC's"
            raise InvalidValue(message, resource=namespace.name, remedy="give the environment's own")
        if check:
            check(namespace)
        made = make_device(shape, reaper, environment=namespace.fd, home=threads.home_fd)
    return _tunnel(made, namespace.closed(), shape, begun, 0.0)


def build_tunnel(namespace: Namespace, shape: Shape, reaper: Reaper, *, begun: float, entered: float) -> TunnelDevice:
    """The device in the namespace that the calling thread is in. begun: when, by time.perf_counter(); entered: seconds
    that getting there took the kernel. Raises as make_tunnel()."""
    return _tunnel(make_device(shape, reaper), namespace, shape, begun, entered)


def _tunnel(made: MadeDevice, namespace: Namespace, shape: Shape, begun: float, entered: float) -> TunnelDevice:
    spent = time.perf_counter() - begun
    kernel = entered + made.opening + made.configuring
    return TunnelDevice(made.fd, shape.device, namespace, spent - made.configuring, made.configuring, kernel)


def take_tunnel(fd: int) -> TunnelDevice:
    """A device that a platform has opened and set up; fd stays its own. Raises InvalidValue, NotATunnel."""
    begun = time.perf_counter()
    copy = tun.adopt_tun(fd)
    spent = time.perf_counter() - begun
    return TunnelDevice(copy, tun.device_of(copy)[0], None, spent, 0.0, spent)
