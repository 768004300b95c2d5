"""Looking at many things now and then: linux.rounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from hyperplane.linux.rounds import SHARE, Rounds

DEADLINE = 10.0


async def eventually(condition: Callable[[], object]) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.005)


async def test_every_one_is_looked_at_in_turns_of_the_loop() -> None:
    looked: list[int] = []
    turns = 0
    rounds: Rounds[int] = Rounds(asyncio.get_running_loop(), lambda: range(1000), looked.append, 0.0)
    for _ in range(10):
        rounds.ask()
    while len(looked) < 1000:
        turns += 1
        await asyncio.sleep(0)
    assert sorted(looked) == list(range(1000))
    assert turns >= 10


async def test_it_takes_a_small_share_of_the_loop_s_time() -> None:
    """Whatever a look costs: the longer a round takes, the later the next one begins."""
    began: list[float] = []
    rounds: Rounds[int]

    def things() -> range:
        began.append(time.perf_counter())
        return range(4)

    rounds = Rounds(asyncio.get_running_loop(), things, lambda one: time.sleep(0.004), 0.0)
    rounds.ask()
    await eventually(lambda: began)
    spent = 4 * 0.004
    await asyncio.sleep(0)
    rounds.ask()
    await eventually(lambda: len(began) == 2)
    rounds.close()
    assert began[1] - began[0] >= 0.9 * SHARE * spent


async def test_who_asks_during_a_round_gets_another() -> None:
    rounds: Rounds[int]
    begun = 0

    def things() -> range:
        nonlocal begun
        begun += 1
        return range(200)

    def look(one: int) -> None:
        if begun == 1 and one in (0, 100, 199):
            rounds.ask()

    rounds = Rounds(asyncio.get_running_loop(), things, look, 0.0)
    rounds.ask()
    await eventually(lambda: begun == 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert begun == 2
    rounds.ask()
    rounds.close()
    for _ in range(20):
        await asyncio.sleep(0)
    assert begun == 2
