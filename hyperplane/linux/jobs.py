"""Jobs in namespace threads for an event loop: what a job made is undone when nobody wants it any more."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Final, Generic, TypeVar

from hyperplane.linux.namespaces import NamespaceThreads

T = TypeVar("T")

SLOW: Final = 0.005  # seconds that work in the event loop may take
TURN: Final = 0.001  # seconds after which it has its turn
PAUSE: Final = 19  # times what one took that was longer: slow ones have a twentieth of the loop's time at most


class HalfWay(Exception):
    """A job failed after it had made a device; closing is done when that is gone."""

    def __init__(self, error: BaseException, closing: Future[None]) -> None:
        super().__init__(error)
        self.error = error
        self.closing = closing


class _Job(Generic[T]):
    """Work whose caller may be cancelled while it is done: then it is undone in the same thread."""

    def __init__(self, work: Callable[[], T], undo: Callable[[T], object]) -> None:
        self._work = work
        self._undo = undo
        self._lock = threading.Lock()
        self._results: list[T] = []
        self._abandoned = False

    def __call__(self) -> T:
        result = self._work()
        with self._lock:
            abandoned = self._abandoned
            self._results.append(result)
        if abandoned:
            self._undo(result)
        return result

    def abandon(self) -> Callable[[], object] | None:
        """What is left to do, in a thread, when the result is there already."""
        with self._lock:
            self._abandoned = True
            return (lambda: self._undo(self._results[0])) if self._results else None


class Jobs:
    """Runs jobs in threads, in the order in which they were given, and knows what is under way."""

    def __init__(self, threads: NamespaceThreads) -> None:
        self._threads = threads
        self._futures: set[Future[Any]] = set()
        self._operations: set[asyncio.Future[None]] = set()
        self._blocking = 0.0  # seconds since the loop had its turn
        self._not_before = 0.0  # by time.perf_counter(), may at_once() block the loop

    async def run(self, work: Callable[[], T], *, undo: Callable[[T], object]) -> T:
        """The result of work, which is undone when the caller is cancelled. When it fails, nothing of it is left."""
        job = _Job(work, undo)
        try:
            return await self.do(job)
        except HalfWay as half:
            await asyncio.wrap_future(half.closing)
            raise half.error from None
        except asyncio.CancelledError:
            # A job that has not begun was cancelled with its future; one that runs sees that it is abandoned.
            if rest := job.abandon():
                self.do(rest)
            raise

    async def at_once(self, work: Callable[[], T], *, undo: Callable[[T], object]) -> T:
        """As run(), but in the event loop's own thread, within operation(): for work that takes a fraction of a
        millisecond, mostly. It blocks the loop for that long, which saves waking two threads.

        In threads, in their turn, while anything else is under way: it would wait for the same lock of the kernel; and
        for a while after work that was slow: then somebody else holds that lock. The loop has its turn after TURN.
        """
        begun = time.perf_counter()
        if self._futures or len(self._operations) > 1 or begun < self._not_before:
            return await self.run(work, undo=undo)
        try:
            result = work()
        except HalfWay as half:
            await asyncio.wrap_future(half.closing)
            raise half.error from None
        finally:
            self._blocked(begun)
        if self._blocking > TURN:
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                self.do(undo, result)
                raise
        return result

    def _blocked(self, begun: float) -> None:
        """The loop was, since then."""
        over = time.perf_counter()
        if over - begun > SLOW:
            self._not_before = over + PAUSE * (over - begun)
        if not self._blocking:
            asyncio.get_running_loop().call_soon(self._turn)
        self._blocking += over - begun

    def _turn(self) -> None:
        self._blocking = 0.0

    def do(self, work: Callable[..., T], *arguments: Any) -> asyncio.Future[T]:
        future = self._threads.submit(work, *arguments)
        self._futures.add(future)
        future.add_done_callback(self._futures.discard)
        return asyncio.wrap_future(future)

    @contextmanager
    def operation(self) -> Iterator[None]:
        """Around several steps that make something: settled() waits for their end."""
        over = asyncio.get_running_loop().create_future()
        self._operations.add(over)
        try:
            yield
        finally:
            self._operations.discard(over)
            over.set_result(None)

    async def settled(self) -> None:
        """Waits for the operations and jobs of this moment."""
        if self._operations:
            await asyncio.wait(tuple(self._operations))
        await asyncio.gather(*(asyncio.wrap_future(future) for future in tuple(self._futures)), return_exceptions=True)
