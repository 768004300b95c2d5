"""What the API calls: the daemon's service implements it. Every method runs in the event loop and never blocks it.

Each of them raises hyperplane.errors; the API answers those as `Problem`. A reference (`ref`) is an id, or a name
within the account. Created things come as (resource, created): created is False when an equal one existed already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Network
from typing import Any, Literal, Protocol

import msgspec

from hyperplane.model import Counters, Drop, Flow, FlowState, WorkerStatus
from hyperplane.model import Protocol as IpProtocol
from hyperplane.resources import (
    ApplyRequest,
    DaemonStatus,
    Document,
    Environment,
    EnvironmentSpec,
    FunctionSpec,
    Health,
    Kind,
    Plan,
    Resource,
    SecurityGroupSpec,
    SubnetSpec,
    VpcSpec,
)

DeclaredKind = Literal["vpc", "subnet", "security-group", "function"]
Spec = VpcSpec | SubnetSpec | SecurityGroupSpec | FunctionSpec


class Peer(msgspec.Struct, frozen=True):
    """Who is at the other end of the socket (SO_PEERCRED); -1 where the transport does not tell."""

    uid: int = -1
    gid: int = -1
    pid: int = 0


class FlowQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which flows; "" and None: all. account "": of all accounts. environment, function, eni: references in the account
    (the default one when account is ""); ResourceNotFound for an unknown one."""

    account: str = ""
    environment: str = ""
    function: str = ""
    eni: str = ""
    protocol: IpProtocol | None = None
    state: FlowState | None = None
    remote: IPv4Network | None = None


class EniMeasures(msgspec.Struct, frozen=True, kw_only=True):
    """flows: live ones through it."""

    eni: str
    account: str
    counters: Counters
    flows: int


class Measures(msgspec.Struct, frozen=True, kw_only=True):
    """What /v1/metrics shows at a scrape. traffic, resources: as in DaemonStatus; max_flows: the engine's capacity;
    workers: as in Status. repairs: what others had changed and was put right; troubles: what of ENIs is wrong now."""

    traffic: Counters
    flows: int
    max_flows: int
    restarts: int
    engine_running: bool
    resources: Mapping[Kind, Mapping[str, int]]
    enis: Sequence[EniMeasures] = ()
    workers: Sequence[WorkerStatus] = ()
    pool: int = 0
    repairs: int = 0
    troubles: int = 0


class ServiceProtocol(Protocol):
    """The daemon, as the API sees it."""

    async def create(self, kind: DeclaredKind, spec: Any, peer: Peer) -> tuple[Resource, bool]:
        """spec: of the kind's own class. peer: whose namespace a VPC may be depends on it, here and below."""

    async def get(self, kind: Kind, ref: str, account: str) -> Resource: ...

    async def select(self, kind: Kind, account: str | None, filters: Mapping[str, str]) -> Sequence[Resource]:
        """All that match, by (created, id). account None: of all accounts. filters: field -> value, of the keys that
        routes.FILTERS has for the kind; those that name a resource are references."""

    async def update(self, kind: DeclaredKind, ref: str, spec: Any, peer: Peer) -> Resource:
        """spec replaces the resource's content; its account says where."""

    async def delete(self, kind: DeclaredKind, ref: str, account: str) -> None: ...

    async def start_environment(self, spec: EnvironmentSpec, peer: Peer) -> tuple[Environment, bool]:
        """Returns when it is attached. peer: whose process, namespace and descriptor it must be allowed to use."""

    async def end_environment(self, ref: str, account: str, drain: float) -> Environment:
        """drain: seconds. Returns it as it is then, detaching or ended; ending it again is no error."""

    async def apply(self, request: ApplyRequest, peer: Peer) -> Plan: ...

    async def export(self, account: str) -> Document: ...

    async def reconcile(self) -> Plan:
        """Makes kernel and engine as the store says; the plan holds what was not so."""

    async def flows(self, query: FlowQuery, after: int, limit: int) -> Sequence[Flow]:
        """Up to `limit` flows with a flow number (id & 0xFFFFFFFF) above `after`, in the order of that number.
        Their .tunnel and .eni are ids of environment and ENI."""

    async def flow(self, flow_id: int) -> Flow:
        """Raises ResourceNotFound."""

    async def drops(self, after: int) -> Sequence[Drop]:
        """What the drop ring still holds from number after + 1 on. Their .link is the id of an environment or ENI."""

    async def health(self) -> Health: ...

    async def status(self) -> DaemonStatus: ...

    async def measures(self) -> Measures: ...
