"""Documents: apply, plan, prune, export."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Any

import pytest
from msgspec.structs import replace

from hyperplane.control import Outcome
from hyperplane.errors import DependencyViolation, HyperplaneError, InvalidSubnet, InvalidValue, ResourceConflict
from hyperplane.resources import Document, FunctionSpec, SecurityGroupSpec, SubnetSpec, VpcSpec
from tests.unit.control_support import World

DOCUMENT = Document(
    vpc=(VpcSpec(name="v", namespace="n"),),
    subnet=(SubnetSpec(name="a", vpc="v", cidr=IPv4Network("198.19.0.0/24")),),
    security_group=(SecurityGroupSpec(name="web", vpc="v", rules=("tcp/443",)),),
    function=(FunctionSpec(name="f", subnets=("a",), security_groups=("web",)),),
)


@pytest.fixture
def world() -> World:
    world = World()
    world.control.apply(DOCUMENT, False, world.now)
    world.run()
    return world


def lines(world: World, document: Document, prune: bool = False) -> list[str]:
    plan = world.control.plan(document, prune, world.now)
    assert world.control.take() == Outcome()
    return [f"{one.action} {one.kind} {one.name}" for one in plan.changes]


def test_an_apply_makes_what_the_document_says_and_then_nothing() -> None:
    world = World()
    wanted = ["create vpc v", "create subnet a", "create security-group web", "create function f"]
    assert lines(world, DOCUMENT) == wanted
    assert world.control.list("vpc") == ()
    assert world.control.apply(DOCUMENT, False, world.now).applied
    world.run()
    assert lines(world, DOCUMENT, prune=True) == []
    assert world.control.export() == DOCUMENT


def test_an_update_says_which_fields_change(world: World) -> None:
    document = replace(
        DOCUMENT,
        security_group=(SecurityGroupSpec(name="web", vpc="v", rules=("tcp/443", "udp/53")),),
        function=(replace(DOCUMENT.function[0], max_flows=5, routed=True),),
    )
    plan = world.control.apply(document, False, world.now)
    assert [one.fields for one in plan.changes] == [
        {"rules": ("tcp/443", "tcp/443, udp/53")},
        {"routed": ("false", "true"), "max_flows": ("0", "5")},
    ]
    assert world.control.export() == document


def test_pruning_deletes_what_is_not_named(world: World) -> None:
    wanted = ["delete function f", "delete security-group web", "delete subnet a", "delete vpc v"]
    assert lines(world, Document(), prune=True) == wanted
    assert lines(world, Document()) == []
    world.control.apply(Document(), True, world.now)
    world.run()
    assert world.control.accounts() == ()


def test_a_rename_keeps_the_eni(world: World) -> None:
    (eni,) = world.control.get("function", "f").enis
    document = replace(DOCUMENT, function=(replace(DOCUMENT.function[0], name="g"),))
    assert lines(world, document, prune=True) == ["create function g", "delete function f"]
    world.control.apply(document, True, world.now)
    assert world.control.get("function", "g").enis == (eni,)


def test_a_subnet_can_be_renamed(world: World) -> None:
    document = replace(
        DOCUMENT,
        subnet=(replace(DOCUMENT.subnet[0], name="b"),),
        function=(replace(DOCUMENT.function[0], subnets=("b",)),),
    )
    assert lines(world, document, prune=True) == ["create subnet b", "update function f", "delete subnet a"]
    world.start()
    with pytest.raises(DependencyViolation, match="environment"):
        world.control.apply(document, True, world.now)
    world.control.rollback()
    world.control.apply(document, True, world.now)
    world.run()
    assert world.control.export() == document
    assert world.control.get("function", "f").state == "Active"


def with_function(**more: Any) -> Document:
    return replace(
        DOCUMENT, function=(FunctionSpec(**{"name": "f", "subnets": ("a",), "security_groups": ("web",)} | more),)
    )


@pytest.mark.parametrize(
    ("document", "error", "field"),
    [
        (replace(DOCUMENT, account="a b"), InvalidValue, "account"),
        (replace(DOCUMENT, vpc=(VpcSpec(name="v", namespace="n", account="acme"),)), InvalidValue, "vpc[0].account"),
        (replace(DOCUMENT, vpc=2 * DOCUMENT.vpc), ResourceConflict, "vpc[1].name"),
        (replace(DOCUMENT, subnet=(replace(DOCUMENT.subnet[0], name="b"),)), InvalidSubnet, "subnet[0].cidr"),
        (with_function(security_groups=("web", "none")), HyperplaneError, "function[0].security_groups[1]"),
        (with_function(max_flows=-1), InvalidValue, "function[0].max_flows"),
    ],
)
def test_an_error_names_the_place_and_changes_nothing(
    world: World, document: Document, error: type[HyperplaneError], field: str
) -> None:
    document = replace(document, security_group=(*DOCUMENT.security_group, SecurityGroupSpec(name="new", vpc="v")))
    for attempt in (world.control.plan, world.control.apply):
        with pytest.raises(error) as caught:
            attempt(document, False, world.now)
        assert caught.value.field == field
        assert world.control.take() == Outcome()
    assert world.control.export() == DOCUMENT


def test_a_default_inside_address_makes_room_for_a_new_subnet(world: World) -> None:
    document = replace(
        DOCUMENT, subnet=(*DOCUMENT.subnet, SubnetSpec(name="b", vpc="v", cidr=IPv4Network("198.18.0.0/24")))
    )
    assert lines(world, document) == ["create subnet b", "update function f"]
    left = replace(document, function=())
    with pytest.raises(InvalidSubnet, match="function f") as caught:
        world.control.apply(left, False, world.now)
    assert caught.value.field == "subnet[1].cidr"
    world.control.apply(document, False, world.now)
    assert world.control.export() == document
    world.run()
    assert lines(world, document) == []
