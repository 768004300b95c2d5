"""Starting and ending environments, and what becomes of them when their ENI fares badly."""

from __future__ import annotations

import time
from ipaddress import IPv4Network
from random import Random
from typing import Any

import pytest

from hyperplane.control import Attach, Control, Detach, Limits, MakeEni, Prepared, RemoveEni, TunnelSpec
from hyperplane.errors import (
    AddressInUse,
    DependencyViolation,
    DeviceError,
    FunctionNotActive,
    IdempotentParameterMismatch,
    InvalidValue,
    NamespaceNotFound,
    ResourceConflict,
    ResourceNotFound,
)
from hyperplane.resources import (
    EniState,
    EnvironmentSpec,
    EnvironmentState,
    FunctionSpec,
    FunctionState,
    ReasonCode,
)
from tests.unit.control_support import World


@pytest.fixture
def world() -> World:
    world = World()
    world.network()
    world.active("f")
    world.control.take()
    return world


def state(world: World, ref: str) -> EnvironmentState:
    found: EnvironmentState = world.control.get("environment", ref).state
    return found


def test_a_life(world: World) -> None:
    environment = world.start(name="e", namespace="box", device="tun0")
    assert environment.state is EnvironmentState.ATTACHING
    (action,) = world.control.take().actions
    assert isinstance(action, Attach)
    assert action.environment == environment
    assert (action.namespace, action.descriptor, action.fresh, action.vpc_namespace) == (
        "box",
        "",
        False,
        "ns-customer",
    )
    world.control.environment_attached(environment.id, world.now, pid=7, internals={"key": [1, 2]})
    assert state(world, "e") is EnvironmentState.ATTACHED
    assert world.control.internals(environment.id) == {"key": [1, 2]}
    assert world.control.get("eni", environment.eni).state is EniState.IN_USE
    ending = world.control.end_environment("e", "default", 5.0, world.now)
    assert ending.state is EnvironmentState.DETACHING
    outcome = world.control.take()
    (action,) = outcome.actions
    assert isinstance(action, Detach)
    assert action.drain == 5.0
    assert action.internals == {"key": [1, 2]}
    world.control.environment_ended(environment.id, "deleted", world.now)
    ended = world.control.get("environment", "e")
    assert (ended.state, ended.reason, ended.ended) == (EnvironmentState.ENDED, "deleted", world.time)
    assert world.control.end_environment("e", "default", 0.0, world.now) == ended
    assert [one.kind for one in world.control.take().changes] == ["environment"]
    assert world.control.get("eni", environment.eni).state is EniState.AVAILABLE


def test_one_that_starts_while_its_eni_is_pending_waits(world: World) -> None:
    world.function("g", groups=("db",))
    environment = world.start("g")
    (make,) = world.control.take().actions
    assert isinstance(make, MakeEni)
    world.control.eni_made(make.eni.id, world.now, internals={"number": 3})
    (attach,) = world.control.take().actions
    assert isinstance(attach, Attach)
    assert attach.environment.id == environment.id
    assert world.control.get("function", "g").state is FunctionState.ACTIVE


def test_one_that_waits_is_deleted_at_once(world: World) -> None:
    world.function("g", groups=("db",))
    environment = world.start("g")
    assert world.control.end_environment(environment.id, "default", 9.0, world.now).state is EnvironmentState.ENDED
    assert [type(action) for action in world.control.take().actions] == [MakeEni]


def test_an_eni_that_cannot_be_made_fails_its_functions_and_who_waits(world: World) -> None:
    world.function("g", groups=("db",))
    environment = world.start("g")
    eni = environment.eni
    world.control.eni_failed(eni, NamespaceNotFound("no namespace ns-customer"), world.now)
    function = world.control.get("function", "g")
    assert (function.state, function.state_reason_code) == (FunctionState.FAILED, ReasonCode.INVALID_SUBNET)
    assert function.state_reason == "no namespace ns-customer"
    ended = world.control.get("environment", environment.id)
    assert "no namespace ns-customer" in ended.reason
    assert world.control.find("eni", eni) is None
    with pytest.raises(FunctionNotActive, match="no namespace ns-customer"):
        world.start("g")
    world.function("g", groups=("db",))
    assert world.control.get("function", "g").state is FunctionState.PENDING
    world.run()
    assert world.control.get("function", "g").state is FunctionState.ACTIVE


