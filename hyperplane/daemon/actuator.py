"""Carries out what control decided about environments: devices in namespaces, links in the engine. Every method blocks:
for threads.

A link's id and name in the engine are the resource's id. Each method may be called again for what is done already: a
predecessor may have died half way.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import PurePath
from typing import Any, Literal

from hyperplane.control import Attach, TunnelSpec
from hyperplane.daemon.eni_actuator import EniActuator, namespace_key
from hyperplane.daemon.fresh import FreshNamespaces
from hyperplane.daemon.points import NO_POINTS, CommitPoints
from hyperplane.errors import DeviceError, HyperplaneError, InvalidValue, NamespaceNotFound, ResourceConflict
from hyperplane.ipc.messages import LinkSpec
from hyperplane.ipc.remote import RemoteEngine
from hyperplane.linux import tun
from hyperplane.linux.jobs import HalfWay
from hyperplane.linux.namespaces import Key, Namespace, NamespaceThreads, key_of, open_namespace
from hyperplane.linux.reaper import Reaper
from hyperplane.linux.repair import DeviceLost, Difference, check_place, compare, put_right
from hyperplane.linux.tunnel import Shape, TunnelDevice, make_tunnel
from hyperplane.resources import Environment

_Place = tuple[Key, str]  # a namespace, and the name of a device in it


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


@dataclass(frozen=True, slots=True)
class Condition:
    """What has become of an environment. missing: its device or link, while its namespace lives; reason says how.
    changed: others have changed what differences say. namespace: as it was found."""

    state: Literal["right", "changed", "missing", "gone"]
    reason: str = ""
    namespace: Namespace | None = None
    differences: tuple[Difference, ...] = ()


class Actuator:
    def __init__(
        self,
        engine: RemoteEngine,
        threads: NamespaceThreads,
        reaper: Reaper,
        fresh: FreshNamespaces,
        enis: EniActuator,
        point: CommitPoints = NO_POINTS,
    ) -> None:
        self._engine = engine
        self._threads = threads
        self._reaper = reaper
        self._fresh = fresh
        self._point = point
        self._enis = enis
        self._lock = threading.Lock()
        self._given: dict[_Place, str] = {}  # devices that came by a descriptor, and the environment that each is of

    # Environments

    def attach(
        self, action: Attach, device: TunnelDevice | None, check: Callable[[Namespace], None] | None = None
    ) -> Attached:
        """device: what was handed in. Raises what make_tunnel() and RemoteEngine.add() raise;
        HalfWay with one of these once the device was made. Then nothing is left of it."""
        begun = time.perf_counter()
        environment = action.environment
        if device is None and action.descriptor:
            raise InvalidValue("the descriptor is gone", resource=environment.id, remedy="start it again")
        if device is None:
            shape = shape_of(action.tunnel)
            # A fresh one that was attached before has a namespace.
            if target := action.namespace or environment.namespace:
                vpc = self._enis.vpc_key(environment.eni)
                device = make_tunnel(
                    target, shape, self._threads, self._reaper, vpc=vpc, check=partial(self._check, check)
                )
            else:
                device = self._fresh.make(shape)
        self._point("tunnel device made")
        asking = time.perf_counter()
        try:
            if device.namespace is None:
                self.recall(environment.id, device.fd)
            self._engine.add(tunnel_link(environment.id, action.tunnel), device.fd)
        except BaseException as error:
            self._forget(environment.id, device.fd)
            raise HalfWay(error, self.discard(device, fresh=action.fresh)) from None
        engine = time.perf_counter() - asking
        self._point("tunnel told")
        return Attached(device, begun, engine)

    def prepare(self, id_: str, tunnel: TunnelSpec) -> Namespace:
        """A fresh namespace with the tunnel of an environment that has yet to come: nobody is in it. Raises as
        attach()."""
        device = self._fresh.make(shape_of(tunnel))
        assert device.namespace
        try:
            self._engine.add(tunnel_link(id_, tunnel), device.fd)
        except BaseException as error:
            raise HalfWay(error, self.discard(device, fresh=True)) from None
        self._point("tunnel prepared")
        return device.namespace

    def recall(self, environment: str, fd: int) -> None:
        """The device that was handed in for this environment. Raises ResourceConflict when another one has it too: each
        would read some of its packets."""
        place = _place(fd)
        if place is None:  # it is gone: the engine says so
            return
        with self._lock:
            holder = self._given.get(place, environment)
            link = self._engine.link(holder) if holder != environment else None
            if link and _place(link.fd) == place:
                message = f"device {place[1]} is the tunnel of environment {holder} already"
                remedy = "delete that one first, or open another TUN"
                raise ResourceConflict(message, resource=place[1], remedy=remedy, field="descriptor")
            self._given[place] = environment

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
        self._forget(environment, fd)
        self._point("tunnel removed")
        try:
            if namespace:
                self._fresh.delete(PurePath(namespace).name)
        finally:
            closing = self._close(fd)
        return closing

    def inspect(
        self, action: Attach, expected: Key | None, threads: NamespaceThreads, *, repair: bool = False
    ) -> Condition:
        """What has become of an environment that was attached. expected: the namespace that it was attached in.
        threads: among which the calling one is. repair: puts right what others have changed of its device; one given by
        a descriptor is the platform's to set up."""
        environment = action.environment
        link = self._engine.link(environment.id)
        key = namespace_key(link) if link else None
        if not environment.namespace:
            if link is None:
                return Condition("gone", "its descriptor was lost with the engine")
            with suppress(ResourceConflict):  # one that an older version let in
                self.recall(environment.id, link.fd)
            return Condition("right") if key else Condition("gone", "its device was deleted")
        try:
            with open_namespace(environment.namespace) as namespace:
                found = namespace.closed()
                if expected and found.key != expected:
                    return Condition("gone", gone(environment))
                if link is None:
                    return Condition("missing", "missing", found)
                return _look(link.fd, shape_of(action.tunnel), namespace, threads, repair=repair)
        except NamespaceNotFound:
            return Condition("gone", gone(environment))

    def number(self, environment: str) -> int | None:
        """Of the environment's link."""
        link = self._engine.link(environment)
        return link.number if link else None

    def _forget(self, environment: str, fd: int) -> None:
        """What recall() has noted."""
        if self._given and fd >= 0 and (place := _place(fd)):
            with self._lock:
                if self._given.get(place) == environment:
                    del self._given[place]

    def _check(self, further: Callable[[Namespace], None] | None, namespace: Namespace) -> None:
        if namespace.key == self._threads.home:
            message = f"namespace {namespace.name} is the daemon's own"
            remedy = "give the environment's: its routes would become the host's"
            raise InvalidValue(message, resource=namespace.name, remedy=remedy, field="namespace")
        if further:
            further(namespace)

    def _close(self, fd: int) -> Future[None] | None:
        return self._reaper.close(fd) if fd >= 0 else None


