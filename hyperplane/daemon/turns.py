"""Work in threads for an event loop: for each resource one after another, in the order in which it was asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

import structlog

from hyperplane.errors import EngineError, HyperplaneError
from hyperplane.linux.jobs import HalfWay
from hyperplane.linux.namespaces import NamespaceThreads

T = TypeVar("T")

RETRY, LONGEST_RETRY = 0.5, 10.0  # seconds until a removal that failed is tried again

log = structlog.get_logger()


class Turns:
    """failed(id, error) is told of work that ended by an error nobody expected."""

    def __init__(self, threads: NamespaceThreads, failed: Callable[[str, HyperplaneError], None]) -> None:
        self._threads = threads
        self._failed = failed
        self._latest: dict[str, asyncio.Task[None]] = {}  # the task of each resource that came last
        self._working = 0
        self._closing = False

    @property
    def working(self) -> bool:
        """Whether anything waits for a thread or is done in one; what only waits for time to pass is not."""
        return self._working > 0

    def __iter__(self) -> Iterator[str]:
        """The resources about which something is being done."""
        return iter(tuple(self._latest))

    def __contains__(self, id_: str) -> bool:
        return id_ in self._latest

    def then(self, id_: str, work: Coroutine[Any, Any, None]) -> None:
        """Does it after what is under way for that resource."""
        if self._closing:
            work.close()
            return
        previous = self._latest.get(id_)
        task = asyncio.get_running_loop().create_task(self._in_turn(id_, previous, work))
        self._latest[id_] = task

    async def run(self, work: Callable[..., T], *arguments: Any, **named: Any) -> T:
        """In a thread; when it fails half way, once what it had made is gone. Raises what work raises."""
        self._working += 1
        try:
            return await asyncio.wrap_future(self._threads.submit(work, *arguments, **named))
        except HalfWay as half:
            await asyncio.wrap_future(half.closing)
            raise half.error from None
        finally:
            self._working -= 1

    async def insist(
        self, what: str, work: Callable[..., T], *arguments: Any, about: type[HyperplaneError] = HyperplaneError
    ) -> T:
        """For what must be done: again and again, until it is. about: after which errors; others are raised."""
        wait = RETRY
        while True:
            try:
                return await self.run(work, *arguments)
            except about as error:
                log.error("it failed, and is tried again", what=what, error=str(error), seconds=wait)
            await asyncio.sleep(wait)
            wait = min(2 * wait, LONGEST_RETRY)

    async def settled(self, *ids: str) -> None:
        """Waits for what is under way at this moment about these resources."""
        tasks = [self._latest[one] for one in ids if one in self._latest]
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Begins nothing more, and gives up what is under way; what threads do comes to its end."""
        self._closing = True
        tasks = tuple(self._latest.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _in_turn(self, id_: str, previous: asyncio.Task[None] | None, work: Coroutine[Any, Any, None]) -> None:
        try:
            if previous:
                await asyncio.wait((previous,))
            await work
        except asyncio.CancelledError:
            work.close()
            raise
        except Exception as error:
            log.exception("unexpected error", resource=id_)
            self._failed(id_, EngineError(f"unexpected {type(error).__name__}: {error}", resource=id_))
        finally:
            if self._latest.get(id_) is asyncio.current_task():
                del self._latest[id_]
