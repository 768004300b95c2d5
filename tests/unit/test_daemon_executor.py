"""The executor without a kernel: what callers are answered when other things happen meanwhile."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from hyperplane.daemon.actuator import Attached
from hyperplane.daemon.executor import Executor, Start
from hyperplane.daemon.ledger import Ledger
from hyperplane.daemon.points import NO_POINTS
from hyperplane.dataplane import Reader
from hyperplane.errors import EngineError, ResourceConflict
from hyperplane.linux.namespaces import NamespaceThreads
from hyperplane.linux.tunnel import TunnelDevice
from hyperplane.resources import Environment, EnvironmentSpec, EnvironmentState, SecurityGroupSpec
from tests.unit.control_support import World
from tests.unit.store_support import Memory


class Kernel:
    """An actuator of which every step succeeds; attaching waits until it may."""

    def __init__(self) -> None:
        self.attaching = threading.Event()
        self.may_attach = threading.Event()
        self.detached: list[str] = []
        self.rules: list[Any] = []
        self.hangs = 0

    def attach(self, action: Any, device: Any, check: Any = None) -> Attached:
        begun = time.perf_counter()
        self.attaching.set()
        assert self.may_attach.wait(5.0)
        return Attached(TunnelDevice(-1, "eth0", None), begun, 0.0)

    def detach(self, environment: str, namespace: str) -> None:
        self.detached.append(environment)

    def update(self, action: Any) -> None:
        self.rules.append(action)
        if self.hangs:
            self.hangs -= 1
            raise EngineError("it hangs")

    def number(self, environment: str) -> None: ...


class NoPool:
    def review(self) -> None: ...

    def lose(self, id_: str) -> None: ...

    async def withdraw(self, eni: str) -> None: ...


def no_reader() -> Reader:
    raise EngineError("no engine runs")


@asynccontextmanager
async def executor(kernel: Kernel) -> AsyncIterator[tuple[Executor, World]]:
    """With a function f whose ENI is up."""
    world = World()
    world.network()
    world.active("f")
    world.control.take()
    threads = NamespaceThreads(2)
    made = Executor(kernel, kernel, threads, threads, NoPool(), no_reader, NO_POINTS)  # type: ignore[arg-type]
    made.ledger = Ledger(world.control, Memory(), made.carry, made.kept)
    made.watch = SimpleNamespace(add=lambda token, namespace: None, remove=lambda token: None)  # type: ignore[assignment]
    made.senders = SimpleNamespace(watch=lambda id_, sender: "", forget=lambda id_: None)  # type: ignore[assignment]
    try:
        yield made, world
    finally:
        kernel.may_attach.set()
        await made.close(1.0)
        threads.close()


def begin(made: Executor, world: World) -> tuple[Environment, asyncio.Future[Environment]]:
    spec = EnvironmentSpec(function="f", namespace="box", name="e")
    environment = made.ledger.request(lambda now: world.control.start_environment(spec, now))
    answer: asyncio.Future[Environment] = asyncio.get_running_loop().create_future()
    made.expect(environment.id, Start(time.perf_counter(), answer))
    return environment, answer


async def test_a_start_is_answered_when_it_is_attached() -> None:
    kernel = Kernel()
    kernel.may_attach.set()
    async with executor(kernel) as (made, world):
        _, answer = begin(made, world)
        assert (await answer).state is EnvironmentState.ATTACHED


async def test_a_start_whose_environment_is_deleted_meanwhile_is_no_success() -> None:
    kernel = Kernel()
    async with executor(kernel) as (made, world):
        environment, answer = begin(made, world)
        await asyncio.to_thread(kernel.attaching.wait, 5.0)
        ended = made.ended(environment.id)
        made.ledger.request(lambda now: world.control.end_environment("e", "default", 0.0, now))
        kernel.may_attach.set()
        with pytest.raises(ResourceConflict, match="environment e was ended while it was being attached"):
            await answer
        await asyncio.wait_for(ended, 5.0)
        assert kernel.detached == [environment.id]
        assert world.control.get("environment", environment.id).state is EnvironmentState.ENDED


async def test_new_rules_are_told_until_the_engine_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperplane.daemon.turns.RETRY", 0.001)
    kernel = Kernel()
    kernel.hangs = 2
    async with executor(kernel) as (made, world):
        (eni,) = world.control.list("eni")
        changed = SecurityGroupSpec(name="web", vpc="customer", rules=("icmp",))
        made.ledger.request(lambda now: world.control.update_security_group("web", changed, now))
        async with asyncio.timeout(5.0):
            await made.settled(eni.id)
        assert len(kernel.rules) == 3