def test_an_address_that_somebody_has_is_left_alone(world: World) -> None:
    world.function("g", groups=("db",))
    (make,) = world.control.take().actions
    assert isinstance(make, MakeEni)
    world.control.eni_failed(make.eni.id, AddressInUse("it is box1's"), world.now)
    (again,) = world.control.take().actions
    assert isinstance(again, MakeEni)
    assert again.eni.id == make.eni.id
    assert again.eni.addresses[0] == make.eni.addresses[0] + 1
    world.control.eni_made(again.eni.id, world.now)
    assert world.control.get("function", "g").state is FunctionState.ACTIVE


def test_a_lost_eni_takes_its_environments_with_it(world: World) -> None:
    environment = world.start()
    world.run()
    world.control.eni_failed(environment.eni, DeviceError("namespace ns-customer was deleted"), world.now)
    detach, remove = world.control.take().actions
    assert isinstance(detach, Detach)
    assert isinstance(remove, RemoveEni)
    assert remove.namespace == "ns-customer"
    world.control.environment_ended(environment.id, "detached", world.now)
    world.control.eni_removed(environment.eni, world.now)
    assert "ns-customer was deleted" in world.control.get("environment", environment.id).reason
    assert world.control.get("function", "f").state is FunctionState.FAILED


def test_the_eni_with_the_fewest_environments_is_taken(world: World) -> None:
    world.active("two", subnets=("a", "b"), groups=("db",))
    enis = [world.start("two").eni for _ in range(4)]
    assert sorted(enis) == sorted(2 * list(world.control.get("function", "two").enis))


@pytest.mark.parametrize(
    ("more", "error", "field"),
    [
        ({"function": "none"}, ResourceNotFound, "function"),
        ({"name": "a b"}, InvalidValue, "name"),
        ({"name": "env-0" + 16 * "a"}, InvalidValue, "name"),
        ({"device": "a/b"}, InvalidValue, "device"),
        ({"device": 16 * "x"}, InvalidValue, "device"),
        ({"device": "all"}, InvalidValue, "device"),
        ({"device": "default"}, InvalidValue, "device"),
        ({"namespace": "pid:0"}, InvalidValue, "namespace"),
        ({"namespace": "pid:x"}, InvalidValue, "namespace"),
        ({"namespace": "fd:3"}, InvalidValue, "namespace"),
        ({"namespace": "a/b"}, InvalidValue, "namespace"),
        ({"namespace": ".."}, InvalidValue, "namespace"),
        ({"namespace": "box", "descriptor": "d"}, InvalidValue, "descriptor"),
        ({"pid": 7}, InvalidValue, "pid"),
        ({"namespace": "box", "pid": 7}, InvalidValue, "pid"),
        ({"descriptor": "d", "pid": -1}, InvalidValue, "pid"),
        ({"descriptor": "d", "pid": (1 << 22) + 1}, InvalidValue, "pid"),
        ({"descriptor": "d", "routed": True}, InvalidValue, "routed"),
        ({"name": "taken"}, ResourceConflict, "name"),
        ({"namespace": "/run/netns/used"}, ResourceConflict, "namespace"),
    ],
)
def test_bad_starts(world: World, more: dict[str, Any], error: type[Exception], field: str) -> None:
    world.start(name="taken", namespace="used")
    world.control.take()
    with pytest.raises(error) as caught:
        world.start(**more)
    assert caught.value.field == field  # type: ignore[attr-defined]
    assert world.control.take().changes == ()


def test_a_token_makes_a_start_idempotent(world: World) -> None:
    environment = world.start(client_token="t")
    assert world.start(client_token="t") == environment
    with pytest.raises(IdempotentParameterMismatch, match=environment.id):
        world.start(client_token="t", name="other")


