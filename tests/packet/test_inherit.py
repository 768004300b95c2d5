"""The engine's process dies, at any instruction; a successor goes on with its memory. A reader sees it all."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, UDP

from hyperplane.dataplane import Engine, Eni, Flow, Link, Reader, Reason, SecurityGroup, Timers, Tunnel, Verdict
from hyperplane.errors import AddressInUse, EngineError, InvalidValue, NotATunnel

from .lab import ALL, ENI, ENI2, INSIDE, SERVER, SERVER2, Lab, datagram, source_port, syn, udp
from .predecessor import TUNNELS, Process, outwards, predecessor

KINDS = ("tcp", "udp", "dns", "icmp")


def kind_of(flow: Flow) -> str:
    return "dns" if flow.remote_port == 53 else flow.protocol


def outside_port(raw: bytes) -> int:
    """ICMP: the id."""
    return int.from_bytes(raw[24:26], "big") if raw[9] == 1 else source_port(raw)


class Successor:
    """An engine over a dead process's memory, all its links claimed."""

    def __init__(self, process: Process) -> None:
        self.engine = Engine.inherit(process.held.config, process.regions)
        self.eni = self.engine.claim_eni(1, ENI, name="eni0", security_groups=ALL)
        self.tunnels = [
            self.engine.claim_tunnel(2 + n, self.eni, name=f"env-{n}", address=INSIDE) for n in range(TUNNELS)
        ]
        self.links: tuple[Link, ...] = (self.eni, *self.tunnels)
        seen = [flow.last_seen for flow in self.engine.flows()] + [drop.time for drop in self.engine.drops()]
        self.now = 1000 + max(process.held.now, *seen)


@contextlib.contextmanager
def succeed(process: Process) -> Iterator[Successor]:
    successor = Successor(process)
    try:
        yield successor
    finally:
        successor.engine.close()


def held_by_key(flows: list[Flow]) -> dict[tuple[str, int], Flow]:
    return {(kind_of(flow), flow.inside_port): flow for flow in flows if flow.inside_port < 10_000}


def assert_same_flows(successor: Successor, process: Process) -> None:
    """Every flow that was held is there, with its id and ports, and its packets pass in both directions as before."""
    before, after = held_by_key(process.held.flows), held_by_key(successor.engine.flows())
    assert len(before) == 480
    assert {key: (flow.id, flow.outside_port, flow.tunnel, flow.started) for key, flow in before.items()} == {
        key: (flow.id, flow.outside_port, flow.tunnel, flow.started) for key, flow in after.items()
    }
    assert all(flow.packets_out <= after[key].packets_out for key, flow in before.items())
    for (kind, port), flow in before.items():
        tunnel, packet = outwards(kind, port)
        (out,) = successor.engine.translate([(successor.tunnels[tunnel], packet)], now=successor.now)
        assert (out.verdict, out.link, outside_port(out.packet)) == (Verdict.FORWARD, successor.eni, flow.outside_port)
        if kind in ("udp", "dns"):
            answer = udp(flow.remote_port, flow.outside_port, source=SERVER, destination=ENI)
            (back,) = successor.engine.translate([(successor.eni, answer)], now=successor.now)
            assert (back.verdict, back.link) == (Verdict.FORWARD, successor.tunnels[tunnel])
            assert int.from_bytes(back.packet[22:24], "big") == port


def assert_counts_are_right(successor: Successor) -> None:
    flows = successor.engine.flows()
    assert successor.engine.status().flows == len(flows)
    for link in successor.links:
        counters = successor.engine.counters(link)
        live = sum(link.number in (flow.tunnel_number, flow.eni_number) for flow in flows)
        assert (counters.flows, counters.flows_created - counters.flows_ended) == (live, live)
    mappings = {(flow.tunnel_number, kind_of(flow), flow.inside_port) for flow in flows} - {
        (flow.tunnel_number, kind_of(flow), flow.inside_port) for flow in flows if kind_of(flow) in ("tcp", "dns")
    }
    assert successor.engine.status().mappings == len(mappings)


def assert_new_ports_are_free(successor: Successor) -> None:
    flows = successor.engine.flows()
    exclusive = {flow.outside_port for flow in flows if kind_of(flow) == "udp"}
    towards = {flow.outside_port for flow in flows if flow.protocol == "tcp" and str(flow.remote) == SERVER}
    tunnel = successor.tunnels[2]
    new = [(tunnel, udp(port, 7)) for port in range(100, 400)] + [(tunnel, syn(port, 80)) for port in range(100, 400)]
    results = successor.engine.translate(new, now=successor.now)
    assert {result.verdict for result in results} == {Verdict.FORWARD}
    ports = [outside_port(result.packet) for result in results]
    assert not set(ports[:300]) & exclusive
    assert not set(ports[300:]) & towards
    assert len(set(ports[:300])) == len(set(ports[300:])) == 300
    ids = {flow.id for flow in successor.engine.flows()}
    assert len(ids) == len(flows) + 600


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("seed", range(12))
def test_killed_while_it_translates(seed: int, workers: int) -> None:
    """SIGKILL at a random moment of a loop of translating, new flows, drops and sweeps: nothing held is lost."""
    with predecessor(workers=workers) as process:
        process.work()
        time.sleep(random.Random(seed).uniform(0, 0.03))  # not to wait for something: to kill it anywhere
        process.kill()
        with succeed(process) as successor:
            assert_counts_are_right(successor)
            assert_same_flows(successor, process)
            assert_new_ports_are_free(successor)
            assert_counts_are_right(successor)
            numbers = [drop.number for drop in successor.engine.drops()]
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            stray = udp(1, 2, source=SERVER2, destination=ENI)
            successor.engine.translate([(successor.eni, stray)], now=successor.now)
            assert successor.engine.drops()[-1].number == numbers[-1] + 1
            assert successor.engine.abandon_unclaimed() == 0
            successor.engine.sweep(successor.now + 10_000_000)
            assert (successor.engine.status().flows, successor.engine.status().mappings) == (0, 0)


