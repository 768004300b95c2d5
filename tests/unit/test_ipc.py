"""What daemon and engine say to each other: hostile input is refused, never a crash, and no descriptor leaks."""

from __future__ import annotations

import array
import os
import random
import resource
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from hyperplane.dataplane import Timers
from hyperplane.errors import (
    EngineError,
    HyperplaneError,
    InvalidValue,
    ProtocolMismatch,
    ResourceConflict,
)
from hyperplane.ipc import messages, state, transport
from hyperplane.ipc.messages import (
    MOST_BYTES,
    MOST_DESCRIPTORS,
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
    LinkState,
    Refused,
    Shutdown,
    Start,
    Welcome,
)
from hyperplane.ipc.transport import Channel, ConnectionLost, Garbled

SMALL: dict[str, Any] = {"max_flows": 256, "max_links": 16, "max_addresses": 8, "huge_pages": False, "seed": 1}
ENI = LinkSpec(
    kind="eni",
    id="eni-1",
    name="eni-1",
    addresses=(IPv4Address("198.19.0.5"), IPv4Address("198.19.0.6")),
    timers=Timers(udp=120.0),
    udp_mapping="endpoint-dependent",
    silent=True,
    rules=("tcp/443", "udp/53 198.19.0.2/32"),
    has_fd=True,
)
TUNNEL = LinkSpec(
    kind="tunnel", id="env-1", name="env-1", eni="eni-1", address=IPv4Address("198.18.0.2"), max_flows=7, number=3
)
PROBLEM = messages.problem(InvalidValue("no", resource="it", limit="one", remedy="do", field="field"))
REQUESTS: list[Any] = [
    Hello(version=VERSION, product="1"),
    Inherit(config={"max_flows": 5, "io": "epoll", "huge_pages": True, "port_quarantine": 1.5}, regions=("a", "b")),
    Apply(request=1, generation=2, links=(ENI, TUNNEL), remove=("x",), complete=True),
    Start(),
    Drain(id="env-1", reset=True),
    Links(offset=250),
    Shutdown(),
]
ANSWERS: list[Any] = [
    Welcome(version=VERSION, product="1", pid=1, config={"max_flows": 5}, regions=("a",), links=3, started=True),
    Applied(request=1, generation=2, results=(LinkResult(id="a", number=1), LinkResult(id="b", error=PROBLEM))),
    LinksReply(links=(LinkState(spec=ENI, number=1),), more=True),
    Done(),
    Refused(problem=PROBLEM),
]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def eventually(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.002)


@pytest.fixture
def no_leak() -> Iterator[None]:
    before = descriptors()
    yield
    eventually(lambda: descriptors() == before, f"not {before} descriptors at the end but {descriptors()}")


@pytest.fixture
def pair(no_leak: None) -> Iterator[tuple[Channel, socket.socket]]:
    """A channel and the bare socket at its other end."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with Channel(one, seconds=5.0) as channel, other:
        yield channel, other


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Of a name that is short enough for a socket."""
    made = tempfile.mkdtemp(prefix="hpt")
    yield Path(made)
    shutil.rmtree(made)


@contextmanager
def opened(count: int) -> Iterator[list[int]]:
    fds = [os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC) for _ in range(count)]
    try:
        yield fds
    finally:
        for fd in fds:
            os.close(fd)


def rights(fds: list[int]) -> list[Any]:
    return [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))]


# Messages


@pytest.mark.parametrize("message", REQUESTS, ids=lambda message: type(message).__name__)
def test_requests_are_read_as_they_were_written(message: Any) -> None:
    assert messages.request(messages.encode(message)) == message


@pytest.mark.parametrize("message", ANSWERS, ids=lambda message: type(message).__name__)
def test_answers_are_read_as_they_were_written(message: Any) -> None:
    assert messages.answer(messages.encode(message)) == message


