"""The loop of the engine process, in a thread here: whatever a connection sends, the others and the engine go on."""

from __future__ import annotations

import array
import os
import random
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hyperplane import engine as engine_process
from hyperplane.dataplane import Engine
from hyperplane.engine import EngineOptions
from hyperplane.errors import (
    AlreadyRunning,
    EngineError,
    HyperplaneError,
    InvalidValue,
    NotATunnel,
    PermissionMissing,
    ProtocolMismatch,
)
from hyperplane.ipc import conversation, messages, table
from hyperplane.ipc.conversation import Conversation
from hyperplane.ipc.messages import (
    MOST_BYTES,
    VERSION,
    Applied,
    Apply,
    Done,
    Drain,
    Hello,
    Inherit,
    LinkResult,
    Links,
    LinkSpec,
    LinksReply,
    Refused,
    Shutdown,
    Start,
    Welcome,
)
from hyperplane.ipc.mirror import NoMemory
from hyperplane.ipc.remote import RemoteEngine
from hyperplane.ipc.table import LinkTable
from hyperplane.ipc.transport import Channel, ConnectionLost, Unresponsive
from hyperplane.linux.privileges import drop_privileges
from hyperplane.linux.reaper import Reaper

SMALL: dict[str, Any] = {"max_flows": 256, "max_links": 16, "max_addresses": 8, "huge_pages": False, "seed": 1}
REGIONS = 16


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def eventually(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.002)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Of a name that is short enough for a socket."""
    made = tempfile.mkdtemp(prefix="hpt")
    yield Path(made)
    shutil.rmtree(made)


@contextmanager
def serving(run_dir: Path, *, successor: bool = False, **options: Any) -> Iterator[Path]:
    """The path of the socket on which the loop answers; afterwards it ends, and no descriptor is left."""
    before = descriptors()
    reaper = Reaper(1)
    wakeup, waker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = run_dir / "engine.sock"
    with wakeup, waker, engine_process._listener(path) as listener:
        made = None if successor else LinkTable(Engine(**SMALL), reaper)
        chosen = {"owners": {0, os.geteuid()}, "patience": 0.0, **options}
        process = engine_process._Process(listener, wakeup, reaper, made, **chosen)
        reasons: list[str] = []
        thread = threading.Thread(target=lambda: reasons.append(process.serve()))
        thread.start()
        try:
            yield path
        finally:
            waker.send(b"\x0f")
            thread.join(10)
            process.close()
            reaper.stop()
    assert len(reasons) == 1, "the loop did not end by itself"
    assert not path.exists()
    eventually(lambda: descriptors() == before, f"not {before} descriptors at the end but {descriptors()}")


@pytest.fixture
def path(run_dir: Path) -> Iterator[Path]:
    with serving(run_dir) as made:
        yield made


class Raw:
    """A connection that may send anything."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.connect(os.fspath(path))
        self.channel = Channel(self.socket, seconds=5.0)

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def send(self, data: bytes, fds: list[int] | None = None) -> None:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self.socket.sendmsg([data], ancillary)

    def answer(self) -> messages.Answer:
        received = self.channel.receive()
        assert received
        data, fds = received
        for fd in fds:
            os.close(fd)
        return messages.answer(data)

    def ask(self, message: Any, fds: list[int] | None = None) -> messages.Answer:
        self.send(message if isinstance(message, bytes) else messages.encode(message), fds)
        return self.answer()

    def hello(self) -> Raw:
        assert isinstance(self.ask(Hello(version=VERSION)), Welcome)
        return self

    def ended(self) -> bool:
        with pytest.raises(ConnectionLost):
            self.channel.receive()
        return True


def refused(answer: messages.Answer, error: str, text: str) -> bool:
    assert isinstance(answer, Refused), answer
    assert (answer.problem.error, text in answer.problem.message) == (error, True), answer
    return True


def link(which: int, /, **values: Any) -> LinkSpec:
    return LinkSpec(**{"kind": "eni", "id": f"eni-{which}", "name": f"eni-{which}", "has_fd": True, **values})


# Life


