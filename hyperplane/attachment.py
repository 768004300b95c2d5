"""Attaches execution environments to ENIs: devices, namespaces and the engine, brought together for asyncio.

Whatever blocks runs in a few threads that serve jobs in the order in which they came; the event loop only keeps the
books. One attachment costs one descriptor (a second one when it is made by pid). All that was made is removed again: by
`detach()`, when the environment's namespace goes away, when an attach fails or is cancelled half way, by `close()`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from hyperplane.dataplane import Engine, Eni, Tunnel, checks
from hyperplane.errors import AddressInUse, EngineError, HyperplaneError, InvalidValue
from hyperplane.linux import netlink, tun
from hyperplane.linux.eni import EniDevice, create_eni, withdraw_eni
from hyperplane.linux.namespaces import Key, Namespace, NamespaceThreads, open_namespace, raise_descriptor_limit
from hyperplane.linux.reaper import Reaper
from hyperplane.linux.watch import NamespaceWatch
from hyperplane.model import SecurityGroup, Timers, UdpMapping

T = TypeVar("T")

INSIDE_ADDRESS: Final = "198.18.0.2"  # RFC 2544's block: no environment needs it for anything else
# Above the engine's least MTU, what a device may be given here: IPv4 hosts need 576 (RFC 1122 section 3.3.3).
LEAST_MTU, LARGEST_MTU = 576, 65535


@dataclass(frozen=True, slots=True)
class Timings:
    """What an attach took, in seconds: waiting for a thread; finding and entering the namespace and opening the TUN;
    the netlink batch; telling the engine."""

    wait: float
    device: float
    netlink: float
    engine: float


@dataclass(eq=False, slots=True)
class Attachment:
    """One environment's tunnel on an ENI.

    namespace: how it was given ("" for a descriptor); device: the TUN's name; seconds: what attach() took as its caller
    saw it. ended: done when the tunnel has left the engine, with the reason in words; it can be awaited.
    """

    tunnel: Tunnel
    namespace: str
    device: str
    seconds: float
    timings: Timings
    ended: asyncio.Future[str]
    _fd: int
    _end: asyncio.Task[None] | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What attach() was asked for, checked."""

    eni: Eni
    vpc: Key
    target: str | int | Path
    by_descriptor: bool
    name: str | None
    address: IPv4Address
    device: str
    mtu: int
    routes: tuple[IPv4Network, ...]
    max_flows: int
    asked: float


@dataclass(frozen=True, slots=True)
class _Made:
    """What a thread made of a plan."""

    fd: int
    tunnel: Tunnel
    device: str
    namespace: Namespace | None
    timings: Timings


@dataclass(eq=False, slots=True)
class _OpenEni:
    device: EniDevice
    ended: asyncio.Future[str]
    attachments: set[Attachment] = field(default_factory=set)
    end: asyncio.Task[None] | None = None


class _HalfWay(Exception):
    """An attach failed after its device was made; closing is done when that is gone."""

    def __init__(self, error: BaseException, closing: Future[None]) -> None:
        super().__init__(error)
        self.error = error
        self.closing = closing


