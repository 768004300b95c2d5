"""What the control plane keeps: resources and the requests that make them. Plain immutable values, no I/O.

The same structs are the bodies of the HTTP API, the tables of the TOML document and the records of the store, so a
field has one name everywhere. Words and states are AWS's where AWS has the thing. Times are seconds since the epoch
(float), sizes are bytes. A reference to another resource is its id or, within the account, its name; a resource that is
given out carries ids. Requests refuse unknown fields; their values are checked by hyperplane.control.
"""

from __future__ import annotations

from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final, Literal

import msgspec

from hyperplane.model import Counters, Memory, Status, Timers, UdpMapping

DEFAULT_ACCOUNT: Final = "default"
INSIDE_ADDRESS: Final = "198.18.0.2"  # RFC 2544's block, which no server has
Kind = Literal["vpc", "subnet", "security-group", "function", "eni", "environment"]
KINDS: Final[tuple[Kind, ...]] = ("vpc", "subnet", "security-group", "function", "eni", "environment")
ID_PREFIX: Final[dict[Kind, str]] = {
    "vpc": "vpc",
    "subnet": "subnet",
    "security-group": "sg",
    "function": "function",
    "eni": "eni",
    "environment": "env",
}


class FunctionState(StrEnum):
    """AWS Lambda's (GetFunction, State)."""

    PENDING = "Pending"
    ACTIVE = "Active"
    INACTIVE = "Inactive"
    FAILED = "Failed"
    DELETING = "Deleting"


class ReasonCode(StrEnum):
    """Why a function is in its state: AWS Lambda's StateReasonCode, as far as it is about networks."""

    IDLE = "Idle"
    CREATING = "Creating"
    RESTORING = "Restoring"
    ENI_LIMIT_EXCEEDED = "EniLimitExceeded"
    SUBNET_OUT_OF_IP_ADDRESSES = "SubnetOutOfIPAddresses"
    INVALID_SUBNET = "InvalidSubnet"
    INVALID_SECURITY_GROUP = "InvalidSecurityGroup"
    INTERNAL_ERROR = "InternalError"


class UpdateStatus(StrEnum):
    SUCCESSFUL = "Successful"
    IN_PROGRESS = "InProgress"
    FAILED = "Failed"


class EniState(StrEnum):
    """pending: being made; available: no environment uses it; in-use; deleting."""

    PENDING = "pending"
    AVAILABLE = "available"
    IN_USE = "in-use"
    DELETING = "deleting"


class EnvironmentState(StrEnum):
    """attaching: its tunnel is being made, or its ENI is; attached; detaching: its flows drain; ended: see .reason."""

    ATTACHING = "attaching"
    ATTACHED = "attached"
    DETACHING = "detaching"
    ENDED = "ended"


Sender = Literal["", "running", "gone"]
SENDERS: Final[tuple[Sender, ...]] = ("running", "gone")


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The base of everything that somebody sends."""


class Resource(msgspec.Struct, frozen=True, kw_only=True):
    """The base of everything that is kept and given out. created: seconds since the epoch."""

    id: str
    account: str
    name: str
    created: float


# Requests. client_token makes a creation idempotent: the same token with the same content gives the same resource.


class VpcSpec(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A customer's network: the network namespace that holds it, or its uplink.

    namespace: a name as `ip netns` shows it, a path, or pid:N. dns: resolvers that environments use. mtu: of the path
    into the VPC. timers, udp_mapping, silent: of every ENI there (see hyperplane.model.Timers, Engine.add_eni).
    """

    name: str
    namespace: str
    account: str = DEFAULT_ACCOUNT
    dns: tuple[IPv4Address, ...] = ()
    mtu: int = 1500
    timers: Timers = Timers()
    udp_mapping: UdpMapping = "endpoint-independent"
    silent: bool = False
    client_token: str = ""


