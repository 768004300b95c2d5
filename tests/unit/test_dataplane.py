"""The binding: every value is checked before C sees it, every error is one line, and C's names are Python's."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from hyperplane import model
from hyperplane._native import ffi, lib
from hyperplane.dataplane import Engine, Eni, Rule, SecurityGroup, Timers, Verdict, io_engines, native, now
from hyperplane.errors import AddressInUse, DeviceError, EngineError, InvalidValue, NotATunnel

SMALL: dict[str, Any] = {"max_flows": 256, "max_links": 16, "max_addresses": 8, "huge_pages": False, "seed": 1}
ALL = [SecurityGroup.parse("all", ["all"])]
# A UDP datagram 198.18.0.2:1 -> 198.19.0.80:7 without checksum.
DATAGRAM = bytes.fromhex("4500001c000040004011ae59c6120002c61300500001000700080000")


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(**SMALL) as made:
        yield made


@pytest.fixture
def eni(engine: Engine) -> Eni:
    return engine.add_eni("198.19.0.5", name="eni0", security_groups=ALL)


def one_line(error: BaseException) -> str:
    text = str(error)
    assert text
    assert "\n" not in text
    return text


# What C says


def test_reasons_are_those_of_c() -> None:
    names = [ffi.string(lib.hp_reason_name(number)).decode() for number in range(lib.HP_REASON_COUNT)]
    assert names == [str(reason) for reason in model.Reason]
    assert ffi.string(lib.hp_reason_name(lib.HP_REASON_COUNT)) == b""
    assert ffi.string(lib.hp_reason_name(-1)) == b""


def test_io_engines_are_those_of_c() -> None:
    assert list(io_engines()) == ["io_uring", "epoll"]
    assert io_engines()["epoll"] == ""
    for name, number in native.IO.items():
        assert ffi.string(lib.hp_io_name(number)).decode() == name


def test_clock_is_boottime_in_milliseconds() -> None:
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    assert before <= now() <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


def test_default_timers_are_those_of_c(engine: Engine) -> None:
    """hp_timers: 0 stands for the default, which is the one that Timers() gives."""
    config = ffi.new("hp_eni_config *", {"addresses": [0xC6130005], "address_count": 1, "mtu": 1500})
    native.set_timers(config.timers, Timers())
    assert config.timers.tcp_established == 7_440_000
    assert config.timers.dns == 30_000


# Values


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("max_flows", [0, -1, 33_554_431, 1.5, "1", None, True]),
        ("max_mappings", [-1, 33_554_431]),
        ("max_links", [0, 1, 16_777_215]),
        ("max_addresses", [0, 65_537]),
        ("io", ["uring", "", None, 1]),
        ("buffers", [0, 1, 63, 100, 65_536]),
        ("drop_records", [0, 1 << 25]),
        ("refusal_rate", [0, 1_000_001]),
        ("port_quarantine", [0, -1, 1e9, "30", float("nan")]),
        ("huge_pages", [1, None]),
        ("spin", [-1, 1001, 1.5]),
        ("seed", [-1, 1 << 64]),
        ("workers", [0, 17, "2", None]),
        ("pin", ["x", "3-1", "0-16", "1024", "-1", ",", "0,", None, 0]),
    ],
)
def test_engine_options_are_checked(option: str, values: list[Any]) -> None:
    for value in values:
        with pytest.raises(InvalidValue) as caught:
            Engine(**{**SMALL, option: value})
        assert option in one_line(caught.value)


def test_the_smallest_engine_works() -> None:
    with Engine(max_flows=1, max_links=2, max_addresses=1, buffers=64, drop_records=1, huge_pages=False) as engine:
        eni = engine.add_eni("198.19.0.5", name="e", security_groups=ALL)
        tunnel = engine.add_tunnel(eni, name="t", address="198.18.0.2")
        assert engine.translate([(tunnel, DATAGRAM)])[0].verdict == Verdict.FORWARD


def workers() -> dict[str, set[int]]:
    """The workers of this process and the CPUs that each may run on."""
    found = {}
    for task in Path("/proc/self/task").iterdir():
        name = (task / "comm").read_text().strip()
        if name.startswith("hp-worker-"):
            found[name] = os.sched_getaffinity(int(task.name))
    return found


def test_workers_are_threads_that_can_be_pinned() -> None:
    anywhere = os.sched_getaffinity(0)
    first, last = min(anywhere), max(anywhere)
    with Engine(**SMALL, workers=3, pin=f"{last},{first}") as engine:
        engine.start()
        assert workers() == {"hp-worker-0": {last}, "hp-worker-1": {first}, "hp-worker-2": {last}}
        engine.stop()
        assert workers() == {}
    with Engine(**SMALL, workers=2) as engine:
        engine.start()
        assert workers() == {"hp-worker-0": anywhere, "hp-worker-1": anywhere}
        assert len(engine.status().workers) == 2


def test_a_cpu_that_is_not_there() -> None:
    with Engine(**SMALL, workers=2, pin=f"{min(os.sched_getaffinity(0))},1023") as engine:
        with pytest.raises(EngineError, match="worker 1 cannot run on CPU 1023"):
            engine.start()
        assert workers() == {}
        assert not engine.status().running


BAD_ADDRESSES = [
    "",
    "198.19.0",
    "198.19.0.256",
    "198.19.0.5/24",
    "2001:db8::1",
    "eni0",
    None,
    3,
    b"\xc6\x13\0\5",
    "0.0.0.0",
    "0.1.2.3",
    "127.0.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
]


@pytest.mark.parametrize("address", BAD_ADDRESSES)
def test_addresses_are_checked(engine: Engine, eni: Eni, address: Any) -> None:
    with pytest.raises(InvalidValue) as caught:
        engine.add_tunnel(eni, name="t", address=address)
    assert "t" in one_line(caught.value)
    for given in ([address], ["198.19.0.6", address]):
        with pytest.raises(InvalidValue) as caught:
            engine.add_eni(given, name="eni1")
        assert "eni1" in one_line(caught.value)
    assert (engine.enis, engine.tunnels) == ((eni,), ())


@pytest.mark.parametrize(
    "addresses", [[], ["198.19.0.5", "198.19.0.5"], [f"198.19.0.{number}" for number in range(1, 10)], 7]
)
def test_an_eni_has_one_to_eight_different_addresses(engine: Engine, addresses: Any) -> None:
    with pytest.raises(InvalidValue):
        engine.add_eni(addresses, name="eni0")


@pytest.mark.parametrize(
    "values",
    [
        {"name": ""},
        {"name": " a"},
        {"name": "a\nb"},
        {"name": "a\x1b[31m"},
        {"name": "x" * 201},
        {"name": None},
        {"mtu": 575},
        {"mtu": 65_536},
        {"mtu": "1500"},
        {"fd": -2},
        {"fd": 1 << 31},
        {"fd": None},
        {"udp_mapping": "symmetric"},
        {"silent": 1},
        {"timers": {"udp": 1}},
        {"security_groups": ["tcp/80"]},
        {"security_groups": 3},
        {"security_groups": [SecurityGroup("")]},
        {"security_groups": [SecurityGroup("a", ("tcp/80",))]},  # type: ignore[arg-type]
        {"security_groups": [SecurityGroup("a", tuple([Rule("all")] * 1025))]},
        {"security_groups": [SecurityGroup("a", tuple([Rule("all")] * 600))] * 2},
    ],
)
def test_values_of_an_eni_are_checked(engine: Engine, values: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue) as caught:
        engine.add_eni("198.19.0.5", **{"name": "eni0", **values})
    one_line(caught.value)
    assert engine.enis == ()


@pytest.mark.parametrize(
    "values",
    [
        {"name": ""},
        {"mtu": 575},
        {"max_flows": -1},
        {"max_flows": 33_554_431},
        {"fd": -2},
        {"eni": None},
        {"eni": 1},
    ],
)
def test_values_of_a_tunnel_are_checked(engine: Engine, eni: Eni, values: dict[str, Any]) -> None:
    arguments = {"eni": eni, "name": "t", "address": "198.18.0.2", **values}
    with pytest.raises(InvalidValue) as caught:
        engine.add_tunnel(arguments.pop("eni"), **arguments)
    one_line(caught.value)
    assert engine.tunnels == ()


def test_an_environment_cannot_have_its_enis_address(engine: Engine) -> None:
    eni = engine.add_eni(["198.19.0.5", "198.19.0.6"], name="eni0")
    with pytest.raises(AddressInUse, match=r"198\.19\.0\.6 is an address of ENI eni0"):
        engine.add_tunnel(eni, name="t", address="198.19.0.6")


def test_names_are_unique_within_an_eni(engine: Engine, eni: Eni) -> None:
    first = engine.add_tunnel(eni, name="t", address="198.18.0.2")
    with pytest.raises(InvalidValue, match="t"):
        engine.add_tunnel(eni, name="t", address="198.18.0.3")
    other = engine.add_eni("198.19.0.5", name="eni0")
    engine.add_tunnel(other, name="t", address="198.18.0.2")
    engine.remove(first)
    engine.add_tunnel(eni, name="t", address="198.18.0.2")


# Descriptors


def bad_descriptors() -> list[tuple[str, Callable[[], int]]]:
    def closed() -> int:
        fd = os.open("/dev/null", os.O_RDWR)
        os.close(fd)
        return fd

    return [
        ("closed", closed),
        ("/dev/null", lambda: os.open("/dev/null", os.O_RDWR)),
        ("pipe", lambda: os.pipe()[0]),
        ("directory", lambda: os.open("/", os.O_RDONLY)),
        ("memfd", lambda: os.memfd_create("no-tunnel")),
    ]


@pytest.mark.parametrize(("what", "make"), bad_descriptors(), ids=[what for what, _ in bad_descriptors()])
def test_a_descriptor_that_is_no_tun_is_refused(engine: Engine, eni: Eni, what: str, make: Callable[[], int]) -> None:
    fd = make()
    for add in (
        lambda: engine.add_eni("198.19.0.6", name="eni1", fd=fd),
        lambda: engine.add_tunnel(eni, name="t", address="198.18.0.2", fd=fd),
    ):
        with pytest.raises(NotATunnel) as caught:
            add()
        assert isinstance(caught.value, DeviceError)
        assert str(fd) in one_line(caught.value), what
    if what != "closed":
        os.close(fd)
    assert (engine.enis, engine.tunnels) == ((eni,), ())


# Links


def test_links_say_what_they_are(engine: Engine) -> None:
    eni = engine.add_eni(
        ["198.19.0.5", "198.19.0.6"], name="eni0", mtu=1400, timers=Timers(udp=120), silent=True, security_groups=ALL
    )
    tunnel = engine.add_tunnel(eni, name="env", address="198.18.0.2", mtu=1300, max_flows=7)
    assert [str(address) for address in eni.addresses] == ["198.19.0.5", "198.19.0.6"]
    assert (eni.name, eni.mtu, eni.silent, eni.timers.udp, eni.udp_mapping) == (
        "eni0",
        1400,
        True,
        120,
        "endpoint-independent",
    )
    assert eni.security_groups == tuple(ALL)
    assert (tunnel.eni, tunnel.name, str(tunnel.address), tunnel.mtu, tunnel.max_flows) == (
        eni,
        "env",
        "198.18.0.2",
        1300,
        7,
    )
    assert (engine.enis, engine.tunnels) == ((eni,), (tunnel,))
    assert tunnel.number != eni.number
    with pytest.raises(AttributeError):
        tunnel.mtu = 1  # type: ignore[misc]


def test_groups_can_be_replaced(engine: Engine, eni: Eni) -> None:
    groups = [SecurityGroup.parse("a", ["tcp/80"]), SecurityGroup.parse("b", ["udp"])]
    engine.set_security_groups(eni, iter(groups))
    assert eni.security_groups == tuple(groups)
    with pytest.raises(InvalidValue):
        engine.set_security_groups(eni, [SecurityGroup("a", tuple([Rule("all")] * 1025))])
    assert eni.security_groups == tuple(groups)
    engine.set_security_groups(eni, [SecurityGroup("a", tuple([Rule("all")] * 1024))])


def test_an_eni_in_use_is_not_removed_and_its_holders_are_named(engine: Engine, eni: Eni) -> None:
    tunnels = [engine.add_tunnel(eni, name=f"env-{number}", address="198.18.0.2") for number in range(7)]
    with pytest.raises(EngineError, match=r"ENI eni0 is in use by tunnels: env-0, .*env-4 and 2 more"):
        engine.remove(eni)
    for tunnel in tunnels:
        engine.remove(tunnel)
    engine.remove(eni)
    assert (engine.enis, engine.tunnels) == ((), ())


def test_links_that_are_gone_or_foreign_are_refused(engine: Engine, eni: Eni) -> None:
    tunnel = engine.add_tunnel(eni, name="t", address="198.18.0.2")
    with Engine(**SMALL) as other:
        foreign_eni = other.add_eni("198.19.0.5", name="foreign", security_groups=ALL)
        foreign = other.add_tunnel(foreign_eni, name="foreign", address="198.18.0.2")
        engine.remove(tunnel)
        for link in (tunnel, foreign, foreign_eni, None, "t", 1):
            given: Any = link
            with pytest.raises(InvalidValue) as caught:
                engine.remove(given)
            one_line(caught.value)
            with pytest.raises(InvalidValue):
                engine.translate([(given, b"")])
        with pytest.raises(InvalidValue):
            engine.add_tunnel(foreign_eni, name="x", address="198.18.0.2")
        with pytest.raises(InvalidValue):
            engine.set_security_groups(foreign_eni, [])
        with pytest.raises(InvalidValue):
            engine.counters(tunnel)
        with pytest.raises(InvalidValue):
            engine.flows(tunnel=eni)  # type: ignore[arg-type]


def test_limits_name_the_option_to_raise() -> None:
    with Engine(**{**SMALL, "max_links": 3, "max_addresses": 2}) as engine:
        eni = engine.add_eni("198.19.0.5", name="eni0")
        with pytest.raises(EngineError, match="max_addresses"):
            engine.add_eni(["198.19.0.6", "198.19.0.7"], name="eni1")
        engine.add_tunnel(eni, name="a", address="198.18.0.2")
        engine.add_tunnel(eni, name="b", address="198.18.0.2")
        with pytest.raises(EngineError, match="max_links"):
            engine.add_tunnel(eni, name="c", address="198.18.0.2")
        with pytest.raises(EngineError, match="max_links"):
            engine.add_eni("198.19.0.8", name="eni2")
        assert len(engine.enis) + len(engine.tunnels) == 3


# Packets


@pytest.mark.parametrize("arguments", [{"now": -1}, {"now": 1 << 63}, {"now": 1.5}, {"spare": -1}, {"spare": 1 << 20}])
def test_translate_checks_its_arguments(engine: Engine, eni: Eni, arguments: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        engine.translate([(eni, b"")], **arguments)


def test_a_packet_larger_than_any_buffer_is_an_error(engine: Engine, eni: Eni) -> None:
    with pytest.raises(InvalidValue, match="69632"):
        engine.translate([(eni, bytes(69_632 - 9))])
    assert engine.translate([(eni, bytes(69_632 - 10))])[0].reason == "truncated"


def test_no_packets_and_many(engine: Engine, eni: Eni) -> None:
    tunnel = engine.add_tunnel(eni, name="t", address="198.18.0.2")
    assert engine.translate([]) == []
    results = engine.translate((tunnel, DATAGRAM) for _ in range(1000))
    assert {result.verdict for result in results} == {Verdict.FORWARD}
    assert {type(result.packet) for result in results} == {bytes}
    assert engine.flows()[0].packets_out == 1000


def test_packets_may_be_any_bytes_like(engine: Engine, eni: Eni) -> None:
    tunnel = engine.add_tunnel(eni, name="t", address="198.18.0.2")
    for data in (bytearray(DATAGRAM), memoryview(DATAGRAM)):
        assert engine.translate([(tunnel, data)])[0].verdict == Verdict.FORWARD  # type: ignore[list-item]
    assert bytes(DATAGRAM) == DATAGRAM


def test_c_refuses_what_the_binding_never_sends(engine: Engine, eni: Eni) -> None:
    """hp_translate() checks link numbers and lengths itself too."""
    error, buffer = ffi.new("hp_error *"), ffi.new("uint8_t[]", 64)
    for link, length, capacity in ((0, 40, 64), (4_000_000_000, 40, 64), (eni.number, 65, 64)):
        packet = ffi.new("hp_packet[]", [{"data": buffer, "length": length, "capacity": capacity, "link": link}])
        assert lib.hp_translate(engine._engine, packet, 1, now(), error) == -1
        assert ffi.string(error.text)


# Life


def test_closing_twice_is_fine_and_anything_after_says_so(engine: Engine, eni: Eni) -> None:
    tunnel = engine.add_tunnel(eni, name="t", address="198.18.0.2")
    engine.close()
    engine.close()
    calls: list[Callable[[], object]] = [
        engine.start,
        engine.stop,
        engine.flows,
        engine.drops,
        engine.counters,
        engine.status,
        engine.memory,
        engine.sweep,
        lambda: engine.translate([(tunnel, DATAGRAM)]),
        lambda: engine.add_eni("198.19.0.5", name="e"),
        lambda: engine.add_tunnel(eni, name="u", address="198.18.0.2"),
        lambda: engine.remove(tunnel),
        lambda: engine.set_security_groups(eni, []),
    ]
    for call in calls:
        with pytest.raises(EngineError, match="closed"):
            call()
    assert (engine.enis, engine.tunnels) == ((), ())


def test_an_engine_nobody_closed_frees_itself() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(20):
        Engine(**SMALL)
    assert len(os.listdir("/proc/self/fd")) - before < 20
    engine = Engine(**SMALL)
    engine.start()
    del engine
    assert not [thread for thread in threads() if thread == "hp-worker"]


def threads() -> list[str]:
    names = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/comm", encoding="ascii") as comm:
            names.append(comm.read().strip())
    return names


@pytest.mark.parametrize("io", ["epoll", "auto"])
def test_start_and_stop(io: Any) -> None:
    with Engine(**SMALL, io=io) as engine:
        eni = engine.add_eni("198.19.0.5", name="eni0", security_groups=ALL)
        tunnel = engine.add_tunnel(eni, name="t", address="198.18.0.2")
        for _ in range(3):
            engine.start()
            status = engine.status()
            assert status.running
            assert status.io == (io if io == "epoll" else next(name for name, why in io_engines().items() if not why))
            with pytest.raises(EngineError, match="running"):
                engine.start()
            with pytest.raises(EngineError, match="running"):
                engine.translate([(tunnel, DATAGRAM)])
            with pytest.raises(EngineError, match="running"):
                engine.sweep()
            engine.stop()
            engine.stop()
            assert (engine.status().running, engine.status().io) == (False, "none")
            assert engine.translate([(tunnel, DATAGRAM)])[0].verdict == Verdict.FORWARD
        engine.start()
    assert "hp-worker" not in threads()


def test_flows_outlive_a_stop(engine: Engine, eni: Eni) -> None:
    tunnel = engine.add_tunnel(eni, name="t", address="198.18.0.2")
    engine.translate([(tunnel, DATAGRAM)])
    (before,) = engine.flows()
    engine.start()
    assert engine.flows() == [before]
    engine.stop()
    assert engine.flows() == [before]


def test_changes_from_many_threads_while_the_worker_runs() -> None:
    """Each change is carried out when its call returns; readers never stop the worker."""
    with Engine(**{**SMALL, "max_links": 64}) as engine:
        eni = engine.add_eni("198.19.0.5", name="eni0", security_groups=ALL)
        engine.start()
        stop = threading.Event()

        def look() -> int:
            looks = 0
            while not stop.is_set():
                assert engine.flows() == []
                engine.counters()
                engine.drops()
                engine.status()
                looks += 1
            return looks

        def change(number: int) -> None:
            for turn in range(20):
                tunnel = engine.add_tunnel(eni, name=f"env-{number}-{turn}", address="198.18.0.2")
                assert tunnel in engine.tunnels
                engine.set_security_groups(eni, ALL)
                engine.remove(tunnel)

        with ThreadPoolExecutor(5) as pool:
            looker = pool.submit(look)
            changes = [pool.submit(change, number) for number in range(2)]
            try:
                for one in changes:
                    one.result(timeout=60)
            finally:
                stop.set()
            assert looker.result(timeout=60) > 0
        assert engine.tunnels == ()


def test_closing_while_others_look_is_safe() -> None:
    """A call that comes too late gets "closed", never freed memory."""
    for _ in range(10):
        engine = Engine(**SMALL)
        engine.start()
        started = threading.Barrier(3)

        def look(engine: Engine = engine, started: threading.Barrier = started) -> None:
            started.wait(timeout=30)
            while True:
                engine.status()
                engine.flows()

        with ThreadPoolExecutor(2) as pool:
            lookers = [pool.submit(look) for _ in range(2)]
            started.wait(timeout=30)
            engine.close()
            for looker in lookers:
                with pytest.raises(EngineError, match="closed"):
                    looker.result(timeout=60)


def test_memory_is_told(engine: Engine) -> None:
    memory = engine.memory()
    assert memory.regions > 5
    assert memory.huge_bytes == 0
    with Engine(**{**SMALL, "max_flows": 100_000}) as larger:
        grown = larger.memory()
        assert 128 < grown.bytes_per_flow < 200
        assert grown.bytes > memory.bytes
