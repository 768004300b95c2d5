"""What a decision leads to: changes that are to be kept, then actions that are to be carried out."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any, Protocol

import msgspec

from hyperplane.model import SecurityGroup, Timers, UdpMapping
from hyperplane.resources import Eni, Environment, Kind, Resource


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """subnets, security_groups: of a function, as AWS Lambda has them. rules: of an ENI's groups together.

    ended, ended_seconds: how many environments that have ended are remembered, and how long at most. taken_seconds: how
    long an address that somebody else was found to have is left alone. drain_seconds: the longest drain.
    """

    subnets: int = 16
    security_groups: int = 5
    rules: int = 1024
    routes: int = 64
    ended: int = 1000
    ended_seconds: float = 3600.0
    taken_seconds: float = 600.0
    drain_seconds: float = 86_400.0


class Record(Protocol):
    """What load() takes: a resource as it was kept. The store's records are such."""

    @property
    def kind(self) -> Kind: ...
    @property
    def resource(self) -> Resource: ...
    @property
    def internals(self) -> dict[str, Any]: ...


class Put(msgspec.Struct, frozen=True):
    """Keep this. resource: without what is derived (counts, references back). internals: JSON-able, opaque."""

    kind: Kind
    id: str
    resource: Resource
    internals: dict[str, Any]


class Delete(msgspec.Struct, frozen=True):
    """Forget this. resource and internals are there so that a change has one shape."""

    kind: Kind
    id: str
    resource: None = None
    internals: dict[str, Any] = {}


class MakeEni(msgspec.Struct, frozen=True, kw_only=True):
    """Make the ENI's device in the VPC's namespace and give it to the engine; then eni_made() or eni_failed().

    eni: id, device, addresses, mtu. namespace: the VPC's, as it was written. internals: what the executor gave with
    eni_made(), empty before that.
    """

    eni: Eni
    namespace: str
    timers: Timers
    udp_mapping: UdpMapping
    silent: bool
    security_groups: tuple[SecurityGroup, ...]
    internals: dict[str, Any] = {}


class UpdateEni(msgspec.Struct, frozen=True, kw_only=True):
    """Replace the rules of an ENI that is up. No event follows."""

    eni: Eni
    security_groups: tuple[SecurityGroup, ...]
    internals: dict[str, Any] = {}


class RemoveEni(msgspec.Struct, frozen=True, kw_only=True):
    """Remove the ENI, made, half made or not there at all; then eni_removed()."""

    eni: Eni
    namespace: str
    internals: dict[str, Any] = {}


class TunnelSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What a tunnel is made by: fresh environments for which these are equal could have each other's."""

    eni: str
    device: str
    inside_address: IPv4Address
    mtu: int
    routes: tuple[IPv4Network, ...]
    max_flows: int
    routed: bool = False


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """A tunnel in a fresh namespace that is there before its environment. id: which that environment will have.
    internals: as for environment_attached()."""

    id: str
    namespace: str
    internals: dict[str, Any]


class Attach(msgspec.Struct, frozen=True, kw_only=True):
    """Attach the environment to its ENI, which is up; then environment_attached() or environment_failed().

    environment: id, name, eni, device, inside_address, mtu, fresh, routed. namespace, descriptor: as in
    EnvironmentSpec, both "" when fresh. vpc_namespace, dns: the VPC's.
    """

    environment: Environment
    namespace: str
    descriptor: str
    routes: tuple[IPv4Network, ...]
    max_flows: int
    vpc_namespace: str
    dns: tuple[IPv4Address, ...]
    internals: dict[str, Any] = {}

    @property
    def fresh(self) -> bool:
        return self.environment.fresh

    @property
    def tunnel(self) -> TunnelSpec:
        environment = self.environment
        return TunnelSpec(
            eni=environment.eni,
            device=environment.device,
            inside_address=environment.inside_address,
            mtu=environment.mtu,
            routes=self.routes,
            max_flows=self.max_flows,
            routed=environment.routed,
        )


class Detach(msgspec.Struct, frozen=True, kw_only=True):
    """Detach the environment, attached, half attached or not at all; then environment_ended().

    drain: seconds from now in which its flows may end by themselves; 0: reset them. A second Detach of the same
    environment shortens the drain.
    """

    environment: Environment
    drain: float
    internals: dict[str, Any] = {}


Action = MakeEni | UpdateEni | RemoveEni | Attach | Detach


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """changes: to be kept in one transaction, before any of the actions is begun. Both in order."""

    changes: tuple[Put | Delete, ...] = ()
    actions: tuple[Action, ...] = ()