def test_a_conversation(path: Path) -> None:
    with Raw(path) as one:
        welcome = one.ask(Hello(version=VERSION, product="0"))
        assert isinstance(welcome, Welcome)
        assert (welcome.pid, welcome.links, welcome.started, welcome.generation) == (os.getpid(), 0, False, 0)
        assert welcome.config["max_flows"] == 256
        assert len(welcome.regions) == REGIONS
        assert isinstance(one.ask(Start()), Done)
        assert isinstance(one.ask(Start()), Done)
        again = one.ask(Hello(version=VERSION))
        assert isinstance(again, Welcome)
        assert again.started
        assert one.ask(Links()) == LinksReply()
        assert one.ask(Apply(request=7, generation=3, complete=True)) == Applied(request=7, generation=3)
        again = one.ask(Hello(version=VERSION))
        assert isinstance(again, Welcome)
        assert again.generation == 3
        assert isinstance(one.ask(Shutdown()), Done)


def test_many_messages_at_once_are_answered_in_order(path: Path) -> None:
    with Raw(path) as one:
        one.hello()

        def send() -> None:
            for number in range(500):
                one.send(messages.encode(Apply(request=number, generation=1)))

        sender = threading.Thread(target=send)
        sender.start()
        assert [one.answer() for _ in range(500)] == [Applied(request=number, generation=1) for number in range(500)]
        sender.join()


def test_a_newer_daemon_replaces_the_older(path: Path) -> None:
    with Raw(path) as older, Raw(path) as newer:
        older.hello()
        assert isinstance(older.ask(Start()), Done)  # a connection alone replaces nobody
        newer.hello()
        assert older.ended()
        assert isinstance(newer.ask(Start()), Done)


def test_strangers_are_few(path: Path) -> None:
    with Raw(path) as one:
        one.hello()
        strangers = [Raw(path) for _ in range(engine_process.MOST_STRANGERS)]
        with Raw(path) as more:
            assert more.ended()
        assert isinstance(one.ask(Start()), Done)
        for stranger in strangers:
            stranger.socket.close()


def test_users_who_may_not(run_dir: Path) -> None:
    with serving(run_dir, owners={os.geteuid() + 1}) as path, Raw(path) as one:
        assert one.ended()


def test_without_a_daemon_it_ends_when_its_patience_does(run_dir: Path) -> None:
    """Measured from the end of the last connection."""
    before = time.monotonic()
    with serving(run_dir, patience=0.3) as path:
        with Raw(path) as one:
            one.hello()
            time.sleep(0.4)
            assert isinstance(one.ask(Start()), Done)
        eventually(lambda: not _answers(path), "it goes on")
    assert time.monotonic() - before >= 0.7