class Attachments:
    """ENIs and the environments attached to them. `async with Attachments(max_flows=...) as attachments: ...`

    engine: one that the caller closes (it is started when it does not run); without it, one is made with engine_options
    (those of `Engine`) and closed at the end. Raises what Engine raises. For one event loop.
    """

    def __init__(self, engine: Engine | None = None, *, threads: int = 4, **engine_options: Any) -> None:
        if engine is not None and engine_options:
            raise InvalidValue("engine options without effect: an engine was given", resource=", ".join(engine_options))
        self._given = engine
        self._options = engine_options
        self._engine: Engine | None = None
        self._thread_count = checks.integer("threads", threads, 1, 64)
        self._enis: dict[Eni, _OpenEni] = {}
        self._jobs: set[Future[Any]] = set()
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._engine is not None:
            raise EngineError("Attachments are entered once only", remedy="make new ones")
        raise_descriptor_limit()
        self._loop = asyncio.get_running_loop()
        self._threads = NamespaceThreads(self._thread_count)
        self._reaper = Reaper()
        self._watch = NamespaceWatch(self._loop, self._namespace_gone)
        try:
            self._engine = await self._run(self._start_engine, undo=self._drop_engine)
        except BaseException:
            self._threads.close()
            self._reaper.stop()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    @property
    def engine(self) -> Engine:
        """The engine that translates. Raises EngineError before entry."""
        if self._engine is None:
            raise EngineError("no engine yet", remedy="use `async with Attachments() as attachments`")
        return self._engine

    @property
    def enis(self) -> tuple[Eni, ...]:
        return tuple(self._enis)

    def attachments(self, eni: Eni | None = None) -> tuple[Attachment, ...]:
        """Those of one ENI, or all."""
        opened = self._enis.values() if eni is None else (self._opened(eni),)
        return tuple(one for each in opened for one in each.attachments)

    # ENIs

    async def open_eni(
        self,
        *,
        vpc: str | Path | int,
        addresses: str | IPv4Address | Iterable[str | IPv4Address],
        name: str = "eni0",
        device: str = "eni0",
        security_groups: Iterable[SecurityGroup] = (),
        mtu: int = 1500,
        timers: Timers = Timers(),  # noqa: B008 (immutable)
        udp_mapping: UdpMapping = "endpoint-independent",
        silent: bool = False,
    ) -> Eni:
        """Makes the shared interface in the VPC's namespace: device, routes, and what hyperplane.linux.eni describes.

        vpc: as for `open_namespace()`; the rest as for `Engine.add_eni()`. The ENI ends by close_eni() or close(), and by
        itself when the VPC's namespace goes away. Raises NamespaceNotFound, AddressInUse, InvalidValue, DeviceError,
        PermissionMissing, EngineError; then nothing is left.
        """
        self._check_open()
        checked = checks.addresses(f"address of ENI {name}", addresses)
        tun.check_name(device)
        checks.integer(f"MTU of ENI {name}", mtu, LEAST_MTU, LARGEST_MTU)
        groups = tuple(security_groups)

        def make() -> tuple[EniDevice, Eni]:
            with open_namespace(vpc) as namespace, self._threads.inside(namespace.fd):
                made = create_eni(namespace, device=device, addresses=checked, mtu=mtu)
            try:
                eni = self.engine.add_eni(
                    checked,
                    name=name,
                    fd=made.fd,
                    mtu=mtu,
                    security_groups=groups,
                    timers=timers,
                    udp_mapping=udp_mapping,
                    silent=silent,
                )
            except BaseException as error:
                withdraw_eni(made, self._threads)
                raise _HalfWay(error, self._reaper.close(made.fd)) from None
            return made, eni

        def undo(both: tuple[EniDevice, Eni]) -> None:
            self._remove_eni(both[0], both[1])

        made, eni = await self._run(make, undo=undo)
        try:
            self._check_open()
            self._watch.add(eni, made.namespace)
        except BaseException:
            await self._settle(self._threads.submit(self._remove_eni, made, eni))
            raise
        self._enis[eni] = _OpenEni(made, self._loop.create_future())
        return eni

    def eni_ended(self, eni: Eni) -> asyncio.Future[str]:
        """Done when the ENI has left the engine, with the reason in words."""
        return self._opened(eni).ended

    async def close_eni(self, eni: Eni) -> None:
        """Removes the ENI; returns when its device is gone. Raises EngineError while environments are attached to it."""
        opened = self._opened(eni)
        if held := sorted(one.tunnel.name for one in opened.attachments):
            names = ", ".join(held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else "")
            what = f"ENI {eni.name}"
            raise EngineError(f"{what} is in use by tunnels: {names}", resource=what, remedy="detach them first")
        await asyncio.shield(self._begin_eni_end(eni, opened, "closed"))

    # Environments

    async def attach(
        self,
        eni: Eni,
        *,
        namespace: str | Path | None = None,
        pid: int | None = None,
        fd: int | None = None,
        name: str | None = None,
        address: str | IPv4Address = INSIDE_ADDRESS,
        device: str = "eth0",
        mtu: int = 1500,
        routes: Iterable[str | IPv4Network] = ("0.0.0.0/0",),
        max_flows: int = 0,
    ) -> Attachment:
        """Programs a tunnel from an environment onto the ENI; exactly one of namespace, pid and fd says which.

        namespace, pid: a TUN named device is made there, with address and MTU, and routes lead to it. It ends by itself
        when the namespace's name is deleted, or the process ends. fd: a TUN (IFF_NO_PI, IFF_VNET_HDR) that the platform
        has configured, in a namespace or a guest: only a duplicate is kept; device and routes do not apply. name: of the
        tunnel, unique on the ENI; the namespace's by default. max_flows: its own limit, 0 for none.

        Raises InvalidValue, NamespaceNotFound, AddressInUse, DeviceError, NotATunnel, PermissionMissing, EngineError; then,
        and when cancelled, nothing is left.
        """
        plan = self._plan(eni, namespace, pid, fd, name, address, device, mtu, routes, max_flows)
        made = await self._run(lambda: self._make(plan), undo=self._unmake)
        attachment = Attachment(
            made.tunnel,
            made.namespace.name if made.namespace else "",
            made.device,
            time.perf_counter() - plan.asked,
            made.timings,
            self._loop.create_future(),
            made.fd,
        )
        try:
            self._check_open()
            opened = self._opened(eni)
            if made.namespace:
                self._watch.add(attachment, made.namespace)
        except BaseException:
            await self._settle(self._threads.submit(self._unmake, made))
            raise
        opened.attachments.add(attachment)
        return attachment

    async def detach(self, attachment: Attachment) -> None:
        """Ends an attachment; returns when its device is gone. Does nothing more for one that has ended already."""
        if attachment._end is None and attachment not in self._opened(attachment.tunnel.eni).attachments:
            what = f"tunnel {attachment.tunnel.name}"
            raise InvalidValue(f"{what} is not attached here", resource=what, remedy="detach what attach() gave")
        await asyncio.shield(self._begin_end(attachment, "detached"))

    async def close(self) -> None:
        """Removes everything that was made and returns when it is gone. May be called again."""
        if self._engine is None:
            return
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    # Within: making

    def _plan(
        self,
        eni: Eni,
        namespace: str | Path | None,
        pid: int | None,
        fd: int | None,
        name: str | None,
        address: str | IPv4Address,
        device: str,
        mtu: int,
        routes: Iterable[str | IPv4Network],
        max_flows: int,
    ) -> _Plan:
        asked = time.perf_counter()
        self._check_open()
        targets = [one for one in (namespace, pid, fd) if one is not None]
        if len(targets) != 1:
            raise InvalidValue("attach() needs exactly one of namespace, pid and fd", resource="environment")
        if pid is not None:
            checks.integer("pid", pid, 1, (1 << 22))
        inside = checks.unicast("inside address", address)
        if inside in eni.addresses:
            message = f"inside address {inside} is an address of ENI {eni.name}"
            raise AddressInUse(message, resource=str(inside), remedy="give the environment another inside address")
        return _Plan(
            eni=eni,
            vpc=self._opened(eni).device.namespace.key,
            target=targets[0],
            by_descriptor=fd is not None,
            name=None if name is None else checks.name("tunnel name", name),
            address=inside,
            device=tun.check_name(device),
            mtu=checks.integer("MTU of the tunnel", mtu, LEAST_MTU, LARGEST_MTU),
            routes=tuple(_network(route) for route in routes),
            max_flows=max_flows,
            asked=asked,
        )

    def _make(self, plan: _Plan) -> _Made:
        """In a thread: device, configuration, engine."""
        started = time.perf_counter()
        found = None
        if isinstance(plan.target, int) and plan.by_descriptor:
            fd = tun.adopt_tun(plan.target)
            opened = configured = time.perf_counter()
            device = tun.device_of(fd)[0]
        else:
            device = plan.device
            with open_namespace(plan.target) as namespace:
                if namespace.key == plan.vpc:
                    what = f"namespace {namespace.name}"
                    remedy = "give the environment's own"
                    raise InvalidValue(f"{what} is the VPC's", resource=what, remedy=remedy)
                found = namespace.closed()
                with self._threads.inside(namespace.fd):
                    fd = tun.open_tun(device)
                    opened = time.perf_counter()
                    try:
                        netlink.configure(device, mtu=plan.mtu, address=plan.address, routes=plan.routes)
                    except BaseException as error:
                        raise _HalfWay(error, self._reaper.close(fd)) from None
            configured = time.perf_counter()
        name = plan.name or (Path(found.name).name if found else f"fd:{fd}")
        try:
            tunnel = self.engine.add_tunnel(
                plan.eni, name=name, address=plan.address, fd=fd, mtu=plan.mtu, max_flows=plan.max_flows
            )
        except BaseException as error:
            raise _HalfWay(error, self._reaper.close(fd)) from None
        added = time.perf_counter()
        timings = Timings(started - plan.asked, opened - started, configured - opened, added - configured)
        return _Made(fd, tunnel, device, found, timings)
