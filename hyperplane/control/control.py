"""The control plane as one object: requests and events in, resources and outcomes out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from random import Random
from typing import Any

from hyperplane.control import addresses, names, query
from hyperplane.control.eni_events import EniEvents
from hyperplane.control.enis import Enis
from hyperplane.control.environments import ATTACHED, DETACHING, ENDED, Environments
from hyperplane.control.functions import Functions
from hyperplane.control.networks import Networks
from hyperplane.control.outcome import (
    Action,
    Attach,
    Detach,
    Limits,
    MakeEni,
    Outcome,
    Prepared,
    Record,
    RemoveEni,
    TunnelSpec,
)
from hyperplane.control.plan import Documents
from hyperplane.control.state import State
from hyperplane.errors import HyperplaneError
from hyperplane.resources import (
    DEFAULT_ACCOUNT,
    Document,
    EniState,
    Environment,
    EnvironmentSpec,
    Function,
    FunctionSpec,
    Kind,
    Plan,
    Resource,
    SecurityGroup,
    SecurityGroupSpec,
    Sender,
    Subnet,
    SubnetSpec,
    Timings,
    Vpc,
    VpcSpec,
)


class Control:
    """All resources of all accounts, in memory. For one thread.

    Every method that changes something does all of it or, when it raises, nothing. After each, take() gives what is to
    be kept and done; when it could not be kept, untake() takes it back. `now` is in seconds since the epoch. A
    reference is an id or, within the account, a name. Events about what is no more, or that come a second time, change
    nothing and raise nothing.
    """

    def __init__(self, random: Random, limits: Limits = Limits()) -> None:  # noqa: B008 (immutable)
        self._state = State(random, limits)
        self._enis = Enis(self._state)
        self._networks = Networks(self._state, self._enis)
        self._functions = Functions(self._state, self._enis)
        self._environments = Environments(self._state, self._enis)
        self._events = EniEvents(self._state, self._enis, self._functions, self._environments)
        self._documents = Documents(self._state, self._networks, self._functions)

    # Keeping

    def load(self, records: Iterable[Record]) -> None:
        """What was kept, in any order, into an empty control plane. It is no change; see pending_actions()."""
        self._state.load(records)

    def take(self) -> Outcome:
        """What is to be kept, then done, since the last call."""
        return self._state.take()

    def rollback(self) -> None:
        """Takes back everything since the last take()."""
        self._state.rollback()

    def untake(self) -> None:
        """Takes back what the last take() gave, which could not be kept; to be called before anything else changes."""
        self._state.untake()

    def pending_actions(self, now: float) -> tuple[Action, ...]:
        """What is to be done, perhaps for the second time, for everything that is on its way: after load()."""
        state, actions = self._state, list[Action]()
        actions += [self._enis.make(one) for one in state.enis.values() if one.state is EniState.PENDING]
        for environment in state.environments.values():
            if environment.state is DETACHING:
                actions.append(self._environments.detach(environment, now))
            elif environment.state not in (ENDED, ATTACHED) and not self._environments.waits(environment):
                actions.append(self._environments.attach(environment))
        actions += [self._enis.remove(one) for one in state.enis.values() if one.state is EniState.DELETING]
        return tuple(actions)

    def internals(self, id_: str) -> dict[str, Any]:
        """What the executor gave with eni_made() or environment_attached(); empty when it gave nothing."""
        return self._state.daemon_internals(id_)

    def make_action(self, eni: str) -> MakeEni:
        """The action that makes this ENI, as it is now. Raises ResourceNotFound."""
        return self._enis.make(names.require(self._state, "eni", eni, None))

    def remove_action(self, eni: str) -> RemoveEni:
        """The action that removes this ENI. Raises ResourceNotFound."""
        return self._enis.remove(names.require(self._state, "eni", eni, None))

    def attach_action(self, environment: str) -> Attach:
        """The action that attaches this environment, which has not ended. Raises ResourceNotFound."""
        return self._environments.attach(names.require(self._state, "environment", environment, None))

    def detach_action(self, environment: str, now: float) -> Detach:
        """The action that detaches this environment, which is detaching. Raises ResourceNotFound."""
        return self._environments.detach(names.require(self._state, "environment", environment, None), now)

    # Looking

    def get(self, kind: Kind, ref: str, account: str | None = DEFAULT_ACCOUNT) -> Any:
        """account None: of any, by id only. Raises ResourceNotFound."""
        return self._view(kind, names.require(self._state, kind, ref, account))

    def find(self, kind: Kind, ref: str, account: str | None = DEFAULT_ACCOUNT) -> Any:
        """As get(); None when there is none."""
        found = names.find(self._state, kind, ref, account)
        return None if found is None else self._view(kind, found)

    def list(self, kind: Kind, account: str | None = None, **filters: str) -> tuple[Any, ...]:
        """By time of creation, then id; account None: of all. Filters: those of hyperplane.control.query.FILTERS.

        Raises InvalidValue for an unknown filter or state, ResourceNotFound for a reference to nothing.
        """
        if kind == "eni":  # what it is filtered by is derived
            resources = [self._view(kind, one) for one in self._state.enis.values()]
            return tuple(query.select(self._state, kind, resources, account, filters))
        found = query.select(self._state, kind, self._state.tables[kind].values(), account, filters)
        return tuple(found) if kind == "environment" else tuple(self._view(kind, one) for one in found)

    def accounts(self) -> tuple[str, ...]:
        """Those that have anything, in order."""
        return tuple(sorted({one.account for table in self._state.tables.values() for one in table.values()}))

    # Declaring

    def create_vpc(self, spec: VpcSpec, now: float) -> Vpc:
        """Raises InvalidValue, ResourceConflict, IdempotentParameterMismatch."""
        found: Vpc = self._create("vpc", spec, now)
        return found

    def create_subnet(self, spec: SubnetSpec, now: float) -> Subnet:
        """Raises InvalidValue, InvalidVpc, InvalidSubnet, ResourceConflict, IdempotentParameterMismatch."""
        found: Subnet = self._create("subnet", spec, now)
        return found

    def create_security_group(self, spec: SecurityGroupSpec, now: float) -> SecurityGroup:
        """Raises InvalidValue, InvalidVpc, InvalidSecurityGroup, ResourceConflict, IdempotentParameterMismatch."""
        found: SecurityGroup = self._create("security-group", spec, now)
        return found

    def create_function(self, spec: FunctionSpec, now: float) -> Function:
        """Pending until its ENIs are up. The same again is a new try for one that has failed.

        Raises InvalidValue, InvalidSubnet, InvalidSecurityGroup, SubnetOutOfIPAddresses, ResourceConflict,
        IdempotentParameterMismatch.
        """
        with self._state.atomic():
            return self._functions.view(self._functions.create(spec, now))

    def update_vpc(self, ref: str, spec: VpcSpec, now: float) -> Vpc:
        """As create_vpc(); ResourceNotFound, and DependencyViolation while ENIs were made with what changes."""
        found: Vpc = self._update("vpc", ref, spec)
        return found

    def update_subnet(self, ref: str, spec: SubnetSpec, now: float) -> Subnet:
        """As create_subnet(); ResourceNotFound, and DependencyViolation while ENIs are in what changes."""
        found: Subnet = self._update("subnet", ref, spec)
        return found

    def update_security_group(self, ref: str, spec: SecurityGroupSpec, now: float) -> SecurityGroup:
        """Rules change at once, on ENIs in use too. As create_security_group(); ResourceNotFound,
        DependencyViolation."""
        found: SecurityGroup = self._update("security-group", ref, spec)
        return found

    def update_function(self, ref: str, spec: FunctionSpec, now: float) -> Function:
        """Environments that run keep what they were started with. As create_function(); ResourceNotFound."""
        with self._state.atomic():
            function = names.require(self._state, "function", ref, spec.account)
            return self._functions.view(self._functions.update(function, spec, now))

    def delete_vpc(self, ref: str, account: str, now: float) -> None:
        """Raises ResourceNotFound, DependencyViolation."""
        self._delete("vpc", ref, account)

    def delete_subnet(self, ref: str, account: str, now: float) -> None:
        """Raises ResourceNotFound, DependencyViolation."""
        self._delete("subnet", ref, account)

    def delete_security_group(self, ref: str, account: str, now: float) -> None:
        """Raises ResourceNotFound, DependencyViolation."""
        self._delete("security-group", ref, account)

    def delete_function(self, ref: str, account: str, now: float) -> None:
        """Raises ResourceNotFound, and DependencyViolation while environments of it run."""
        with self._state.atomic():
            self._functions.delete(names.require(self._state, "function", ref, account))

    def apply(self, document: Document, prune: bool, now: float) -> Plan:
        """Makes the account what the document says. Raises what the create_, update_ and delete_ methods raise, with
        .field as the place in the document; nothing is changed then."""
        with self._state.atomic():
            return Plan(changes=self._documents.apply(document, prune, now), applied=True)

    def plan(self, document: Document, prune: bool, now: float) -> Plan:
        """What apply() would do; raises what it would raise."""
        with self._state.atomic(keep=False):
            return Plan(changes=self._documents.apply(document, prune, now))

    def export(self, account: str = DEFAULT_ACCOUNT) -> Document:
        """The document whose apply changes nothing."""
        return self._documents.export(account)

    # Environments

    def start_environment(
        self,
        spec: EnvironmentSpec,
        now: float,
        prepared: Callable[[TunnelSpec], Prepared | None] = lambda tunnel: None,
    ) -> Environment:
        """Attaching: an Attach follows as soon as its ENI is up. prepared: asked, for a fresh one, whether there is a
        tunnel that it can have; then it has that one's id, and is attached at once.

        Raises InvalidValue, ResourceNotFound (the function), FunctionNotActive, ResourceConflict,
        IdempotentParameterMismatch.
        """
        with self._state.atomic():
            return self._environments.start(spec, now, prepared)

    def environment_id(self) -> str:
        """For an environment that has yet to come."""
        return self._state.new_id("environment")

    def tunnels(self) -> tuple[TunnelSpec, ...]:
        """Of the fresh environments that may be started next: of functions that are Active, on ENIs that are up."""
        return tuple(dict.fromkeys(self._environments.tunnels()))

    def resolvers(self, eni: str) -> tuple[IPv4Address, ...]:
        """Those of its VPC; none for an ENI that is no more."""
        found = self._state.enis.get(eni)
        return self._state.vpcs[found.vpc].dns if found else ()

    def end_environment(self, ref: str, account: str | None, drain: float, now: float) -> Environment:
        """Detaching, or ended when it waited for its ENI still; one that has ended stays as it is. A shorter drain
        than before counts. Raises ResourceNotFound, InvalidValue."""
        with self._state.atomic():
            environment = names.require(self._state, "environment", ref, account)
            return self._environments.end(environment, drain, now)

    def expire(self, now: float) -> None:
        """Forgets environments that ended long ago. Each start and end does this too."""
        self._environments.expire(now)

    # Events

    def eni_made(self, id_: str, now: float, *, internals: dict[str, Any] | None = None) -> None:
        """It is up. internals: what the executor needs to know it again; also for one that was up already."""
        with self._state.atomic():
            self._events.made(id_, internals)

    def eni_failed(self, id_: str, error: HyperplaneError, now: float) -> None:
        """It could not be made, and nothing is left of it; or it was up and is lost.

        AddressInUse while it is made: the next address is tried. Else its functions fail, environments that wait for it
        end, those that are on it are detached, and a lost one is removed.
        """
        with self._state.atomic():
            self._events.failed(id_, error, now)

    def eni_removed(self, id_: str, now: float) -> None:
        """Nothing is left of it."""
        self._events.removed(id_)

    def environment_attached(
        self,
        id_: str,
        now: float,
        *,
        namespace: str = "",
        device: str = "",
        pid: int = 0,
        sender: Sender = "",
        timings: Timings | None = None,
        internals: dict[str, Any] | None = None,
    ) -> None:
        """namespace: of a fresh one; else it stays as it was asked for; so does pid. internals: to know it by; None: as
        before."""
        environment = self._state.environments.get(id_)
        if environment is not None and environment.state is not ENDED:
            self._environments.attached(environment, namespace, device, pid, sender, timings, internals)

    def environment_sender(self, id_: str, sender: Sender, now: float) -> None:
        """What is known of the process that sent its descriptor."""
        environment = self._state.environments.get(id_)
        if environment is not None:
            self._environments.sent_by(environment, sender)

    def environment_failed(self, id_: str, error: HyperplaneError, now: float) -> None:
        """It could not be attached, and nothing is left of it."""
        self.environment_ended(id_, str(error), now)

    def environment_ended(self, id_: str, reason: str, now: float) -> None:
        """It is detached, or went by itself, and nothing is left of it."""
        environment = self._state.environments.get(id_)
        if environment is not None:
            self._environments.over(environment, reason, now)

    def _create(self, kind: Kind, spec: Any, now: float) -> Any:
        with self._state.atomic():
            return self._view(kind, self._networks.create(kind, spec, now))

    def _update(self, kind: Kind, ref: str, spec: Any) -> Any:
        with self._state.atomic():
            resource = names.require(self._state, kind, ref, spec.account)
            return self._view(kind, self._networks.update(kind, resource, spec))

    def _delete(self, kind: Kind, ref: str, account: str) -> None:
        with self._state.atomic():
            self._networks.delete(kind, names.require(self._state, kind, ref, account))

    def _view(self, kind: Kind, resource: Resource) -> Any:
        """With what is derived. What is kept lacks it: a start of an environment writes the environment only."""
        if isinstance(resource, Subnet):
            return addresses.viewed(self._state, resource)
        if kind == "function":
            return self._functions.view(self._state.functions[resource.id])
        return self._enis.view(self._state.enis[resource.id]) if kind == "eni" else resource
