"""Links that the engine cannot read from: seen in its counters, told in the log and by healthz."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import structlog

from hyperplane.errors import HyperplaneError
from hyperplane.model import Counters, Status

EVERY: Final = 1.0  # seconds
QUIET: Final = 60.0  # seconds after which the same about the same link is logged again
MOST_NAMED: Final = 3  # in a reason of healthz

log = structlog.get_logger()


@dataclass
class _Told:
    """Of one link, when something was logged last (seconds of the loop's clock)."""

    failing: float = -QUIET
    mended: float = -QUIET
    counted: int = 0  # Counters.mended that the log knows
    open: bool = False  # the log says that it cannot be read


@dataclass
class Reading:
    """look: the engine as a whole, cheap; links: the counters of each link by its id, which takes long with many. Both
    are called in a thread. Belongs to the event loop.
    """

    look: Callable[[], Status]
    links: Callable[[], Mapping[str, Counters]]
    failing: Mapping[str, str] = field(default_factory=dict)  # read_error by link

    def __post_init__(self) -> None:
        self._told: dict[str, _Told] = {}
        self._mended = 0  # Status.mended
        self._owed = False  # the log does not know of all that was mended
        self._task: asyncio.Task[None] | None = None

    @property
    def trouble(self) -> str:
        """For healthz; "" when every link can be read."""
        if not self.failing:
            return ""
        named = [f"{link} ({error})" for link, error in sorted(self.failing.items())]
        more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        return f"packets of {', '.join(named[:MOST_NAMED])}{more} cannot be read; the log says more"

    def start(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _watch(self) -> None:
        while True:
            with suppress(HyperplaneError):  # no engine runs: the next one is looked at
                await self.turn()
            await asyncio.sleep(EVERY)

    async def turn(self) -> None:
        """Looks once; at the links only while something is wrong with one, or was."""
        status = await asyncio.to_thread(self.look)
        if status.failing or self.failing or self._owed or status.mended != self._mended:
            counted = await asyncio.to_thread(self.links)
            self._tell(counted, asyncio.get_running_loop().time())
        self._mended = status.mended

    def _tell(self, counted: Mapping[str, Counters], now: float) -> None:
        failing = {link: counters.read_error for link, counters in counted.items() if counters.read_error}
        for link, error in failing.items():
            told = self._told.setdefault(link, _Told())
            if link not in self.failing and now - told.failing >= QUIET:
                told.failing, told.open = now, True
                log.error(
                    "packets cannot be read from a link; it is tried again",
                    link=link,
                    error=error,
                    remedy=_remedy(error),
                )
        for link, told in self._told.items():
            if told.open and link in counted and link not in failing:
                told.open = False
                log.info("packets are read from a link again", link=link)
        for link, counters in counted.items():
            if not counters.mended:
                continue
            told = self._told.setdefault(link, _Told())
            if counters.mended > told.counted and now - told.mended >= QUIET:
                log.warning(
                    "header or offloads of a device were changed by others, and set again",
                    link=link,
                    times=counters.mended - told.counted,
                )
                told.counted, told.mended = counters.mended, now
        self._told = {link: told for link, told in self._told.items() if link in counted}
        self._owed = any(counted[link].mended > told.counted for link, told in self._told.items())
        self.failing = failing


def _remedy(error: str) -> str:
    if error == "EOPNOTSUPP":
        return "this kernel refuses what the engine asks of it; `hyperplane-nat doctor` says what it needs"
    if error == "ETIMEDOUT":
        return (
            "somebody who holds its descriptor makes it wait (clears O_NONBLOCK); end whoever does, or the environment"
        )
    return "somebody who holds its descriptor has changed its device; end whoever does, or start the environment again"