def test_every_message_is_among_them() -> None:
    assert {type(message) for message in REQUESTS} == set(get_args(messages.Request))
    assert {type(message) for message in ANSWERS} == set(get_args(messages.Answer))


def test_hello_and_refused_keep_their_form() -> None:
    """By them two versions tell each other that they are two."""
    hello = msgspec.msgpack.encode({"type": "Hello", "version": 99, "product": "9", "new": [1]})
    assert messages.request(hello) == Hello(version=99, product="9")
    refused = msgspec.msgpack.decode(messages.encode(Refused(problem=PROBLEM)))
    assert (refused["type"], refused["problem"]["error"], refused["problem"]["message"]) == (
        "Refused",
        "InvalidValue",
        "no",
    )


def test_whatever_arrives_is_read_or_refused() -> None:
    """Random bytes, and messages that are cut off or have a byte changed: nothing but the errors that are expected."""
    rng = random.Random(1)
    whole = [messages.encode(message) for message in (*REQUESTS, *ANSWERS)]
    given = [rng.randbytes(rng.randrange(200)) for _ in range(2000)]
    for data in whole:
        given += [data[:size] for size in range(len(data))]
        for _ in range(300):
            changed = bytearray(data)
            changed[rng.randrange(len(data))] = rng.randrange(256)
            given.append(bytes(changed))
    given.append(b"\x81\xa4type" + b"\x91" * 100_000)
    for data in given:
        for read in (messages.request, messages.answer):
            try:
                read(data)
            except messages.UNREADABLE:
                continue


@pytest.mark.parametrize("error", [InvalidValue, ProtocolMismatch, ResourceConflict, EngineError])
def test_errors_keep_their_class_and_words(error: type[HyperplaneError]) -> None:
    told = messages.exception(messages.problem(error("no", resource="it", limit="one", remedy="do", field="f")))
    assert type(told) is error
    assert (told.message, told.resource, told.limit, told.remedy, told.field) == ("no", "it", "one", "do", "f")


@pytest.mark.parametrize("name", ["Unheard", "annotations", "_line", "str", "Any", ""])
def test_an_error_of_no_known_class_is_an_engine_error(name: str) -> None:
    told = messages.exception(msgspec.structs.replace(PROBLEM, error=name))
    assert type(told) is EngineError
    assert told.message == "no"


def test_the_largest_link_fits_a_message() -> None:
    rules = ("tcp/10000-20000 198.199.200.0/24",) * 1024
    largest = LinkSpec(
        kind="eni", id="\u00e4" * 200, name="\u20ac" * 200, addresses=(IPv4Address("198.119.100.100"),) * 8, rules=rules
    )
    assert state.bare(largest) == largest
    with pytest.raises(InvalidValue, match="too long"):
        state.bare(msgspec.structs.replace(largest, rules=rules * 2))


def test_a_full_state_is_cut_to_messages_that_fit() -> None:
    """At most 250 descriptors and MOST_BYTES each, nothing lost, and only the last one says that it is all."""
    big = msgspec.structs.replace(ENI, rules=("tcp/10000-20000 198.199.200.0/24",) * 1000)
    items: list[state.Item] = [
        (msgspec.structs.replace(big, id=f"eni-{number}", queues=16), range(16)) for number in range(10)
    ]
    items += [(msgspec.structs.replace(TUNNEL, id=f"env-{number}", has_fd=True), (number,)) for number in range(1000)]
    sent: list[tuple[tuple[LinkSpec, ...], list[int]]] = []

    def send(links: tuple[LinkSpec, ...], fds: Any, complete: bool) -> Applied:
        message = Apply(request=1 << 60, generation=1 << 60, links=links, complete=complete)
        assert len(messages.encode(message)) <= MOST_BYTES
        assert len(fds) <= MOST_DESCRIPTORS
        sent.append((links, list(fds)))
        assert complete == (sum(len(links) for links, _ in sent) == len(items))
        return Applied(request=1, generation=1, results=tuple(LinkResult(id=link.id, number=1) for link in links))

    results = state.send_state(items, send)
    assert [link for links, _ in sent for link in links] == [spec for spec, _ in items]
    assert [fd for _, fds in sent for fd in fds] == [fd for spec, fds in items if spec.has_fd for fd in fds]
    assert list(results) == [spec.id for spec, _ in items]
    sent.clear()
    items.clear()
    assert state.send_state(items, send) == {}
    assert sent == [((), [])]


