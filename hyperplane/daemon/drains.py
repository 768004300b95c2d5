"""Ends the flows of environments that end: waits while they may end by themselves, then resets what is left."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from hyperplane.daemon.actuator import Actuator
from hyperplane.daemon.points import CommitPoints
from hyperplane.daemon.turns import Turns
from hyperplane.dataplane.reader import Reader
from hyperplane.errors import EngineError, HyperplaneError
from hyperplane.model import FlowState

POLL: Final = 0.02  # seconds between two looks at the number of flows of a tunnel that drains
LOOK_CLOSER: Final = 1.0  # seconds between two looks at the flows themselves
ENDED_WITHIN: Final = 2.0  # seconds in which the sweep ends the flows of a tunnel that drains by resets

log = structlog.get_logger()


class Drains:
    """Belongs to the event loop."""

    def __init__(self, actuator: Actuator, turns: Turns, reader: Callable[[], Reader], point: CommitPoints) -> None:
        self._actuator = actuator
        self._turns = turns
        self._reader = reader
        self._point = point
        self._until: dict[str, float] = {}  # in the loop's time, by environment

    def shorten(self, environment: str, seconds: float) -> None:
        """It may drain for so long, from now on; the earliest end counts."""
        until = asyncio.get_running_loop().time() + seconds
        self._until[environment] = min(self._until.get(environment, until), until)

    def cut(self, environment: str) -> None:
        """Nobody is there any more: it drains no longer."""
        if environment in self._until:
            self._until[environment] = 0.0

    def forget(self, environment: str) -> None:
        self._until.pop(environment, None)

    async def drain(self, environment: str) -> None:
        """Until its flows have ended, or their time is over."""
        loop = asyncio.get_running_loop()
        if self._until.get(environment, 0.0) <= loop.time():
            return
        try:
            await self._turns.run(self._actuator.drain, environment, reset=False)
        except HyperplaneError as error:
            log.warning("environment does not drain", environment=environment, error=str(error))
        number = await self._turns.run(self._actuator.number, environment)
        closer = loop.time()
        while self._until.get(environment, 0.0) > loop.time() and self._flows(number):
            # Connections that both sides have closed are remembered for minutes: they keep nobody waiting.
            if loop.time() >= closer:
                if await asyncio.to_thread(self._all_closed, number or 0):
                    break
                closer = loop.time() + LOOK_CLOSER
            await asyncio.sleep(POLL)

    async def reset(self, environment: str) -> None:
        """Tells both sides of what flows are left that they are over."""
        number = await self._turns.run(self._actuator.number, environment)
        if not self._flows(number):
            return
        try:
            await self._turns.run(self._actuator.drain, environment, reset=True)
        except HyperplaneError as error:
            log.warning("flows could not be reset", environment=environment, error=str(error))
            return
        self._point("flows reset")
        end = asyncio.get_running_loop().time() + ENDED_WITHIN
        while self._flows(number) and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110 (flows have no events)
            await asyncio.sleep(POLL)

    def _all_closed(self, number: int) -> bool:
        try:
            flows = self._reader().scan(tunnel=number)
            return all(flow.state in (FlowState.CLOSING, FlowState.RESET) for flow in flows)
        except EngineError:
            return False

    def _flows(self, number: int | None) -> int:
        try:
            return 0 if number is None else self._reader().link_flows(number)
        except EngineError:
            return 0