def test_a_successor_that_nobody_needs_ends(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its daemon died before it had handed the memory over."""
    monkeypatch.setattr(engine_process, "WITHOUT_MEMORY", 0.1)
    with serving(run_dir, successor=True) as path:
        with Raw(path) as one:
            one.hello()
        eventually(lambda: not _answers(path), "it goes on")


def _answers(path: Path) -> bool:
    try:
        with Raw(path) as one:
            one.channel = Channel(one.socket, seconds=0.05)
            one.send(messages.encode(Hello(version=VERSION + 1)))
            one.answer()
    except (ConnectionLost, OSError):
        return False
    return True


# Hostile input


@pytest.mark.parametrize(
    "data", [b"\xc1", b"\x80", b"x" * 1000, b"\x81\xa4type\xa5Nobod", b"\x81\xa4type" + b"\x91" * 50_000]
)
def test_a_stranger_that_sends_no_hello_is_shown_out(path: Path, data: bytes) -> None:
    with Raw(path) as known, Raw(path) as one:
        known.hello()
        assert refused(one.ask(data), "EngineError", "no message")
        assert one.ended()
        assert isinstance(known.ask(Start()), Done)


@pytest.mark.parametrize("message", [Start(), Shutdown(), Links(), Apply(request=1, generation=1)])
def test_hello_comes_first(path: Path, message: Any) -> None:
    with Raw(path) as one:
        assert refused(one.ask(message), "ProtocolMismatch", "Hello")
        assert one.ended()


def test_another_version_is_told_what_to_do(path: Path) -> None:
    with Raw(path) as known, Raw(path) as one:
        known.hello()
        answer = one.ask(Hello(version=VERSION + 1, product="9.9"))
        assert refused(answer, "ProtocolMismatch", "9.9")
        assert isinstance(answer, Refused)
        assert f"kill {os.getpid()}" in answer.problem.remedy
        assert one.ended()
        assert isinstance(known.ask(Start()), Done)


def test_garbage_is_refused_and_the_conversation_goes_on(path: Path) -> None:
    rng = random.Random(2)
    with Raw(path) as one:
        one.hello()
        for data in [rng.randbytes(rng.randrange(1, 300)) for _ in range(500)]:
            assert isinstance(one.ask(data), Refused)
        one.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MOST_BYTES)
        assert refused(one.ask(b"x" * (MOST_BYTES + 1)), "EngineError", "bytes")
        assert isinstance(one.ask(Start()), Done)
        one.send(b"")  # as the end of the stream
        assert one.ended()
    with Raw(path) as one:
        one.hello()


def test_changed_messages_do_no_harm(path: Path) -> None:
    """Each byte of real messages changed: refused or answered, and the loop goes on."""
    rng = random.Random(3)
    given = [
        Apply(request=1, generation=1, links=(link(1),), remove=("a",), complete=True),
        Inherit(config={"max_flows": 256}, regions=("hp-flows",)),
        Drain(id="x"),
        Links(offset=3),
    ]
    with Raw(path) as one, open("/dev/null", "rb") as null:
        one.hello()
        for message in given:
            data = messages.encode(message)
            for place in range(len(data)):
                changed = bytearray(data)
                changed[place] = rng.randrange(256)
                one.ask(bytes(changed), [null.fileno()])
        assert isinstance(one.ask(Start()), Done)


def test_descriptors_that_nobody_asked_for_are_closed(path: Path) -> None:
    with Raw(path) as one, open("/dev/null", "rb") as null:
        one.hello()
        before = descriptors()
        fds = [null.fileno()] * 20
        for message in (Start(), Links(), Hello(version=VERSION), Apply(request=1, generation=1, links=(link(1),))):
            assert refused(one.ask(message, fds), "EngineError", "20 descriptors")
        assert isinstance(one.ask(b"\xc1", fds), Refused)
        links = tuple(link(number) for number in range(3))
        assert refused(one.ask(Apply(request=1, generation=1, links=links), fds[:2]), "EngineError", "2 descriptors")
        assert refused(one.ask(Apply(request=1, generation=1, links=links)), "EngineError", "0 descriptors")
        eventually(lambda: descriptors() == before, "descriptors leak")
    with Raw(path) as stranger, open("/dev/null", "rb") as null:
        assert isinstance(stranger.ask(Start(), [null.fileno()] * 3), Refused)


def test_a_daemon_that_does_not_read_is_let_go(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "SENT_WITHIN", 0.05)
    with Raw(path) as one:
        one.hello()
        one.socket.settimeout(10)
        with pytest.raises(OSError):  # noqa: PT011, PT012 - EPIPE or ECONNRESET, after as many as the kernel holds
            for _ in range(100_000):
                one.send(messages.encode(Hello(version=VERSION)))
    with Raw(path) as one:
        one.hello()


# Items


def test_errors_name_their_item_and_do_not_stop_the_others(path: Path) -> None:
    with Raw(path) as one, open("/dev/null", "rb") as null:
        one.hello()
        links = (
            link(1, addresses=("198.19.0.5",)),
            link(2),
            link(3, addresses=("198.19.0.5",), rules=("tcp/none",)),
            link(4, has_fd=False),
            link(5, kind="tunnel", eni="eni-9", address="198.18.0.2"),
            link(6, addresses=("198.19.0.5",), number=1),
        )
        answer = one.ask(Apply(request=1, generation=1, links=links, remove=("gone",)), [null.fileno()] * 5)
        assert isinstance(answer, Applied)
        told = [(one.id, one.error.error if one.error else "") for one in answer.results]
        assert told == [
            ("gone", ""),
            ("eni-1", "NotATunnel"),
            ("eni-2", "InvalidValue"),
            ("eni-3", "InvalidValue"),
            ("eni-4", "InvalidValue"),
            ("eni-5", "InvalidValue"),
            ("eni-6", "NotATunnel"),
        ]
        assert refused(one.ask(Drain(id="eni-1")), "InvalidValue", "no tunnel eni-1")


def test_hundreds_of_errors_fit_one_answer() -> None:
    problem = messages.problem(InvalidValue("x" * 1000, resource="y" * 1000))
    results = tuple(LinkResult(id="i" * 200, error=problem) for _ in range(250))
    fitting = table._fitting(Applied(request=1, generation=1, results=results))
    assert len(messages.encode(fitting)) <= MOST_BYTES
    assert [(one.id, one.error.error) for one in fitting.results if one.error] == [("i" * 200, "InvalidValue")] * 250


# A successor


def test_a_successor_waits_for_its_memory(run_dir: Path) -> None:
    before = descriptors()
    with Engine(**SMALL) as dead, serving(run_dir, successor=True) as path:
        with pytest.raises(NoMemory):
            RemoteEngine.connect(path)
        config = msgspec.structs.asdict(dead.config)
        regions = dead.regions()
        with Raw(path) as one, open("/dev/null", "rb") as null:
            welcome = one.ask(Hello(version=VERSION))
            assert isinstance(welcome, Welcome)
            assert (welcome.regions, welcome.config) == ((), {})
            links = (link(1, addresses=("198.19.0.5",)),)
            assert refused(
                one.ask(Apply(request=1, generation=1, links=links), [null.fileno()]), "EngineError", "inherited"
            )
            assert refused(one.ask(Start()), "EngineError", "inherited")
            wrong = Inherit(config=config, regions=("hp-flows",))
            assert refused(one.ask(wrong, [null.fileno()]), "EngineError", "")
            unknown = Inherit(config={**config, "colour": 1}, regions=tuple(regions))
            assert refused(one.ask(unknown, list(regions.values())), "InvalidValue", "colour")
            inherit = Inherit(config=config, regions=tuple(regions))
            assert isinstance(one.ask(inherit, list(regions.values())), Done)
            assert refused(one.ask(inherit, list(regions.values())), "EngineError", "memory already")
            again = one.ask(Hello(version=VERSION))
            assert isinstance(again, Welcome)
            assert again.regions == tuple(regions)
    assert descriptors() == before


# The start


def test_only_one_engine_listens(path: Path) -> None:
    with pytest.raises(AlreadyRunning, match="--instance"), engine_process._listener(path):
        pytest.fail("two listen")
    with Raw(path) as one:
        one.hello()


def test_what_is_in_the_sockets_place_is_said(run_dir: Path) -> None:
    path = run_dir / "engine.sock"
    path.mkdir()
    with pytest.raises(EngineError, match="remove what is there"), engine_process._listener(path):
        pass


def test_a_socket_that_was_left_behind_is_replaced(run_dir: Path) -> None:
    path = run_dir / "engine.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as old:
        old.bind(os.fspath(path))
    before = os.umask(0)
    try:
        with engine_process._listener(path):
            assert path.stat().st_mode & 0o777 == 0o600
    finally:
        os.umask(before)
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"run_dir": Path("/nowhere/at/all")}, "mkdir -p /nowhere/at/all"),
        ({"run_dir": Path("/" + "x" * 120)}, "HYPERPLANE_RUN_DIR"),
        ({"options": {"max_flow": 3}}, "max_flows"),
    ],
)
def test_an_engine_that_cannot_start_says_why(run_dir: Path, options: dict[str, Any], text: str) -> None:
    with pytest.raises(HyperplaneError) as caught:
        engine_process.run(EngineOptions(**{"run_dir": run_dir, **options}))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("user", ["root", "nobody-of-that-name", "", "a\0b"])
def test_users_that_an_engine_cannot_be(user: str) -> None:
    if os.geteuid() == 0:
        with pytest.raises(InvalidValue, match="user"):
            drop_privileges(user)


# The daemon's side of a bad engine


@contextmanager
def acting(run_dir: Path, act: Callable[[Channel], None]) -> Iterator[Path]:
    """A false engine that does act() with each connection."""
    path = run_dir / "engine.sock"
    with engine_process._listener(path) as listener:
        listener.setblocking(True)
        stop = threading.Event()

        def serve() -> None:
            while True:
                channel = Channel(listener.accept()[0], seconds=5.0)
                if stop.is_set():
                    channel.close()
                    return
                with channel:
                    act(channel)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield path
        finally:
            stop.set()
            with Raw(path):
                thread.join(10)


def _answering(*answers: Any, fds: int = 0) -> Callable[[Channel], None]:
    def act(channel: Channel) -> None:
        with open("/dev/null", "rb") as null:
            for answer in answers:
                channel.receive()
                channel.send(answer if isinstance(answer, bytes) else messages.encode(answer), [null.fileno()] * fds)

    return act


@pytest.mark.parametrize(
    ("answers", "fds", "error"),
    [
        ((b"\xc1",), 0, ProtocolMismatch),
        ((b"\xc1",), 5, ProtocolMismatch),
        ((Welcome(version=VERSION + 1, product="9", pid=1),), 0, ProtocolMismatch),
        ((Welcome(version=VERSION, product="9", pid=1, regions=("a", "b")),), 5, ProtocolMismatch),
        ((Done(),), 3, ConnectionLost),
        ((Refused(problem=messages.problem(ProtocolMismatch("old", remedy="do"))),), 0, ProtocolMismatch),
        ((Welcome(version=VERSION, product="9", pid=1),), 0, NoMemory),
        ((Welcome(version=VERSION, product="9", pid=1, regions=("a",), links=2), Done()), 1, ConnectionLost),
        ((Welcome(version=VERSION, product="9", pid=1, regions=("a",), links=2), LinksReply()), 1, EngineError),
        ((), 0, ConnectionLost),
    ],
)
def test_an_engine_that_is_none(run_dir: Path, answers: Any, fds: int, error: type[HyperplaneError]) -> None:
    before = descriptors()
    with acting(run_dir, _answering(*answers, fds=fds)) as path:
        with pytest.raises(error) as caught:
            RemoteEngine.connect(path)
        assert "\n" not in str(caught.value)
    eventually(lambda: descriptors() == before, "descriptors leak")


def test_another_versions_engine_is_named(run_dir: Path) -> None:
    with (
        acting(run_dir, _answering(Welcome(version=7, product="7.0", pid=1))) as path,
        pytest.raises(ProtocolMismatch, match=rf"version 7, 7\.0; .*kill {os.getpid()}"),
    ):
        Conversation(path)


def test_a_call_without_an_engine(run_dir: Path) -> None:
    remote = RemoteEngine(run_dir / "engine.sock")
    with pytest.raises(EngineError, match="no engine runs"):
        remote.start()
    remote.patience = 0.05
    with pytest.raises(EngineError, match="no engine runs"):
        remote.remove("x")
    remote.close()


def test_an_engine_that_hangs_is_told_from_one_that_is_dead(path: Path) -> None:
    remote = RemoteEngine.connect(path)
    assert remote.trouble == ""
    with Raw(path) as other:
        other.hello()
    with pytest.raises(EngineError, match=rf"engine {os.getpid()} does not answer; .*kill -9 {os.getpid()}"):
        remote.start()  # its connection is over, and nobody makes another one
    assert "does not answer" in remote.trouble
    assert remote.adopt() is False
    assert remote.trouble == ""
    remote.close()


def test_an_engine_that_never_answers(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "SECONDS", 0.05)
    silence = threading.Event()

    def say_nothing(_: Channel) -> None:
        silence.wait(5.0)

    with acting(run_dir, say_nothing) as path:
        with pytest.raises(Unresponsive, match=f"engine {os.getpid()} does not answer"):
            RemoteEngine.connect(path)
        silence.set()


def test_a_call_whose_engine_goes_away_waits_for_it_to_come_back(path: Path) -> None:
    """The connection breaks (a second daemon said Hello); the call is made again over the next one."""
    lost: list[float] = []
    remote = RemoteEngine.connect(path)
    remote.patience = 10.0
    remote.on_lost = lambda: lost.append(time.monotonic())
    with Raw(path) as other:
        other.hello()
    calling = threading.Thread(target=remote.start)
    calling.start()
    eventually(lambda: bool(lost), "it was not noticed")
    assert remote.adopt() is False
    calling.join(10)
    assert not calling.is_alive()
    assert remote.adopt() is True
    remote.close()
    with pytest.raises(EngineError):
        remote.start()


def test_a_device_that_is_none_stays_the_callers(path: Path) -> None:
    remote = RemoteEngine.connect(path)
    with open("/dev/null", "rb") as null:
        with pytest.raises(NotATunnel):
            remote.add(link(1, addresses=("198.19.0.5",)), null.fileno())
        os.fstat(null.fileno())
        synced = remote.sync([link(1, addresses=("198.19.0.5",)), link(2)], {"eni-1": null.fileno()})
        assert {one: type(error) for one, error in synced.errors.items()} == {
            "eni-1": NotATunnel,
            "eni-2": InvalidValue,
        }
        os.fstat(null.fileno())
    assert (remote.links(), remote.link("eni-1"), remote.remove("eni-1")) == ([], None, -1)
    with pytest.raises(InvalidValue, match="add it first"):
        remote.update(link(1))
    remote.close()


def test_a_socket_of_somebody_else(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user without privileges listens on is not the engine."""
    monkeypatch.setattr(Channel, "peer", lambda self: (os.getpid(), os.geteuid() + 1))
    with acting(run_dir, _answering()) as path, pytest.raises(PermissionMissing, match="listens on"):
        RemoteEngine.connect(path)
