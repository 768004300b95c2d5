"""A running daemon: its parts, put together in order and taken apart in the opposite one."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import AsyncExitStack
from random import SystemRandom
from typing import Final, Self

import structlog

from hyperplane import api
from hyperplane.control import Control
from hyperplane.daemon.actuator import Actuator
from hyperplane.daemon.caretaker import Caretaker
from hyperplane.daemon.descriptors import Descriptors
from hyperplane.daemon.eni_actuator import EniActuator
from hyperplane.daemon.executor import Executor
from hyperplane.daemon.fresh import FreshNamespaces
from hyperplane.daemon.ledger import Ledger
from hyperplane.daemon.options import DaemonOptions
from hyperplane.daemon.places import Places
from hyperplane.daemon.points import NO_POINTS, CommitPoints
from hyperplane.daemon.pool import Pool
from hyperplane.daemon.reconcile import Reconciler, boot_id
from hyperplane.daemon.senders import Senders
from hyperplane.daemon.service import Service
from hyperplane.daemon.supervisor import Supervisor
from hyperplane.daemon.watches import Watches
from hyperplane.errors import HyperplaneError
from hyperplane.ipc.remote import RemoteEngine
from hyperplane.linux.kernel import check_kernel
from hyperplane.linux.namespaces import NamespaceThreads, raise_descriptor_limit
from hyperplane.linux.reaper import Reaper
from hyperplane.linux.settings import SETTINGS
from hyperplane.linux.upkeep import Upkeep
from hyperplane.linux.watch import NamespaceWatch
from hyperplane.resources import Problem
from hyperplane.store import SqliteStore

BOOT: Final = "boot_id"
ENI_THREADS: Final = 8  # that look after ENIs: most of their time they wait for answers on a segment
PATIENCE: Final = 5.0  # seconds for starts that are under way when the daemon ends

log = structlog.get_logger()


class Daemon:
    """`async with Daemon(options) as daemon:` serves the API until the block ends; engine and environments stay.

    The instance's lock is the caller's to hold, its directories the caller's to make. point: see points.py. Raises what
    the parts raise: StoreError, EngineError, ProtocolMismatch, AlreadyRunning, InvalidValue, PermissionMissing.
    """

    service: Service

    def __init__(
        self, options: DaemonOptions, places: Places, gid: int | None, point: CommitPoints = NO_POINTS
    ) -> None:
        self._options = options
        self._places = places
        self._gid = gid
        self._point = point
        self._tasks: set[asyncio.Task[object]] = set()
        self._started = False

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await self._start(stack)
            self._started = True
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    async def _start(self, stack: AsyncExitStack) -> None:
        options, places = self._options, self._places
        check_kernel()
        raise_descriptor_limit()
        store = SqliteStore(places.database)
        stack.callback(store.close)
        for notice in store.notices:
            log.warning(notice)
        SETTINGS.journal(places.settings)
        threads = NamespaceThreads(options.threads)
        stack.push_async_callback(asyncio.to_thread, threads.close)
        reaper = Reaper()
        stack.push_async_callback(asyncio.to_thread, reaper.stop)

        supervisor = Supervisor(
            run_dir=places.run,
            instance=options.instance,
            options=options.engine,
            user=options.engine_user,
            engine_patience=options.engine_patience,
            on_restart=self._engine_restarted,
            on_error=_engine_error,
        )
        stack.push_async_callback(supervisor.stop)
        adopted = await supervisor.start()
        if not adopted:
            stack.push_async_callback(self._end_engine, supervisor)
        log.info("engine adopted" if adopted else "engine started", pid=supervisor.remote.pid)
        lost = store.begun and not store.notices
        about_engine = tuple(_about_engine(supervisor.remote, options.engine, store_lost=lost))
        for notice in about_engine:
            log.warning(notice)

        eni_threads = NamespaceThreads(ENI_THREADS)
        stack.push_async_callback(asyncio.to_thread, eni_threads.close)
        fresh = FreshNamespaces(places.mark, threads, reaper)
        enis = EniActuator(supervisor.remote, eni_threads, reaper, self._point)
        actuator = Actuator(
            supervisor.remote, threads, reaper, fresh, enis, self._point, lambda id_: _name(control, id_)
        )
        control = Control(SystemRandom())
        control.load(store.load())
        self._pool = pool = Pool(
            options.pool, control, actuator, threads, supervisor.remote.knows, lambda: executor.busy
        )
        executor = Executor(actuator, enis, threads, eni_threads, pool, lambda: supervisor.reader, self._point)
        caretaker = Caretaker(control, executor, actuator, enis, eni_threads, supervisor.remote, reaper, pool)
        loop = asyncio.get_running_loop()
        upkeep = Upkeep(loop, eni_threads, caretaker)
        executor.watch = pool.watch = Watches(NamespaceWatch(loop, executor.gone), upkeep)
        stack.callback(executor.watch.close)
        stack.push_async_callback(pool.close)
        executor.ledger = ledger = Ledger(control, store, executor.carry, executor.kept)
        stack.callback(ledger.flush)
        executor.senders = Senders(asyncio.get_running_loop(), ledger)
        stack.callback(executor.senders.close)
        stack.push_async_callback(executor.close, PATIENCE)
        stack.push_async_callback(upkeep.close)

        reconciler = Reconciler(ledger, executor, actuator, enis, caretaker, supervisor.remote, fresh, pool)
        now, before = boot_id(), store.meta.get(BOOT, "")
        await reconciler.at_start(rebooted=before not in ("", now), store_lost=adopted and store.begun)
        if before != now:
            store.set_meta(BOOT, now)

        descriptors = Descriptors(reaper)
        self.service = Service(
            instance=options.instance,
            control=control,
            ledger=ledger,
            executor=executor,
            reconciler=reconciler,
            upkeep=upkeep,
            supervisor=supervisor,
            descriptors=descriptors,
            pool=pool,
            fresh=fresh,
            notices=(*store.notices, *about_engine),
            point=self._point,
        )
        self._reconciler = reconciler
        self.service.reading.start()
        stack.push_async_callback(self.service.reading.close)
        await self.service.set_resolvers()
        pool.start()
        stack.callback(descriptors.close)
        descriptors.open(places.descriptors, self._gid)
        runner = await api.serve(api.make_app(self.service), places.api, self._gid)
        stack.push_async_callback(runner.cleanup)

    async def _end_engine(self, supervisor: Supervisor) -> None:
        """An engine that was started for a daemon that could not."""
        if not self._started:
            await supervisor.shutdown()

    def _engine_restarted(self, lost: list[tuple[str, Problem]]) -> None:
        log.warning("the engine died; another one goes on", lost=len(lost))
        for id_, problem in lost:
            log.error("a link was lost", id=id_, error=problem.message)
        if lost:
            self._pool.review()
            task = asyncio.get_running_loop().create_task(self._reconciler.on_request())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


def _name(control: Control, environment: str) -> str:
    """Of an environment; the id of one that is only prepared. Its one look-up needs no turn of the event loop."""
    found = control.find("environment", environment, None)
    return found.name if found else environment


def _about_engine(engine: RemoteEngine, wanted: Mapping[str, object], *, store_lost: bool) -> Iterator[str]:
    """What the operator should know about an engine that was adopted. wanted: the options for a new one."""
    config = engine.config
    if other := sorted(name for name, value in wanted.items() if config.get(name, value) != value):
        has = ", ".join(f"{name} {config[name]} instead of {wanted[name]}" for name in other)
        yield f"the engine that runs has {has}; `hyperplane-nat stop --engine`, then a new start, changes that"
    if store_lost and engine.links():
        yield "the database began anew: what the engine does for others is left alone until POST /v1/reconcile"


def _engine_error(error: HyperplaneError) -> None:
    log.error("the engine", error=str(error))
