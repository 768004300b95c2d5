"""What the ledger does when the store refuses: a request is taken back, an event is kept for later."""

from __future__ import annotations

import asyncio
from ipaddress import IPv4Network
from random import Random
from typing import Any

import pytest

from hyperplane.control import Action, Control, MakeEni
from hyperplane.daemon.ledger import Ledger
from hyperplane.errors import InvalidVpc, StoreError
from hyperplane.resources import EniState, FunctionSpec, SecurityGroupSpec, SubnetSpec, VpcSpec
from tests.unit.store_support import Memory


class Desk:
    def __init__(self) -> None:
        self.store = Memory()
        self.actions: list[Action] = []
        self.changes: list[Any] = []
        self.control = Control(Random(7))
        self.ledger = Ledger(self.control, self.store, self.actions.append, self.changes.extend, lambda: 1000.0)

    def declare(self) -> str:
        """Everything up to a function; its ENI's id."""
        control, request = self.control, self.ledger.request
        request(lambda now: control.create_vpc(VpcSpec(name="v", namespace="vpc"), now))
        subnet = SubnetSpec(name="s", vpc="v", cidr=IPv4Network("198.19.0.0/24"))
        request(lambda now: control.create_subnet(subnet, now))
        request(lambda now: control.create_security_group(SecurityGroupSpec(name="g", vpc="v"), now))
        function = FunctionSpec(name="f", subnets=("s",), security_groups=("g",))
        return str(request(lambda now: control.create_function(function, now)).enis[0])


@pytest.fixture
def desk() -> Desk:
    return Desk()


def test_what_is_decided_is_kept_before_it_is_carried_out(desk: Desk) -> None:
    kept: list[bool] = []

    def carry(action: Action) -> None:
        assert isinstance(action, MakeEni)
        kept.append(action.eni.id in desk.store.kept)

    desk.ledger = Ledger(desk.control, desk.store, carry, desk.changes.extend)
    desk.declare()
    assert kept == [True]


def test_a_refused_request_is_taken_back(desk: Desk) -> None:
    desk.store.refuses = True
    with pytest.raises(StoreError):
        desk.ledger.request(lambda now: desk.control.create_vpc(VpcSpec(name="v", namespace="vpc"), now))
    assert not desk.control.list("vpc")
    desk.store.refuses = False
    desk.declare()
    assert [one.name for one in desk.control.list("vpc")] == ["v"]


def test_a_refused_function_leaves_no_eni_and_no_action(desk: Desk) -> None:
    desk.declare()
    before, actions = dict(desk.store.kept), len(desk.actions)
    desk.ledger.request(
        lambda now: desk.control.create_security_group(SecurityGroupSpec(name="other", vpc="v", rules=("all",)), now)
    )
    desk.store.refuses = True
    function = FunctionSpec(name="f2", subnets=("s",), security_groups=("other",))
    with pytest.raises(StoreError):
        desk.ledger.request(lambda now: desk.control.create_function(function, now))
    assert len(desk.actions) == actions
    assert len(desk.control.list("eni")) == 1
    assert set(before) < set(desk.store.kept)


def test_a_request_that_is_wrong_changes_nothing(desk: Desk) -> None:
    subnet = SubnetSpec(name="s", vpc="none", cidr=IPv4Network("198.19.0.0/24"))
    with pytest.raises(InvalidVpc):
        desk.ledger.request(lambda now: desk.control.create_subnet(subnet, now))
    assert not desk.store.kept


def test_an_event_is_kept_with_the_next_change(desk: Desk) -> None:
    eni = desk.declare()
    desk.store.refuses = True
    desk.ledger.event(lambda now: desk.control.eni_made(eni, now))
    assert desk.ledger.trouble
    assert desk.control.get("eni", eni, None).state is EniState.AVAILABLE
    assert desk.store.kept[eni].state is EniState.PENDING
    desk.store.refuses = False
    desk.ledger.request(lambda now: desk.control.create_vpc(VpcSpec(name="w", namespace="other"), now))
    assert not desk.ledger.trouble
    assert desk.store.kept[eni].state is EniState.AVAILABLE


async def test_a_note_is_kept_a_little_later(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperplane.daemon.ledger.NOTED_WITHIN", 0.01)
    eni = desk.declare()
    desk.ledger.note(lambda now: desk.control.eni_made(eni, now))
    assert desk.store.kept[eni].state is EniState.PENDING
    async with asyncio.timeout(5.0):
        while desk.store.kept[eni].state is EniState.PENDING:  # noqa: ASYNC110 (a store has no events)
            await asyncio.sleep(0.001)
    desk.store.kept[eni] = None
    desk.ledger.flush()
    assert desk.store.kept[eni] is None  # it is kept once


@pytest.mark.parametrize("refuses", [False, True])
async def test_a_note_is_older_than_what_is_kept_meanwhile(desk: Desk, refuses: bool) -> None:
    eni = desk.declare()
    desk.ledger.note(lambda now: desk.control.eni_made(eni, now))
    desk.store.refuses = refuses
    desk.ledger.event(lambda now: desk.control.eni_failed(eni, InvalidVpc("it is gone"), now))
    desk.store.refuses = False
    desk.ledger.flush()
    assert desk.store.kept[eni].state is EniState.DELETING


async def test_a_note_survives_a_store_that_refuses(desk: Desk) -> None:
    eni = desk.declare()
    desk.ledger.note(lambda now: desk.control.eni_made(eni, now))
    desk.store.refuses = True
    with pytest.raises(StoreError):
        desk.ledger.request(lambda now: desk.control.create_vpc(VpcSpec(name="w", namespace="other"), now))
    desk.ledger.flush()
    assert desk.control.get("eni", eni, None).state is EniState.AVAILABLE
    desk.store.refuses = False
    desk.ledger.flush()
    assert desk.store.kept[eni].state is EniState.AVAILABLE
