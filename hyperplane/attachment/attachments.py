"""Attaches execution environments to ENIs: devices, namespaces and the engine, brought together for asyncio.

Whatever blocks runs in a few threads that serve jobs in the order in which they came; the event loop only keeps the
books. One attachment costs one descriptor (a second one when it is made by pid). All that was made is removed again: by
`detach()`, when the environment's namespace goes away, when an attach fails or is cancelled half way, by `close()`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from concurrent.futures import Future
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from os.path import basename
from pathlib import Path
from typing import Any, Self

from hyperplane.attachment.attachment import Attachment, Made, OpenEni, Timings
from hyperplane.attachment.keeping import Keeping, Observer
from hyperplane.attachment.places import Place, Places
from hyperplane.attachment.plan import LARGEST_MTU, LEAST_MTU, Plan, plan_of
from hyperplane.dataplane import Engine, Eni, checks
from hyperplane.errors import EngineError, InvalidValue
from hyperplane.linux import tun
from hyperplane.linux.eni import create_eni, withdraw_eni
from hyperplane.linux.jobs import HalfWay, Jobs
from hyperplane.linux.namespaces import Namespace, NamespaceThreads, open_namespace, raise_descriptor_limit
from hyperplane.linux.reaper import THREADS_AT_THE_END, Reaper, close_all
from hyperplane.linux.tunnel import make_tunnel, take_tunnel
from hyperplane.linux.upkeep import Upkeep
from hyperplane.linux.watch import NamespaceWatch
from hyperplane.model import SecurityGroup, Timers, UdpMapping
from hyperplane.resources import INSIDE_ADDRESS


class Attachments:
    """ENIs and the environments attached to them: `async with Attachments(max_flows=100_000) as attachments: ...`

    engine: one that the caller closes (it is started when it does not run); without it, one is made with engine_options
    (those of `Engine`) and closed at the end. in_loop: an attach() that is alone does its work in the event loop's
    thread, which that blocks for 0.2 ms or so; False: always in one of threads. observer: is told what others have
    changed. For one event loop, whose thread stays in its network namespace; raises what `Engine` raises.
    """

    def __init__(
        self,
        engine: Engine | None = None,
        *,
        threads: int = 4,
        in_loop: bool = True,
        observer: Observer | None = None,
        **engine_options: Any,
    ) -> None:
        if engine is not None and engine_options:
            given = ", ".join(engine_options)
            raise InvalidValue(f"engine options without effect: {given}", remedy="give an engine, or its options")
        self._given = engine
        self._options = engine_options
        self._engine: Engine | None = None
        self._thread_count = checks.integer("threads", threads, 1, 64)
        self._in_loop = checks.instance("in_loop", in_loop, bool)
        self._observer = checks.instance("observer", observer or Observer(), Observer)
        self._enis: dict[Eni, OpenEni] = {}
        self._places = Places()
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        if self._engine is not None:
            raise EngineError("attachments are entered only once", remedy="make new ones")
        raise_descriptor_limit()
        self._loop = asyncio.get_running_loop()
        self._threads = NamespaceThreads(self._thread_count)
        self._jobs = Jobs(self._threads)
        self._reaper = Reaper()
        self._watch = NamespaceWatch(self._loop, self._namespace_gone)
        self._keeping_threads = NamespaceThreads(1)  # attaching does not wait for looks
        keeping = Keeping(self._keeping_threads, self._observer, self._lost)
        try:
            self._engine = await self._jobs.run(self._start_engine, undo=self._stop_engine)
        except BaseException:
            self._threads.close()
            self._keeping_threads.close()
            self._reaper.stop()
            raise
        self._upkeep = Upkeep(self._loop, self._keeping_threads, keeping)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    @property
    def engine(self) -> Engine:
        """The engine that translates. Raises EngineError before entry."""
        if self._engine is None:
            raise EngineError("attachments are not open", remedy="use `async with Attachments() as attachments`")
        return self._engine

    @property
    def enis(self) -> tuple[Eni, ...]:
        return tuple(self._enis)

    def attachments(self, eni: Eni | None = None) -> tuple[Attachment, ...]:
        """Those of one ENI, or all."""
        opened = self._enis.values() if eni is None else (self._opened(eni),)
        return tuple(attachment for each in opened for attachment in each.attachments)

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
        timers: Timers = Timers(),
        udp_mapping: UdpMapping = "endpoint-independent",
        silent: bool = False,
    ) -> Eni:
        """Makes the shared interface in the VPC's namespace; hyperplane.linux.eni says what is set there.

        vpc: as for `open_namespace()`; the rest as for `Engine.add_eni()`. It ends by close_eni(), by close(), or by
        itself when the VPC's namespace goes away. Raises NamespaceNotFound, AddressInUse, InvalidValue, DeviceError,
        PermissionMissing, EngineError; then, and when cancelled, nothing is left.
        """
        what = f"ENI {checks.name('ENI name', name)}"
        checked = checks.addresses(f"address of {what}", addresses)
        tun.check_name(device)
        checks.integer(f"MTU of {what}", mtu, LEAST_MTU, LARGEST_MTU)
        groups = checks.groups(f"security groups of {what}", security_groups)
        self._check_open()

        def make() -> OpenEni:
            with open_namespace(vpc) as namespace, self._threads.inside(namespace.fd):
                workers = self.engine.config.workers
                made = create_eni(namespace, device=device, addresses=checked, mtu=mtu, queues=workers)
            try:
                eni = self.engine.add_eni(
                    checked,
                    name=name,
                    fd=made.fd,
                    queues=made.more[: made.queues - 1],
                    steering=made.more[-1] if made.steered else -1,
                    mtu=mtu,
                    security_groups=groups,
                    timers=timers,
                    udp_mapping=udp_mapping,
                    silent=silent,
                )
            except BaseException as error:
                withdraw_eni(made, self._threads)
                close_all(made.more)
                raise HalfWay(error, self._reaper.close(made.fd)) from None
            return OpenEni(eni, made, self._loop.create_future())

        with self._jobs.operation():
            opened = await self._jobs.run(make, undo=self._unmake_eni)
            try:
                self._check_open()
                self._watch.add(opened, opened.device.namespace)
                await asyncio.wait((self._upkeep.add_eni(opened, opened.device.namespace),))
            except BaseException:
                self._watch.remove(opened)
                self._upkeep.remove(opened)
                await asyncio.wrap_future(await self._jobs.do(self._unmake_eni, opened))
                raise
            self._enis[opened.eni] = opened
        return opened.eni

    def eni_ended(self, eni: Eni) -> asyncio.Future[str]:
        """Done when the ENI has left the engine, with the reason in words."""
        return self._opened(eni).ended

    async def close_eni(self, eni: Eni) -> None:
        """Removes the ENI; returns when its device is gone. Raises EngineError while environments are attached."""
        opened = self._opened(eni)
        if held := sorted(one.tunnel.name for one in opened.attachments):
            names = ", ".join(held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else "")
            raise EngineError(f"ENI {eni.name} is in use by tunnels: {names}", remedy="detach them first")
        await asyncio.shield(self._begin_eni_end(opened, "closed"))

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
        routed: bool = False,
        device: str = "eth0",
        mtu: int = 1500,
        routes: Iterable[str | IPv4Network] = ("0.0.0.0/0",),
        max_flows: int = 0,
    ) -> Attachment:
        """Programs a tunnel from an environment onto the ENI; exactly one of namespace, pid and fd says which.

        namespace, pid: a TUN called device is made there, with address and mtu, and routes lead to it; it ends by
        itself when the namespace's name is deleted, or the process ends. routed: a guest behind the namespace has the
        address; the TUN gets none, and forwards. fd: a TUN (IFF_NO_PI, IFF_VNET_HDR) that the platform has configured;
        a duplicate is kept, and device, routed and routes do not apply. name: of the tunnel, unique on the ENI, by
        default the namespace's. max_flows: the tunnel's own limit, 0 for none.

        Raises InvalidValue, NamespaceNotFound, ResourceConflict (another attachment has that device), AddressInUse,
        DeviceError, NotATunnel, PermissionMissing, EngineError; then, and when cancelled, nothing is left.
        """
        opened = self._opened(eni)
        plan = plan_of(
            eni,
            opened.device.namespace.key,
            namespace=namespace,
            pid=pid,
            fd=fd,
            name=name,
            address=address,
            routed=routed,
            device=device,
            mtu=mtu,
            routes=routes,
            max_flows=max_flows,
        )
        with self._jobs.operation():
            # A device that is being closed has the kernel's lock held for long.
            run = self._jobs.at_once if self._in_loop and not self._reaper.busy else self._jobs.run
            made = await run(lambda: self._make(plan), undo=self._unmake)
            attachment = Attachment(
                tunnel=made.tunnel,
                namespace=made.namespace.name if made.namespace else "",
                device=made.device,
                seconds=time.perf_counter() - plan.asked,
                timings=made.timings,
                ended=self._loop.create_future(),
                _made=made,
            )
            try:
                self._opened(eni)
                if made.namespace:
                    self._watch.add(attachment, made.namespace)
            except BaseException:
                await asyncio.wrap_future(await self._jobs.do(self._unmake, made))
                raise
            opened.attachments.add(attachment)
            if made.namespace:
                self._upkeep.add_environment(attachment)
        return attachment

    async def detach(self, attachment: Attachment) -> None:
        """Ends an attachment; returns when its device is gone. For one that has ended it only waits for that."""
        opened = self._enis.get(attachment.tunnel.eni)
        if attachment._end is None and (opened is None or attachment not in opened.attachments):
            what = f"tunnel {attachment.tunnel.name}"
            raise InvalidValue(f"{what} is not attached here", resource=what, remedy="detach what attach() gave")
        await asyncio.shield(self._begin_end(attachment, "detached"))

    async def close(self) -> None:
        """Removes everything that was made and returns when it is gone. May be called again."""
        if self._engine is not None:
            if self._closing is None:
                self._closing = self._loop.create_task(self._close())
            await asyncio.shield(self._closing)

    # In threads: making and unmaking

    def _make(self, plan: Plan) -> Made:
        taken: list[Place] = []
        try:
            return self._make_at(plan, taken)
        except BaseException:
            for place in taken:
                self._places.release(place)
            raise

    def _make_at(self, plan: Plan, taken: list[Place]) -> Made:
        def take(namespace: Namespace) -> None:
            name = plan.name or basename(namespace.name)
            taken.append(self._places.take(namespace, plan.shape.device, name))

        begun = time.perf_counter()
        if plan.by_descriptor and isinstance(plan.target, int):
            made = take_tunnel(plan.target)
        else:
            made = make_tunnel(plan.target, plan.shape, self._threads, self._reaper, vpc=plan.vpc, check=take)
        told = time.perf_counter()
        try:
            tunnel = self.engine.add_tunnel(
                plan.eni,
                name=plan.name or (basename(made.namespace.name) if made.namespace else f"fd:{made.fd}"),
                address=plan.address,
                fd=made.fd,
                mtu=plan.shape.mtu,
                max_flows=plan.max_flows,
                trusted=made.namespace is not None,
            )
        except BaseException as error:
            raise HalfWay(error, self._reaper.close(made.fd)) from None
        timings = Timings(begun - plan.asked, made.opened, made.configured, time.perf_counter() - told, made.kernel)
        return Made(made.fd, made.device, made.namespace, plan.shape if made.namespace else None, tunnel, timings)

    def _unmake(self, made: Made) -> Future[None]:
        # Refused when the caller closed the engine or removed the tunnel: then it has let go of the descriptor too.
        with suppress(EngineError, InvalidValue):
            self.engine.remove(made.tunnel)
        if made.namespace:
            self._places.release((made.namespace.key, made.device))
        return self._reaper.close(made.fd)

    def _unmake_eni(self, opened: OpenEni) -> Future[None]:
        with suppress(EngineError, InvalidValue):  # as above
            self.engine.remove(opened.eni)
        withdraw_eni(opened.device, self._threads)
        close_all(opened.device.more)
        return self._reaper.close(opened.device.fd)

    def _start_engine(self) -> Engine:
        engine = self._given or Engine(**self._options)
        try:
            if not engine.status().running:
                engine.start()
        except BaseException:
            self._stop_engine(engine)
            raise
        return engine

    def _stop_engine(self, engine: Engine) -> None:
        if engine is not self._given:
            engine.close()

    # In the event loop: ends

    def _begin_end(self, attachment: Attachment, reason: str) -> asyncio.Task[None]:
        if attachment._end is None:
            attachment._end = self._loop.create_task(self._end(attachment, reason))
        return attachment._end

    async def _end(self, attachment: Attachment, reason: str) -> None:
        self._watch.remove(attachment)
        self._upkeep.remove(attachment)
        closing = await self._jobs.do(self._unmake, attachment._made)
        self._enis[attachment.tunnel.eni].attachments.discard(attachment)
        if not attachment.ended.done():  # somebody may have cancelled it
            attachment.ended.set_result(reason)
        await asyncio.wrap_future(closing)

    def _begin_eni_end(self, opened: OpenEni, reason: str) -> asyncio.Task[None]:
        if opened.end is None:
            opened.end = self._loop.create_task(self._end_eni(opened, reason))
        return opened.end

    async def _end_eni(self, opened: OpenEni, reason: str) -> None:
        self._watch.remove(opened)
        self._upkeep.remove(opened)
        await self._jobs.settled()
        await asyncio.gather(*(self._begin_end(one, reason) for one in tuple(opened.attachments)))
        closing = await self._jobs.do(self._unmake_eni, opened)
        del self._enis[opened.eni]
        if not opened.ended.done():
            opened.ended.set_result(reason)
        await asyncio.wrap_future(closing)

    def _namespace_gone(self, token: Any, reason: str) -> None:
        self._lost(token, reason if isinstance(token, Attachment) else f"the VPC's {reason}")

    def _lost(self, token: OpenEni | Attachment, reason: str) -> None:
        if isinstance(token, Attachment):
            self._begin_end(token, reason)
        elif token.eni in self._enis:
            self._begin_eni_end(token, reason)

    async def _close(self) -> None:
        await self._upkeep.close()
        await asyncio.to_thread(self._keeping_threads.close)
        await self._jobs.settled()
        # Nobody waits for the kernel's lock any more: thousands of devices go three to four times as fast.
        before, self._reaper = self._reaper, Reaper(THREADS_AT_THE_END)
        await asyncio.gather(*(self._begin_eni_end(opened, "closed") for opened in tuple(self._enis.values())))
        await self._jobs.settled()
        self._watch.close()
        await self._jobs.do(self._stop_engine, self.engine)
        await asyncio.to_thread(self._threads.close)
        for reaper in (before, self._reaper):
            await asyncio.to_thread(reaper.stop)

    def _check_open(self) -> None:
        if self._engine is None or self._closing is not None:
            raise EngineError("attachments are not open", remedy="use `async with Attachments() as attachments`")

    def _opened(self, eni: Eni) -> OpenEni:
        self._check_open()
        opened = self._enis.get(eni)
        if opened is None or opened.end is not None:
            name = eni.name if isinstance(eni, Eni) else repr(eni)
            raise InvalidValue(f"ENI {name} is not open here", resource=name, remedy="give what open_eni() gave")
        return opened
