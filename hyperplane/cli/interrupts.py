"""Signals that end the program: cleaning up after the first of them is not disturbed by the next ones."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import FrameType
from typing import Any, Final, TypeVar

T = TypeVar("T")

# What a terminal, a service manager and a closed terminal send.
ENDING: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal ended the program; number is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number

    @property
    def name(self) -> str:
        return signal.Signals(self.number).name


def catch() -> None:
    """Makes every ending signal raise Interrupted in the main thread, until `run()` takes over."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    for number in ENDING:
        signal.signal(number, interrupt)


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs main on uvloop. The first ending signal cancels it, further ones do nothing.

    Raises Interrupted when main ended by that cancellation.
    """
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_interrupted(main))


async def _until_interrupted(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    loop = asyncio.get_running_loop()
    received: list[int] = []
    task = loop.create_task(main())

    def interrupt(number: int) -> None:
        if not received:
            received.append(number)
            task.cancel()

    for number in ENDING:
        loop.add_signal_handler(number, interrupt, number)
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise Interrupted(received[0]) from None
        raise
    finally:
        for number in ENDING:
            loop.remove_signal_handler(number)
        catch()


async def whole(job: Callable[..., T], *arguments: Any) -> T:
    """Runs job in a thread to its end even when the caller is cancelled meanwhile: what it makes is never half made."""
    task = asyncio.ensure_future(asyncio.to_thread(job, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(Exception):  # the cancellation is what counts
            await task
        raise
