"""An engine in a process of its own, that can be killed at any instruction; what it held before it began to work."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from hyperplane.dataplane import EngineConfig, Flow

from .lab import ENI, SERVER, SERVER2, Lab, Tcp, echo, ipv4, udp

TUNNELS = 3
MESSAGE = 1 << 20


@dataclass(frozen=True)
class Held:
    """What the process says once it is ready."""

    config: EngineConfig
    names: list[str]  # of the regions, in the order of their descriptors
    now: int
    flows: list[Flow]


class Process:
    """The process and duplicates of its memory. `work()` lets it begin; `kill()` ends it, wherever it is."""

    def __init__(self, pid: int, channel: socket.socket) -> None:
        self.pid = pid
        self._channel = channel
        text, fds, _, _ = socket.recv_fds(channel, MESSAGE, 64)
        assert text, "the process ended before it was ready"
        length = int.from_bytes(text[:4], "big")
        while len(text) < 4 + length:
            text += channel.recv(4 + length - len(text))
        self.held: Held = pickle.loads(text[4:])
        self.regions = dict(zip(self.held.names, fds, strict=True))

    def work(self) -> None:
        """Returns when its first turn is done."""
        self._channel.send(b"go")
        assert self._channel.recv(1) == b"1"

    def kill(self) -> None:
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = 0

    def close(self) -> None:
        self.kill()
        self._channel.close()
        for fd in self.regions.values():
            os.close(fd)
        self.regions = {}


def outwards(protocol: str, port: int) -> tuple[int, bytes]:
    """A packet of one of the flows that are held, and the index of its tunnel: TCP segments carry an ACK alone."""
    tunnel = port % 2
    if protocol == "tcp":
        head = port.to_bytes(2, "big") + b"\x00\x50" + (1_000_001).to_bytes(4, "big") + (9_000_001).to_bytes(4, "big")
        return tunnel, ipv4(6, head + b"\x50\x10\xff\xff" + bytes(4), "198.18.0.2", SERVER)
    if protocol == "icmp":
        return tunnel, echo(port)
    return tunnel, udp(port, 53 if protocol == "dns" else 7)


def hold(lab: Lab) -> None:
    """120 flows of each kind, over two tunnels; the third is for what comes and goes."""
    for port in range(5000, 5120):
        Tcp(lab, port, 80, tunnel=port % 2).establish()
    for kind in ("udp", "dns", "icmp"):
        for port in range(5000, 5120):
            tunnel, packet = outwards(kind, port)
            lab.out(packet, tunnel)


def turn(lab: Lab, number: int) -> None:
    """All that is held is used; other flows of every kind begin, and end by their timers; some packets are dropped."""
    lab.later(1)
    for kind in ("tcp", "udp", "dns", "icmp"):
        packets = [outwards(kind, port) for port in range(5000, 5120)]
        lab.engine.translate([(lab.tunnels[tunnel], packet) for tunnel, packet in packets], now=lab.now)
    passing = 10_000 + number % 500 * 100
    lab.send_all(lab.tunnels[2], (udp(passing + n, 53) for n in range(40)))
    lab.send_all(lab.tunnels[2], (udp(passing + n, 7 + n % 3, destination=SERVER2) for n in range(30)))
    lab.send_all(lab.tunnels[2], (echo(passing + n) for n in range(20)))
    lab.send_all(lab.eni, (udp(1, 2, source=SERVER, destination=ENI) for _ in range(5)))
    lab.sweep()


def _serve(channel: socket.socket, prepare: Callable[[Lab], None], workers: int) -> None:
    with Lab(tunnels=TUNNELS, max_flows=16_384, drop_records=256, workers=workers) as lab:
        prepare(lab)
        regions = lab.engine.regions()
        held = Held(lab.engine.config, list(regions), lab.now, lab.engine.flows())
        pickled = pickle.dumps(held)
        text = len(pickled).to_bytes(4, "big") + pickled
        sent = socket.send_fds(channel, [text], list(regions.values()))
        channel.sendall(text[sent:])
        channel.recv(2)
        number = 0
        while True:
            turn(lab, number)
            number += 1
            if number == 1:
                channel.send(b"1")


@contextlib.contextmanager
def predecessor(prepare: Callable[[Lab], None] = hold, *, workers: int = 1) -> Iterator[Process]:
    ours, theirs = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        ours.close()
        try:
            _serve(theirs, prepare, workers)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    theirs.close()
    process = Process(pid, ours)
    try:
        yield process
    finally:
        process.close()
