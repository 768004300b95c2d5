"""The engine process: receives commands and descriptors, drives the C workers.

It binds its socket, gives up every privilege, and from then on waits for messages; the workers are threads in C that
never wait for it. The connection that said Hello last is the daemon's, and the only one. When it ends, packets flow on.
`python -m hyperplane.engine JSON` (EngineOptions) is how the supervisor starts it.
"""

from __future__ import annotations

import fcntl
import math
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec.structs import asdict, replace

from hyperplane import __version__
from hyperplane.dataplane import Engine
from hyperplane.dataplane.config import EngineConfig
from hyperplane.errors import AlreadyRunning, EngineError, HyperplaneError, InvalidValue, ProtocolMismatch
from hyperplane.ipc import messages, transport
from hyperplane.ipc.messages import (
    VERSION,
    Answer,
    Apply,
    Config,
    Done,
    Drain,
    Hello,
    Inherit,
    Links,
    Refused,
    Request,
    Shutdown,
    Start,
    Welcome,
)
from hyperplane.ipc.table import LinkTable
from hyperplane.ipc.transport import Channel, ConnectionLost, Garbled
from hyperplane.linux.kernel import check_kernel
from hyperplane.linux.namespaces import raise_descriptor_limit
from hyperplane.linux.privileges import drop_privileges, lift_memory_limit
from hyperplane.linux.reaper import Reaper
from hyperplane.linux.sockets import OWNER_ONLY, bind

