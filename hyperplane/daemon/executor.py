"""Has control's actions carried out in threads, one after another for each resource, and tells control what came of it.

Belongs to the event loop. Every action is a task; its blocking steps wait for a thread in the order in which they came,
so that of a thousand starts none is passed over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar, assert_never
from weakref import WeakValueDictionary

import structlog

from hyperplane.control import Action, Attach, Detach, MakeEni, RemoveEni, UpdateEni
from hyperplane.daemon.actuator import Actuator, Attached
from hyperplane.daemon.drains import Drains
from hyperplane.daemon.eni_actuator import EniActuator
from hyperplane.daemon.ledger import Changes, Ledger
from hyperplane.daemon.points import CommitPoints
from hyperplane.daemon.pool import Pool
from hyperplane.daemon.senders import Senders
from hyperplane.daemon.turns import Turns
from hyperplane.daemon.watches import Watches
from hyperplane.daemon.whereabouts import remembered, remembered_of_descriptor
from hyperplane.dataplane.reader import Reader
from hyperplane.errors import (
    DeviceError,
    EngineError,
    EniNotReady,
    HyperplaneError,
    InvalidVpc,
    NamespaceNotFound,
    ResourceConflict,
    TooManyRequests,
)
from hyperplane.linux.namespaces import Namespace, NamespaceThreads
from hyperplane.linux.processes import Process, Token, same_process
from hyperplane.linux.tunnel import TunnelDevice
from hyperplane.resources import Environment, EnvironmentState, Kind, Timings

T = TypeVar("T")

MOST_STARTS: Final = 4096  # that wait at the same time
OLD_DEVICE_GONE_WITHIN: Final = 30.0  # seconds: a killed process closes its devices one after another
RETRY: Final = 0.5  # seconds until attaching again is tried once more

log = structlog.get_logger()


@dataclass(slots=True)
class Start:
    """What a start needs beyond the action. asked: when (time.perf_counter()); decided, waited: seconds until it was
    decided, and for its ENI. process: that an environment on a descriptor ends with; sender: who sent that."""

    asked: float
    answer: asyncio.Future[Environment]
    check: Callable[[Namespace], None] | None = None
    device: TunnelDevice | None = None
    process: Process | None = None
    sender: Process | None = None
    decided: float = 0.0
    waited: float = 0.0


class Executor:
    """ledger, watch and senders are set once they are there: they call back."""

    ledger: Ledger
    watch: Watches
    senders: Senders

    def __init__(
        self,
        actuator: Actuator,
        enis: EniActuator,
        threads: NamespaceThreads,
        eni_threads: NamespaceThreads,
        pool: Pool,
        reader: Callable[[], Reader],
        point: CommitPoints,
    ) -> None:
        self._actuator = actuator
        self._threads = threads
        self._enis = enis
        self._turns = Turns(threads, self._over)
        self.run = self._turns.run
        self._eni_turns = Turns(eni_threads, lambda id_, error: None)
        self.run_for_eni = self._eni_turns.run
        self._pool = pool
        self._drains = Drains(actuator, self._turns, reader, point)
        self._point = point
        self._tunnels: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._starts: dict[str, Start] = {}
        self._ends: dict[str, asyncio.Future[None]] = {}  # of environments that somebody waits for

    # For the service

    @property
    def busy(self) -> bool:  # whether anything waits for a thread or is done in one
        return self._turns.working

    def under_way(self, id_: str) -> bool:  # whether something is being done about a resource
        return id_ in self._turns or id_ in self._eni_turns

    def check_room(self) -> None:
        """Raises TooManyRequests."""
        if len(self._starts) >= MOST_STARTS:
            limit = f"{MOST_STARTS} starts at the same time"
            raise TooManyRequests("too many environments are being started", limit=limit, remedy="try again later")

    def expect(self, environment: str, start: Start) -> None:
        """To be called in the turn of the event loop in which the environment was decided."""
        self._starts[environment] = start

    def joined(self, environment: str) -> asyncio.Future[Environment] | None:  # to the start that is under way
        start = self._starts.get(environment)
        return start.answer if start else None

    def ended(self, environment: str) -> asyncio.Future[None]:  # done when it has ended
        return self._ends.setdefault(environment, asyncio.get_running_loop().create_future())

    def carry(self, action: Action) -> None:
        match action:
            case MakeEni():
                self._eni_turns.then(action.eni.id, self._make_eni(action))
            case UpdateEni():
                self._eni_turns.then(action.eni.id, self._update_eni(action))
            case RemoveEni():
                self._eni_turns.then(action.eni.id, self._remove_eni(action))
            case Attach():
                # One whose ENI is up is carried out before expect(): it has waited for nothing.
                if start := self._starts.get(action.environment.id):
                    start.waited = time.perf_counter() - start.asked
                self._turns.then(action.environment.id, self._attach(action))
            case Detach():
                self._drains.shorten(action.environment.id, action.drain)
                self._turns.then(action.environment.id, self._detach(action.environment))
            case _:
                assert_never(action)

    def end(self, environment: Environment, reason: str) -> None:
        """For one whose namespace has gone."""
        self._drains.cut(environment.id)
        self._turns.then(environment.id, self._detach(environment, reason))

    def gone(self, token: Token, reason: str) -> None:
        """What the watch calls."""
        kind, id_ = token if isinstance(token, tuple) else ("", "")
        control = self.ledger.control
        if kind == "environment":
            environment = control.find("environment", id_, None)
            if environment is None:
                self._pool.lose(id_)
            elif environment.state is not EnvironmentState.ENDED:
                log.info("environment has ended", environment=id_, reason=reason)
                self.end(environment, reason)
        elif kind == "eni":
            self.lose_eni(id_, f"the VPC's {reason}")

    def lose_eni(self, eni: str, reason: str) -> None:
        """Control decides what becomes of its environments and functions."""
        log.warning("ENI is lost", eni=eni, reason=reason)
        error = InvalidVpc(reason, resource=eni, remedy="make the VPC's namespace again, then apply")
        self.ledger.event(lambda now: self.ledger.control.eni_failed(eni, error, now))

    def kept(self, changes: Changes) -> None:
        """Whoever waits for an environment that has ended is told, and the pool of what functions are by now."""
        for change in changes:
            if change.kind in ("function", "eni"):
                self._pool.review()
            ended = change.resource
            if isinstance(ended, Environment) and ended.state is EnvironmentState.ENDED:
                kind = EniNotReady if ended.reason.startswith(f"ENI {ended.eni}") else ResourceConflict
                self._over(ended.id, kind(f"environment {ended.name} has ended: {ended.reason}", resource=ended.id))

    async def settled(self, *ids: str) -> None:
        """Waits for what is under way at this moment about these resources."""
        await self._turns.settled(*ids)
        await self._eni_turns.settled(*ids)

    def tunnels_of(self, eni: str) -> asyncio.Lock:
        """Held by who takes tunnels of an ENI out of the engine, or makes them again."""
        return self._tunnels.setdefault(eni, asyncio.Lock())

    def in_turn(self, kind: Kind, id_: str, work: Callable[[], Awaitable[T]]) -> asyncio.Future[T]:
        """What work comes to, begun after what is under way about that resource."""
        outcome: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def do() -> None:
            try:
                result = await work()
            except HyperplaneError as error:
                if not outcome.done():
                    outcome.set_exception(error)
            else:
                _answer(outcome, result)
            finally:
                outcome.cancel()  # nothing, when it is done

        (self._eni_turns if kind == "eni" else self._turns).then(id_, do())
        return outcome

    async def close(self, patience: float) -> None:
        """Starts that are under way are given patience seconds to be answered; drains are left to the next daemon."""
        answers = [start.answer for start in self._starts.values()]
        if answers:
            await asyncio.wait(answers, timeout=patience)
        await self._turns.close()
        await self._eni_turns.close()

    # ENIs

    async def _make_eni(self, action: MakeEni) -> None:
        id_ = action.eni.id
        try:
            namespace = await self._eni_turns.run(self._enis.make, action)
        except HyperplaneError as error:
            log.warning("ENI could not be made", eni=id_, error=str(error))
            told = error
            self.ledger.event(lambda now: self.ledger.control.eni_failed(id_, told, now))
            return
        self.ledger.event(lambda now: self.ledger.control.eni_made(id_, now, internals=remembered(namespace)))
        self._point("eni stored")
        self.watch_eni(id_, namespace)

    def watch_eni(self, eni: str, namespace: Namespace) -> None:
        self.watch.remove(("eni", eni))
        try:
            self.watch.add(("eni", eni), namespace)
        except HyperplaneError as error:
            self.lose_eni(eni, f"the VPC's {error.message}")

    async def _update_eni(self, action: UpdateEni) -> None:
        """Until it is done, and should the engine hang, packets are judged by the rules of before."""
        try:
            await self._eni_turns.insist(f"rules of {action.eni.id}", self._enis.update, action, about=EngineError)
        except HyperplaneError as error:
            log.error("rules could not be changed", eni=action.eni.id, error=str(error))

    async def _remove_eni(self, action: RemoveEni) -> None:
        id_ = action.eni.id
        self.watch.remove(("eni", id_))
        await self._turns.settled(*(one.id for one in self.ledger.control.list("environment", eni=id_)))
        await self._pool.withdraw(id_)
        closing = await self._eni_turns.insist(f"ENI {id_}", self._enis.remove, action)
        if closing:
            await asyncio.wrap_future(closing)
        self.ledger.event(lambda now: self.ledger.control.eni_removed(id_, now))
        self._point("deletion done")

    # Environments

    async def _attach(self, action: Attach) -> None:
        id_ = action.environment.id
        begun = time.perf_counter()
        start = self._starts.get(id_) or Start(begun, asyncio.get_running_loop().create_future())
        device, start.device = start.device, None
        submitted = time.perf_counter()
        try:
            attached = await self._turns.run(self._actuator.attach, action, device, start.check)
            await self._watch_environment(action.environment, attached.namespace, start.process)
        except HyperplaneError as error:
            self._over(id_, error)
            told = error
            self.ledger.event(lambda now: self.ledger.control.environment_failed(id_, told, now))
            return
        timings = _timings(start, submitted, attached)
        found = attached.namespace
        sender = self.senders.watch(id_, start.sender)
        self.ledger.event(
            lambda now: self.ledger.control.environment_attached(
                id_,
                now,
                namespace=found.name if found else "",
                device=attached.device.device,
                pid=found.pid if found else 0,
                sender=sender,
                timings=timings,
                internals=remembered(found) if found else remembered_of_descriptor(start.process, start.sender),
            )
        )
        self._point("start attached")
        self._starts.pop(id_, None)
        current = self.ledger.control.find("environment", id_, None)
        if current is not None and current.state is EnvironmentState.ATTACHED:
            _answer(start.answer, current)
        elif not start.answer.done():
            message = f"environment {action.environment.name} was ended while it was being attached"
            remedy = f"`hyperplane-nat environment show {id_}` says why"
            start.answer.set_exception(ResourceConflict(message, resource=id_, remedy=remedy))

    def reattach(self, environment: Environment, closing: asyncio.Future[None] | None) -> None:
        """For one that lost its device while its namespace lives. closing: done when that is gone."""
        self._turns.then(environment.id, self._reattach(environment, closing))

    async def _reattach(self, environment: Environment, closing: asyncio.Future[None] | None) -> None:
        id_, control = environment.id, self.ledger.control
        if closing:
            await closing
        end = asyncio.get_running_loop().time() + OLD_DEVICE_GONE_WITHIN
        while True:
            current = control.find("environment", id_, None)
            if current is None or current.state is not EnvironmentState.ATTACHED:
                return
            try:
                async with self.tunnels_of(environment.eni):
                    action = control.attach_action(id_)
                    attached = await self._turns.run(self._actuator.attach, action, None, again=True)
                self.watch.remove(("environment", id_))
                await self._watch_environment(environment, attached.namespace)
                return
            except HyperplaneError as error:
                if not isinstance(error, DeviceError) or asyncio.get_running_loop().time() > end:
                    reason = f"it could not be attached again: {error}"
                    break
            await asyncio.sleep(RETRY)
        log.warning("environment has ended", environment=id_, reason=reason)
        await self._detach(environment, reason)

    def watch_again(self, environment: Environment, namespace: Namespace | None) -> None:
        """For one that is attached: its namespace as it is now, None when it came by a descriptor."""
        token = ("environment", environment.id)
        self.watch.remove(token)
        try:
            self.watch.add(token, namespace)
            if namespace is None and environment.pid:
                self.watch.add_process(token, environment.pid)
            elif namespace is None:
                self.senders.watch_again(environment.id)
        except NamespaceNotFound as error:
            self.end(environment, error.message)
        except HyperplaneError as error:
            log.warning("environment cannot be watched", environment=environment.id, error=str(error))

    async def _watch_environment(
        self, environment: Environment, namespace: Namespace | None, process: Process | None = None
    ) -> None:
        """Raises NamespaceNotFound when namespace or process has gone already; then the tunnel is removed."""
        token = ("environment", environment.id)
        try:
            self.watch.add(token, namespace)
            if namespace is None and process:
                self.watch.add_process(token, process[0])
                if not same_process(process):
                    raise NamespaceNotFound(f"process {process[0]} ended just now", resource=environment.id)
        except HyperplaneError:
            self.watch.remove(token)
            fresh = namespace.name if namespace and environment.fresh else ""
            closing = await self._turns.run(self._actuator.detach, environment.id, fresh)
            if closing:
                await asyncio.wrap_future(closing)
            raise

    def _over(self, environment: str, error: HyperplaneError) -> None:
        """Answers whoever waits for an environment that has ended, or is about to."""
        if start := self._starts.pop(environment, None):
            if not start.answer.done():
                start.answer.set_exception(error)
            if start.device:
                self._threads.submit(self._actuator.discard, start.device, fresh=False)
        if ended := self._ends.pop(environment, None):
            _answer(ended, None)

    async def _detach(self, environment: Environment, reason: str = "") -> None:
        """reason "": it was asked for."""
        id_ = environment.id
        control = self.ledger.control
        current = control.find("environment", id_, None)
        if current is None or current.state is EnvironmentState.ENDED:
            return
        if not reason:
            await self._drains.drain(id_)
        self._drains.forget(id_)
        self.watch.remove(("environment", id_))
        self.senders.forget(id_)
        await self._drains.reset(id_)
        fresh = current.namespace if current.fresh else ""
        closing = await self._turns.insist(f"environment {id_}", self._actuator.detach, id_, fresh)
        if closing:
            await asyncio.wrap_future(closing)
        self.ledger.event(lambda now: control.environment_ended(id_, reason or "deleted", now))
        self._point("end done")


def _timings(start: Start, submitted: float, attached: Attached) -> Timings:
    """submitted: when the job was given to the threads."""
    total = time.perf_counter() - start.asked
    wait = start.waited + max(attached.begun - submitted, 0.0)
    kernel, engine = attached.device.kernel, attached.engine
    own = total - kernel - engine - wait
    return Timings(total=total, kernel=kernel, engine=engine, wait=wait, daemon=own, decided=start.decided)


def _answer(future: asyncio.Future[Any], value: object) -> None:
    if not future.done():  # whoever waited may have gone
        future.set_result(value)
