"""Looking at many things now and then, without holding up the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from typing import Final, Generic, TypeVar

T = TypeVar("T")

FEW: Final = 64  # that are looked at in one turn of the loop
SHARE: Final = 50  # a round takes a fiftieth of the loop's time at most


class Rounds(Generic[T]):
    """Looks at every one of things() once in a round; pause: seconds from ask() until the round begins, at least.

    Belongs to the event loop's thread. look() may add and remove things.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        things: Callable[[], Iterable[T]],
        look: Callable[[T], None],
        pause: float,
    ) -> None:
        self._loop = loop
        self._things = things
        self._look = look
        self._pause = pause
        self._next: asyncio.Handle | None = None
        self._left: list[T] = []
        self._running = False
        self._asked = False
        self._spent = 0.0  # seconds, by the latest round

    def ask(self) -> None:
        """A round is to begin after this; one does for all who ask until it begins."""
        if self._running:
            self._asked = True
        elif self._next is None:
            self._next = self._loop.call_later(max(self._pause, SHARE * self._spent), self._begin)

    def close(self) -> None:
        if self._next:
            self._next.cancel()
        self._next, self._running, self._asked = None, False, False

    def _begin(self) -> None:
        self._spent, self._running = 0.0, True
        self._left = [*self._things()]
        self._turn()

    def _turn(self) -> None:
        begun = time.perf_counter()
        few, self._left = self._left[-FEW:], self._left[:-FEW]
        for one in few:
            self._look(one)
        self._spent += time.perf_counter() - begun
        if not self._running:  # closed meanwhile
            return
        self._running = bool(self._left)
        self._next = self._loop.call_soon(self._turn) if self._left else None
        if self._asked and not self._running:
            self._asked = False
            self.ask()