def _look(fd: int, shape: Shape, namespace: Namespace, threads: NamespaceThreads, *, repair: bool) -> Condition:
    """Raises HyperplaneError."""
    found = namespace.closed()
    try:
        check_place(fd, namespace.key)
        with threads.inside(namespace.fd):
            differences = put_right(fd, shape) if repair else compare(fd, shape).differences
    except DeviceLost as lost:
        return Condition("missing", lost.message, found)
    except OSError as error:
        raise DeviceError(f"device {shape.device}: {error.strerror}", resource=shape.device) from None
    return Condition("changed" if differences else "right", "", found, tuple(differences))


def gone(environment: Environment) -> str:
    """Why one has ended whose namespace cannot be found any more."""
    if environment.pid:
        return f"process {environment.pid} ended"
    return f"namespace {environment.namespace} was deleted"


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


def remembered(namespace: Namespace | None) -> dict[str, Any] | None:
    """What is kept with an environment, to tell its namespace from a later one of the same name or process number."""
    return {"netns": list(namespace.key)} if namespace else None


def _place(fd: int) -> _Place | None:
    """The device behind a descriptor; None when it is gone."""
    try:
        name, _ = tun.device_of(fd)
        namespace = tun.namespace_of(fd)
    except OSError:
        return None
    try:
        return key_of(namespace), name
    finally:
        os.close(namespace)
