"""Signals that end the program. Imported first of all, so it imports next to nothing; loop.py has the rest."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

# What a terminal, a service manager and a closed terminal send.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal ended the program; number is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name


def catch(handle: Callable[[int], None] | None = None) -> None:
    """Gives ending signals to handle, or makes them raise Interrupted in the main thread.

    One plain handler replaces the other: with those of an event loop there would be moments without any.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if handle is None:
            raise Interrupted(number)
        handle(number)

    for number in ENDING:
        signal.signal(number, interrupt)


def ignore() -> None:
    """From here on ending signals do nothing: the program is about to end."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
