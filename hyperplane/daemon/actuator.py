"""Carries out what control decided: devices in namespaces, links in the engine. Every method blocks: for threads.

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
from ipaddress import IPv4Address
from pathlib import PurePath
from typing import Any

from msgspec.structs import replace

from hyperplane.control import Attach, MakeEni, RemoveEni, TunnelSpec, UpdateEni
from hyperplane.daemon.fresh import FreshNamespaces
from hyperplane.daemon.points import NO_POINTS, CommitPoints
from hyperplane.errors import HyperplaneError, InvalidValue, ResourceConflict
from hyperplane.ipc.messages import LinkSpec
from hyperplane.ipc.mirror import Link
from hyperplane.ipc.remote import RemoteEngine
from hyperplane.linux import tun
from hyperplane.linux.eni import EniDevice, adopt_eni, clear_leftovers, create_eni, withdraw_eni
from hyperplane.linux.jobs import HalfWay
from hyperplane.linux.namespaces import Key, Namespace, NamespaceThreads, key_of, open_namespace
from hyperplane.linux.reaper import Reaper, close_all
from hyperplane.linux.tunnel import Shape, TunnelDevice, make_tunnel
from hyperplane.model import SecurityGroup
from hyperplane.resources import Eni

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


class Actuator:
    def __init__(
        self,
        engine: RemoteEngine,
        threads: NamespaceThreads,
        reaper: Reaper,
        fresh: FreshNamespaces,
        point: CommitPoints = NO_POINTS,
    ) -> None:
        self._engine = engine
        self._threads = threads
        self._reaper = reaper
        self._fresh = fresh
        self._point = point
        self._enis: dict[str, EniDevice] = {}
        self._lock = threading.Lock()
        self._given: dict[_Place, str] = {}  # devices that came by a descriptor, and the environment that each is of

    # ENIs

    def make_eni(self, action: MakeEni) -> Namespace:
        """The VPC's namespace, closed. Raises what open_namespace(), create_eni() and RemoteEngine.add() raise; HalfWay
        with one of these once the device was made."""
        eni = action.eni
        if found := self.adopt_eni(eni, action.namespace):
            return found
        if self._engine.link(eni.id):
            self._close(self._engine.remove(eni.id))
        with open_namespace(action.namespace) as namespace, self._threads.inside(namespace.fd):
            workers = int(self._engine.config.get("workers", 1))
            made = create_eni(namespace, device=eni.device, addresses=eni.addresses, mtu=eni.mtu, queues=workers)
        self._point("eni device made")
        try:
            spec = replace(eni_spec(action), queues=made.queues, steered=made.steered)
            self._engine.add(spec, made.fd, made.more)
        except BaseException as error:
            withdraw_eni(made, self._threads)
            close_all(made.more)
            raise HalfWay(error, self._reaper.close(made.fd)) from None
        self._point("eni told")
        self._enis[eni.id] = made
        return made.namespace

    def adopt_eni(self, eni: Eni, namespace: str) -> Namespace | None:
        """Takes over an ENI that a predecessor made; None when there is none, or it is not as it should be."""
        link = self._engine.link(eni.id)
        if link is None or link.spec.addresses != eni.addresses:
            return None
        with suppress(OSError, HyperplaneError):
            device, _ = tun.device_of(link.fd)
            with open_namespace(namespace) as found:
                if device != eni.device or found.key != namespace_key(link):
                    return None
                if eni.id not in self._enis:
                    with self._threads.inside(found.fd):
                        self._enis[eni.id] = adopt_eni(found, device=device, fd=link.fd, addresses=eni.addresses)
                return found.closed()
        return None

    def remake_eni(self, action: MakeEni) -> Namespace:
        """For one whose device is no more: makes it anew, and puts the tunnels that are on it onto the new one.

        Their flows are lost. A tunnel that the engine refuses is gone. Raises as make_eni(); then all are gone.
        """
        id_ = action.eni.id
        tunnels = [link for link in self._engine.links() if link.spec.eni == id_]
        held = [(link.spec, self._engine.remove(link.spec.id)) for link in tunnels]
        self._enis.pop(id_, None)
        try:
            namespace = self.make_eni(action)
            while held:
                spec, fd = held[-1]
                try:
                    self._engine.add(spec, fd)
                except HyperplaneError:
                    self._close(fd)
                held.pop()
        finally:
            for _, fd in held:
                self._close(fd)
        return namespace

    def remove_stranger(self, link: Link) -> Future[None] | None:
        """A link that nobody knows; an ENI after its tunnels. Raises EngineError."""
        if link.spec.kind == "eni":
            with suppress(OSError, HyperplaneError):
                fd = tun.namespace_of(link.fd)
                with open_namespace(f"fd:{fd}") as namespace, self._threads.inside(namespace.fd):
                    os.close(fd)
                    clear_leftovers(namespace, link.spec.addresses)
        return self._close(self._engine.remove(link.spec.id))

    def update_eni(self, action: UpdateEni) -> None:
        """Raises what RemoteEngine.update() raises."""
        link = self._engine.link(action.eni.id)
        if link is not None:
            self._engine.update(replace(link.spec, rules=rules(action.security_groups)))

    def remove_eni(self, action: RemoveEni) -> Future[None] | None:
        """Whatever of it there is; what is returned is done when its device is gone. Raises EngineError."""
        eni = action.eni
        fd = self._engine.remove(eni.id)
        made = self._enis.pop(eni.id, None)
        if made is not None:
            withdraw_eni(made, self._threads)
        else:
            with (
                suppress(HyperplaneError, OSError),
                open_namespace(action.namespace) as namespace,
                self._threads.inside(namespace.fd),
            ):
                clear_leftovers(namespace, eni.addresses)
        self._point("eni removed")
        return self._close(fd)

    def vpc_key(self, eni: str) -> Key | None:
        made = self._enis.get(eni)
        return made.namespace.key if made else None

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
                vpc = self.vpc_key(environment.eni)
                device = make_tunnel(
                    target, shape, self._threads, self._reaper, vpc=vpc, check=partial(self._check, check)
                )
            else:
                device = self._fresh.make(shape, action.dns)
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

    def prepare(self, id_: str, tunnel: TunnelSpec, dns: tuple[IPv4Address, ...] = ()) -> Namespace:
        """A fresh namespace with the tunnel of an environment that has yet to come: nobody is in it. dns: the VPC's.
        Raises as attach()."""
        device = self._fresh.make(shape_of(tunnel), dns)
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


def eni_spec(action: MakeEni) -> LinkSpec:
    eni = action.eni
    return LinkSpec(
        kind="eni",
        id=eni.id,
        name=eni.id,
        mtu=eni.mtu,
        addresses=eni.addresses,
        timers=action.timers,
        udp_mapping=action.udp_mapping,
        silent=action.silent,
        rules=rules(action.security_groups),
    )


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
    return Shape(tunnel.device, tunnel.inside_address, tunnel.mtu, tunnel.routes)


def remembered(namespace: Namespace | None) -> dict[str, Any] | None:
    """What is kept with an environment, to tell its namespace from a later one of the same name or process number."""
    return {"netns": list(namespace.key)} if namespace else None


def rules(groups: tuple[SecurityGroup, ...]) -> tuple[str, ...]:
    """What all of them allow together, as the engine is told it."""
    return tuple(dict.fromkeys(str(rule) for group in groups for rule in group.rules))


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


def namespace_key(link: Link) -> Key | None:
    """The namespace that a link's device is in; None when the device is gone."""
    try:
        fd = tun.namespace_of(link.fd)
    except OSError:
        return None
    try:
        return key_of(fd)
    finally:
        os.close(fd)