def test_killed_again_and_again() -> None:
    """A successor's memory is as good as its predecessor's."""
    with predecessor() as process:
        process.work()
        process.kill()
        for _ in range(5):
            with succeed(process) as successor:
                assert_same_flows(successor, process)
                assert_counts_are_right(successor)


@pytest.mark.parametrize("workers", [1, 2])
def test_reader_sees_what_the_engine_sees(workers: int) -> None:
    """From another process: while it waits, works, hangs and is dead, and after a successor went on."""
    with predecessor(workers=workers) as process, Reader(process.held.config, process.regions) as reader:
        reader.note(1, "eni0")
        for n in range(TUNNELS):
            reader.note(2 + n, f"env-{n}")
        assert reader.flows() == process.held.flows
        assert reader.flows(tunnel=2) == [flow for flow in process.held.flows if flow.tunnel_number == 2]
        assert [reader.link_flows(number) for number in range(6)] == [0, 480, 240, 240, 0, 0]
        assert reader.drops() == []
        process.work()
        deadline = time.monotonic() + 20
        while not (drops := reader.drops()) or drops[-1].number < 500:  # it comes along while we look
            assert time.monotonic() < deadline
            assert reader.counters(2).packets_in >= 240
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        assert len(reader.flows()) >= 480
        assert drops[-1].link == "eni0"
        process.kill()
        flows, status = reader.flows(), reader.status()
        with succeed(process) as successor:
            assert reader.flows() == successor.engine.flows()
            assert {flow.id for flow in reader.flows()} <= {flow.id for flow in flows}
            assert reader.status() == successor.engine.status()
            assert reader.drops() == successor.engine.drops()
            assert reader.memory() == successor.engine.memory()
            for link in successor.links:
                assert reader.counters(link.number) == successor.engine.counters(link)
                assert reader.link_flows(link.number) == successor.engine.counters(link).flows
            assert reader.status().flows_high >= status.flows


@pytest.mark.parametrize("workers", [1, 2])
def test_a_started_engine_that_dies(workers: int) -> None:
    """running is what it said last; its successor runs when it is started, and links are claimed while it does."""
    started = predecessor(lambda lab: lab.engine.start(), workers=workers)
    with started as process, Reader(process.held.config, process.regions) as reader:
        assert reader.status().running
        assert reader.status().io in ("io_uring", "epoll")
        process.kill()
        assert reader.status().running
        with Engine.inherit(process.held.config, process.regions) as engine:
            assert not engine.status().running
            assert not reader.status().running
            engine.start()
            eni = engine.claim_eni(1, ENI, name="eni0", security_groups=ALL)
            engine.claim_tunnel(2, eni, name="a", address=INSIDE)
            assert reader.status().running
            assert engine.abandon_unclaimed() == TUNNELS - 1
            engine.stop()
            assert not reader.status().running


# In one process: an engine that is closed is as dead


class Memory:
    """A lab's memory, which outlives its engine."""

    def __init__(self, lab: Lab) -> None:
        self.config, self.now = lab.engine.config, lab.now
        self.regions = {name: os.dup(fd) for name, fd in lab.engine.regions().items()}

    def inherit(self) -> Engine:
        return Engine.inherit(self.config, self.regions)

    def close(self) -> None:
        for fd in self.regions.values():
            os.close(fd)


@pytest.fixture
def memory() -> Iterator[Memory]:
    """Of an ENI with two addresses, tunnels env-0 (a flow to port 7) and env-1 (none), and a drop."""
    with Lab(tunnels=2, addresses=(ENI, ENI2)) as lab:
        lab.out(datagram())
        lab.dropped(udp(1, 2, source="198.18.9.9"), Reason.SPOOFED_SOURCE)
        left = Memory(lab)
    yield left
    left.close()


def claim(engine: Engine, **options: object) -> tuple[Eni, Tunnel]:
    eni = engine.claim_eni(1, (ENI, ENI2), name="eni0", security_groups=ALL, **options)  # type: ignore[arg-type]
    return eni, engine.claim_tunnel(2, eni, name="env-0", address=INSIDE)