class SubnetSpec(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A range of the VPC that ENIs take their addresses from.

    gateway: never given to an ENI, like the network and the broadcast address; None: the first host address. reserved:
    further addresses and ranges that belong to others, servers for instance.
    """

    name: str
    vpc: str
    cidr: IPv4Network
    account: str = DEFAULT_ACCOUNT
    gateway: IPv4Address | None = None
    reserved: tuple[IPv4Network, ...] = ()
    client_token: str = ""


class SecurityGroupSpec(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Egress rules of a VPC's ENIs, as `Rule.parse()` reads them; no rule, no packet."""

    name: str
    vpc: str
    rules: tuple[str, ...] = ()
    account: str = DEFAULT_ACCOUNT
    client_token: str = ""


class FunctionSpec(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A named configuration that environments are started for; it has an ENI in each of its subnets, shared by key.

    inside_address: every environment's own address; None: 198.18.0.2, or another one that the VPC leaves free. routed:
    a guest behind the environment's namespace has that address, so the TUN there gets none and forwards. routes: what
    environments reach through the tunnel. mtu 0: the VPC's. max_flows: of each environment, 0 for no limit.
    """

    name: str
    subnets: tuple[str, ...]
    security_groups: tuple[str, ...]
    account: str = DEFAULT_ACCOUNT
    inside_address: IPv4Address | None = None
    routed: bool = False
    routes: tuple[IPv4Network, ...] = (IPv4Network("0.0.0.0/0"),)
    mtu: int = 0
    max_flows: int = 0
    client_token: str = ""


class EnvironmentSpec(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Starts one execution environment: in an existing namespace, on a descriptor, or in a fresh namespace.

    namespace: a name, a path or pid:N. descriptor: what the descriptor socket gave for an open TUN. Neither: a fresh
    namespace is made, and deleted when the environment ends. name: unique among those that run; "" makes one up.
    device: of the TUN in the namespace. routed: None: as the function says.
    device: of the TUN in the namespace. pid: with a descriptor, the process that the environment ends with; 0: none.
    """

    function: str
    account: str = DEFAULT_ACCOUNT
    namespace: str = ""
    descriptor: str = ""
    name: str = ""
    device: str = "eth0"
    routed: bool | None = None
    pid: int = 0
    client_token: str = ""


class EndEnvironment(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """drain: seconds in which flows may come to their end, while new ones are refused; what is left then, or at once
    when it is 0, is ended by RST to both sides."""

    drain: float = 0.0


class Document(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `apply` reads and `export` writes: one account's declared resources. Tables have the kinds' names."""

    account: str = DEFAULT_ACCOUNT
    vpc: tuple[VpcSpec, ...] = ()
    subnet: tuple[SubnetSpec, ...] = ()
    security_group: tuple[SecurityGroupSpec, ...] = ()
    function: tuple[FunctionSpec, ...] = ()


class ApplyRequest(Request, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """prune: delete what the account has and the document does not name. dry_run: only plan."""

    document: Document
    dry_run: bool = False
    prune: bool = False


# Resources


class Vpc(Resource, frozen=True, kw_only=True):
    namespace: str
    dns: tuple[IPv4Address, ...] = ()
    mtu: int = 1500
    timers: Timers = Timers()
    udp_mapping: UdpMapping = "endpoint-independent"
    silent: bool = False


class Subnet(Resource, frozen=True, kw_only=True):
    """available: addresses that an ENI can still get; vpc: its id."""

    vpc: str
    cidr: IPv4Network
    gateway: IPv4Address
    reserved: tuple[IPv4Network, ...] = ()
    available: int = 0


class SecurityGroup(Resource, frozen=True, kw_only=True):
    """vpc: its id. (hyperplane.model.SecurityGroup is the compiled form that the engine takes.)"""

    vpc: str
    rules: tuple[str, ...] = ()


class Function(Resource, frozen=True, kw_only=True):
    """vpc, subnets, security_groups, enis: ids. notice: what was decided for the user, "" for nothing (for instance an
    inside address that was changed because the VPC uses it)."""

    vpc: str
    subnets: tuple[str, ...]
    security_groups: tuple[str, ...]
    enis: tuple[str, ...]
    inside_address: IPv4Address
    routes: tuple[IPv4Network, ...]
    mtu: int
    max_flows: int
    state: FunctionState
    state_reason: str = ""
    state_reason_code: ReasonCode | None = None
    last_update_status: UpdateStatus = UpdateStatus.SUCCESSFUL
    last_update_status_reason: str = ""
    notice: str = ""
    routed: bool = False


class Eni(Resource, frozen=True, kw_only=True):
    """The shared interface of (account, subnet, set of security groups). Its name is its id.

    device: in the VPC's namespace. functions: ids of those that use it. environments: how many are on it.
    """

    vpc: str
    subnet: str
    security_groups: tuple[str, ...]
    addresses: tuple[IPv4Address, ...]
    device: str
    mtu: int
    state: EniState
    functions: tuple[str, ...] = ()
    environments: int = 0


class Timings(msgspec.Struct, frozen=True, kw_only=True):
    """Where the time of an environment's start went, in seconds.

    total: from the request's arrival until the answer could be written. kernel: inside system calls about namespace,
    device and routes. engine: until the engine had answered. wait: for a free thread and, when it was pending, the ENI.
    daemon: the rest, the daemon's own work: total - kernel - engine - wait. decided: the part of it until it was known
    what is to be done.
    """

    total: float
    kernel: float
    engine: float
    wait: float
    daemon: float
    decided: float = 0.0


class Environment(Resource, frozen=True, kw_only=True):
    """One running copy. function, eni: ids. namespace: "" when it came by a descriptor; fresh: the daemon made it.

    pid: of the process that it ends with: through which the namespace was found, or that was named with a descriptor; 0
    for none. sender: whether the process that sent its descriptor still runs, where no pid was named with it; "" for
    others. ended: seconds since the epoch. reason: why it ended, in words.
    """

    function: str
    eni: str
    namespace: str
    device: str
    inside_address: IPv4Address
    mtu: int
    state: EnvironmentState
    fresh: bool = False
    pid: int = 0
    sender: Sender = ""
    timings: Timings | None = None
    ended: float = 0.0
    reason: str = ""
    routed: bool = False


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a plan. fields: for an update, each field that changes with its old and new value in words."""

    action: Literal["create", "update", "delete"]
    kind: Kind
    name: str
    fields: dict[str, tuple[str, str]] = {}


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What an apply changes, in order. applied: False after a dry run."""

    changes: tuple[Change, ...] = ()
    applied: bool = False


class Page(msgspec.Struct, frozen=True, kw_only=True):
    """One page of a list. next_token: "" on the last one, else for `?next_token=`."""

    items: tuple[Any, ...]
    next_token: str = ""


# The daemon itself


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """status degraded: something does not work, which `reasons` say; it is answered with status 503."""

    status: Literal["ok", "degraded"]
    version: str
    instance: str
    reasons: tuple[str, ...] = ()


class EngineProcess(msgspec.Struct, frozen=True, kw_only=True):
    """restarts: engines that this daemon has started in the place of one that died."""

    pid: int
    version: str
    generation: int
    restarts: int
    status: Status
    memory: Memory


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """started: seconds since the epoch. engine None: none runs. traffic: the sum over all links that exist. resources:
    {kind: {state: count}}, state "" for a kind without states. pool: fresh environments that are ready. notices: what
    the operator should know, one line each."""

    instance: str
    version: str
    pid: int
    started: float
    engine: EngineProcess | None
    traffic: Counters
    resources: dict[Kind, dict[str, int]]
    pool: int = 0
    notices: tuple[str, ...] = ()


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The body of every answer that is an error. error: the class of hyperplane.errors; field: of the request."""

    error: str
    message: str
    resource: str = ""
    limit: str = ""
    remedy: str = ""
    field: str = ""
