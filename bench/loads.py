"""What is done over each rival in a contest. A load returns what it measured; it fails when that cannot be trusted."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from bench.lab import PATIENCE, Lab, answer, listens, shell, stop, wait_until
from bench.processor import Processor
from bench.rivals import LATENCY_PORT, SERVER, Rival

IPERF_PORT: Final = 5201
BULK_PORT: Final = 5202
UDP_PORT: Final = 9000
UNDER_WAY: Final = 8 << 20  # bytes after which a stream has found its pace


@dataclass(frozen=True)
class Stream:
    """Gb/s as the receiver saw them, and the processor time that a gigabyte (10^9 bytes) took: of the whole machine
    with client and server, and of the process that carried it."""

    gbps: float
    machine: float
    process: float


@dataclass(frozen=True)
class Latency:
    p50: float  # us
    p99: float
    bulk: float = 0.0  # Gb/s that the stream beside it sent, with headers


def tcp(lab: Lab, rival: Rival, seconds: int, *, streams: int = 1, back: bool = False) -> Stream:
    """back: from the server to the environment."""
    with _iperf_server(lab, rival, IPERF_PORT):
        words = f"--client {SERVER} --port {IPERF_PORT} --time {seconds} --parallel {streams} --json".split()
        pid = rival.process.pid if rival.process else None
        before = Processor.read(pid)
        result = lab.run(rival.client, "iperf3", *words, *(["--reverse"] if back else []), timeout=seconds + 20)
        took = Processor.read(pid) - before
    gbps, gigabytes = _received(result, rival)
    rival.check()
    return Stream(gbps, took.machine / gigabytes, took.process / gigabytes)


def two_streams(lab: Lab, rival: Rival, seconds: int) -> float:
    """Gb/s of two environments together, each of which sends a TCP stream."""
    with _iperf_server(lab, rival, IPERF_PORT), _iperf_server(lab, rival, BULK_PORT), ThreadPoolExecutor(2) as threads:
        sent = threads.map(
            lambda where: lab.run(
                where[0],
                "iperf3",
                *f"--client {SERVER} --port {where[1]} --time {seconds} --json".split(),
                timeout=seconds + 20,
            ),
            ((rival.client, IPERF_PORT), (rival.bystander, BULK_PORT)),
        )
        total = sum(_received(result, rival)[0] for result in sent)
    rival.check()
    return total


def udp(lab: Lab, rival: Rival, seconds: float, *, size: int = 64, segments: int = 1, flows: int = 1) -> float:
    """Million datagrams of `size` bytes of payload per second that arrived; segments: sent in trains of that many;
    flows: as many, in turns."""
    program = lab.tool("udp_rate")
    sink = lab.start(rival.server, program, "sink", SERVER, str(UDP_PORT), str(seconds + 10), str(size))
    words = ("source", SERVER, str(UDP_PORT), str(seconds), str(size), str(segments), str(flows))
    sent = lab.run(rival.client, program, *words, timeout=seconds + 20)["sent"]
    seen: dict[str, Any] = json.loads(answer(sink))
    stop(sink)
    assert 0 < seen["received"] <= sent, f"UDP over {rival.name}: {seen['received']} of {sent} arrived"
    assert not seen["wrong"], f"UDP over {rival.name}: {seen['wrong']} datagrams arrived with wrong contents"
    rival.check()
    rate: float = seen["received"] / seen["seconds"]
    return rate / 1e6


def question(lab: Lab, rival: Rival, seconds: float) -> Latency:
    """One byte there and one back over one TCP connection, again and again."""
    result = lab.run(rival.client, lab.tool("tcp_latency"), "ask", SERVER, str(LATENCY_PORT), str(seconds))
    rival.check()
    return Latency(result["p50_us"], result["p99_us"])


def question_beside_bulk(lab: Lab, rival: Rival, seconds: float) -> Latency:
    """The same while another environment sends a TCP stream to the same server as fast as it can."""
    with _iperf_server(lab, rival, BULK_PORT):
        first = _sent(rival.bystander)
        words = f"--client {SERVER} --port {BULK_PORT} --time {seconds + PATIENCE:.0f}".split()
        bulk = lab.start(rival.bystander, "iperf3", *words, says=False)
        wait_until(lambda: _sent(rival.bystander) > first + UNDER_WAY, f"a stream over {rival.name}")
        before, start = _sent(rival.bystander), time.monotonic()
        alone = question(lab, rival, seconds)
        sent, took = _sent(rival.bystander) - before, time.monotonic() - start
        assert bulk.poll() is None, f"the stream over {rival.name} ended before the questions did"
        stop(bulk)
    return Latency(alone.p50, alone.p99, sent * 8e-9 / took)


def connections(lab: Lab, rival: Rival, seconds: float) -> float:
    """New connections per second, one question each, one after the other."""
    program = lab.tool("tcp_latency")
    result = lab.run(rival.client, program, "connect", SERVER, str(LATENCY_PORT), str(seconds))
    rival.check()
    return float(result["per_second"])


@contextmanager
def _iperf_server(lab: Lab, rival: Rival, port: int) -> Iterator[None]:
    """For one test: between two, iperf3 closes its listening socket for a moment."""
    server = lab.start(rival.server, "iperf3", "--server", "--one-off", "--port", str(port), says=False)
    wait_until(lambda: listens(server, rival.server, port), f"iperf3 server in {rival.server}")
    yield
    stop(server)


def _received(result: dict[str, Any], rival: Rival) -> tuple[float, float]:
    """Gb/s and gigabytes that arrived."""
    assert "error" not in result, f"iperf3 over {rival.name}: {result.get('error')}"
    received = result["end"]["sum_received"]
    return float(received["bits_per_second"]) / 1e9, float(received["bytes"]) / 1e9


def _sent(namespace: str) -> int:
    """Bytes that have left a namespace by any device but its loopback."""
    links = json.loads(shell("ip", "-n", namespace, "-json", "-statistics", "link", "show"))
    return sum(link["stats64"]["tx"]["bytes"] for link in links if link["ifname"] != "lo")