def test_who_sent_a_descriptor_is_shown_while_it_is_in_use(world: World) -> None:
    """And the process that an environment ends with is known from its start on."""
    one = world.start(name="one", descriptor="d")
    two = world.start(name="two", descriptor="e", pid=7)
    assert (one.pid, two.pid) == (0, 7)
    control = world.control
    control.environment_attached(one.id, world.now, device="tap0", sender="running")
    control.environment_attached(two.id, world.now, device="tap1")

    def names(sender: str) -> list[str]:
        return [found.name for found in control.list("environment", "default", sender=sender)]

    assert (names("running"), names("gone")) == (["one"], [])
    assert control.get("environment", "two").pid == 7
    world.control.take()
    control.environment_sender(one.id, "gone", world.now)
    assert [change.id for change in control.take().changes] == [one.id]
    assert (names("running"), names("gone")) == ([], ["one"])
    control.environment_sender(one.id, "gone", world.now)
    control.environment_sender("env-none", "gone", world.now)
    assert control.take().changes == ()
    with pytest.raises(InvalidValue, match="sender is 'lost'"):
        names("lost")
    control.environment_ended(one.id, "deleted", world.now)
    control.environment_sender(one.id, "gone", world.now)
    assert control.get("environment", one.id, None).sender == ""


def test_a_shorter_drain_counts(world: World) -> None:
    environment = world.start()
    world.run()
    world.control.end_environment(environment.id, "default", 100.0, world.now)
    world.control.end_environment(environment.id, "default", 200.0, world.now)
    assert len(world.control.take().actions) == 1
    world.control.end_environment(environment.id, "default", 0.0, world.now)
    (action,) = world.control.take().actions
    assert isinstance(action, Detach)
    assert action.drain == 0.0
    for drain in (-1.0, float("nan"), float("inf"), 1e9):
        with pytest.raises(InvalidValue):
            world.control.end_environment(environment.id, "default", drain, world.now)


def test_an_update_keeps_the_old_eni_while_somebody_is_on_it(world: World) -> None:
    environment = world.start()
    world.run()
    old = environment.eni
    spec = FunctionSpec(name="f", subnets=("b",), security_groups=("web",))
    updated = world.control.update_function("f", spec, world.now)
    assert updated.last_update_status == "InProgress"
    assert world.start().eni == old
    world.run()
    assert world.control.get("function", "f").last_update_status == "Successful"
    assert world.start().eni != old
    with pytest.raises(DependencyViolation, match="environment"):
        world.control.delete_subnet("a", "default", world.now)
    for one in world.control.list("environment", eni=old):
        world.control.end_environment(one.id, "default", 0.0, world.now)
    world.run()
    assert world.control.find("eni", old) is None
    world.control.delete_subnet("a", "default", world.now)


def test_those_that_ended_are_forgotten() -> None:
    world = World(Limits(ended=3, ended_seconds=100.0))
    world.network()
    world.active()
    for number in range(5):
        environment = world.start(name=f"e{number}")
        world.control.environment_ended(environment.id, "test", world.now)
    assert [one.name for one in world.control.list("environment")] == ["e2", "e3", "e4"]
    world.time += 200.0
    world.control.expire(world.now)
    assert world.control.list("environment") == ()


def test_a_restart_goes_on_with_what_was_under_way() -> None:
    world = World()
    world.network()
    world.function("f")
    records = world.kept({})
    world.control.eni_made(world.control.list("eni")[0].id, world.now)
    attaching, attached, detaching = (world.start(descriptor=text) for text in ("d1", "d2", "d3"))
    world.control.environment_attached(attached.id, world.now)
    world.control.end_environment(detaching.id, "default", 60.0, world.now)
    control = Control(Random(2))
    control.load(world.kept(records).values())
    attach, detach = control.pending_actions(world.time + 20.0)
    assert isinstance(attach, Attach)
    assert (attach.environment.id, attach.descriptor) == (attaching.id, "d1")
    assert isinstance(detach, Detach)
    assert detach.environment.id == detaching.id
    assert 35.0 < detach.drain < 45.0


def test_routes_and_flows_stay_as_they_were_at_the_start(world: World) -> None:
    routes = (IPv4Network("198.19.0.0/16"),)
    world.active("g", max_flows=10, routes=routes)
    environment = world.start("g")
    spec = FunctionSpec(name="g", subnets=("a",), security_groups=("web",), max_flows=20)
    world.control.update_function("g", spec, world.now)
    action = world.control.attach_action(environment.id)
    assert (action.max_flows, action.routes) == (10, routes)
    later = world.control.attach_action(world.start("g").id)
    assert (later.max_flows, later.routes) == (20, (IPv4Network("0.0.0.0/0"),))