# Transport


def test_packets_and_descriptors_arrive(pair: tuple[Channel, socket.socket]) -> None:
    channel, other = pair
    with Channel(other.dup()) as sender, opened(MOST_DESCRIPTORS) as fds:
        sender.send(b"x" * MOST_BYTES, fds)
        sender.send(b"y")
    data, came = channel.receive() or (b"", [])
    assert (bytes(data), len(came)) == (b"x" * MOST_BYTES, MOST_DESCRIPTORS)
    assert not any(os.get_inheritable(fd) for fd in came)
    transport.close_all(came)
    data, came = channel.receive() or (b"", [])
    assert (bytes(data), came) == (b"y", [])
    assert channel.receive(wait=False) is None
    assert channel.peer() == (os.getpid(), os.geteuid())


def test_what_is_too_much_is_not_sent(pair: tuple[Channel, socket.socket]) -> None:
    channel, _ = pair
    for data, fds in ((b"x" * (MOST_BYTES + 1), []), (b"x", [0] * (MOST_DESCRIPTORS + 1))):
        with pytest.raises(EngineError, match="limit"):
            channel.send(data, fds)


def test_a_packet_that_is_too_long_is_garbled(pair: tuple[Channel, socket.socket]) -> None:
    channel, other = pair
    other.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * MOST_BYTES)
    with opened(10) as fds:
        socket.socket.sendmsg(other, [b"x" * (MOST_BYTES + 1)], rights(fds))
    before = descriptors()
    with pytest.raises(Garbled, match="bytes"):
        channel.receive()
    assert descriptors() == before
    other.send(b"y")
    assert bytes((channel.receive() or (b"", []))[0]) == b"y"


def test_descriptors_beyond_the_limit_of_open_files(pair: tuple[Channel, socket.socket]) -> None:
    """The kernel drops what does not fit; what arrived is closed, and the connection goes on."""
    channel, other = pair
    with opened(20) as fds:
        other.sendmsg([b"x"], rights(fds))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = descriptors()
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    sixth = [number for number in range(soft) if number not in taken][5]
    resource.setrlimit(resource.RLIMIT_NOFILE, (sixth, hard))
    try:
        with pytest.raises(Garbled, match="ulimit"):
            channel.receive()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert descriptors() == before
    other.send(b"y")
    assert bytes((channel.receive() or (b"", []))[0]) == b"y"


def test_the_end_of_a_connection(pair: tuple[Channel, socket.socket]) -> None:
    channel, other = pair
    other.close()
    for wait in (True, False):
        with pytest.raises(ConnectionLost):
            channel.receive(wait=wait)
    with pytest.raises(ConnectionLost):
        channel.send(b"x")


def test_a_peer_that_does_not_read_or_answer(no_leak: None) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with Channel(one, seconds=0.05) as channel, other:
        with pytest.raises(ConnectionLost, match="does not answer"):
            channel.receive()
        with pytest.raises(ConnectionLost, match="does not read"):  # noqa: PT012 - how many fit is the kernel's affair
            for _ in range(10_000):
                channel.send(b"x" * 10_000)


def test_nobody_listens(run_dir: Path, no_leak: None) -> None:
    with pytest.raises(ConnectionLost, match="nobody listens"):
        transport.connect(run_dir / "engine.sock", seconds=1.0)
    with pytest.raises(EngineError, match="too long"):
        transport.connect(run_dir / ("x" * 100), seconds=1.0)
