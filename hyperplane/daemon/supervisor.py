"""Keeps an engine process running: adopts the one that listens or starts one, and when it dies gives a successor its
memory, its descriptors and its links. The daemon may come and go meanwhile: its engine goes on.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from hyperplane.dataplane import Reader
from hyperplane.engine import SOCKET, EngineOptions, engine_config
from hyperplane.errors import EngineError, HyperplaneError
from hyperplane.ipc.conversation import Conversation
from hyperplane.ipc.messages import Shutdown
from hyperplane.ipc.mirror import Link, NoMemory
from hyperplane.ipc.remote import RemoteEngine
from hyperplane.ipc.transport import ConnectionLost, Unresponsive
from hyperplane.linux.reaper import Reaper
from hyperplane.resources import Problem

T = TypeVar("T")

LOG: Final = "engine.log"
LOG_BYTES: Final = 1 << 20  # of engine.log when an engine starts: more is moved to engine.log.1
LISTENS_WITHIN: Final = 30.0  # seconds after its start, on a machine that is busy or emulated; usually a tenth of one
LOOK_AGAIN: Final = 0.002  # seconds
PATIENCE: Final = 5.0  # seconds that a call waits for a successor
DELAYS: Final = (0.0, 0.1, 0.3, 1.0, 3.0, 10.0)  # seconds before each try to start one; the last for ever
INHERITING: Final = 3  # tries, or crashes each SOON after the one before, after which its memory is given up
SOON: Final = 10.0  # seconds
ENDS_WITHIN: Final = 30  # seconds; with the last descriptors of thousands of devices it takes its time
TIME: Final = re.compile(r"^\d{4}-\d\d-\d\dT\S+ ")  # before each line of the log


class Supervisor:
    """`start()` it, then use remote and reader; `stop()` leaves the engine running. All in one event loop.

    run_dir: of the instance. options: of `Engine`, for one that is started; one that is adopted keeps its own. user:
    whom it becomes, "" for nobody. engine_patience: see EngineOptions. on_restart(lost): a successor works, all but the
    links in lost (id, why) go on; the engine has none of those any more, their descriptors are closed.
    on_error(error): something went wrong that is tried again.
    """

    def __init__(
        self,
        *,
        run_dir: Path,
        instance: str = "default",
        options: Mapping[str, bool | int | float | str] = {},
        user: str = "",
        engine_patience: float = 0.0,
        on_restart: Callable[[list[tuple[str, Problem]]], object] = lambda lost: None,
        on_error: Callable[[HyperplaneError], object] = lambda error: None,
    ) -> None:
        self.remote = RemoteEngine(run_dir / SOCKET)
        self.remote.patience = PATIENCE
        self.remote.mirror.on_memory = self._map
        self.remote.mirror.on_link = self._note
        self.remote.on_lost = self._lost
        self.restarts = 0
        self._options = EngineOptions(
            run_dir=run_dir, instance=instance, options=dict(options), user=user, patience=engine_patience
        )
        self._on_restart = on_restart
        self._on_error = on_error
        self._reader: Reader | None = None
        self._child: subprocess.Popen[bytes] | None = None
        # Its own thread: those of the daemon's jobs may all wait for the engine.
        self._thread = ThreadPoolExecutor(1, "supervisor")
        self._reaper = Reaper(1)
        self._watched = -1
        self._work: asyncio.Task[None] | None = None
        self._born = 0.0
        self._crashes = 0  # one soon after the other

    @property
    def reader(self) -> Reader:
        """What the engine counts, as it is now. A new one after all flows were lost. Raises EngineError before start().

        The engine may be another one by now: ask for the reader each time.
        """
        if self._reader is None:
            raise EngineError("no engine has been started or adopted")
        return self._reader

    @property
    def alive(self) -> bool:
        """Whether the engine's process is."""
        return self._watched >= 0

    async def start(self) -> bool:
        """Returns whether an engine was adopted. Raises ProtocolMismatch, EngineError with what the engine said."""
        self._loop = asyncio.get_running_loop()
        adopted = await self._run(self._adopt_or_start)
        self._watch()
        return adopted

    async def stop(self) -> None:
        """Lets go of the engine, which goes on. May be called twice, and after a start() that failed."""
        if self._work:
            self._work.cancel()
            await asyncio.wait([self._work])
        self._unwatch()
        with suppress(RuntimeError):  # the thread has been ended before
            await asyncio.wrap_future(self._thread.submit(self._let_go))
        self._thread.shutdown()
        self._reaper.stop()

    async def shutdown(self) -> None:
        """Ends the engine too, with all its flows."""
        self._unwatch()
        await self._run(self._end)
        await self.stop()

    # In the event loop

    def _run(self, work: Callable[..., T], *arguments: object) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self._thread, work, *arguments)

    def _watch(self) -> None:
        self._born = self._loop.time()
        self._watched = self.remote.pidfd
        self._loop.add_reader(self._watched, self._died)

    def _unwatch(self) -> None:
        if self._watched >= 0:
            self._loop.remove_reader(self._watched)
            self._watched = -1

    def _died(self) -> None:
        self._unwatch()
        self._begin(self._replace())

    def _connection_lost(self) -> None:
        if self.alive and (self._work is None or self._work.done()):
            self._begin(self._reconnect())

    def _begin(self, work: Coroutine[None, None, None]) -> None:
        if self._work:
            self._work.cancel()
        self._work = self._loop.create_task(work)

    async def _replace(self) -> None:
        lived = self._loop.time() - self._born
        # Who is killed has not crashed: what is in its memory will not bring down its successor.
        crashed = lived < SOON and not await self._run(self._was_killed)
        self._crashes = self._crashes + 1 if crashed else 0
        for tries in itertools.count(max(0, self._crashes - 1)):
            await asyncio.sleep(DELAYS[min(tries, len(DELAYS) - 1)])
            try:
                lost = await self._run(self._succeed, tries < INHERITING)
                break
            except HyperplaneError as error:
                self._on_error(error)
            except OSError as error:
                self._on_error(EngineError(f"no engine: {error}"))
        self.restarts += 1
        self._watch()
        self._on_restart([(link.spec.id, problem) for link, problem in lost])

    async def _reconnect(self) -> None:
        """After the connection broke though the engine lives. When it dies meanwhile, _replace() takes its place."""
        for tries in itertools.count():
            await asyncio.sleep(DELAYS[min(tries, len(DELAYS) - 1)])
            try:
                await self._run(self.remote.adopt)
                return
            except HyperplaneError as error:
                # A process that dies closes its socket a moment before it is dead.
                if tries and self.alive:
                    self._on_error(error)

    # In its thread

    def _adopt_or_start(self) -> bool:
        try:
            self._adopt()
            return True
        except NoMemory:
            # The daemon that started it died, and with it the last descriptors of the memory that it waits for.
            self._shut_down()
        except Unresponsive as error:
            remedy = "see whether it hangs; kill -9 ends it with its connections, then start the daemon"
            raise EngineError(error.message, resource=error.resource, remedy=remedy) from None
        except ConnectionLost:
            pass  # nobody listens
        self._start(self._options, self._adopt)
        return False

    def _adopt(self) -> None:
        if not self.remote.adopt():
            self.remote.start()

    def _was_killed(self) -> bool:
        return self._child is not None and self._child.wait() == -signal.SIGKILL

    def _succeed(self, inherit: bool) -> list[tuple[Link, Problem]]:
        if self._child:
            self._child.wait()  # it is dead: that was seen
            self._child = None
        options = msgspec.structs.replace(self._options, successor=inherit)
        if not inherit:
            options = msgspec.structs.replace(options, options=self.remote.config)
        lost = self._start(options, lambda: self.remote.succeed(self._pid(), inherit=inherit))
        for link, _ in lost:
            self._reaper.close(link.fd)
        return lost

    def _start(self, options: EngineOptions, connect: Callable[[], T]) -> T:
        """Starts an engine process and, as soon as it listens, connects to it. When that fails it is ended again."""
        log = options.run_dir / LOG
        said = _rotate(log)
        self._child = child = _spawn(options, log)
        end = time.monotonic() + LISTENS_WITHIN
        try:
            while True:
                try:
                    return connect()
                except ConnectionLost as error:
                    if child.poll() is not None:
                        if told := _last_line(log, said):
                            raise EngineError(f"no engine: {told}") from None
                        raise EngineError(
                            f"no engine: it ended with status {child.returncode}", remedy=f"see {log}"
                        ) from None
                    if time.monotonic() > end:
                        raise EngineError(f"the engine does not answer: {error.message}", remedy=f"see {log}") from None
                    time.sleep(LOOK_AGAIN)
        except BaseException:
            child.kill()
            child.wait()
            self._child = None
            raise

    def _pid(self) -> int:
        return self._child.pid if self._child else 0

    def _shut_down(self) -> None:
        """Asks the engine that listens to end, and waits until it has."""
        with suppress(ConnectionLost), Conversation(self.remote.path) as conversation:
            conversation.do(Shutdown())
            _wait_for_end(conversation.pidfd)

    def _end(self) -> None:
        with suppress(EngineError):  # it is dead
            self.remote.shutdown()
        if self.remote.pidfd >= 0:
            _wait_for_end(self.remote.pidfd)
        if self._child:
            self._child.wait()

    def _let_go(self) -> None:
        self.remote.close()
        if self._reader:
            self._reader.close()
        if self._child and self._child.poll() is None:
            self._child.returncode = 0  # it outlives us on purpose: no ResourceWarning

    # Called by remote, in any thread

    def _map(self) -> None:
        before = self._reader
        self._reader = Reader(engine_config(self.remote.config), self.remote.regions)
        if before:
            before.close()

    def _note(self, number: int, name: str) -> None:
        self.reader.note(number, name)

    def _lost(self) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._connection_lost)


