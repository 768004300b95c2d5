"""Fresh namespaces: made when they are asked for, or kept ready with their TUN inside.

What is kept ready is set up for one shape (device, address, MTU, routes): taking it costs no system call, and only the
engine has to be told. Shapes are those of functions; the latest few are served. One namespace is made at a time, in the
same threads as everything else and only while nothing else waits for them, so that starts do not wait for supplies.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

import structlog

from hyperplane.errors import HyperplaneError
from hyperplane.linux.fresh import delete_namespace, fresh_namespace, names_like
from hyperplane.linux.jobs import HalfWay
from hyperplane.linux.namespaces import NamespaceThreads
from hyperplane.linux.reaper import Reaper
from hyperplane.linux.tunnel import Shape, TunnelDevice, build_tunnel

SHAPES: Final = 8
MOST: Final = 1000  # of one shape
PAUSE: Final = 0.005  # seconds between two supplies
RETRY: Final = 5.0  # seconds after one that failed
PREFIX: Final = "hpenv"

log = structlog.get_logger()


class FreshNamespaces:
    """Names them `hpenv-MARK-NUMBER`; make(), delete() and leftovers() are for threads."""

    def __init__(self, mark: str, threads: NamespaceThreads, reaper: Reaper) -> None:
        self._mark = mark
        self._threads = threads
        self._reaper = reaper
        self._made: set[str] = set()  # by this process, and not deleted

    def make(self, shape: Shape) -> TunnelDevice:
        """Raises DeviceError, PermissionMissing; HalfWay as linux.tunnel.make_tunnel(), without a namespace left."""
        begun = time.perf_counter()
        name = f"{PREFIX}-{self._mark}-{secrets.token_hex(4)}"
        self._made.add(name)
        try:
            with fresh_namespace(name, self._threads) as namespace:
                entered = time.perf_counter() - begun
                return build_tunnel(namespace, shape, self._reaper, begun=begun, entered=entered)
        except BaseException:
            self._made.discard(name)
            raise

    def delete(self, name: str) -> None:
        """Nothing for a name that is not ours or is gone. Raises DeviceError, PermissionMissing."""
        if self._pattern.fullmatch(name):
            delete_namespace(name)
            self._made.discard(name)

    def leftovers(self, known: set[str]) -> list[str]:
        """Those with this instance's mark that are not known, and that a predecessor made."""
        return [name for name in names_like(self._pattern) if name not in known and name not in self._made]

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"{PREFIX}-{self._mark}-[0-9a-f]{{8}}")


class Pool:
    """size: how many of each shape are kept; 0 keeps none. busy() is true while starts wait for threads."""

    def __init__(
        self, size: int, makes: FreshNamespaces, threads: NamespaceThreads, reaper: Reaper, busy: Callable[[], bool]
    ) -> None:
        self._size = size
        self._makes = makes
        self._threads = threads
        self._reaper = reaper
        self._busy = busy
        self._ready: OrderedDict[Shape, deque[TunnelDevice]] = OrderedDict()
        self._changed = asyncio.Event()
        self._supplies: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._size:
            self._supplies = asyncio.get_running_loop().create_task(self._supply())

    def __len__(self) -> int:
        return sum(map(len, self._ready.values()))

    def names(self) -> set[str]:
        return {one.namespace.name for ready in self._ready.values() for one in ready if one.namespace}

    def serve(self, shape: Shape) -> None:
        """Keeps this shape ready from now on."""
        if not self._size:
            return
        if shape in self._ready:
            self._ready.move_to_end(shape)
            return
        self._ready[shape] = deque()
        if len(self._ready) > SHAPES:
            _, old = self._ready.popitem(last=False)
            for device in old:
                self._discard(device)
        self._changed.set()

    def take(self, shape: Shape) -> TunnelDevice | None:
        """One that is ready, or None; what it took to make is not this start's time. The longest kept comes first."""
        ready = self._ready.get(shape)
        if not ready:
            self.serve(shape)
            return None
        self._changed.set()
        return replace(ready.popleft(), opened=0.0, configured=0.0, kernel=0.0)

    async def close(self) -> None:
        """Deletes what is kept."""
        if self._supplies:
            self._supplies.cancel()
            with suppress(asyncio.CancelledError):
                await self._supplies
        closing = [self._discard(device) for ready in self._ready.values() for device in ready]
        self._ready.clear()
        await asyncio.gather(*closing, return_exceptions=True)

    async def _supply(self) -> None:
        while True:
            shape = self._wanting()
            if shape is None:
                self._changed.clear()
                await self._changed.wait()
                continue
            await asyncio.sleep(PAUSE)
            if self._busy():
                continue
            future = self._threads.submit(self._makes.make, shape)
            try:
                device = await asyncio.shield(asyncio.wrap_future(future))
            except asyncio.CancelledError:
                future.add_done_callback(self._discard_made)
                raise
            except (HyperplaneError, HalfWay) as error:
                log.warning("no namespace could be prepared", error=str(error))
                await asyncio.sleep(RETRY)
                continue
            if shape in self._ready and device.namespace:
                self._ready[shape].append(device)
            else:
                self._discard(device)

    def _wanting(self) -> Shape | None:
        """The latest shape of which too few are ready."""
        return next((shape for shape in reversed(self._ready) if len(self._ready[shape]) < self._size), None)

    def _discard(self, device: TunnelDevice) -> asyncio.Future[None]:
        assert device.namespace
        self._reaper.close(device.fd)
        return asyncio.wrap_future(self._threads.submit(self._makes.delete, device.namespace.name))

    def _discard_made(self, future: object) -> None:
        """For one that came when nobody waited any more; in the thread that made it."""
        with suppress(Exception):
            device: TunnelDevice = future.result()  # type: ignore[attr-defined]
            assert device.namespace
            self._reaper.close(device.fd)
            self._makes.delete(device.namespace.name)