@pytest.mark.parametrize(
    ("function", "start", "is_routed"), [(True, None, True), (True, False, False), (False, True, True)]
)
def test_whether_the_address_belongs_to_a_guest_is_decided_at_the_start(
    world: World, function: bool, start: bool | None, is_routed: bool
) -> None:
    """By the function unless the start says otherwise, and kept: the device is made again the same way."""
    world.active("g", routed=function)
    environment = world.start("g", routed=start)
    assert environment.routed is is_routed
    spec = FunctionSpec(name="g", subnets=("a",), security_groups=("web",), routed=not function)
    assert world.control.update_function("g", spec, world.now).routed is not function
    assert world.control.attach_action(environment.id).tunnel.routed is is_routed
    assert {one.routed for one in world.control.tunnels()} >= {not function}


def test_the_ten_thousandth_costs_as_much_as_the_tenth(world: World) -> None:
    control = world.control

    def cost() -> float:
        """Seconds of CPU for one start, the best of many."""
        best = 1.0
        for _ in range(200):
            begun = time.process_time()
            environment = control.start_environment(EnvironmentSpec(function="f"), 1.0)
            control.take()
            control.environment_attached(environment.id, 1.0, namespace="n", internals={"key": [1, 2]})
            control.take()
            best = min(best, time.process_time() - begun)
            control.environment_ended(environment.id, "test", 1.0)
            control.take()
        return best

    first = cost()
    for _ in range(10_000):
        control.start_environment(EnvironmentSpec(function="f"), 1.0)
        control.take()
    assert cost() < 3 * first


class TestPrepared:
    """A fresh environment whose tunnel is there already."""

    ready = Prepared(id="env-0f", namespace="hpenv-1", internals={"netns": [4, 5]})

    def test_it_is_attached_at_once(self, world: World) -> None:
        asked: list[TunnelSpec] = []

        def prepared(tunnel: TunnelSpec) -> Prepared:
            asked.append(tunnel)
            return self.ready

        spec = EnvironmentSpec(function="f", name="e", device="tun0")
        environment = world.control.start_environment(spec, world.now, prepared)
        assert (environment.id, environment.state) == ("env-0f", EnvironmentState.ATTACHED)
        assert (environment.namespace, environment.fresh) == ("hpenv-1", True)
        outcome = world.control.take()
        assert not outcome.actions
        assert [change.id for change in outcome.changes] == ["env-0f"]  # one change, with all that is known
        assert world.control.internals("env-0f") == {"netns": [4, 5]}
        assert asked == [world.control.attach_action("env-0f").tunnel]
        world.control.end_environment("e", "default", 0.0, world.now)
        (action,) = world.control.take().actions
        assert isinstance(action, Detach)

    def test_only_a_fresh_one_on_an_eni_that_is_up_has_it(self, world: World) -> None:
        def prepared(tunnel: TunnelSpec) -> Prepared:
            raise AssertionError

        for spec in (
            EnvironmentSpec(function="f", namespace="box"),
            EnvironmentSpec(function="f", descriptor="token"),
        ):
            world.control.start_environment(spec, world.now, prepared)
        world.function("pending", ("b",))
        waits = world.control.start_environment(EnvironmentSpec(function="pending"), world.now, prepared)
        assert waits.state is EnvironmentState.ATTACHING
        assert {one.eni for one in world.control.tunnels()} == set(world.control.get("function", "f").enis)

    def test_a_repeated_request_has_the_same(self, world: World) -> None:
        spec = EnvironmentSpec(function="f", client_token="t")
        first = world.control.start_environment(spec, world.now, lambda tunnel: self.ready)
        assert world.control.start_environment(spec, world.now, lambda tunnel: None) == first

    def test_what_functions_may_ask_for(self, world: World) -> None:
        (tunnel,) = world.control.tunnels()
        world.function("same")
        assert world.control.tunnels() == (tunnel,)
        world.active("other", ("b",), max_flows=5, mtu=1400)
        _, other = world.control.tunnels()
        assert (other.max_flows, other.mtu, other.device) == (5, 1400, "eth0")
        assert other.eni != tunnel.eni
        world.control.delete_function("other", "default", world.now)
        assert world.control.tunnels() == (tunnel,)
