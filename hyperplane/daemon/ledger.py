"""Control and store together: what was decided is kept before any of it is carried out.

Belongs to the event loop. Commits are made in it: those of environments take some 15 us, those of the rest wait for the
disk, and are rare.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

import structlog

from hyperplane.control import Action, Control, Delete, Outcome, Put
from hyperplane.errors import StoreError
from hyperplane.store import Store

Changes = Sequence[Put | Delete]

T = TypeVar("T")

MOST_UNSAVED: Final = 100_000
NOTED_WITHIN: Final = 1.0  # seconds

log = structlog.get_logger()


class Ledger:
    """carry: is told each action, in order, once what led to it is kept. kept: is told the changes before. Both only
    make a note of it."""

    def __init__(
        self,
        control: Control,
        store: Store,
        carry: Callable[[Action], None],
        kept: Callable[[Changes], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.control = control
        self._store = store
        self._carry = carry
        self._kept = kept
        self._clock = clock
        self._unsaved: list[Put | Delete] = []
        self._notes: dict[str, Put | Delete] = {}  # by the id of what they are about
        self._flushing: asyncio.TimerHandle | None = None

    @property
    def now(self) -> float:
        return self._clock()

    @property
    def trouble(self) -> str:
        """Why the latest events are not kept, or ""."""
        return "the database refuses changes; they are kept in memory" if self._unsaved else ""

    def request(self, decide: Callable[[float], T]) -> T:
        """What decide(now) decides, by control, is kept; else it is taken back. Raises what it raises, StoreError."""
        try:
            result = decide(self._clock())
        except BaseException:
            self.control.rollback()
            raise
        outcome = self.control.take()
        try:
            self._commit(outcome.changes)
        except StoreError:
            self.control.untake()
            raise
        self._pass_on(outcome)
        return result

    def event(self, tell: Callable[[float], object]) -> None:
        """What happened is so, whether the store takes it or not: then it is kept with the next change."""
        tell(self._clock())
        outcome = self.control.take()
        try:
            self._commit(outcome.changes)
        except StoreError as error:
            log.error("events could not be stored", error=str(error))
            self._unsaved += outcome.changes[: MOST_UNSAVED - len(self._unsaved)]
            self._supersede(outcome.changes)
        self._pass_on(outcome)

    def note(self, tell: Callable[[float], object]) -> None:
        """What nobody misses after a crash: it is kept within a second, many at once. No actions follow."""
        tell(self._clock())
        self._notes.update((change.id, change) for change in self.control.take().changes)
        if self._flushing is None:
            self._flushing = asyncio.get_running_loop().call_later(NOTED_WITHIN, self.flush)

    def flush(self) -> None:
        """Keeps what note() was told."""
        if self._flushing:
            self._flushing.cancel()
            self._flushing = None
        notes, self._notes = tuple(self._notes.values()), {}
        try:
            self._commit(notes)
        except StoreError as error:
            log.error("events could not be stored", error=str(error))
            self._unsaved += notes[: MOST_UNSAVED - len(self._unsaved)]

    def begin(self, actions: Sequence[Action]) -> None:
        """Carries out what was decided, and kept, earlier."""
        for action in actions:
            self._carry(action)

    def _pass_on(self, outcome: Outcome) -> None:
        self._kept(outcome.changes)
        for action in outcome.actions:
            self._carry(action)

    def _commit(self, changes: tuple[Put | Delete, ...]) -> None:
        every = (*self._unsaved, *changes)
        if every:
            self._store.commit(every)
            self._unsaved.clear()
        self._supersede(changes)

    def _supersede(self, changes: Sequence[Put | Delete]) -> None:
        """Notes about the same are older."""
        if self._notes:
            for change in changes:
                self._notes.pop(change.id, None)
