"""Looks at the engine's counters, flows and drops, by read-only maps: no packet waits for that.

The methods block: for threads. What they need of control is asked for before, in the event loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

from msgspec.structs import replace

from hyperplane import __version__
from hyperplane.api.service import EniMeasures, FlowQuery
from hyperplane.control import Control
from hyperplane.daemon.supervisor import Supervisor
from hyperplane.errors import EngineError, HyperplaneError, ResourceNotFound
from hyperplane.ipc.mirror import Link
from hyperplane.model import Counters, Drop, Flow, Memory, Status
from hyperplane.resources import DEFAULT_ACCOUNT, KINDS, EngineProcess, Kind

T = TypeVar("T")

NUMBER = 0xFFFFFFFF  # the part of a flow's id that is its number
NOTHING = Status(
    running=False,
    io="none",
    flows=0,
    flows_high=0,
    mappings=0,
    dense_destinations=0,
    loops=0,
    batches=0,
    packets=0,
    writes=0,
    no_buffers=0,
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A FlowQuery with ids in the place of references; environments and enis None: all."""

    query: FlowQuery
    environment: str
    environments: frozenset[str] | None
    enis: frozenset[str] | None

    def __call__(self, flow: Flow) -> bool:
        query = self.query
        return (
            (query.protocol in (None, flow.protocol))
            and (query.state in (None, flow.state))
            and (query.remote is None or flow.remote in query.remote)
            and (self.enis is None or flow.eni in self.enis)
            and (self.environments is None or flow.tunnel in self.environments)
        )


def wanted(control: Control, query: FlowQuery) -> Wanted:
    """Raises ResourceNotFound."""
    account = query.account or DEFAULT_ACCOUNT
    environment = control.get("environment", query.environment, account).id if query.environment else ""
    environments = frozenset((environment,)) if environment else None
    if query.function:
        function = control.get("function", query.function, account).id
        of_it = frozenset(one.id for one in control.list("environment", account, function=function))
        environments = of_it if environments is None else environments & of_it
    enis = None
    if query.eni:
        enis = frozenset((control.get("eni", query.eni, account).id,))
    elif query.account:
        enis = frozenset(one.id for one in control.list("eni", query.account))
    return Wanted(query, environment, environments, enis)


def counts(control: Control) -> dict[Kind, dict[str, int]]:
    """How many resources there are: {kind: {state: count}}, state "" for a kind without states."""
    found: dict[Kind, dict[str, int]] = {}
    for kind in KINDS:
        states = found[kind] = {}
        for one in control.list(kind):
            state = str(getattr(one, "state", ""))
            states[state] = states.get(state, 0) + 1
    return found


class Looker:
    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        supervisor.remote.on_removal = self._retire
        self._retired = Counters()

    def flows(self, wanted: Wanted, after: int, limit: int) -> list[Flow]:
        """See ServiceProtocol.flows()."""
        number = None
        if wanted.environment:
            link = self._supervisor.remote.link(wanted.environment)
            if link is None:
                return []
            number = link.number
        if after >= NUMBER:
            return []
        return list(islice(filter(wanted, self._supervisor.reader.scan(tunnel=number, after=after)), limit))

    def flow(self, flow_id: int) -> Flow:
        """Raises ResourceNotFound."""
        flow = next(self._supervisor.reader.scan(after=(flow_id & NUMBER) - 1), None)
        if flow and flow.id == flow_id:
            return flow
        remedy = "list the flows: it may have ended"
        raise ResourceNotFound(f"no flow {flow_id}", resource=str(flow_id), remedy=remedy)

    def drops(self, after: int) -> list[Drop]:
        return self._supervisor.reader.drops(after=after)

    def traffic(self) -> Counters:
        """The sum over all links, those that have been removed since this daemon began too: it only grows.

        Every flow counts once in it: its ENI counts it too.
        """
        total = self._retired
        for link, counters in self._counters(self._supervisor.remote.links()):
            total += _once(link, counters)
        return total

    def _retire(self, link: Link) -> None:
        """In the thread that has removed the link: its counters can be read until its last flow has ended."""
        for _, counters in self._counters([link]):
            self._retired += replace(_once(link, counters), flows=0, gone=False, read_error="")

    def enis(self, accounts: Mapping[str, str]) -> list[EniMeasures]:
        """accounts: of each ENI that is wanted."""
        links = [link for link in self._supervisor.remote.links() if link.spec.id in accounts]
        return [
            EniMeasures(
                eni=link.spec.id,
                account=accounts[link.spec.id],
                counters=counters,
                flows=self._supervisor.reader.link_flows(link.number),
            )
            for link, counters in self._counters(links)
        ]

    def links(self) -> dict[str, Counters]:
        """Of every link, by its id."""
        return {link.spec.id: counters for link, counters in self._counters(self._supervisor.remote.links())}

    def status(self) -> Status:
        return _try(lambda: self._supervisor.reader.status(), NOTHING)

    def process(self) -> EngineProcess | None:
        """None while no engine runs."""
        supervisor = self._supervisor
        if not supervisor.alive:
            return None
        remote = supervisor.remote
        return EngineProcess(
            pid=remote.pid,
            version=remote.product or __version__,
            generation=remote.generation,
            restarts=supervisor.restarts,
            status=self.status(),
            memory=_try(lambda: supervisor.reader.memory(), Memory(bytes=0, huge_bytes=0, bytes_per_flow=0, regions=0)),
        )

    def _counters(self, links: Iterable[Link]) -> Iterable[tuple[Link, Counters]]:
        for link in links:
            try:
                yield link, self._supervisor.reader.counters(link.number)
            except EngineError:
                continue  # removed meanwhile


def _once(link: Link, counters: Counters) -> Counters:
    if link.spec.kind == "tunnel":
        return replace(counters, flows=0, flows_created=0, flows_ended=0)
    return counters


def _try(look: Callable[[], T], otherwise: T) -> T:
    try:
        return look()
    except HyperplaneError:
        return otherwise
