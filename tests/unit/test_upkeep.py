"""When ENIs and environments are looked at, with a keeper that only counts."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from hyperplane.errors import DeviceError
from hyperplane.linux import upkeep
from hyperplane.linux.namespaces import Namespace, NamespaceThreads
from hyperplane.linux.repair import Difference, Report
from hyperplane.linux.upkeep import FIGHT, Upkeep

NOWHERE = Namespace("nowhere", -1, (0, 0), "/nonexistent/nowhere")
CHANGED = Report((Difference("MTU", "1400", "1500"),))


class Keeper:
    """reports: what look() comes to; wrong: environments of which sweep() says so."""

    def __init__(self) -> None:
        self.looks: Counter[Any] = Counter()
        self.sweeps: Counter[Any] = Counter()
        self.reports: dict[Any, Report | Exception] = {}
        self.wrong: set[Any] = set()
        self.told: list[tuple[Any, tuple[str, ...]]] = []
        self.disputes: list[tuple[Any, str]] = []
        self.thorough: list[bool] = []

    async def look(self, token: Any, *, thorough: bool) -> Report:
        self.looks[token] += 1
        self.thorough.append(thorough)
        report = self.reports.get(token, Report())
        if isinstance(report, Exception):
            raise report
        return report

    async def sweep(self, tokens: list[Any]) -> list[Any]:
        self.sweeps.update(tokens)
        return [one for one in tokens if one in self.wrong]

    def troubled(self, token: Any, troubles: tuple[str, ...]) -> None:
        self.told.append((token, troubles))

    def disputed(self, token: Any, what: str, pause: float) -> None:
        self.disputes.append((token, what))


@asynccontextmanager
async def keeping(keeper: Keeper) -> AsyncIterator[Upkeep]:
    threads = NamespaceThreads(1)
    made = Upkeep(asyncio.get_running_loop(), threads, keeper)
    try:
        yield made
    finally:
        await made.close()
        threads.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10.0):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.001)


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DEBOUNCE", "INTERVAL", "SWEEP"):
        monkeypatch.setattr(upkeep, name, 0.001)


async def test_an_eni_is_looked_at_again_and_again_until_it_is_removed() -> None:
    keeper = Keeper()
    async with keeping(keeper) as made:
        made.add_eni("a", NOWHERE)
        made.add_eni("b", NOWHERE)
        await until(lambda: keeper.looks["a"] >= 3 and keeper.looks["b"] >= 3)
        made.remove("a")
        made.remove("a")
        count = keeper.looks["a"]
        await until(lambda: keeper.looks["b"] >= 10)
        assert keeper.looks["a"] <= count + 1  # one may have been under way
    assert all(keeper.thorough)  # nothing tells of changes in a namespace that is nowhere


async def test_environments_are_swept_in_turn_and_only_wrong_ones_are_looked_at() -> None:
    keeper = Keeper()
    keeper.wrong = {7}
    async with keeping(keeper) as made:
        for number in range(20):
            made.add_environment(number)
        await until(lambda: min(keeper.sweeps[number] for number in range(20)) >= 2)
    assert set(keeper.looks) == {7}
    assert max(keeper.sweeps.values()) - min(keeper.sweeps[number] for number in range(20)) <= 1


async def test_troubles_are_told_when_they_change() -> None:
    keeper = Keeper()
    keeper.reports["a"] = Report(troubles=("up0 is down",))
    async with keeping(keeper) as made:
        made.add_eni("a", NOWHERE)
        await until(lambda: keeper.looks["a"] >= 5)
        assert made.troubles == ["up0 is down"]
        keeper.reports["a"] = DeviceError("no")
        await until(lambda: made.troubles == ["no"])
        del keeper.reports["a"]
        await until(lambda: made.troubles == [])
    assert keeper.told == [("a", ("up0 is down",)), ("a", ("no",)), ("a", ())]


async def test_troubles_of_environments_are_told_and_do_not_make_the_whole_look_ill() -> None:
    keeper = Keeper()
    keeper.wrong = {"e"}
    keeper.reports["e"] = DeviceError("no")
    async with keeping(keeper) as made:
        made.add_environment("e")
        await until(lambda: keeper.told == [("e", ("no",))])
        assert made.troubles == []
        keeper.wrong = set()
        await until(lambda: keeper.told[1:] == [("e", ())])


async def test_what_is_broken_again_and_again_is_left_alone() -> None:
    keeper = Keeper()
    keeper.reports["a"] = CHANGED
    async with keeping(keeper) as made:
        made.add_eni("a", NOWHERE)
        made.add_eni("b", NOWHERE)
        await until(lambda: keeper.disputes == [("a", "MTU")])
        count = keeper.looks["b"]
        await until(lambda: keeper.looks["b"] >= count + 20)  # others are not left alone
        assert keeper.looks["a"] == FIGHT
        assert made.repairs == FIGHT
        assert made.troubles == ["a: somebody else changes MTU again and again; it is put right every 1 s"]


async def test_what_is_broken_now_and_then_is_no_fight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "AGAIN", -1.0)  # as if a second had passed each time
    keeper = Keeper()
    keeper.reports["a"] = CHANGED
    async with keeping(keeper) as made:
        made.add_eni("a", NOWHERE)
        await until(lambda: keeper.looks["a"] >= 4 * FIGHT)
        assert made.troubles == []
    assert keeper.disputes == []


async def test_one_more_look_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "INTERVAL", 3600.0)
    keeper = Keeper()
    keeper.reports["a"] = Report(again=0.0)
    async with keeping(keeper) as made:
        made.add_eni("a", NOWHERE)
        await until(lambda: keeper.looks["a"] >= 3)
        del keeper.reports["a"]
        count = keeper.looks["a"]
        made.add_eni("b", NOWHERE)
        await until(lambda: keeper.looks["b"] >= 1)
        assert keeper.looks["a"] <= count + 2


async def test_a_flood_of_notifications_of_one_starves_nobody() -> None:
    """They are taken together: far fewer looks than notifications, and the other ENI and environments have theirs."""
    keeper = Keeper()
    async with keeping(keeper) as made:
        made.add_eni("a", Namespace("a", -1, (0, 1), "/nonexistent/a"))
        made.add_eni("b", Namespace("b", -1, (0, 2), "/nonexistent/b"))
        made.add_environment("e")
        await until(lambda: keeper.looks["b"] >= 1)
        b, swept, told = keeper.looks["b"], keeper.sweeps["e"], 0
        while keeper.looks["b"] < b + 5 or keeper.sweeps["e"] < swept + 5:
            for _ in range(1000):
                made._changed((0, 1))
            told += 1000
            assert told < 10_000_000
            await asyncio.sleep(0)
        assert keeper.looks["a"] < told / 100


async def test_a_notification_wakes_those_of_its_namespace_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "INTERVAL", 3600.0)
    keeper = Keeper()
    async with keeping(keeper) as made:
        for number, token in enumerate("abc"):
            await made.add_eni(token, Namespace(token, -1, (0, number // 2), f"/nonexistent/{token}"))
        await until(lambda: not any(kept.dirty for kept in made._enis.values()))  # the looks at the start are over
        before = keeper.looks.copy()
        made._changed((0, 0))
        await until(lambda: keeper.looks["a"] > before["a"] and keeper.looks["b"] > before["b"])
        assert keeper.looks["c"] == before["c"]


async def test_a_fight_that_goes_on_gets_longer_pauses_and_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pause is cut short here: it counts as broken again just after it."""
    keeper = Keeper()
    keeper.reports["a"] = CHANGED
    async with keeping(keeper) as made:
        made.add_eni("a", NOWHERE)
        pauses = []
        await until(lambda: keeper.disputes)
        kept = made._enis["a"]
        for _ in range(7):
            pauses.append(kept.items["MTU"].pause)
            count, kept.not_before = keeper.looks["a"], 0.0
            made._wake.set()
            await until(lambda count=count: keeper.looks["a"] > count)
            await asyncio.sleep(0)
        assert pauses == sorted(pauses)
        assert pauses[:5] == [1.0, 2.0, 4.0, 8.0, 16.0]
        assert kept.items["MTU"].pause == upkeep.LONGEST
        assert keeper.disputes == [("a", "MTU")]
        del keeper.reports["a"]
        monkeypatch.setattr(upkeep, "AGAIN", -2 * upkeep.LONGEST)  # as if it had stayed right for so long
        kept.not_before = 0.0
        await until(lambda: made.troubles == [] and not kept.items)
