"""The control plane under random requests and events: what must hold after each, computed without its indices."""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hyperplane.control import (
    Attach,
    Control,
    Delete,
    Detach,
    Limits,
    MakeEni,
    Outcome,
    Prepared,
    Put,
    RemoveEni,
    TunnelSpec,
)
from hyperplane.errors import AddressInUse, EngineError, HyperplaneError, NamespaceNotFound
from hyperplane.resources import (
    KINDS,
    Document,
    EniState,
    EnvironmentSpec,
    EnvironmentState,
    FunctionSpec,
    FunctionState,
    SecurityGroupSpec,
    SubnetSpec,
    UpdateStatus,
    VpcSpec,
)
from hyperplane.store.references import dangling

VPCS = ("v1", "v2")
SUBNETS = ("a", "b", "c")
CIDRS = tuple(IPv4Network(text) for text in ("198.19.0.0/28", "198.19.0.16/28", "198.19.0.0/27", "198.18.0.0/28"))
GROUPS = ("g", "h")
FUNCTIONS = ("f1", "f2", "f3")
NAMES = ("", "e1", "e2")
ERRORS = (EngineError("full"), NamespaceNotFound("no such namespace"), AddressInUse("somebody else's"))
LIMITS = Limits(ended=4, ended_seconds=40.0, taken_seconds=15.0)

chosen = st.sampled_from
some_subnets = st.lists(chosen(SUBNETS), min_size=1, max_size=3, unique=True).map(tuple)
some_groups = st.lists(chosen(GROUPS), min_size=1, max_size=2, unique=True).map(tuple)
insides = chosen((None, None, IPv4Address("198.18.0.2"), IPv4Address("203.0.113.9")))
vpc_specs = st.builds(VpcSpec, name=chosen(VPCS), namespace=chosen(("n1", "n2")), mtu=chosen((1500, 9000)))
subnet_specs = st.builds(
    SubnetSpec,
    name=chosen(SUBNETS),
    vpc=chosen(VPCS),
    cidr=chosen(CIDRS),
    reserved=chosen(((), (IPv4Network("198.19.0.2/31"),))),
)
group_specs = st.builds(
    SecurityGroupSpec, name=chosen(GROUPS), vpc=chosen(VPCS), rules=chosen(((), ("tcp/443",), ("udp/53", "icmp")))
)
function_specs = st.builds(
    FunctionSpec,
    name=chosen(FUNCTIONS),
    subnets=some_subnets,
    security_groups=some_groups,
    inside_address=insides,
    mtu=chosen((0, 1400)),
)


def unique(specs: Any) -> Any:
    return st.lists(specs, max_size=3, unique_by=lambda spec: spec.name).map(tuple)


documents = st.builds(
    Document,
    vpc=unique(vpc_specs),
    subnet=unique(subnet_specs),
    security_group=unique(group_specs),
    function=unique(function_specs),
)


def resources(control: Control) -> dict[str, dict[str, Any]]:
    return {kind: {one.id: one for one in control.list(kind)} for kind in KINDS}


