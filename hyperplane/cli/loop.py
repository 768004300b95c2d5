"""Coroutines on uvloop, ended by signals: cleaning up after the first signal is not disturbed by the next ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import uvloop

from hyperplane.cli import signals

T = TypeVar("T")


def run(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs main. The first ending signal cancels it, further ones do nothing.

    Raises Interrupted when main ended by that cancellation.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_until_interrupted(main))


async def _until_interrupted(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    loop = asyncio.get_running_loop()
    received: list[int] = []
    task = loop.create_task(main())

    def interrupt(number: int) -> None:
        if not received:
            received.append(number)
            loop.call_soon_threadsafe(task.cancel)

    signals.catch(interrupt)
    try:
        return await task
    except asyncio.CancelledError:
        if received:
            raise signals.Interrupted(received[0]) from None
        raise
    finally:
        if received:
            signals.ignore()
        else:
            signals.catch()


async def whole(job: Callable[..., T], *arguments: Any) -> T:
    """Runs job in a thread to its end even when the caller is cancelled meanwhile: what it makes is never half made."""
    task = asyncio.ensure_future(asyncio.to_thread(job, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        with suppress(Exception):  # the cancellation is what counts
            await task
        raise
