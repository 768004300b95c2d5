"""Carries out what control decided about ENIs: devices in VPCs' namespaces, links in the engine.

Every method blocks: for threads, and for those of its own, since a look at a shared segment takes a third of a second
(linux.arp) for which no start of an environment shall wait.
Each method may be called again for what is done already: a predecessor may have died half way.
"""

from __future__ import annotations

import os
from concurrent.futures import Future
from contextlib import suppress

from msgspec.structs import replace

from hyperplane.control import MakeEni, RemoveEni, UpdateEni
from hyperplane.daemon.points import NO_POINTS, CommitPoints
from hyperplane.daemon.whereabouts import namespace_key
from hyperplane.errors import HyperplaneError, NamespaceNotFound
from hyperplane.ipc.messages import LinkSpec
from hyperplane.ipc.mirror import Link
from hyperplane.ipc.remote import RemoteEngine
from hyperplane.linux import tun
from hyperplane.linux.eni import EniDevice, adopt_eni, clear_leftovers, create_eni, withdraw_eni
from hyperplane.linux.jobs import HalfWay
from hyperplane.linux.namespaces import Key, Namespace, NamespaceThreads, open_namespace
from hyperplane.linux.reaper import Reaper, close_all
from hyperplane.linux.repair import DELETED, DeviceLost, Report
from hyperplane.model import SecurityGroup
from hyperplane.resources import Eni


class EniActuator:
    """threads: those in which its methods are called."""

    def __init__(
        self, engine: RemoteEngine, threads: NamespaceThreads, reaper: Reaper, point: CommitPoints = NO_POINTS
    ) -> None:
        self._engine = engine
        self._threads = threads
        self._reaper = reaper
        self._point = point
        self._enis: dict[str, EniDevice] = {}

    def make(self, action: MakeEni) -> Namespace:
        """The VPC's namespace, closed. Raises what open_namespace(), create_eni() and RemoteEngine.add() raise; HalfWay
        with one of these once the device was made."""
        eni = action.eni
        if found := self.adopt(eni, action.namespace):
            return found
        if self._engine.link(eni.id):
            self._close(self._engine.remove(eni.id))
        made = self._create(action)
        self._tell(action, made)
        return made.namespace

    def _create(self, action: MakeEni, *, again: bool = False) -> EniDevice:
        eni = action.eni
        with open_namespace(action.namespace) as namespace, self._threads.inside(namespace.fd):
            workers = int(self._engine.config.get("workers", 1))
            made = create_eni(
                namespace, device=eni.device, addresses=eni.addresses, mtu=eni.mtu, queues=workers, again=again
            )
        self._point("eni device made")
        return made

    def _tell(self, action: MakeEni, made: EniDevice) -> None:
        """The engine. Raises HalfWay; then nothing is left of what was made."""
        try:
            spec = replace(eni_spec(action), queues=made.queues, steered=made.steered)
            self._engine.add(spec, made.fd, made.more)
        except BaseException as error:
            withdraw_eni(made, self._threads)
            close_all(made.more)
            raise HalfWay(error, self._reaper.close(made.fd)) from None
        self._point("eni told")
        self._enis[action.eni.id] = made

    def adopt(self, eni: Eni, namespace: str) -> Namespace | None:
        """Takes over an ENI that a predecessor made; None when there is none, or it is not as it should be."""
        link = self._engine.link(eni.id)
        if link is None or link.spec.addresses != eni.addresses:
            return None
        with suppress(OSError, HyperplaneError), open_namespace(namespace) as found:
            if found.key != namespace_key(link):
                return None
            if eni.id not in self._enis:
                self._enis[eni.id] = adopt_eni(
                    found, device=eni.device, fd=link.fd, addresses=eni.addresses, mtu=eni.mtu
                )
            return found.closed()
        return None

    def look_after(self, eni: str, thorough: bool = True) -> Report:
        """Puts right what others have changed of it; thorough: see EniDevice.put_right(). Raises DeviceLost,
        NamespaceNotFound, DeviceError, PermissionMissing."""
        made = self._enis.get(eni)
        if made is None:
            raise DeviceLost(DELETED)
        with open_namespace(made.namespace.path or made.namespace.name) as found:
            if found.key != made.namespace.key:
                raise NamespaceNotFound(f"namespace {found.name} is another one", resource=found.name)
            with self._threads.inside(found.fd):
                return made.put_right(thorough=thorough)

    def remake(self, action: MakeEni) -> Namespace:
        """For one whose device is no more: makes it anew, and puts the tunnels that are on it onto the new one.

        Their flows are lost. A tunnel that the engine refuses is gone. Raises as make(): when the device cannot be made
        all stays as it is; when the engine refuses it, all are gone.
        """
        id_ = action.eni.id
        old = self._enis.get(id_)
        made = self._create(action, again=old is not None)
        tunnels = [link for link in self._engine.links() if link.spec.eni == id_]
        held = [(link.spec, self._engine.remove(link.spec.id)) for link in tunnels]
        try:
            self._close(self._engine.remove(id_))
            if old:
                old.forget()  # what was set for it is the new one's
            self._tell(action, made)
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
        return made.namespace

    def remove_stranger(self, link: Link) -> Future[None] | None:
        """A link that nobody knows; an ENI after its tunnels. Raises EngineError."""
        if link.spec.kind == "eni":
            with suppress(OSError, HyperplaneError):
                fd = tun.namespace_of(link.fd)
                with open_namespace(f"fd:{fd}") as namespace, self._threads.inside(namespace.fd):
                    os.close(fd)
                    clear_leftovers(namespace, link.spec.addresses)
        return self._close(self._engine.remove(link.spec.id))

    def update(self, action: UpdateEni) -> None:
        """Raises what RemoteEngine.update() raises."""
        link = self._engine.link(action.eni.id)
        if link is not None:
            self._engine.update(replace(link.spec, rules=rules(action.security_groups)))

    def remove(self, action: RemoveEni) -> Future[None] | None:
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


def rules(groups: tuple[SecurityGroup, ...]) -> tuple[str, ...]:
    """What all of them allow together, as the engine is told it."""
    return tuple(dict.fromkeys(str(rule) for group in groups for rule in group.rules))