class Plane(RuleBasedStateMachine):
    """The control plane, what a store would hold of it, and the actions that an executor has not done yet."""

    def __init__(self) -> None:
        super().__init__()
        self.control = Control(Random(7), LIMITS)
        self.records: dict[str, Put] = {}
        self.actions: list[Any] = []
        self.time = 0.0

    @property
    def now(self) -> float:
        self.time += 1.0
        return self.time

    @initialize(full=st.integers(0, 3))
    def begin(self, full: int) -> None:
        """Most runs begin with a world in which something can happen at once."""
        if full:
            self.control.create_vpc(VpcSpec(name="v1", namespace="n1"), self.now)
            for name, cidr in zip(SUBNETS, CIDRS, strict=False):
                self.attempt(lambda n=name, c=cidr: SubnetSpec(name=n, vpc="v1", cidr=c), "create_subnet")
            for name in GROUPS:
                self.attempt(lambda n=name: SecurityGroupSpec(name=n, vpc="v1"), "create_security_group")
            self.attempt(lambda: FunctionSpec(name="f1", subnets=("a",), security_groups=("g",)), "create_function")
            self.attempt(lambda: FunctionSpec(name="f2", subnets=("a", "b"), security_groups=("g",)), "create_function")
        if full > 1:
            self.act_on_all()

    def attempt(self, spec: Any, method: str, *arguments: Any) -> None:
        """A request: refused, it changes nothing; else its outcome is kept."""
        before = resources(self.control)
        try:
            getattr(self.control, method)(*arguments, spec(), self.now)
        except HyperplaneError:
            assert resources(self.control) == before
            assert self.control.take() == Outcome()
        self.keep()

    def keep(self) -> None:
        self.keep_outcome(self.control.take())

    def keep_outcome(self, outcome: Outcome) -> None:
        for change in outcome.changes:
            if isinstance(change, Delete):
                del self.records[change.id]
            else:
                self.records[change.id] = change
        self.actions += outcome.actions

    @rule(spec=vpc_specs)
    def create_vpc(self, spec: VpcSpec) -> None:
        self.attempt(lambda: spec, "create_vpc")

    @rule(spec=subnet_specs)
    def create_subnet(self, spec: SubnetSpec) -> None:
        self.attempt(lambda: spec, "create_subnet")

    @rule(spec=group_specs)
    def create_group(self, spec: SecurityGroupSpec) -> None:
        self.attempt(lambda: spec, "create_security_group")

    @rule(spec=function_specs)
    def create_function(self, spec: FunctionSpec) -> None:
        self.attempt(lambda: spec, "create_function")

    @rule(ref=chosen(VPCS), spec=vpc_specs)
    def update_vpc(self, ref: str, spec: VpcSpec) -> None:
        self.attempt(lambda: spec, "update_vpc", ref)

    @rule(ref=chosen(SUBNETS), spec=subnet_specs)
    def update_subnet(self, ref: str, spec: SubnetSpec) -> None:
        self.attempt(lambda: spec, "update_subnet", ref)

    @rule(ref=chosen(GROUPS), spec=group_specs)
    def update_group(self, ref: str, spec: SecurityGroupSpec) -> None:
        self.attempt(lambda: spec, "update_security_group", ref)

    @rule(ref=chosen(FUNCTIONS), spec=function_specs)
    def update_function(self, ref: str, spec: FunctionSpec) -> None:
        self.attempt(lambda: spec, "update_function", ref)

    @rule(kind=chosen(("vpc", "subnet", "security_group", "function")), number=st.integers(0, 2))
    def delete(self, kind: str, number: int) -> None:
        names = {"vpc": VPCS, "subnet": SUBNETS, "security_group": GROUPS, "function": FUNCTIONS}[kind]
        self.attempt(lambda: "default", f"delete_{kind}", names[number % len(names)])

    @rule(document=documents, prune=st.booleans())
    def apply(self, document: Document, prune: bool) -> None:
        before = resources(self.control)
        try:
            planned = self.control.plan(document, prune, self.time)
        except HyperplaneError:
            planned = None
        assert resources(self.control) == before
        assert self.control.take() == Outcome()
        try:
            plan = self.control.apply(document, prune, self.time)
        except HyperplaneError:
            assert planned is None
            assert resources(self.control) == before
        else:
            assert planned is not None
            assert plan.changes == planned.changes
        self.keep()

    @rule(
        function=chosen(FUNCTIONS),
        name=chosen(NAMES),
        namespace=chosen(("", "", "box", "/run/netns/box")),
        token=chosen(("", "t")),
    )
    def start(self, function: str, name: str, namespace: str, token: str) -> None:
        spec = EnvironmentSpec(function=function, name=name, namespace=namespace, client_token=token)
        self.attempt(lambda: spec, "start_environment")

    @rule(function=chosen(FUNCTIONS), name=chosen(NAMES), token=chosen(("", "t")))
    def start_prepared(self, function: str, name: str, token: str) -> None:
        """One is ready for whatever is asked for: that is an ENI that is up, and nothing is left to be done."""
        offered: list[Prepared] = []

        def prepared(tunnel: TunnelSpec) -> Prepared:
            assert tunnel in self.control.tunnels()
            id_ = self.control.environment_id()
            offered.append(Prepared(id=id_, namespace=f"fresh-{id_}", internals={"key": [1, 2]}))
            return offered[-1]

        known = {one.id for one in self.control.list("environment")}
        spec = EnvironmentSpec(function=function, name=name, client_token=token)
        with suppress(HyperplaneError):
            made = self.control.start_environment(spec, self.now, prepared)
            if made.id not in known and made.state is EnvironmentState.ATTACHED:
                assert [one.id for one in offered] == [made.id]
                assert self.control.internals(made.id) == {"key": [1, 2]}
        outcome = self.control.take()
        assert not (offered and outcome.actions)
        self.keep_outcome(outcome)

    @precondition(lambda self: self.control.list("environment"))
    @rule(data=st.data(), drain=chosen((0.0, 5.0)))
    def end(self, data: st.DataObject, drain: float) -> None:
        one = data.draw(chosen(self.control.list("environment")))
        self.control.end_environment(one.id, "default", drain, self.now)
        self.keep()

    @precondition(lambda self: self.actions)
    @rule(number=st.integers(0, 3), error=chosen((None, None, *ERRORS)))
    def act(self, number: int, error: HyperplaneError | None) -> None:
        """The executor is done with one of its actions, not always the oldest."""
        self.carry_out(self.actions.pop(number % len(self.actions)), error)

    @rule(function=chosen(FUNCTIONS))
    def start_and_act(self, function: str) -> None:
        self.attempt(lambda: EnvironmentSpec(function=function), "start_environment")
        self.act_on_all()

    @rule()
    def act_on_all(self) -> None:
        while self.actions:
            self.carry_out(self.actions.pop(0), None)

    def carry_out(self, action: Any, error: HyperplaneError | None) -> None:
        control, now = self.control, self.now
        if isinstance(action, MakeEni) and error is None:
            control.eni_made(action.eni.id, now, internals={"number": 1})
        elif isinstance(action, MakeEni):
            assert error is not None
            control.eni_failed(action.eni.id, error, now)
        elif isinstance(action, RemoveEni):
            control.eni_removed(action.eni.id, now)
        elif isinstance(action, Attach) and error is None:
            control.environment_attached(action.environment.id, now, namespace="box", internals={"key": [1, 2]})
        elif isinstance(action, Attach):
            assert error is not None
            control.environment_failed(action.environment.id, error, now)
        elif isinstance(action, Detach):
            control.environment_ended(action.environment.id, "deleted", now)
        self.keep()

    @precondition(lambda self: self.control.list("eni"))
    @rule(data=st.data(), error=chosen(ERRORS))
    def lose_eni(self, data: st.DataObject, error: HyperplaneError) -> None:
        self.control.eni_failed(data.draw(chosen(self.control.list("eni"))).id, error, self.now)
        self.keep()

    @rule(seconds=chosen((10.0, 50.0)))
    def wait(self, seconds: float) -> None:
        self.time += seconds
        self.control.expire(self.time)
        self.keep()

    @rule(spec=function_specs, function=chosen(FUNCTIONS), seconds=chosen((0.0, 60.0)), taken=st.booleans())
    def store_refuses(self, spec: FunctionSpec, function: str, seconds: float, taken: bool) -> None:
        """Several steps that could not be kept."""
        before, index = resources(self.control), copy.deepcopy(self.control._state.index)
        for method, wanted in (
            ("create_function", spec),
            ("start_environment", EnvironmentSpec(function=function)),
        ):
            with suppress(HyperplaneError):
                getattr(self.control, method)(wanted, self.time + seconds)
        self.control.expire(self.time + seconds)
        for environment in self.control.list("environment"):
            self.control.environment_ended(environment.id, "test", self.time + seconds)
        if taken:
            self.control.take()
            self.control.untake()
        else:
            self.control.rollback()
        assert resources(self.control) == before
        assert self.control._state.index == index
        assert self.control.take() == Outcome()

    @rule(backwards=st.booleans())
    def restart(self, backwards: bool) -> None:
        """The daemon is killed; another one begins with what was kept, in whatever order."""
        before = self.control
        self.control = Control(Random(len(self.records) * 1000 + int(self.time)), LIMITS)
        records = list(self.records.values())
        self.control.load(reversed(records) if backwards else records)
        assert resources(self.control) == resources(before)
        assert self.control._state._internals == before._state._internals
        assert indices(self.control) == indices(before)
        self.actions = list(self.control.pending_actions(self.time))

    @invariant()
    def enis_exist_as_they_are_needed(self) -> None:
        enis, functions, environments = self.tables("eni", "function", "environment")
        live = [one for one in enis.values() if one.state is not EniState.DELETING]
        keys = Counter((one.account, one.subnet, frozenset(one.security_groups)) for one in live)
        assert all(count == 1 for count in keys.values()), "an ENI is not shared"
        needed = {id_ for one in functions.values() for id_ in one.enis}
        needed |= {id_ for one in functions.values() for id_ in self.previous(one.id)}
        running = [one for one in environments.values() if one.state is not EnvironmentState.ENDED]
        on = Counter(one.eni for one in running)
        for eni in live:
            assert eni.id in needed or on[eni.id], f"{eni.id} is leaked"
            assert eni.environments == on[eni.id]
            assert (eni.state is EniState.IN_USE) == (eni.state is not EniState.PENDING and on[eni.id] > 0)
            users = {one.id for one in functions.values() if eni.id in one.enis or eni.id in self.previous(one.id)}
            assert set(eni.functions) == users
        assert needed <= {one.id for one in live}
        assert all(one.eni in enis for one in running if one.state is not EnvironmentState.DETACHING)
        for one in running:
            if one.state is EnvironmentState.DETACHING:
                assert one.eni not in {eni.id for eni in live} or on[one.eni]

    @invariant()
    def functions_have_the_enis_of_their_keys(self) -> None:
        enis, functions = self.tables("eni", "function")
        for function in functions.values():
            groups = frozenset(function.security_groups)
            keys = {(one.subnet, frozenset(one.security_groups)) for one in (enis[id_] for id_ in function.enis)}
            assert keys <= {(subnet, groups) for subnet in function.subnets}
            up = all(enis[id_].state in (EniState.AVAILABLE, EniState.IN_USE) for id_ in function.enis)
            whole = len(function.enis) == len(function.subnets)
            if function.state is FunctionState.ACTIVE and function.last_update_status is UpdateStatus.SUCCESSFUL:
                assert whole
                assert up
                assert not self.previous(function.id)
            if function.state is FunctionState.PENDING:
                assert whole
                assert not up
            if function.state is FunctionState.ACTIVE and function.last_update_status is UpdateStatus.IN_PROGRESS:
                assert whole
                assert not up

    @invariant()
    def addresses_are_given_once(self) -> None:
        enis, subnets, vpcs = self.tables("eni", "subnet", "vpc")
        given = Counter((self.control._state.internals(one.id)["namespace"], one.addresses) for one in enis.values())
        assert all(count == 1 for count in given.values())
        for eni in enis.values():
            subnet = subnets.get(eni.subnet)
            if eni.state is EniState.DELETING or subnet is None:
                continue
            (address,) = eni.addresses
            assert address in set(subnet.cidr.hosts()) - {subnet.gateway}
            assert not any(address in network for network in subnet.reserved)
            assert address.compressed not in self.control._state.internals(subnet.id).get("taken", {})
        for subnet in subnets.values():
            namespace = vpcs[subnet.vpc].namespace
            free = set(subnet.cidr.hosts()) - {subnet.gateway}
            free -= {address for network in subnet.reserved for address in network}
            free -= {IPv4Address(text) for text in self.control._state.internals(subnet.id).get("taken", {})}
            for eni in enis.values():
                if self.control._state.internals(eni.id)["namespace"] == namespace:
                    free -= set(eni.addresses)
            assert subnet.available == len(free)

    @invariant()
    def ranges_and_names_do_not_collide(self) -> None:
        for kind, table in resources(self.control).items():
            live = [one for one in table.values() if getattr(one, "state", "") is not EnvironmentState.ENDED]
            assert len({(one.account, one.name) for one in live}) == len(live), kind
        subnets, vpcs, functions = self.tables("subnet", "vpc", "function")
        for one in subnets.values():
            assert one.vpc in vpcs
            for other in subnets.values():
                assert one.id == other.id or one.vpc != other.vpc or not one.cidr.overlaps(other.cidr)
            for function in functions.values():
                assert function.vpc != one.vpc or function.inside_address not in one.cidr

    @invariant()
    def references_lead_somewhere(self) -> None:
        tables = resources(self.control)
        for function in tables["function"].values():
            assert function.vpc in tables["vpc"]
            assert all(tables["subnet"][id_].vpc == function.vpc for id_ in function.subnets)
            assert all(tables["security-group"][id_].vpc == function.vpc for id_ in function.security_groups)
        for eni in tables["eni"].values():
            if eni.state is not EniState.DELETING:
                assert eni.vpc in tables["vpc"]
                assert eni.subnet in tables["subnet"]
                assert set(eni.security_groups) <= set(tables["security-group"])
        for environment in tables["environment"].values():
            assert environment.state is EnvironmentState.ENDED or environment.function in tables["function"]

    @invariant()
    def what_ended_is_forgotten_in_time(self) -> None:
        ended = [one for one in self.control.list("environment") if one.state is EnvironmentState.ENDED]
        assert len(ended) <= LIMITS.ended

    @invariant()
    def everything_was_kept(self) -> None:
        fresh = Control(Random(0), LIMITS)
        fresh.load(self.records.values())
        assert resources(fresh) == resources(self.control)
        assert indices(fresh) == indices(self.control)
        assert dangling([record.resource for record in self.records.values()]) == ""

    @invariant()
    def something_will_happen_to_whatever_is_on_its_way(self) -> None:
        """The executor has an action for everything that is on its way, but for environments that wait for an ENI."""
        enis, environments = self.tables("eni", "environment")
        making = {one.eni.id for one in self.actions if isinstance(one, MakeEni)}
        removing = {one.eni.id for one in self.actions if isinstance(one, RemoveEni)}
        attaching = {one.environment.id for one in self.actions if isinstance(one, Attach)}
        detaching = {one.environment.id for one in self.actions if isinstance(one, Detach)}
        for eni in enis.values():
            assert eni.state is not EniState.PENDING or eni.id in making
            assert eni.state is not EniState.DELETING or eni.id in removing
        for one in environments.values():
            waits = one.eni in enis and enis[one.eni].state is EniState.PENDING
            assert one.state is not EnvironmentState.ATTACHING or one.id in attaching or waits
            assert one.state is not EnvironmentState.DETACHING or one.id in detaching

    @invariant()
    def an_export_applies_to_nothing(self) -> None:
        failed = any(
            FunctionState.FAILED is one.state or UpdateStatus.FAILED is one.last_update_status
            for one in self.control.list("function")
        )
        if not failed:
            assert self.control.plan(self.control.export(), True, self.time).changes == ()

    def tables(self, *kinds: str) -> list[dict[str, Any]]:
        found = resources(self.control)
        return [found[kind] for kind in kinds]

    def previous(self, function: str) -> list[str]:
        found: list[str] = self.control._state.internals(function).get("previous", [])
        return found


def indices(control: Control) -> dict[Any, set[str]]:
    return {entry: set(ids) for entry, ids in control._state.index.items()}


TestPlane = Plane.TestCase
TestPlane.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