SOCKET: Final = "engine.sock"
AT_ONCE: Final = 64  # messages of one connection before the others get their turn
MOST_STRANGERS: Final = 8  # connections that have not said Hello
WITHOUT_MEMORY: Final = 30.0  # seconds of patience of a successor whose daemon has died before it handed any over
SENT_WITHIN: Final = 1.0  # seconds that an answer may wait for its reader


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an engine process is started with.

    run_dir: of the instance; it must exist. options: the keyword options of `dataplane.Engine`. user: whom it becomes
    when root starts it, "" for nobody. successor: it waits for the memory of a dead engine instead of making its own.
    patience: seconds without a daemon after which it ends by itself, 0 for never.
    """

    run_dir: Path
    instance: str = "default"
    options: Config = {}
    user: str = ""
    successor: bool = False
    patience: float = 0.0


def run(options: EngineOptions) -> int:
    """The whole life of an engine process; 0 when it was asked to end. Raises HyperplaneError when it cannot start."""
    config = engine_config(options.options)
    starter = os.geteuid()
    check_kernel()
    raise_descriptor_limit()
    lift_memory_limit()
    with ExitStack() as stack:
        wakeup = stack.enter_context(_signals())
        with _listener(options.run_dir / SOCKET) as listener:
            drop_privileges(options.user or "nobody")
            os.chdir("/")
            reaper = Reaper()
            stack.callback(reaper.stop)
            table = None if options.successor else LinkTable(Engine(**asdict(config)), reaper)
            process = _Process(listener, wakeup, reaper, table, owners={0, starter}, patience=options.patience)
            stack.callback(process.close)
            _say(f"engine {options.instance} {__version__} listens, pid {os.getpid()}")
            reason = process.serve()
        _say(f"engine {options.instance} ends: {reason}")
    return 0


def engine_config(options: Config) -> EngineConfig:
    """Raises InvalidValue for an option that `Engine` does not have; the values are checked by `Engine`."""
    if unknown := sorted(set(options) - set(EngineConfig.__struct_fields__)):
        limit = ", ".join(EngineConfig.__struct_fields__)
        raise InvalidValue(f"unknown engine option {unknown[0]}", resource=unknown[0], limit=f"one of {limit}")
    return EngineConfig(**options)  # type: ignore[arg-type]


class _Conversation:
    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self.greeted = False


class _Process:
    def __init__(
        self,
        listener: socket.socket,
        wakeup: socket.socket,
        reaper: Reaper,
        table: LinkTable | None,
        *,
        owners: set[int],
        patience: float,
    ) -> None:
        self._listener = listener
        self._wakeup = wakeup
        self._reaper = reaper
        self._table = table
        self._owners = owners
        self._patience = patience
        self._alone_since = time.monotonic()
        self._conversations: dict[int, _Conversation] = {}
        self._ending = ""
        # Not select(2): with thousands of tunnels a connection's descriptor is beyond its 1,024.
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._poll.register(wakeup, select.POLLIN)

    def serve(self) -> str:
        """Until it is to end; returns why."""
        while not self._ending:
            ready = self._poll.poll(self._time_left())
            for fd, _ in ready:
                if fd == self._listener.fileno():
                    self._accept()
                elif fd == self._wakeup.fileno():
                    self._ending = signal.Signals(self._wakeup.recv(1)[0]).name
                elif fd in self._conversations:
                    self._converse(self._conversations[fd])
            if not ready and self._time_left() == 0:
                self._ending = "no daemon has come back"
        return self._ending

    def close(self) -> None:
        for conversation in tuple(self._conversations.values()):
            self._end(conversation)
        if self._table is not None:
            self._table.close()

    def _time_left(self) -> int | None:
        """Milliseconds of patience; None while there is a daemon or no limit."""
        patience = WITHOUT_MEMORY if self._table is None else self._patience
        if not patience or any(one.greeted for one in self._conversations.values()):
            return None
        return max(0, math.ceil((self._alone_since + patience - time.monotonic()) * 1000))

    def _accept(self) -> None:
        try:
            accepted = self._listener.accept()[0]
        except OSError as error:  # the other side has gone already, or no descriptor is left
            _say(f"a connection was not accepted: {error.strerror}")
            return
        channel = Channel(accepted, seconds=SENT_WITHIN)
        strangers = [one for one in self._conversations.values() if not one.greeted]
        if channel.peer()[1] not in self._owners or len(strangers) >= MOST_STRANGERS:
            channel.close()
            return
        self._conversations[channel.fileno()] = _Conversation(channel)
        self._poll.register(channel.fileno(), select.POLLIN)

    def _converse(self, conversation: _Conversation) -> None:
        try:
            for _ in range(AT_ONCE):
                try:
                    received = conversation.channel.receive(wait=False)
                except Garbled as error:
                    self._answer(conversation, _refusal(EngineError(str(error))))
                    continue
                if received is None or not self._take(conversation, *received):
                    return
        except ConnectionLost:
            self._end(conversation)

    def _take(self, conversation: _Conversation, data: memoryview, fds: list[int]) -> bool:
        """Handles one message and answers it; False when the conversation is over."""
        given: list[int] = []
        try:
            message = messages.request(data)
            expected = messages.expected_descriptors(message)
            if expected != len(fds):
                raise EngineError(f"{type(message).__name__} came with {len(fds)} descriptors instead of {expected}")
            answer, given = self._handle(conversation, message, fds)
        except messages.UNREADABLE as error:
            answer = _refusal(error if isinstance(error, HyperplaneError) else EngineError(f"no message: {error}"))
        except HyperplaneError as error:
            answer = _refusal(error)
        except Exception as error:
            traceback.print_exc()
            answer = _refusal(
                EngineError(f"the engine met a defect: {error!r}", remedy="see engine.log, and report it")
            )
        for fd in fds:  # those that nobody took
            self._reaper.close(fd)
        self._answer(conversation, answer, given)
        if not conversation.greeted:
            self._end(conversation)
        return conversation.greeted

    def _answer(self, conversation: _Conversation, answer: Answer, fds: list[int] | None = None) -> None:
        conversation.channel.send(messages.encode(answer), fds or [])

    def _handle(self, conversation: _Conversation, message: Request, fds: list[int]) -> tuple[Answer, list[int]]:
        if isinstance(message, Hello):
            return self._welcome(conversation, message)
        if not conversation.greeted:
            raise ProtocolMismatch("the first message was not Hello", remedy="connect with the daemon of this version")
        if isinstance(message, Shutdown):
            self._ending = "the daemon said so"
            return Done(), []
        if isinstance(message, Inherit):
            self._inherit(message, fds)
            return Done(), []
        table = self._links()
        if isinstance(message, Apply):
            return table.apply(message, fds), []
        if isinstance(message, Links):
            return table.page(message.offset)
        if isinstance(message, Drain):
            table.drain(message.id, reset=message.reset)
        elif isinstance(message, Start) and not table.engine.status().running:
            table.engine.start()
        return Done(), []

    def _welcome(self, conversation: _Conversation, hello: Hello) -> tuple[Answer, list[int]]:
        if hello.version != VERSION:
            raise ProtocolMismatch(
                f"engine {os.getpid()} is of version {__version__} and speaks protocol {VERSION}, the daemon is of"
                f" {hello.product or 'another version'} and speaks {hello.version}",
                remedy="run the daemon of that version, or end the engine with its connections:"
                f" kill {os.getpid()}, then start the daemon",
            )
        for other in tuple(self._conversations.values()):
            if other.greeted and other is not conversation:
                self._end(other)
        conversation.greeted = True
        welcome = Welcome(version=VERSION, product=__version__, pid=os.getpid())
        if self._table is None:
            return welcome, []
        engine = self._table.engine
        regions = engine.regions()
        welcome = replace(
            welcome,
            config=asdict(engine.config),
            generation=self._table.generation,
            regions=tuple(regions),
            links=len(self._table),
            started=engine.status().running,
        )
        return welcome, list(regions.values())

    def _inherit(self, message: Inherit, fds: list[int]) -> None:
        if self._table is not None:
            raise EngineError("this engine has memory already", remedy="start a successor to inherit")
        engine = Engine.inherit(engine_config(message.config), dict(zip(message.regions, fds, strict=True)))
        self._table = LinkTable(engine, self._reaper, inherited=True)

    def _links(self) -> LinkTable:
        if self._table is None:
            raise EngineError("this successor has not inherited yet", remedy="send Inherit first")
        return self._table

    def _end(self, conversation: _Conversation) -> None:
        fd = conversation.channel.fileno()
        if self._conversations.pop(fd, None):
            self._poll.unregister(fd)
            conversation.channel.close()
            if conversation.greeted:
                self._alone_since = time.monotonic()


@contextmanager
def _listener(path: Path) -> Iterator[socket.socket]:
    """Listens on path, which only this user may connect to. Raises AlreadyRunning when somebody listens there."""
    transport.check_path(path)
    with _turn(path.parent), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as found:
        with suppress(ConnectionLost):
            transport.connect(path, seconds=1.0).close()
            raise AlreadyRunning(
                f"an engine listens on {path}", remedy="let the daemon adopt it, or give another instance (--instance)"
            )
        try:
            path.unlink(missing_ok=True)
            bind(found, path, OWNER_ONLY)
        except OSError as error:
            remedy = "remove what is there, and run as the user whom the directory belongs to"
            raise EngineError(f"{path} cannot be made: {error.strerror}", resource=str(path), remedy=remedy) from None
        found.listen(MOST_STRANGERS)
        found.setblocking(False)
        listening = found.dup()
    with listening:
        yield listening
        # As another user than who made it this is refused: then the next engine removes it.
        with suppress(OSError):
            path.unlink()


@contextmanager
def _turn(directory: Path) -> Iterator[None]:
    """Two engines that start at the same time look and bind one after the other."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        remedy = f"make it (mkdir -p {directory}), or let the daemon start the engine"
        raise EngineError(f"directory {directory}: {error.strerror}", resource=str(directory), remedy=remedy) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket on which each SIGTERM and SIGINT arrives as one byte, its number."""
    arriving, sending = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sending.setblocking(False)
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    hangup = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    wakeup = signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
    try:
        with arriving, sending:
            yield arriving
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in zip((*numbers, signal.SIGHUP), (*before, hangup), strict=True):
            signal.signal(number, handler)


def _refusal(error: HyperplaneError) -> Refused:
    return Refused(problem=messages.problem(error))


def _say(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {text}", file=sys.stderr, flush=True)


def main() -> None:
    try:
        options = msgspec.json.decode(" ".join(sys.argv[1:]), type=EngineOptions, dec_hook=_from_text)
        sys.exit(run(options))
    except msgspec.MsgspecError as error:
        sys.exit(f"{error}; `hyperplane-nat engine` starts an engine by hand")
    except HyperplaneError as error:
        _say(str(error))
        sys.exit(1)


def _from_text(kind: type, value: str) -> object:
    return kind(value)


if __name__ == "__main__":
    main()