def test_what_is_claimed_has_its_new_configuration(memory: Memory) -> None:
    """Rules, MTU, timers and quota are what the claim says; old flows go on under them."""
    with memory.inherit() as engine:
        refusing = SecurityGroup.parse("dns", ["udp/53"])
        eni = engine.claim_eni(
            1, (ENI, ENI2), name="new", mtu=1400, security_groups=[refusing], timers=Timers(udp=5), silent=True
        )
        tunnel = engine.claim_tunnel(2, eni, name="env", address=INSIDE, mtu=1300, max_flows=2)
        assert (eni.number, eni.mtu, eni.security_groups, engine.enis) == (1, 1400, (refusing,), (eni,))
        assert (tunnel.number, tunnel.mtu, tunnel.max_flows, engine.tunnels) == (2, 1300, 2, (tunnel,))
        assert [(flow.tunnel, flow.eni) for flow in engine.flows()] == [("env", "new")]
        assert [drop.link for drop in engine.drops()] == ["env"]
        old, new, dns = engine.translate(
            [(tunnel, bytes(datagram())), (tunnel, udp(1, 7)), (tunnel, udp(2, 53))], now=memory.now
        )
        assert (old.verdict, new.reason, dns.verdict) == (Verdict.FORWARD, Reason.SECURITY_GROUP, Verdict.FORWARD)
        (over,) = engine.translate([(tunnel, udp(3, 53))], now=memory.now)
        assert over.reason is Reason.FLOW_QUOTA
        assert engine.sweep(memory.now + 4_999) == 0
        assert engine.sweep(memory.now + 5_000) == 1


def test_without_a_claim_nothing_passes_and_it_can_be_abandoned(memory: Memory) -> None:
    with memory.inherit() as engine:
        (flow,) = engine.flows()
        assert (flow.tunnel, engine.tunnels, engine.enis) == ("", (), ())
        eni, tunnel = claim(engine)
        assert engine.abandon_unclaimed() == 1
        assert engine.abandon_unclaimed() == 0
        engine.sweep(memory.now)
        again = engine.add_tunnel(eni, name="env-1", address=INSIDE)
        assert again.number == 3
        assert engine.flows()[0].id == flow.id
        engine.remove(tunnel)
    with memory.inherit() as engine:  # the tunnel that was removed drains on
        with pytest.raises(EngineError, match="was removed"):
            claim(engine)
        assert engine.abandon_unclaimed() == 1
        engine.sweep(memory.now)
        assert engine.status().flows == 0


def test_drained_tunnel_stays_drained(memory: Memory) -> None:
    with memory.inherit() as engine:
        _, tunnel = claim(engine)
        engine.drain(tunnel, reset=False)
    with memory.inherit() as engine:
        _, tunnel = claim(engine)
        old, new = engine.translate([(tunnel, bytes(datagram())), (tunnel, udp(1, 7))], now=memory.now)
        assert (old.verdict, new.reason) == (Verdict.FORWARD, Reason.LINK_DETACHED)


def test_claims_that_are_refused(memory: Memory) -> None:
    with memory.inherit() as engine:
        for number, addresses, problem in (
            (1, ENI, "other addresses"),
            (1, (ENI2, ENI), "other addresses"),
            (2, ENI, "no ENI"),
            (60, ENI, "no ENI"),
        ):
            with pytest.raises(EngineError, match=problem):
                engine.claim_eni(number, addresses, name="eni0")
        with pytest.raises(InvalidValue, match="number of an ENI"):
            engine.claim_eni(0, ENI, name="eni0")
        eni, tunnel = claim(engine)
        with pytest.raises(EngineError, match="claimed already"):
            claim(engine)
        with pytest.raises(InvalidValue, match="has one of that name"):
            engine.claim_tunnel(3, eni, name=tunnel.name, address=INSIDE)
        with pytest.raises(AddressInUse):
            engine.claim_tunnel(3, eni, name="b", address=ENI)
        with pytest.raises(EngineError, match="another ENI or address"):
            engine.claim_tunnel(3, eni, name="b", address="198.18.0.3")
        with pytest.raises(EngineError, match="no tunnel"):
            engine.claim_tunnel(1, eni, name="b", address=INSIDE)
        with pytest.raises(NotATunnel):
            engine.claim_tunnel(3, eni, name="b", address=INSIDE, fd=memory.regions["hp-flows"])
        assert engine.claim_tunnel(3, eni, name="b", address=INSIDE).number == 3


def test_answers_arrive_from_the_successors_first_packet_on(memory: Memory) -> None:
    """The first packet after the change may be one from outside."""
    with memory.inherit() as engine:
        (flow,) = engine.flows()
        eni, tunnel = claim(engine)
        answer = IP(src=SERVER, dst=str(flow.outside)) / UDP(sport=7, dport=flow.outside_port) / b"late"
        (back,) = engine.translate([(eni, bytes(answer))], now=memory.now)
        assert (back.verdict, back.link, IP(back.packet)[UDP].dport) == (Verdict.FORWARD, tunnel, flow.inside_port)
