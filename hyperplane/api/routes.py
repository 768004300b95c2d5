"""The one table of routes: the application, the OpenAPI document and the tests of both clients are made from it.

A route's `name` is its operationId and the name of the clients' method; `action` names the function in handlers.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal, get_args

from hyperplane.api.service import DeclaredKind
from hyperplane.errors import (
    AddressInUse,
    DependencyViolation,
    DeviceError,
    DeviceExists,
    EngineError,
    EniNotReady,
    FunctionNotActive,
    HyperplaneError,
    IdempotentParameterMismatch,
    InvalidSecurityGroup,
    InvalidSubnet,
    InvalidVpc,
    NamespaceNotFound,
    NotATunnel,
    PermissionMissing,
    ResourceConflict,
    ResourceNotFound,
    StoreError,
    SubnetOutOfIPAddresses,
    TooManyRequests,
)
from hyperplane.model import DROP_REASONS, Drop, Flow, FlowState, Protocol
from hyperplane.resources import (
    DEFAULT_ACCOUNT,
    SENDERS,
    ApplyRequest,
    DaemonStatus,
    Document,
    EndEnvironment,
    Eni,
    EniState,
    Environment,
    EnvironmentSpec,
    EnvironmentState,
    Function,
    FunctionSpec,
    FunctionState,
    Health,
    Kind,
    Plan,
    SecurityGroup,
    SecurityGroupSpec,
    Subnet,
    SubnetSpec,
    Vpc,
    VpcSpec,
)

BASE: Final = "/v1"
VERSION_HEADER: Final = "Hyperplane-Protocol"
VERSION: Final = "1"
LIMIT, MOST = 100, 1000  # items on a page
MOST_DRAIN: Final = 86_400  # seconds
JSON, PROMETHEUS = "application/json", "text/plain; version=0.0.4; charset=utf-8"
Method = Literal["GET", "POST", "PUT", "DELETE"]
Schema = Mapping[str, Any]
Raises = tuple[type[HyperplaneError], ...]
TEXT: Final[Schema] = {"type": "string", "minLength": 1}


@dataclass(frozen=True)
class Parameter:
    """One of the query. schema: its JSON schema; handlers keep to its `enum`."""

    name: str
    description: str
    schema: Schema = field(default_factory=lambda: TEXT)


@dataclass(frozen=True)
class Route:
    """body: what is sent. answer: what comes back, the items' class when it is `paged`, None for nothing or for what
    is no struct.

    created: 201 for what is new, 200 for what was there. also: further statuses with the same answer. raises: what a
    caller must expect besides InvalidValue and InternalError.
    """

    method: Method
    path: str
    name: str
    action: str
    tag: str
    summary: str
    kind: Kind | None = None
    body: Any = None
    body_optional: bool = False
    answer: Any = None
    paged: bool = False
    created: bool = False
    also: tuple[int, ...] = ()
    media: str = JSON
    query: tuple[Parameter, ...] = ()
    raises: Raises = ()

    @property
    def status(self) -> int:
        """Of success; see `created`."""
        return 201 if self.created else 200 if self.answer or self.media != JSON or self.action == "openapi" else 204


def words(values: Iterable[str]) -> Schema:
    return {"type": "string", "enum": [str(value) for value in values]}


def _states(kind: type[StrEnum]) -> Parameter:
    return Parameter("state", "Those in this state.", words(kind))


OWN_ACCOUNT: Final = Parameter("account", f"Whose; `{DEFAULT_ACCOUNT}` unless given.")
ANY_ACCOUNT: Final = Parameter("account", "Those of this account; of all accounts unless given.")
PAGING: Final = (
    Parameter("limit", "Items on a page.", {"type": "integer", "minimum": 1, "maximum": MOST, "default": LIMIT}),
    Parameter("next_token", "Where the page begins: what the page before gave. It stays the daemon's to read."),
)
_NAME: Final = Parameter("name", "Those with this name.")
_VPC: Final = Parameter("vpc", "Those of this VPC, by id or name.")
_SUBNET: Final = Parameter("subnet", "Those in this subnet, by id or name.")
_GROUP: Final = Parameter("security_group", "Those with this security group, by id or name.")
_FUNCTION: Final = Parameter("function", "Those of this function, by id or name.")
_ENI: Final = Parameter("eni", "Those on this ENI, by id.")
_NAMESPACE: Final = Parameter("namespace", "Those of this network namespace.")
_SENDER: Final = Parameter("sender", "Those whose descriptor's sender is so.", words(SENDERS))
_ENVIRONMENT: Final = Parameter("environment", "Those of this environment, by id or name.")

# Which fields a list can be filtered by: what ServiceProtocol.select() gets.
FILTERS: Final[Mapping[Kind, tuple[Parameter, ...]]] = {
    "vpc": (_NAME, _NAMESPACE),
    "subnet": (_NAME, _VPC),
    "security-group": (_NAME, _VPC),
    "function": (_NAME, _states(FunctionState), _VPC, _SUBNET, _GROUP, _ENI),
    "eni": (_NAME, _states(EniState), _VPC, _SUBNET, _GROUP, _FUNCTION),
    "environment": (_NAME, _states(EnvironmentState), _FUNCTION, _ENI, _NAMESPACE, _SENDER),
}
_FLOW_FILTERS: Final = (
    _ENVIRONMENT,
    _FUNCTION,
    _ENI,
    Parameter("protocol", "Those of this protocol.", words(get_args(Protocol))),
    Parameter("state", "Those in this state.", words(FlowState)),
    Parameter("remote", "Those to this address or network.", {"type": "string", "examples": ["198.19.0.0/24"]}),
)
_DROP_FILTERS: Final = (
    Parameter("after", "Those with a higher number.", {"type": "integer", "minimum": 0, "default": 0}),
    _ENVIRONMENT,
    _ENI,
    Parameter("reason", "Those for this reason.", words(DROP_REASONS)),
)

_DRAIN: Final = Parameter(
    "drain", "Seconds; instead of a body.", {"type": "number", "minimum": 0, "maximum": MOST_DRAIN, "default": 0}
)

_STORED: Final[Raises] = (StoreError,)
_CREATED: Final[Raises] = (ResourceConflict, IdempotentParameterMismatch, StoreError)
_REFERS: Final[Mapping[DeclaredKind, Raises]] = {
    "vpc": (InvalidVpc,),
    "subnet": (InvalidVpc, InvalidSubnet),
    "security-group": (InvalidVpc, InvalidSecurityGroup),
    "function": (InvalidSubnet, InvalidSecurityGroup, SubnetOutOfIPAddresses),
}
_CONFLICTS: Final[Raises] = (ResourceNotFound, DependencyViolation, ResourceConflict)
_DOCUMENT: Final[Raises] = (
    *_CREATED,
    DependencyViolation,
    InvalidVpc,
    InvalidSubnet,
    InvalidSecurityGroup,
    SubnetOutOfIPAddresses,
)
_STARTED: Final[Raises] = (
    ResourceNotFound,
    *_CREATED,
    FunctionNotActive,
    EniNotReady,
    NamespaceNotFound,
    NotATunnel,
    DeviceExists,
    DeviceError,
    EngineError,
    PermissionMissing,
    TooManyRequests,
)
_RECONCILED: Final[Raises] = (StoreError, EngineError, DeviceError, AddressInUse)


def _declared(kind: DeclaredKind, noun: str, spec: type, answer: type) -> tuple[Route, ...]:
    """The five routes of a kind that is declared. noun: in a sentence."""
    one, many = kind.replace("-", "_"), f"/{kind}s"
    refers, names = _REFERS[kind], f"{noun}s"
    article = "an" if noun[0] in "ae" else "a"
    return (
        Route(
            "POST", many, f"create_{one}", "create", names, f"Create {article} {noun}, or find the equal one.", kind,
            body=spec, answer=answer, created=True, raises=(*refers, *_CREATED),
        ),
        Route(
            "GET", many, f"list_{one}s", "select", names, f"List {names}, the oldest first.", kind,
            answer=answer, paged=True, query=(ANY_ACCOUNT, *FILTERS[kind], *PAGING), raises=(ResourceNotFound,),
        ),
        Route(
            "GET", f"{many}/{{ref}}", f"get_{one}", "get", names, f"Get {article} {noun}.", kind,
            answer=answer, query=(OWN_ACCOUNT,), raises=(ResourceNotFound,),
        ),
        Route(
            "PUT", f"{many}/{{ref}}", f"update_{one}", "update", names, f"Replace what {article} {noun} is.", kind,
            body=spec, answer=answer, raises=(*refers, *_CONFLICTS, *_STORED),
        ),
        Route(
            "DELETE", f"{many}/{{ref}}", f"delete_{one}", "delete", names, f"Delete {article} {noun} not in use.", kind,
            query=(OWN_ACCOUNT,), raises=(*_CONFLICTS, *_STORED),
        ),
    )  # fmt: skip


ROUTES: Final[tuple[Route, ...]] = (
    *_declared("vpc", "VPC", VpcSpec, Vpc),
    *_declared("subnet", "subnet", SubnetSpec, Subnet),
    *_declared("security-group", "security group", SecurityGroupSpec, SecurityGroup),
    *_declared("function", "function", FunctionSpec, Function),
    Route(
        "GET", "/enis", "list_enis", "select", "ENIs", "List ENIs, the oldest first.", "eni",
        answer=Eni, paged=True, query=(ANY_ACCOUNT, *FILTERS["eni"], *PAGING), raises=(ResourceNotFound,),
    ),
    Route(
        "GET", "/enis/{ref}", "get_eni", "get", "ENIs", "Get an ENI.", "eni",
        answer=Eni, query=(OWN_ACCOUNT,), raises=(ResourceNotFound,),
    ),
    Route(
        "POST", "/environments", "start_environment", "start_environment", "environments",
        "Start an environment; answered when it is attached.", "environment",
        body=EnvironmentSpec, answer=Environment, created=True, raises=_STARTED,
    ),
    Route(
        "GET", "/environments", "list_environments", "select", "environments",
        "List environments, the oldest first.", "environment",
        answer=Environment, paged=True, query=(ANY_ACCOUNT, *FILTERS["environment"], *PAGING),
        raises=(ResourceNotFound,),
    ),
    Route(
        "GET", "/environments/{ref}", "get_environment", "get", "environments", "Get an environment.", "environment",
        answer=Environment, query=(OWN_ACCOUNT,), raises=(ResourceNotFound,),
    ),
    Route(
        "DELETE", "/environments/{ref}", "end_environment", "end_environment", "environments",
        "End an environment, at once or when its flows have drained.", "environment",
        body=EndEnvironment, body_optional=True, answer=Environment,
        query=(OWN_ACCOUNT, _DRAIN),
        raises=(ResourceNotFound, StoreError),
    ),
    Route(
        "POST", "/apply", "apply", "apply", "documents", "Make an account's declared resources so; all or nothing.",
        body=ApplyRequest, answer=Plan, raises=_DOCUMENT,
    ),
    Route(
        "GET", "/export", "export", "export", "documents", "An account's declared resources, as apply takes them.",
        answer=Document, query=(OWN_ACCOUNT,),
    ),
    Route(
        "POST", "/reconcile", "reconcile", "reconcile", "daemon", "Make kernel and engine as the store says.",
        answer=Plan, raises=_RECONCILED,
    ),
    Route(
        "GET", "/flows", "list_flows", "flows", "traffic", "List flows.",
        answer=Flow, paged=True, query=(ANY_ACCOUNT, *_FLOW_FILTERS, *PAGING), raises=(ResourceNotFound, EngineError),
    ),
    Route(
        "GET", "/flows/{id}", "get_flow", "flow", "traffic", "Get a flow.",
        answer=Flow, raises=(ResourceNotFound, EngineError),
    ),
    Route(
        "GET", "/drops", "list_drops", "drops", "traffic", "List the latest dropped packets that are remembered.",
        answer=Drop, paged=True, query=(OWN_ACCOUNT, *_DROP_FILTERS, *PAGING), raises=(ResourceNotFound, EngineError),
    ),
    Route(
        "GET", "/healthz", "health", "health", "daemon", "Whether all works.", answer=Health, also=(503,),
    ),
    Route("GET", "/status", "status", "status", "daemon", "Daemon, engine and sums.", answer=DaemonStatus),
    Route("GET", "/metrics", "metrics", "metrics", "daemon", "Metrics for Prometheus.", media=PROMETHEUS),
    Route("GET", "/openapi.json", "openapi", "openapi", "daemon", "This document."),
)  # fmt: skip
