"""Jobs of an event loop: in its own thread when nothing else is under way, else in threads, in their order."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from typing import Any

import pytest

from hyperplane.errors import DeviceError
from hyperplane.linux import jobs
from hyperplane.linux.jobs import HalfWay, Jobs
from hyperplane.linux.namespaces import NamespaceThreads


@pytest.fixture
async def made() -> AsyncIterator[Jobs]:
    threads = NamespaceThreads(1)
    yield Jobs(threads)
    threads.close()


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may be slow: only where a test says so is that held against a job."""
    monkeypatch.setattr(jobs, "SLOW", 60.0)
    monkeypatch.setattr(jobs, "TURN", -1.0)


def nothing(_: object) -> None:
    pass


async def where(made: Jobs, undo: Callable[[Any], object] = nothing) -> bool:
    """Whether a job was done in the loop's thread."""
    with made.operation():
        thread: int = await made.at_once(threading.get_ident, undo=undo)
    return thread == threading.get_ident()


async def test_one_that_is_alone_is_done_in_the_loop(made: Jobs) -> None:
    assert [await where(made) for _ in range(3)] == [True] * 3


async def test_of_many_only_the_first_blocks_the_loop(made: Jobs) -> None:
    assert await asyncio.gather(*(where(made) for _ in range(50))) == [True, *[False] * 49]
    assert await where(made)


@pytest.mark.parametrize("patience", [-1.0, 60.0])
async def test_the_loop_has_its_turn(made: Jobs, monkeypatch: pytest.MonkeyPatch, patience: float) -> None:
    monkeypatch.setattr(jobs, "TURN", patience)
    turns: list[int] = []
    for number in range(3):
        asyncio.get_running_loop().call_soon(turns.append, number)
        assert await where(made)
        assert turns == (list(range(number + 1)) if patience < 0 else [])


async def test_what_the_loop_was_blocked_for_is_forgotten_with_its_turn(
    made: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "TURN", 60.0)
    for _ in range(2):
        await where(made)
        assert made._blocking > 0
        await asyncio.sleep(0)
        assert made._blocking == 0


async def test_while_anything_is_under_way_it_is_done_in_a_thread(made: Jobs) -> None:
    go = threading.Event()
    before = made.do(go.wait)
    after = asyncio.create_task(where(made))
    await asyncio.sleep(0)
    go.set()
    assert not await after
    await before
    with made.operation():
        assert not await where(made)


async def test_after_a_slow_one_the_loop_is_left_alone(made: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SLOW", 0.0)
    monkeypatch.setattr(jobs, "PAUSE", 1e9)
    assert [await where(made) for _ in range(3)] == [True, False, False]


async def test_but_not_for_ever(made: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "SLOW", 0.0)
    monkeypatch.setattr(jobs, "PAUSE", 0)
    assert [await where(made) for _ in range(3)] == [True] * 3


async def test_what_nobody_wants_any_more_is_undone(made: Jobs) -> None:
    undone: list[int] = []
    task = asyncio.create_task(where(made, undone.append))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await made.settled()
    assert undone == [threading.get_ident()]


async def test_one_that_fails_half_way_is_over_when_its_device_is_gone(made: Jobs) -> None:
    closing: Future[None] = Future()

    def fail() -> None:
        raise HalfWay(DeviceError("no"), closing)

    async def run() -> None:
        with made.operation():
            await made.at_once(fail, undo=nothing)

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    assert not task.done()
    closing.set_result(None)
    with pytest.raises(DeviceError, match="no"):
        await task
