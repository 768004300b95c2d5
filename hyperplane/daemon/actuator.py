"""Carries out what control decided about environments: devices in namespaces, links in the engine. Every method blocks:
for threads.

A link's id and name in the engine are the resource's id. Each method may be called again for what is done already: a
predecessor may have died half way.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import PurePath
from typing import Any

from msgspec.structs import replace

from hyperplane.control import Attach, TunnelSpec
from hyperplane.daemon.eni_actuator import EniActuator
from hyperplane.daemon.fresh import FreshNamespaces
from hyperplane.daemon.occupied import Occupied
from hyperplane.daemon.points import NO_POINTS, CommitPoints
from hyperplane.daemon.whereabouts import Found, ended, look, namespace_key
from hyperplane.errors import DeviceError, HyperplaneError, InvalidValue, ResourceConflict
from hyperplane.ipc.messages import LinkSpec
from hyperplane.ipc.remote import RemoteEngine
from hyperplane.linux.jobs import HalfWay
from hyperplane.linux.namespaces import Namespace, NamespaceThreads, open_namespace
from hyperplane.linux.reaper import Reaper
from hyperplane.linux.repair import DeviceLost, check_place, compare, put_right
from hyperplane.linux.tunnel import Shape, TunnelDevice, make_tunnel
from hyperplane.resources import Environment


@dataclass(frozen=True, slots=True)
class Attached:
    """An environment's tunnel. begun: when a thread took it on (time.perf_counter()); engine: seconds until the engine
    had answered."""

    device: TunnelDevice
    begun: float
    engine: float

    @property
    def namespace(self) -> Namespace | None:
        return self.device.namespace


class Actuator:
    def __init__(
        self,
        engine: RemoteEngine,
        threads: NamespaceThreads,
        reaper: Reaper,
        fresh: FreshNamespaces,
        enis: EniActuator,
        point: CommitPoints = NO_POINTS,
        name: Callable[[str], str] = str,
    ) -> None:
        """name: an environment's, by its id; it is called in threads."""
        self._engine = engine
        self._threads = threads
        self._reaper = reaper
        self._fresh = fresh
        self._point = point
        self._enis = enis
        self.occupied = Occupied(engine.link, name)

    # Environments

    def attach(
        self,
        action: Attach,
        device: TunnelDevice | None,
        check: Callable[[Namespace], None] | None = None,
        *,
        again: bool = False,
    ) -> Attached:
        """device: what was handed in. again: its routes go before those that others have made since. Raises what
        make_tunnel() and RemoteEngine.add() raise; HalfWay with one of these once the device was made. Then nothing is
        left of it."""
        begun = time.perf_counter()
        environment = action.environment
        if device is None and action.descriptor:
            raise InvalidValue("the descriptor is gone", resource=environment.id, remedy="start it again")
        if device is None:
            device = self._make(action, check, again=again)
        self._point("tunnel device made")
        asking = time.perf_counter()
        try:
            if device.namespace is None:
                self.occupied.take_device(device.fd, environment.id)
            self._engine.add(tunnel_link(environment.id, action.tunnel), device.fd)
        except BaseException as error:
            self.occupied.release(environment.id)
            raise HalfWay(error, self.discard(device, fresh=action.fresh)) from None
        engine = time.perf_counter() - asking
        self._point("tunnel told")
        return Attached(device, begun, engine)

    def _make(self, action: Attach, check: Callable[[Namespace], None] | None, *, again: bool) -> TunnelDevice:
        environment, wanted = action.environment, shape_of(action.tunnel)
        shape = replace(wanted, routes=()) if again else wanted
        try:
            # A fresh one that was attached before has a namespace.
            if target := action.namespace or environment.namespace:
                made = make_tunnel(
                    target,
                    shape,
                    self._threads,
                    self._reaper,
                    vpc=self._enis.vpc_key(environment.eni),
                    check=partial(self._check, check, environment),
                )
                if again and made.namespace:
                    self._finish(made, made.namespace, wanted)
                return made
            device = self._fresh.make(wanted, action.dns)
            if device.namespace:
                self.occupied.take_namespace(device.namespace, device.device, environment.id)
            return device
        except BaseException:
            self.occupied.release(environment.id)
            raise

    def _finish(self, made: TunnelDevice, namespace: Namespace, shape: Shape) -> None:
        """Raises HalfWay."""
        try:
            with open_namespace(namespace.path or namespace.name) as found, self._threads.inside(found.fd):
                put_right(made.fd, shape)
        except BaseException as error:
            raise HalfWay(error, self._reaper.close(made.fd)) from None

    def prepare(self, id_: str, tunnel: TunnelSpec, dns: tuple[IPv4Address, ...] = ()) -> Namespace:
        """A fresh namespace with the tunnel of an environment that has yet to come: nobody is in it. dns: the VPC's.
        Raises as attach()."""
        device = self._fresh.make(shape_of(tunnel), dns)
        assert device.namespace
        try:
            self.occupied.take_namespace(device.namespace, device.device, id_)
            self._engine.add(tunnel_link(id_, tunnel), device.fd)
        except BaseException as error:
            self.occupied.release(id_)
            raise HalfWay(error, self.discard(device, fresh=True)) from None
        self._point("tunnel prepared")
        return device.namespace

    def discard(self, device: TunnelDevice, *, fresh: bool) -> Future[None]:
        """A device that the engine does not have, and its namespace when that is fresh."""
        if device.namespace and fresh:
            with suppress(HyperplaneError):
                self._fresh.delete(device.namespace.name)
        return self._reaper.close(device.fd)

    def drain(self, environment: str, *, reset: bool) -> None:
        """Does nothing for one that has no tunnel. Raises EngineError."""
        if self._engine.link(environment):
            with suppress(InvalidValue):  # removed just now
                self._engine.drain(environment, reset)

    def detach(self, environment: str, namespace: str) -> Future[None] | None:
        """Removes the tunnel, and the namespace, a fresh one ("": none); whatever of it there is. What is returned is
        done when the device is gone. Raises EngineError, DeviceError, PermissionMissing."""
        fd = self._engine.remove(environment)
        self.occupied.release(environment)
        self._point("tunnel removed")
        try:
            if namespace:
                self._fresh.delete(PurePath(namespace).name)
        finally:
            closing = self._close(fd)
        return closing

    def inspect(
        self, action: Attach, kept: Mapping[str, Any], threads: NamespaceThreads, *, repair: bool = False
    ) -> Found:
        """What has become of an environment that was attached. kept: remembered() of it. threads: among which the
        calling one is. repair: puts right what others have changed of its device; one given by a descriptor is the
        platform's to set up. Raises HyperplaneError when it cannot be told."""
        environment = action.environment
        link = self._engine.link(environment.id)
        if not environment.namespace:
            if link is None:
                return Found("gone", "its descriptor was lost with the engine")
            if ended(kept):
                return Found("gone", f"process {environment.pid} ended")
            with suppress(ResourceConflict):  # one that an older version let in
                self.occupied.take_device(link.fd, environment.id)
            return Found("right") if namespace_key(link) else Found("gone", "its device was deleted")
        found = look(environment, kept, link)
        if found.namespace:
            with suppress(ResourceConflict):  # as above
                self.occupied.take_namespace(found.namespace, environment.device, environment.id)
        if found.state != "right" or link is None or found.namespace is None:
            return found
        return _compared(link.fd, shape_of(action.tunnel), found, threads, repair=repair)

    def number(self, environment: str) -> int | None:
        """Of the environment's link."""
        link = self._engine.link(environment)
        return link.number if link else None

    def _check(
        self, further: Callable[[Namespace], None] | None, environment: Environment, namespace: Namespace
    ) -> None:
        if namespace.key == self._threads.home:
            message = f"namespace {namespace.name} is the daemon's own"
            remedy = "give the environment's: its routes would become the host's"
            raise InvalidValue(message, resource=namespace.name, remedy=remedy, field="namespace")
        if namespace.pid == os.getpid():  # /dev/fd/3, for instance
            message = f"namespace {namespace.name} is a descriptor of the daemon"
            remedy = "give pid:N, or /proc/N/fd/F of your own process"
            raise InvalidValue(message, resource=namespace.name, remedy=remedy, field="namespace")
        if further:
            further(namespace)
        self.occupied.take_namespace(namespace, environment.device, environment.id)

    def _close(self, fd: int) -> Future[None] | None:
        return self._reaper.close(fd) if fd >= 0 else None


def _compared(fd: int, shape: Shape, found: Found, threads: NamespaceThreads, *, repair: bool) -> Found:
    """found, with what others have changed of the device. Raises HyperplaneError."""
    assert found.namespace
    try:
        with open_namespace(found.namespace.path or found.namespace.name) as namespace:
            check_place(fd, namespace.key)
            with threads.inside(namespace.fd):
                differences = put_right(fd, shape) if repair else compare(fd, shape).differences
    except DeviceLost as lost:
        return Found("missing", lost.message, found.namespace)
    except OSError as error:
        raise DeviceError(f"device {shape.device}: {error.strerror}", resource=shape.device) from None
    return Found("changed", "", found.namespace, tuple(differences)) if differences else found


def tunnel_link(id_: str, tunnel: TunnelSpec) -> LinkSpec:
    return LinkSpec(
        kind="tunnel",
        id=id_,
        name=id_,
        mtu=tunnel.mtu,
        eni=tunnel.eni,
        address=tunnel.inside_address,
        max_flows=tunnel.max_flows,
    )


def shape_of(tunnel: TunnelSpec) -> Shape:
    address = None if tunnel.routed else tunnel.inside_address
    return Shape(tunnel.device, address, tunnel.mtu, tunnel.routes, tunnel.routed)