def _spawn(options: EngineOptions, log: Path) -> subprocess.Popen[bytes]:
    """In a session of its own: signals of our terminal do not reach it."""
    command = [sys.executable, "-P", "-m", "hyperplane.engine", msgspec.json.encode(options, enc_hook=str).decode()]
    ours = ("NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC", "LISTEN_FDS", "LISTEN_PID")  # systemd's, for the daemon
    environment = {name: value for name, value in os.environ.items() if name not in ours}
    # The same modules as ours, wherever they came from.
    environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(place) for place in sys.path)
    try:
        with log.open("ab") as stream:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
    except OSError as error:
        what = f"an engine cannot be started: {error.strerror}"
        raise EngineError(what, resource=str(error.filename or sys.executable)) from None


def _rotate(log: Path) -> int:
    """The size of the log, whose length is kept in bounds."""
    with suppress(FileNotFoundError):
        size = log.stat().st_size
        if size <= LOG_BYTES:
            return size
        log.replace(f"{log}.1")
    return 0


def _last_line(log: Path, since: int) -> str:
    """The last of what was written after so many bytes, without its time."""
    with log.open("rb") as stream:
        stream.seek(since)
        lines = stream.read(LOG_BYTES).decode(errors="replace").splitlines()
    last = next((line for line in reversed(lines) if line.strip()), "")
    return TIME.sub("", last)


def _wait_for_end(pidfd: int) -> None:
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    if not poll.poll(ENDS_WITHIN * 1000):
        raise EngineError("the engine does not end", limit=f"{ENDS_WITHIN} s", remedy="see engine.log")
