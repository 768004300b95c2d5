"""Makes kernel and engine as the store says: at the daemon's start, and when asked. What is right is not touched.

What a daemon that was killed may have left, and what becomes of it:

| left | then |
|---|---|
| an ENI that is pending or deleting, an environment that is detaching | it is done again: each step may be done twice |
| an environment that is attaching | whoever asked for it got no answer: its tunnel is removed, and it has failed |
| a link of the engine whose resource the store does not have | it is removed |
| a fresh namespace that no environment has | it is deleted |
| a function that has failed | is tried again: its VPC may be there by now |
| a kernel setting whose ENI is gone | it is set back (linux.settings) |

And what may have happened meanwhile: namespaces that went away end their environments, devices that were deleted or
died with an engine are made again, and after a reboot of the host every environment has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import structlog

from hyperplane.control import MakeEni, RemoveEni, UpdateEni
from hyperplane.daemon.actuator import Actuator
from hyperplane.daemon.caretaker import Caretaker
from hyperplane.daemon.eni_actuator import EniActuator, rules
from hyperplane.daemon.executor import Executor
from hyperplane.daemon.fresh import FreshNamespaces
from hyperplane.daemon.ledger import Ledger
from hyperplane.daemon.pool import Pool
from hyperplane.daemon.whereabouts import Found, named_by_process, namespace_key
from hyperplane.errors import HyperplaneError, ResourceConflict
from hyperplane.ipc.mirror import Link
from hyperplane.ipc.remote import RemoteEngine
from hyperplane.linux.repair import Difference
from hyperplane.linux.settings import SETTINGS
from hyperplane.resources import Change, Eni, EniState, Environment, EnvironmentState, FunctionState, Kind, Plan

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
UNANSWERED: Final = "the daemon was restarted while it was being attached"

log = structlog.get_logger()


class Reconciler:
    def __init__(
        self,
        ledger: Ledger,
        executor: Executor,
        actuator: Actuator,
        enis: EniActuator,
        caretaker: Caretaker,
        engine: RemoteEngine,
        fresh: FreshNamespaces,
        pool: Pool,
    ) -> None:
        self._ledger = ledger
        self._executor = executor
        self._actuator = actuator
        self._enis = enis
        self._caretaker = caretaker
        self._engine = engine
        self._fresh = fresh
        self._pool = pool
        self._changes: list[Change] = []
        self._begun: set[str] = set()  # resources about which something was begun
        self._turn = asyncio.Lock()

    async def at_start(self, *, rebooted: bool, store_lost: bool) -> Plan:
        """store_lost: the database knows nothing though an engine runs: that is left alone. Raises StoreError."""
        async with self._turn:
            self._changes = []
            if rebooted:
                for environment in self._environments():
                    self._end(environment, "the host was rebooted")
            await self._fail_unanswered()
            await self._compare()
            self._try_again()
            if store_lost:
                log.warning("the engine's links are left alone; POST /v1/reconcile removes those that nobody knows")
            else:
                await self._remove_strangers()
            pending = self._ledger.control.pending_actions(self._ledger.now)
            self._ledger.begin(pending)
            if not store_lost and not any(isinstance(action, MakeEni | RemoveEni) for action in pending):
                SETTINGS.forget_inherited()
            return self._plan()

    async def on_request(self) -> Plan:
        async with self._turn:
            self._changes = []
            self._begun.clear()
            self._try_again()
            await self._compare()
            await self._remove_strangers()
            await self._executor.settled(*self._begun)
            return self._plan()

    # Steps

    async def _compare(self) -> None:
        enis = self._ledger.control.list("eni")
        await self._executor.settled(*(one.id for one in enis if one.state is not EniState.PENDING))
        for eni in enis:
            if eni.state in (EniState.AVAILABLE, EniState.IN_USE) and not self._executor.under_way(eni.id):
                await self._compare_eni(eni)
        attached = [one for one in self._environments() if one.state is EnvironmentState.ATTACHED]
        await self._executor.settled(*(one.id for one in attached))
        known = [one for one in attached if not self._executor.under_way(one.id)]
        conditions = await self._caretaker.inspect(known)
        for environment in known:
            await self._compare_environment(environment, conditions[environment.id])
        for id_ in await self._run(lambda ids: [one for one in ids if not self._has_device(one)], self._pool.ids()):
            self._pool.lose(id_)

    async def _compare_eni(self, eni: Eni) -> None:
        action = self._ledger.control.make_action(eni.id)
        try:
            report = await self._caretaker.eni(eni.id)
        except HyperplaneError as error:
            log.warning("ENI cannot be looked at", eni=eni.id, error=str(error))
            return
        self._note_differences("eni", eni.id, report.differences)
        if self._executor.under_way(eni.id):  # it is lost, and removed
            return
        namespace = await self._executor.run_for_eni(self._enis.adopt, eni, action.namespace)
        if namespace is None:
            return
        self._executor.watch_eni(eni.id, namespace)
        link = await self._run(self._engine.link, eni.id)
        wanted = rules(action.security_groups)
        if link and link.spec.rules != wanted:
            self._begun.add(eni.id)
            self._note("update", "eni", eni.id, rules=(", ".join(link.spec.rules), ", ".join(wanted)))
            self._ledger.begin([UpdateEni(eni=eni, security_groups=action.security_groups)])

    async def _compare_environment(self, environment: Environment, found: Found) -> None:
        current = self._ledger.control.find("environment", environment.id, None)
        if current is None or current.state is not EnvironmentState.ATTACHED or self._executor.under_way(current.id):
            return  # changed meanwhile
        if found.state == "right":
            self._executor.watch_again(environment, found.namespace)
            return
        self._begun.add(environment.id)
        if found.state == "gone":
            self._note("delete", "environment", environment.name, reason=("", found.reason))
            self._executor.end(environment, found.reason)
            return
        try:
            report = await self._caretaker.environment(environment.id)
        except HyperplaneError as error:
            log.warning("environment cannot be looked at", environment=environment.id, error=str(error))
            return
        self._note_differences("environment", environment.name, report.differences)
        if found.state == "changed":
            self._executor.watch_again(environment, found.namespace)

    def _note_differences(self, kind: Kind, name: str, differences: Iterable[Difference]) -> None:
        if differences:
            self._note("update", kind, name, **{one.what: (one.found, one.wanted) for one in differences})

    def _try_again(self) -> None:
        """Functions that have failed: their VPC's namespace may be there by now. But when that is a process's, its
        number may have gone to another one: then somebody has to apply it again."""
        control = self._ledger.control
        failed = [one for one in control.list("function") if one.state is FunctionState.FAILED]
        failed = [one for one in failed if not named_by_process(control.get("vpc", one.vpc, None).namespace)]
        for account in dict.fromkeys(one.account for one in failed):
            names = {one.name for one in failed if one.account == account}
            for spec in control.export(account).function:
                if spec.name in names:
                    self._note("update", "function", spec.name, state=(FunctionState.FAILED, FunctionState.PENDING))
                    try:
                        self._begun.update(self._ledger.request(partial(control.create_function, spec)).enis)
                    except HyperplaneError as error:
                        log.warning("function still fails", function=spec.name, error=str(error))

    def _has_device(self, link: str) -> bool:
        found = self._engine.link(link)
        return found is not None and namespace_key(found) is not None

    async def _fail_unanswered(self) -> None:
        for environment in self._environments():
            if environment.state is EnvironmentState.ATTACHING:
                closing = await self._run(self._actuator.detach, environment.id, "")
                if closing:
                    await asyncio.wrap_future(closing)
                self._end(environment, UNANSWERED)

    async def _remove_strangers(self) -> None:
        links: list[Link] = await self._run(self._engine.links)
        known = {one.id for one in self._ledger.control.list("eni")} | {one.id for one in self._environments()}
        strangers = [
            link
            for link in links
            if not (link.spec.id in known or link.spec.id in self._pool or self._executor.under_way(link.spec.id))
        ]
        for link in sorted(strangers, key=lambda link: link.spec.kind == "eni"):
            self._note("delete", "eni" if link.spec.kind == "eni" else "environment", link.spec.id)
            await self._tried(self._executor.run_for_eni, self._enis.remove_stranger, link)
        used = {one.namespace for one in self._environments()}
        for name in await self._run(self._fresh.leftovers, used):
            log.info("a fresh namespace that nobody has is deleted", namespace=name)
            await self._tried(self._run, self._fresh.delete, name)

    # Within

    def _environments(self) -> list[Environment]:
        """Those that have not ended."""
        every: Iterable[Environment] = self._ledger.control.list("environment")
        return [one for one in every if one.state is not EnvironmentState.ENDED]

    def _end(self, environment: Environment, reason: str) -> None:
        self._note("delete", "environment", environment.name, reason=("", reason))
        control = self._ledger.control
        if reason == UNANSWERED:
            error = ResourceConflict(reason, resource=environment.name, remedy="start it again")
            self._ledger.event(lambda now: control.environment_failed(environment.id, error, now))
        else:
            self._ledger.event(lambda now: control.environment_ended(environment.id, reason, now))

    def _note(self, action: Literal["create", "update", "delete"], kind: Kind, name: str, **fields: Any) -> None:
        log.info(
            "reconciled", action=action, kind=kind, name=name, **{field: new for field, (_, new) in fields.items()}
        )
        self._changes.append(Change(action=action, kind=kind, name=name, fields=fields))

    def _plan(self) -> Plan:
        return Plan(changes=tuple(self._changes), applied=True)

    async def _run(self, work: Callable[..., Any], *arguments: Any) -> Any:
        return await self._executor.run(work, *arguments)

    async def _tried(self, work: Callable[..., Awaitable[Any]], *arguments: Any) -> None:
        try:
            await work(*arguments)
        except HyperplaneError as error:
            log.warning("what was left over could not be removed", error=str(error))


def boot_id() -> str:
    """Another one after each boot of the kernel."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
