"""What the API calls: control decides, the ledger keeps it, the executor has it carried out."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from hyperplane import __version__
from hyperplane.api.service import DeclaredKind, FlowQuery, Measures, Peer
from hyperplane.control import Control
from hyperplane.daemon import looking
from hyperplane.daemon.descriptors import Descriptors
from hyperplane.daemon.executor import Executor, Start
from hyperplane.daemon.fresh import FreshNamespaces
from hyperplane.daemon.ledger import Ledger
from hyperplane.daemon.looking import Looker
from hyperplane.daemon.peers import check_target, check_vpc
from hyperplane.daemon.points import CommitPoints
from hyperplane.daemon.pool import Pool
from hyperplane.daemon.reading import Reading
from hyperplane.daemon.reconcile import Reconciler
from hyperplane.daemon.supervisor import Supervisor
from hyperplane.errors import EniNotReady, InvalidValue, ResourceConflict
from hyperplane.linux.processes import process
from hyperplane.linux.upkeep import Upkeep
from hyperplane.model import Drop, Flow
from hyperplane.resources import (
    ApplyRequest,
    DaemonStatus,
    Document,
    Environment,
    EnvironmentSpec,
    EnvironmentState,
    Health,
    Kind,
    Plan,
    Resource,
    Timings,
    VpcSpec,
)

START_WITHIN: Final = 50.0  # seconds: an ENI that is pending for longer does not come
RUNNING: Final = (EnvironmentState.ATTACHED, EnvironmentState.DETACHING)
MOST_REASONS: Final = 20  # of healthz that are about ENIs
END_WITHIN: Final = 10.0  # seconds that a deletion without drain waits for its end


@dataclass
class Service:
    """hyperplane.api.service.ServiceProtocol. Belongs to the event loop."""

    instance: str
    control: Control
    ledger: Ledger
    executor: Executor
    reconciler: Reconciler
    upkeep: Upkeep
    supervisor: Supervisor
    descriptors: Descriptors
    pool: Pool
    fresh: FreshNamespaces
    notices: tuple[str, ...]
    point: CommitPoints
    started: float = field(default_factory=time.time)

    def __post_init__(self) -> None:
        self._looker = Looker(self.supervisor)
        self.reading = Reading(self._looker.status, self._looker.links)

    # Declared resources

    async def create(self, kind: DeclaredKind, spec: Any, peer: Peer) -> tuple[Resource, bool]:
        if isinstance(spec, VpcSpec):
            check_vpc(spec.namespace, peer)
        method = getattr(self.control, f"create_{kind.replace('-', '_')}")

        def decide(now: float) -> tuple[Resource, bool]:
            made: Resource = method(spec, now)
            return made, made.created == now

        made, created = self.ledger.request(decide)
        self.point("creation stored")
        return made, created

    async def get(self, kind: Kind, ref: str, account: str) -> Resource:
        found: Resource = self.control.get(kind, ref, account)
        return found

    async def select(self, kind: Kind, account: str | None, filters: Mapping[str, str]) -> Sequence[Resource]:
        return self.control.list(kind, account, **filters)

    async def update(self, kind: DeclaredKind, ref: str, spec: Any, peer: Peer) -> Resource:
        if isinstance(spec, VpcSpec):
            check_vpc(spec.namespace, peer)
        method = getattr(self.control, f"update_{kind.replace('-', '_')}")
        made: Resource = self.ledger.request(lambda now: method(ref, spec, now))
        if isinstance(spec, VpcSpec):
            await self.set_resolvers()
        return made

    async def delete(self, kind: DeclaredKind, ref: str, account: str) -> None:
        method = getattr(self.control, f"delete_{kind.replace('-', '_')}")
        self.ledger.request(lambda now: method(ref, account, now))
        self.point("deletion stored")

    async def apply(self, request: ApplyRequest, peer: Peer) -> Plan:
        document, prune = request.document, request.prune
        for number, vpc in enumerate(document.vpc):
            check_vpc(vpc.namespace, peer, field=f"vpc[{number}].namespace")
        if request.dry_run:
            return self.control.plan(document, prune, self.ledger.now)
        plan = self.ledger.request(lambda now: self.control.apply(document, prune, now))
        if any(change.kind == "vpc" and change.action == "update" for change in plan.changes):
            await self.set_resolvers()
        return plan

    async def export(self, account: str) -> Document:
        return self.control.export(account)

    async def set_resolvers(self) -> None:
        """In fresh namespaces, those that wait in the pool too: the present ones of their VPCs."""
        environments: Sequence[Environment] = self.control.list("environment")
        running = {one.namespace: one.eni for one in environments if one.fresh and one.state in RUNNING}
        wanted = {name: self.control.resolvers(eni) for name, eni in (self.pool.namespaces() | running).items()}
        await asyncio.to_thread(self.fresh.set_resolvers, wanted)

    # Environments

    async def start_environment(self, spec: EnvironmentSpec, peer: Peer) -> tuple[Environment, bool]:
        asked = time.perf_counter()
        self.executor.check_room()
        check = check_target(spec.namespace, peer) if spec.namespace else None
        owner = process(spec.pid)

        def decide(now: float) -> tuple[Environment, bool, float]:
            environment = self.control.start_environment(spec, now, self.pool.find)
            created = environment.created == now
            if created and spec.descriptor:
                self.descriptors.check(spec.descriptor, peer)
            if created and spec.pid and owner is None:
                remedy = "give the pid of a running process"
                raise InvalidValue(f"no process {spec.pid}", resource="pid", remedy=remedy, field="pid")
            return environment, created, time.perf_counter() - asked

        environment, created, decided = self.ledger.request(decide)
        if not created:
            return await self._joined(environment), False
        if environment.state is EnvironmentState.ATTACHED:
            return self._taken(environment, asked, decided), True
        start = Start(asked, asyncio.get_running_loop().create_future(), check, decided=decided)
        if spec.descriptor:
            start.process = owner
            start.sender = None if owner else self.descriptors.sender(spec.descriptor)
            start.device = self.descriptors.take(spec.descriptor, peer)
        self.executor.expect(environment.id, start)
        self.point("start stored")
        return await self._answered(environment, start.answer), True

    async def end_environment(self, ref: str, account: str, drain: float) -> Environment:
        environment = self.ledger.request(lambda now: self.control.end_environment(ref, account, drain, now))
        self.point("end stored")
        if environment.state is not EnvironmentState.DETACHING or drain:
            return environment
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self.executor.ended(environment.id)), END_WITHIN)
        found: Environment | None = self.control.find("environment", environment.id, None)
        return found or environment

    async def _joined(self, environment: Environment) -> Environment:
        """What the same request led to before."""
        answer = self.executor.joined(environment.id)
        if answer is not None:
            return await self._answered(environment, answer)
        if environment.state is EnvironmentState.ENDED:
            message = f"environment {environment.name} of this client_token has ended: {environment.reason}"
            raise ResourceConflict(message, resource=environment.id, remedy="start one with another client_token")
        return environment

    async def _answered(self, environment: Environment, answer: asyncio.Future[Environment]) -> Environment:
        try:
            return await asyncio.wait_for(asyncio.shield(answer), START_WITHIN)
        except TimeoutError:
            pass
        remedy = "look at the function's ENIs, and at the daemon's log"
        message = f"environment {environment.name} was not attached within {START_WITHIN:.0f} s"
        self.ledger.request(lambda now: self.control.end_environment(environment.id, None, 0.0, now))
        raise EniNotReady(message, resource=environment.id, remedy=remedy)

    def _taken(self, environment: Environment, asked: float, decided: float) -> Environment:
        """One that has its tunnel from the pool: nothing is left to be done."""
        self.pool.take(environment.id)
        self.point("start attached")
        total = time.perf_counter() - asked
        timings = Timings(total=total, kernel=0.0, engine=0.0, wait=0.0, daemon=total, decided=decided)
        self.ledger.note(lambda now: self.control.environment_attached(environment.id, now, timings=timings))
        found: Environment = self.control.get("environment", environment.id, None)
        return found

    # Traffic

    async def flows(self, query: FlowQuery, after: int, limit: int) -> Sequence[Flow]:
        wanted = looking.wanted(self.control, query)
        return await asyncio.to_thread(self._looker.flows, wanted, after, limit)

    async def flow(self, flow_id: int) -> Flow:
        return await asyncio.to_thread(self._looker.flow, flow_id)

    async def drops(self, after: int) -> Sequence[Drop]:
        return await asyncio.to_thread(self._looker.drops, after)

    # The daemon

    async def reconcile(self) -> Plan:
        plan = await self.reconciler.on_request()
        await self.set_resolvers()
        return plan

    async def health(self) -> Health:
        reasons = []
        if not self.supervisor.alive:
            reasons.append("no engine runs; engine.log says why")
        elif trouble := self.supervisor.remote.trouble:
            reasons.append(trouble)
        if trouble := self.ledger.trouble:
            reasons.append(trouble)
        troubles = self.upkeep.troubles
        reasons += troubles[:MOST_REASONS]
        if len(troubles) > MOST_REASONS:
            reasons.append(f"{len(troubles) - MOST_REASONS} more like these; the log has all")
        if trouble := self.reading.trouble:
            reasons.append(trouble)
        return Health(
            status="degraded" if reasons else "ok",
            version=__version__,
            instance=self.instance,
            reasons=tuple(reasons),
        )

    async def status(self) -> DaemonStatus:
        resources = looking.counts(self.control)
        engine, traffic = await asyncio.to_thread(lambda: (self._looker.process(), self._looker.traffic()))
        return DaemonStatus(
            instance=self.instance,
            version=__version__,
            pid=os.getpid(),
            started=self.started,
            engine=engine,
            traffic=traffic,
            resources=resources,
            pool=len(self.pool),
            notices=(*self.notices, *filter(None, (self.reading.trouble,))),
        )

    async def measures(self) -> Measures:
        resources = looking.counts(self.control)
        accounts = {one.id: one.account for one in self.control.list("eni")}
        status, traffic, enis = await asyncio.to_thread(
            lambda: (self._looker.status(), self._looker.traffic(), self._looker.enis(accounts))
        )
        return Measures(
            traffic=traffic,
            flows=status.flows,
            max_flows=self.supervisor.reader.config.max_flows,
            restarts=self.supervisor.restarts,
            repairs=self.upkeep.repairs,
            troubles=len(self.upkeep.troubles),
            engine_running=self.supervisor.alive,
            resources=resources,
            enis=enis,
            workers=status.workers,
            pool=len(self.pool),
        )
