"""Looks after ENIs and environments: compares them with the kernel, and puts right what others have changed.

For `Upkeep`, which says when, and for the reconciler, which asks about all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import structlog

from hyperplane.control import Control, MakeEni
from hyperplane.daemon.actuator import Actuator
from hyperplane.daemon.eni_actuator import EniActuator
from hyperplane.daemon.executor import Executor
from hyperplane.daemon.pool import Pool
from hyperplane.daemon.whereabouts import Found, namespace_key, process_lost
from hyperplane.errors import HyperplaneError, NamespaceNotFound
from hyperplane.ipc.remote import RemoteEngine
from hyperplane.linux.namespaces import Namespace, NamespaceThreads
from hyperplane.linux.reaper import Reaper
from hyperplane.linux.repair import DeviceLost, Difference, Report
from hyperplane.resources import Eni, EniState, Environment, EnvironmentState

log = structlog.get_logger()

NOTHING = Report()


class Caretaker:
    """Belongs to the event loop. threads: those of ENIs, in which starts of environments do not wait."""

    def __init__(
        self,
        control: Control,
        executor: Executor,
        actuator: Actuator,
        enis: EniActuator,
        threads: NamespaceThreads,
        engine: RemoteEngine,
        reaper: Reaper,
        pool: Pool,
    ) -> None:
        self._control = control
        self._executor = executor
        self._actuator = actuator
        self._enis = enis
        self._threads = threads
        self._engine = engine
        self._reaper = reaper
        self._pool = pool
        self._remaking: set[str] = set()  # ENIs whose tunnels are put onto a new device

    # For Upkeep

    async def look(self, token: Any, *, thorough: bool) -> Report:
        """See linux.upkeep.Keeper."""
        kind, id_ = token
        if self._executor.under_way(id_):
            return Report(again=0.0)
        if kind == "eni":
            return await self.eni(id_, thorough=thorough)
        return await self.environment(id_)

    async def sweep(self, tokens: Sequence[Any]) -> list[Any]:
        """See linux.upkeep.Keeper."""
        known = {}
        for token in tokens:
            environment = self._attached(token[1])
            if environment is not None and not self._executor.under_way(environment.id):
                known[token] = environment
            elif token[1] in self._pool and not self._remaking and not self._has_device(token[1]):
                self._pool.lose(token[1])
        conditions = await self.inspect(list(known.values()))
        return [token for token, one in known.items() if conditions[one.id].state != "right"]

    def disputed(self, token: Any, what: str, pause: float) -> None:
        """See linux.upkeep.Keeper."""
        log.warning("somebody else changes it again and again", **{token[0]: token[1]}, what=what, seconds=pause)

    def troubled(self, token: Any, troubles: Sequence[str]) -> None:
        """See linux.upkeep.Keeper."""
        if troubles:
            log.warning("it cannot be put right", **{token[0]: token[1]}, troubles=list(troubles))
        else:
            log.info("it is right again", **{token[0]: token[1]})

    # One of them

    async def eni(self, id_: str, *, thorough: bool = True) -> Report:
        """Puts right what is not as it must be. Nothing for one that is not up."""
        return await self._executor.in_turn("eni", id_, lambda: self._look_at_eni(id_, thorough))

    async def environment(self, id_: str) -> Report:
        """The same. When its namespace is gone it ends."""
        return await self._executor.in_turn("environment", id_, lambda: self._look_at_environment(id_))

    async def inspect(self, environments: Sequence[Environment]) -> dict[str, Found]:
        """What has become of environments that are attached, by their ids; changes nothing."""
        if not environments:
            return {}
        actions = [self._control.attach_action(one.id) for one in environments]
        kept = [self._control.internals(one.id) for one in environments]

        def look() -> dict[str, Found]:
            found = {}
            for action, known in zip(actions, kept, strict=True):
                try:
                    found[action.environment.id] = self._actuator.inspect(action, known, self._threads)
                except HyperplaneError as error:  # no descriptor left, for instance: it may live
                    log.warning("environment cannot be looked at", environment=action.environment.id, error=str(error))
                    found[action.environment.id] = Found("right")
            return found

        return await self._executor.run_for_eni(look)

    # In turn

    async def _look_at_eni(self, id_: str, thorough: bool) -> Report:
        eni: Eni | None = self._control.find("eni", id_, None)
        if eni is None or eni.state not in (EniState.AVAILABLE, EniState.IN_USE):
            return NOTHING
        action = self._control.make_action(id_)
        lost: tuple[Difference, ...] = ()
        try:
            await self._executor.run_for_eni(self._enis.adopt, eni, action.namespace)
            try:
                report: Report = await self._executor.run_for_eni(self._enis.look_after, id_, thorough)
            except DeviceLost as error:
                if reason := await self._executor.run_for_eni(process_lost, action.namespace, action.internals):
                    self._executor.lose_eni(id_, f"the VPC's {reason}")
                    return NOTHING
                lost = (Difference("device", error.message, eni.device),)
                log.warning("the device of an ENI is made again: its flows are lost", eni=id_, reason=error.message)
                namespace = await self._remade(action)
                self._executor.watch_eni(id_, namespace)
                report = await self._executor.run_for_eni(self._enis.look_after, id_)
        except NamespaceNotFound as error:
            self._executor.lose_eni(id_, str(error))
            return Report(lost)
        except HyperplaneError as error:
            if not lost or self._engine.link(id_):
                raise  # it is tried again
            self._executor.lose_eni(id_, str(error))
            return Report(lost)
        _tell("eni", id_, report.differences)
        return report._replace(differences=(*lost, *report.differences))

    async def _remade(self, action: MakeEni) -> Namespace:
        """Nothing is done about its environments' tunnels meanwhile: they are not where they belong."""
        id_ = action.eni.id
        self._remaking.add(id_)
        try:
            async with self._executor.tunnels_of(id_):
                namespace: Namespace = await self._executor.run_for_eni(self._enis.remake, action)
            return namespace
        finally:
            self._remaking.discard(id_)

    async def _look_at_environment(self, id_: str) -> Report:
        environment = self._attached(id_)
        if environment is None:
            return NOTHING
        if environment.eni in self._remaking:
            return Report(again=0.0)
        action, kept = self._control.attach_action(id_), self._control.internals(id_)
        found: Found = await self._executor.run_for_eni(
            self._actuator.inspect, action, kept, self._threads, repair=True
        )
        if self._attached(id_) is None:
            return NOTHING
        if found.state == "gone":
            self._executor.end(environment, found.reason)
            return NOTHING
        if found.state == "missing":
            log.warning("the device of an environment is made again", environment=id_, reason=found.reason)
            async with self._executor.tunnels_of(environment.eni):
                again: Found = await self._executor.run_for_eni(self._actuator.inspect, action, kept, self._threads)
                if again.state != "missing":  # its ENI was being made again
                    return Report(again=0.0)
                fd = await self._executor.run(self._engine.remove, id_)
            closing = asyncio.wrap_future(self._reaper.close(fd)) if fd >= 0 else None
            self._executor.reattach(environment, closing)
            return Report((Difference("device", found.reason, environment.device),))
        _tell("environment", id_, found.differences)
        return Report(found.differences)

    # Within

    def _attached(self, id_: str) -> Environment | None:
        environment: Environment | None = self._control.find("environment", id_, None)
        return environment if environment and environment.state is EnvironmentState.ATTACHED else None

    def _has_device(self, link: str) -> bool:
        found = self._engine.link(link)
        return found is not None and namespace_key(found) is not None


def _tell(kind: str, id_: str, differences: Sequence[Difference]) -> None:
    if differences:
        changes = [f"{one.what}: {one.found} -> {one.wanted}" for one in differences]
        log.warning("what others changed was put right", **{kind: id_}, changes=changes)
