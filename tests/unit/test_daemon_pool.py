"""The pool without a kernel: what is kept ready, for whom, and when it is given up."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from ipaddress import IPv4Address
from typing import Any

import pytest

from hyperplane.control import TunnelSpec
from hyperplane.daemon.pool import Pool
from hyperplane.errors import DeviceError, EngineError, NamespaceNotFound
from hyperplane.linux.namespaces import Namespace, NamespaceThreads
from hyperplane.resources import Environment, EnvironmentSpec, EnvironmentState, FunctionSpec
from tests.unit.control_support import World

SIZE = 6


class Kernel:
    """An actuator, an engine and a watch: what there is, by id."""

    def __init__(self) -> None:
        self.there: dict[str, TunnelSpec] = {}
        self.most = 0
        self.removed: list[str] = []
        self.watched: set[Any] = set()
        self.unknown: set[str] = set()
        self.fails = 0
        self.may_prepare = threading.Event()
        self.may_prepare.set()
        self.preparing = threading.Event()

    def prepare(self, id_: str, tunnel: TunnelSpec, dns: tuple[IPv4Address, ...]) -> Namespace:
        self.preparing.set()
        assert self.may_prepare.wait(5.0)
        if self.fails:
            self.fails -= 1
            raise DeviceError("no memory")
        self.there[id_] = tunnel
        self.most = max(self.most, len(self.there))
        return Namespace(f"hpenv-{id_}", -1, (4, len(self.there)), f"/run/netns/hpenv-{id_}")

    def detach(self, id_: str, namespace: str) -> Future[None]:
        if self.fails:
            self.fails -= 1
            raise EngineError("it hangs")
        assert namespace == f"hpenv-{id_}"
        del self.there[id_]
        self.removed.append(id_)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def knows(self, id_: str) -> bool:
        return id_ in self.there and id_ not in self.unknown

    def add(self, token: Any, namespace: Namespace) -> None:
        if namespace.name in self.unknown:
            raise NamespaceNotFound("it was deleted just now")
        self.watched.add(token)

    def remove(self, token: Any) -> None:
        self.watched.discard(token)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PAUSE", "QUIET", "RETRY"):
        monkeypatch.setattr(f"hyperplane.daemon.pool.{name}", 0.0)
    monkeypatch.setattr("hyperplane.daemon.turns.RETRY", 0.001)


class Lab:
    """A pool for the functions of a control plane: f on subnet a, once declared, and g on subnet b."""

    def __init__(self, size: int, threads: NamespaceThreads) -> None:
        self.world = World()
        self.world.network()
        self.kernel = Kernel()
        self.busy = False
        self.pool = Pool(size, self.world.control, self.kernel, threads, self.kernel.knows, lambda: self.busy)  # type: ignore[arg-type]
        self.pool.watch = self.kernel  # type: ignore[assignment]

    def declare(self, name: str, subnet: str, **more: Any) -> None:
        self.world.active(name, (subnet,), **more)
        self.world.control.take()
        self.pool.review()

    def start(self, function: str = "f", **more: Any) -> Environment:
        spec = EnvironmentSpec(function=function, **more)
        found = self.world.control.start_environment(spec, self.world.now, self.pool.find)
        if found.state is EnvironmentState.ATTACHED:
            self.pool.take(found.id)
            self.kernel.there.pop(found.id)
        return found

    def ready(self) -> dict[str, int]:
        """How many are ready of each function."""
        names = {one.enis[0]: one.name for one in self.world.control.list("function")}
        return dict(Counter(names[self.kernel.there[id_].eni] for id_ in self.pool.ids()))

    async def full(self) -> None:
        await until(lambda: len(self.pool) == len(self.kernel.there) == SIZE)


async def until(right: Callable[[], bool]) -> None:
    async with asyncio.timeout(10.0):
        while not right():  # noqa: ASYNC110 (others' conditions have no events)
            await asyncio.sleep(0.001)


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    threads = NamespaceThreads(2)
    made = Lab(SIZE, threads)
    made.pool.start()
    yield made
    made.kernel.may_prepare.set()
    await made.pool.close()
    assert not made.kernel.there
    assert not made.kernel.watched - {("environment", one.id) for one in made.world.control.list("environment")}
    threads.close()


async def test_a_start_takes_what_is_ready_and_nothing_is_left_to_do(lab: Lab) -> None:
    lab.declare("f", "a", max_flows=100)
    await lab.full()
    ids = lab.pool.ids()
    (function,) = lab.world.control.list("function")
    assert set(lab.kernel.there.values()) == set(lab.world.control.tunnels())
    assert all(one.max_flows == 100 and one.eni == function.enis[0] for one in lab.kernel.there.values())
    made = [lab.start() for _ in range(SIZE)]
    assert [one.id for one in made] == list(ids)  # the longest kept comes first
    for one in made:
        assert one.state is EnvironmentState.ATTACHED
        assert (one.namespace, one.fresh) == (f"hpenv-{one.id}", True)
        assert ("environment", one.id) in lab.kernel.watched
        assert lab.world.control.internals(one.id)["netns"][0] == 4
        assert lab.world.control.attach_action(one.id).max_flows == 100
    assert not lab.world.control.take().actions
    assert lab.start().state is EnvironmentState.ATTACHING  # none is left
    await lab.full()


async def test_one_whose_device_has_an_address_is_none_for_a_guest(lab: Lab) -> None:
    lab.declare("f", "a")
    await lab.full()
    assert lab.start(routed=True).state is EnvironmentState.ATTACHING
    assert lab.start().state is EnvironmentState.ATTACHED


async def test_others_go_the_usual_way(lab: Lab) -> None:
    lab.declare("f", "a")
    await lab.full()
    assert lab.start(namespace="box").state is EnvironmentState.ATTACHING
    assert lab.start(descriptor="token").state is EnvironmentState.ATTACHING
    assert lab.start(device="eth1").state is EnvironmentState.ATTACHING
    # What was asked for is ready from now on.
    await until(lambda: any(lab.kernel.there[id_].device == "eth1" for id_ in lab.pool.ids()))
    assert lab.start(device="eth1").state is EnvironmentState.ATTACHED


async def test_a_request_that_is_refused_takes_none(lab: Lab) -> None:
    lab.declare("f", "a")
    await lab.full()
    before = lab.pool.ids()
    lab.world.control.start_environment(EnvironmentSpec(function="f"), lab.world.now, lab.pool.find)
    lab.world.control.rollback()
    assert lab.pool.ids() == before
    assert lab.start().id == before[0]


async def test_the_size_is_that_of_all(lab: Lab) -> None:
    lab.declare("f", "a")
    await lab.full()
    lab.declare("g", "b")
    await until(lambda: lab.ready() == {"f": 4, "g": 2})  # one more or less is not worth the removal of another
    for _ in range(2 * SIZE):
        lab.start("g")
        await lab.full()
    await until(lambda: lab.ready().get("f", 0) <= 1)
    for _ in range(2 * SIZE):
        lab.start("f")
        await lab.full()
    await until(lambda: lab.ready().get("g", 0) <= 1)
    assert lab.kernel.most <= SIZE + 1  # one is removed while the next is made


async def test_those_that_are_asked_for_by_turns_do_not_push_each_other_out(lab: Lab) -> None:
    lab.declare("f", "a")
    lab.declare("g", "b")
    await lab.full()
    await until(lambda: lab.ready() == {"f": 3, "g": 3})
    lab.kernel.removed.clear()
    for _ in range(10):
        assert lab.start("f").state is EnvironmentState.ATTACHED
        assert lab.start("g").state is EnvironmentState.ATTACHED
        assert lab.start("f").state is EnvironmentState.ATTACHED
        await lab.full()
    assert not lab.kernel.removed


async def test_what_no_function_can_have_any_more_is_given_up(lab: Lab) -> None:
    lab.declare("f", "a")
    await lab.full()
    old = lab.pool.ids()
    changed = FunctionSpec(name="f", subnets=("a",), security_groups=("web",), max_flows=9)
    lab.world.control.update_function("f", changed, lab.world.now)
    assert lab.start().state is EnvironmentState.ATTACHING  # at once, before anybody has looked
    lab.pool.review()
    await until(lambda: not set(old) & set(lab.kernel.there))
    await lab.full()
    assert {one.max_flows for one in lab.kernel.there.values()} == {9}


async def test_an_eni_that_goes_has_none_on_it(lab: Lab) -> None:
    lab.declare("f", "a")
    await lab.full()
    (function,) = lab.world.control.list("function")
    lab.world.control.delete_function("f", "default", lab.world.now)
    lab.pool.review()
    await lab.pool.withdraw(function.enis[0])
    assert not lab.kernel.there


async def test_nor_one_that_is_being_made(lab: Lab) -> None:
    lab.kernel.may_prepare.clear()
    lab.declare("f", "a")
    await until(lab.kernel.preparing.is_set)
    (function,) = lab.world.control.list("function")
    lab.world.control.delete_function("f", "default", lab.world.now)
    lab.pool.review()
    going = asyncio.create_task(lab.pool.withdraw(function.enis[0]))
    await asyncio.sleep(0)
    assert not going.done()
    lab.kernel.may_prepare.set()
    await going
    assert not lab.kernel.there
    assert len(lab.kernel.removed) == 1


async def test_what_the_engine_has_lost_is_not_taken(lab: Lab) -> None:
    lab.declare("f", "a")
    await lab.full()
    first, second, *_ = lab.pool.ids()
    lab.kernel.unknown.add(first)
    assert lab.start().id == second
    await until(lambda: first in lab.kernel.removed)
    others = lab.pool.ids()
    lab.kernel.unknown.update(others)
    lab.pool.review()
    await until(lambda: set(others) <= set(lab.kernel.removed))
    await lab.full()


async def test_a_namespace_that_somebody_deletes_is_replaced(lab: Lab) -> None:
    lab.declare("f", "a")
    await lab.full()
    first = lab.pool.ids()[0]
    lab.pool.lose(first)
    lab.pool.lose(first)
    lab.pool.lose("env-unknown")
    assert first not in lab.pool.ids()
    assert first in lab.pool  # until it is gone: it is no stranger
    await until(lambda: lab.kernel.removed == [first])
    await lab.full()


async def test_what_cannot_be_made_or_removed_is_tried_again(lab: Lab) -> None:
    lab.kernel.fails = 3
    lab.declare("f", "a")
    await lab.full()
    lab.kernel.fails = 3
    lab.pool.lose(lab.pool.ids()[0])
    await until(lambda: len(lab.kernel.removed) == 1)
    await lab.full()


async def test_none_is_made_while_others_wait_for_threads(lab: Lab) -> None:
    lab.busy = True
    lab.declare("f", "a")
    for _ in range(50):
        await asyncio.sleep(0)
    assert not lab.kernel.there
    lab.busy = False
    await lab.full()


async def test_a_pool_of_no_size_makes_none() -> None:
    threads = NamespaceThreads(1)
    lab = Lab(0, threads)
    lab.pool.start()
    lab.declare("f", "a")
    assert lab.start().state is EnvironmentState.ATTACHING
    await lab.pool.withdraw("eni-none")
    await lab.pool.close()
    assert not lab.kernel.preparing.is_set()
    threads.close()
