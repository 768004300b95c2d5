"""The kernel's program and the engine decide alike which worker a packet from outside is for."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet

from hyperplane.dataplane import Engine, Eni
from hyperplane.linux import steering

from .support import ALL

ADDRESSES = (*tuple(IPv4Address(f"198.19.0.{number}") for number in range(5, 12)), IPv4Address("240.0.0.1"))
ENI_ADDRESSES = (*ADDRESSES[:7], IPv4Address("203.0.113.200"))
WORKERS = 16


@dataclass
class Both:
    engine: Engine
    eni: Eni
    program: int

    def agree(self, packet: bytes) -> int:
        worker = self.engine.worker_of(self.eni, packet)
        assert steering.decide(self.program, packet) == worker
        return worker


@pytest.fixture(scope="module")
def both() -> Iterator[Both]:
    program, table = steering.load(ENI_ADDRESSES)
    with Engine(workers=WORKERS, max_flows=16, max_links=4, huge_pages=False) as engine:
        eni = engine.add_eni(ENI_ADDRESSES, name="eni0", steering=table, security_groups=ALL)
        os.close(table)  # the map is enough
        yield Both(engine, eni, program)
    os.close(program)


ports = some.integers(0, 65535)
addresses = some.sampled_from([str(one) for one in (*ENI_ADDRESSES, *ADDRESSES, IPv4Address("192.0.2.9"))])
options = some.sampled_from([b"", b"\x01" * 4, b"\x07\x07\x04" + bytes(5), b"\x01" * 40])


@some.composite
def transports(draw: some.DrawFn) -> Packet:
    kind = draw(some.integers(0, 3))
    if kind == 0:
        return UDP(sport=draw(ports), dport=draw(ports))
    if kind == 1:
        return TCP(sport=draw(ports), dport=draw(ports))
    return ICMP(type=draw(some.sampled_from([0, 8, 5, 3, 11, 12, 13])), id=draw(ports))


@some.composite
def packets(draw: some.DrawFn) -> bytes:
    """Most are of flows, quoting others or not; some are cut short, some have a byte changed."""
    header = IP(src="192.0.2.1", dst=draw(addresses), options=draw(options), frag=draw(some.sampled_from([0, 0, 0, 5])))
    header.flags = draw(some.sampled_from(["DF", "", "MF"]))
    transport = draw(transports())
    if isinstance(transport, ICMP) and transport.type in (3, 11, 12):
        quoted = IP(src=draw(addresses), dst="192.0.2.1", options=draw(options)) / draw(transports())
        transport = ICMP(type=transport.type) / bytes(quoted)[: draw(some.integers(0, 100))]
    data = bytearray(bytes(header / transport))
    if draw(some.booleans()):
        data[draw(some.integers(0, len(data) - 1))] = draw(some.integers(0, 255))
    if draw(some.booleans()):
        del data[draw(some.integers(0, len(data))) :]
    return bytes(data)


@settings(max_examples=3000, deadline=None)
@given(packet=packets())
def test_every_packet_is_steered_as_the_engine_would(both: Both, packet: bytes) -> None:
    if packet:  # the kernel takes no empty one
        both.agree(packet)


@pytest.mark.parametrize("index", range(8))
def test_every_slice_of_every_address(both: Both, index: int) -> None:
    seen = {
        both.agree(bytes(IP(src="192.0.2.1", dst=str(ENI_ADDRESSES[index])) / UDP(dport=1024 * slice_ + 5)))
        for slice_ in range(64)
    }
    assert seen == set(range(WORKERS))


def test_a_lease_that_is_taken_later_is_steered_too(both: Both) -> None:
    """One worker fills its slices: those that it gets are its own for the kernel too."""
    with Engine(workers=2, max_flows=140_000, max_links=4, huge_pages=False, seed=1) as engine:
        program, table = steering.load(ENI_ADDRESSES[:1])
        eni = engine.add_eni(ENI_ADDRESSES[:1], name="eni0", steering=table, security_groups=ALL)
        tunnel = engine.add_tunnel(eni, name="one", address="198.18.0.2")
        out = IP(src="198.18.0.2", dst="192.0.2.1")
        sent = [(tunnel, bytes(out / TCP(sport=port, dport=80, flags="S"))) for port in range(1, 20_000)]
        engine.translate(sent)
        pair = Both(engine, eni, program)
        for flow in engine.flows():
            answer = IP(src="192.0.2.1", dst=str(flow.outside)) / TCP(sport=80, dport=flow.outside_port)
            if flow.outside_port % 64 == 0:
                assert pair.agree(bytes(answer)) == 0
        os.close(program)
        os.close(table)


def test_the_map_needs_no_privilege(both: Both) -> None:
    """What the engine does after it has dropped them all: maps a descriptor that it was given, and stores."""
    program, table = steering.load(ENI_ADDRESSES)
    os.close(program)
    child = os.fork()
    if child == 0:
        try:
            os.setresuid(65534, 65534, 65534)
            with mmap.mmap(table, 4096) as mapped:
                ctypes.c_uint64.from_buffer(mapped).value = 7
        except BufferError:  # the map outlives its view
            os._exit(0)
        except BaseException:
            os._exit(1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with mmap.mmap(table, 4096, access=mmap.ACCESS_READ) as mapped:
        assert mapped[0] == 7
    os.close(table)


def test_refused_means_unsteered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steering, "BPF_CALLS", {})
    assert steering.steer(0, ENI_ADDRESSES) == -1
