"""Links that cannot be read: what healthz and the log make of the engine's counters."""

from __future__ import annotations

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from hyperplane.daemon import reading
from hyperplane.daemon.looking import NOTHING
from hyperplane.daemon.reading import Reading
from hyperplane.model import Counters, Status


class Engine:
    """What an engine's counters say. looked: how often every link was looked at."""

    def __init__(self) -> None:
        self.counters = {"env-1": Counters(), "eni-1": Counters()}
        self.looked = 0

    def status(self) -> Status:
        failing = sum(bool(one.read_error) for one in self.counters.values())
        mended = sum(one.mended for one in self.counters.values())
        return replace(NOTHING, failing=failing, mended=mended)

    def links(self) -> dict[str, Counters]:
        self.looked += 1
        return dict(self.counters)


async def told(watch: Reading) -> list[str]:
    with capture_logs() as logs:
        await watch.turn()
    return [f"{one['log_level']} {one['link']}" for one in logs]


async def test_nothing_is_looked_at_while_nothing_is_wrong() -> None:
    engine = Engine()
    watch = Reading(engine.status, engine.links)
    for _ in range(3):
        assert await told(watch) == []
    assert (engine.looked, watch.trouble) == (0, "")


async def test_a_link_that_fails_is_told_once_and_its_end_too() -> None:
    engine = Engine()
    watch = Reading(engine.status, engine.links)
    engine.counters["env-1"] = Counters(read_error="EIO")
    assert await told(watch) == ["error env-1"]
    assert await told(watch) == []
    assert "env-1 (EIO)" in watch.trouble
    engine.counters["env-1"] = Counters()
    assert await told(watch) == ["info env-1"]
    assert watch.trouble == ""
    looked = engine.looked
    await watch.turn()
    assert engine.looked == looked
    engine.counters["env-1"] = Counters(read_error="EIO")  # it flaps: healthz says so, the log does not each time
    assert await told(watch) == []
    assert "env-1 (EIO)" in watch.trouble
    engine.counters["env-1"] = Counters()
    assert await told(watch) == []


async def test_one_that_goes_while_it_fails_is_forgotten() -> None:
    engine = Engine()
    watch = Reading(engine.status, engine.links)
    engine.counters["env-1"] = Counters(read_error="EIO")
    await watch.turn()
    del engine.counters["env-1"]
    assert await told(watch) == []
    assert watch.trouble == ""


async def test_many_are_counted_not_listed() -> None:
    engine = Engine()
    engine.counters = {f"env-{number}": Counters(read_error="EIO") for number in range(9)}
    watch = Reading(engine.status, engine.links)
    assert len(await told(watch)) == 9
    assert "and 6 more" in watch.trouble


async def test_what_was_mended_is_told_with_how_often(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    watch = Reading(engine.status, engine.links)
    engine.counters["env-1"] = Counters(mended=3)
    assert await told(watch) == ["warning env-1"]
    engine.counters["env-1"] = Counters(mended=5)
    assert await told(watch) == [], "within a minute"
    assert watch.trouble == ""
    monkeypatch.setattr(reading, "QUIET", 0.0)
    assert await told(watch) == ["warning env-1"], "afterwards, though nothing has changed since"
    looked = engine.looked
    assert (await told(watch), engine.looked) == ([], looked)


def test_each_cause_has_its_remedy() -> None:
    remedies = {reading._remedy(error) for error in ("EOPNOTSUPP", "ETIMEDOUT", "EFAULT")}
    assert len(remedies) == 3
