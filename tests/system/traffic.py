"""Loads over TCP and UDP between sockets in namespaces, checked byte by byte; all in the event loop of the test."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import struct
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

from .sockets import socket_in
from .support import PATIENCE

MIB = 1 << 20
CHUNK = 256 << 10
# linux/in.h, linux/udp.h, which Python's socket module does not have
IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_PMTUDISC_INTERFACE, IP_MTU = 10, 2, 4, 14
SOL_UDP, UDP_SEGMENT = 17, 103
SO_NO_CHECK = 11
SECONDS = 30.0 * PATIENCE

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Pair:
    """Both ends of a TCP connection."""

    client: socket.socket
    server: socket.socket


@asynccontextmanager
async def connection(client: str, server: str, address: str, *, port: int = 0) -> AsyncIterator[Pair]:
    """A TCP connection from namespace client to an address in namespace server."""
    loop = asyncio.get_running_loop()
    with ExitStack() as stack:
        async with asyncio.timeout(SECONDS):
            listener = stack.enter_context(tcp_listener(server, address, port=port))
            out = stack.enter_context(socket_in(client, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
            await loop.sock_connect(out, listener.getsockname())
            accepted = (await loop.sock_accept(listener))[0]
        yield Pair(out, stack.enter_context(accepted))


def tcp_listener(namespace: str, address: str, *, port: int = 0) -> socket.socket:
    with ExitStack() as undo:
        listener = undo.enter_context(socket_in(namespace, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(64)
        undo.pop_all()
    return listener


def udp_socket(namespace: str, address: str = "", *, port: int = 0, to: Address | None = None) -> socket.socket:
    """Room for all that a test has under way; bound to address, connected to `to`, when given."""
    with ExitStack() as undo:
        made = undo.enter_context(socket_in(namespace, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK))
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * MIB)
        if address:
            made.bind((address, port))
        if to:
            made.connect(to)
        undo.pop_all()
    return made


async def transfer(source: socket.socket, sink: socket.socket, size: int, seed: int) -> None:
    """Sends size pseudo-random bytes one way; fails unless exactly they arrive, within a minute."""
    data = random.Random(seed).randbytes(size)
    async with asyncio.timeout(2 * SECONDS), asyncio.TaskGroup() as group:
        group.create_task(asyncio.get_running_loop().sock_sendall(source, data))
        received = group.create_task(receive(sink, size))
    assert received.result() == data, "what arrived is not what was sent"


async def receive(sink: socket.socket, size: int) -> bytes:
    """Size bytes, or fewer when the other side ends the connection."""
    loop = asyncio.get_running_loop()
    parts, left = [], size
    while left and (part := await loop.sock_recv(sink, min(left, CHUNK))):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


async def at_end(sink: socket.socket) -> bool:
    """Whether nothing but the end of the stream arrives."""
    async with asyncio.timeout(SECONDS):
        return await asyncio.get_running_loop().sock_recv(sink, 1) == b""


async def datagrams(
    source: socket.socket, sink: socket.socket, given: Sequence[bytes], to: Address | None = None
) -> None:
    """Sends one after the other to `to`, or to whom source is connected to; just these must arrive, in this order."""
    for one in given:
        source.send(one) if to is None else source.sendto(one, to)
    await expect_datagrams(sink, given)


async def expect_datagrams(sink: socket.socket, expected: Sequence[bytes]) -> None:
    loop = asyncio.get_running_loop()
    arrived = []
    try:
        async with asyncio.timeout(SECONDS):
            for _ in expected:
                arrived.append(await loop.sock_recv(sink, 65536))
    except TimeoutError:
        raise AssertionError(f"{len(arrived)} of {len(expected)} datagrams arrived") from None
    wrong = [number for number, (one, other) in enumerate(zip(arrived, expected, strict=True)) if one != other]
    assert not wrong, f"datagrams {wrong[:10]} of {len(expected)} are not what was sent then"


async def receive_error(connected: socket.socket) -> str:
    """The name of the error that a connected UDP socket reports next, such as "ECONNREFUSED"."""
    try:
        async with asyncio.timeout(SECONDS):
            data = await asyncio.get_running_loop().sock_recv(connected, 65536)
    except TimeoutError:
        return "none"
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    raise AssertionError(f"an error was expected, {data[:20]!r} came")


def payload(number: int, size: int) -> bytes:
    """Size bytes, at least 4, that tell their number and differ from those of every other number."""
    return number.to_bytes(4, "big") + random.Random(number).randbytes(size - 4)


def mtu_of(connected: socket.socket) -> int:
    """The path MTU as a connected socket knows it (ip(7))."""
    return connected.getsockopt(socket.IPPROTO_IP, IP_MTU)


def send_size_of(connected: socket.socket) -> int:
    """The largest segment payload that a TCP socket sends now (tcp(7), struct tcp_info.tcpi_snd_mss)."""
    size: int = struct.unpack_from("=I", connected.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 16)[0]
    return size


def connect_outcome(
    namespace: str, address: Address, seconds: float, *, source: Address | None = None
) -> tuple[str, float]:
    """Tries a TCP connection for so many seconds at most; its outcome as the errno's name, and the seconds it took.

    "OK": connected; "TIMEOUT": no answer.
    """
    with socket_in(namespace) as one:
        if source:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(source)
        one.settimeout(seconds)
        started = time.perf_counter()
        try:
            one.connect(address)
            outcome = "OK"
        except TimeoutError:
            outcome = "TIMEOUT"
        except OSError as error:
            outcome = errno.errorcode.get(error.errno or 0, "?")
        return outcome, time.perf_counter() - started
