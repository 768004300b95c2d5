"""Turns: what must be done is tried until it is done."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from hyperplane.daemon import turns
from hyperplane.daemon.turns import Turns
from hyperplane.errors import DeviceError, EngineError, HyperplaneError, InvalidValue
from hyperplane.linux.namespaces import NamespaceThreads


@pytest.fixture
def threads() -> Iterator[NamespaceThreads]:
    made = NamespaceThreads(1)
    yield made
    made.close()


def failing(*errors: HyperplaneError) -> Iterator[HyperplaneError | None]:
    yield from errors
    while True:
        yield None


async def test_insisting(threads: NamespaceThreads, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "RETRY", 0.001)
    made = Turns(threads, lambda id_, error: None)

    def work(left: Iterator[HyperplaneError | None]) -> str:
        if error := next(left):
            raise error
        return "done"

    left = failing(EngineError("it hangs"), EngineError("it hangs"), DeviceError("busy"))
    assert await made.insist("a removal", work, left) == "done"
    left = failing(EngineError("it hangs"), InvalidValue("it never will"))
    with pytest.raises(InvalidValue):
        await made.insist("rules", work, left, about=EngineError)
    assert next(left) is None
    await made.close()


async def test_one_after_another(threads: NamespaceThreads) -> None:
    made = Turns(threads, lambda id_, error: None)
    seen: list[int] = []

    async def step(number: int) -> None:
        await asyncio.sleep(0)
        seen.append(number)

    for number in range(3):
        made.then("a", step(number))
    assert "a" in made
    await made.settled("a", "b")
    assert (seen, list(made)) == ([0, 1, 2], [])
    await made.close()


async def test_what_only_waits_is_no_work(threads: NamespaceThreads) -> None:
    made = Turns(threads, lambda id_, error: None)
    may_end, drained = threading.Event(), asyncio.Event()

    async def drain() -> None:
        await made.run(may_end.wait, 5.0)
        await drained.wait()

    made.then("one", drain())
    async with asyncio.timeout(5.0):
        while not made.working:  # noqa: ASYNC110 (there is no event for it)
            await asyncio.sleep(0)
        may_end.set()
        while made.working:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        assert list(made) == ["one"]
        drained.set()
        await made.settled("one")
