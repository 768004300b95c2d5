"""What is done over each rival in a contest. Each load returns one value; it fails when the value cannot be trusted."""

from __future__ import annotations

import json
from typing import Any, Final

from bench.lab import Lab, answer, listens, stop, wait_until
from bench.rivals import LATENCY_PORT, SERVER, Rival

IPERF_PORT: Final = 5201
UDP_PORT: Final = 9000
UDP_SIZE: Final = 64  # bytes of payload


def tcp(lab: Lab, rival: Rival, seconds: int, *, streams: int = 1, back: bool = False) -> float:
    """Gb/s as the receiver saw them; back: from the server to the environment."""
    # A server for one test: between two, iperf3 closes its listening socket for a moment.
    server = lab.start(rival.server, "iperf3", "--server", "--one-off", "--port", str(IPERF_PORT), says=False)
    wait_until(lambda: listens(server, rival.server, IPERF_PORT), f"iperf3 server in {rival.server}")
    words = f"--client {SERVER} --port {IPERF_PORT} --time {seconds} --parallel {streams} --json".split()
    result = lab.run(rival.client, "iperf3", *words, *(["--reverse"] if back else []), timeout=seconds + 20)
    stop(server)
    assert "error" not in result, f"iperf3 over {rival.name}: {result.get('error')}"
    rival.check()
    return float(result["end"]["sum_received"]["bits_per_second"]) / 1e9


def udp(lab: Lab, rival: Rival, seconds: float, *, segments: int = 1) -> float:
    """Million datagrams of UDP_SIZE bytes per second that arrived; segments: sent in trains of that many."""
    program = lab.tool("udp_rate")
    sink = lab.start(rival.server, program, "sink", SERVER, str(UDP_PORT), str(seconds + 10), str(UDP_SIZE))
    words = ("source", SERVER, str(UDP_PORT), str(seconds), str(UDP_SIZE), str(segments))
    sent = lab.run(rival.client, program, *words, timeout=seconds + 20)["sent"]
    seen: dict[str, Any] = json.loads(answer(sink))
    stop(sink)
    assert 0 < seen["received"] <= sent, f"UDP over {rival.name}: {seen['received']} of {sent} arrived"
    assert not seen["wrong"], f"UDP over {rival.name}: {seen['wrong']} datagrams arrived with wrong contents"
    rival.check()
    rate: float = seen["received"] / seen["seconds"]
    return rate / 1e6


def question(lab: Lab, rival: Rival, seconds: float) -> dict[str, float]:
    """p50_us and p99_us of one byte there and one back over one TCP connection."""
    program = lab.tool("tcp_latency")
    result: dict[str, float] = lab.run(rival.client, program, "ask", SERVER, str(LATENCY_PORT), str(seconds))
    rival.check()
    return result


def connections(lab: Lab, rival: Rival, seconds: float) -> float:
    """New connections per second, one question each, one after the other."""
    program = lab.tool("tcp_latency")
    result = lab.run(rival.client, program, "connect", SERVER, str(LATENCY_PORT), str(seconds))
    rival.check()
    return float(result["per_second"])
