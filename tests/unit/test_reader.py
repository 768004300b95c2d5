"""EngineConfig, regions, inheritance and readers: what is handed over, and what is refused with which words."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from hyperplane.dataplane import Engine, EngineConfig, Reader, SecurityGroup
from hyperplane.errors import EngineError, InvalidValue

SMALL = EngineConfig(max_flows=64, max_links=8, max_addresses=2, drop_records=64, huge_pages=False)
OPTIONS = {name: getattr(SMALL, name) for name in SMALL.__struct_fields__}


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine(**OPTIONS) as made:
        yield made


def open_both(config: Any, regions: Any) -> Iterator[Any]:
    """A successor and a reader are told the same."""
    for make in (Engine.inherit, Reader):
        try:
            made = make(config, regions)
        except (EngineError, InvalidValue) as error:
            yield error
        else:
            made.close()
            yield None


def test_config_has_every_option_of_the_engine(engine: Engine) -> None:
    parameters = inspect.signature(Engine).parameters
    assert {name: parameter.default for name, parameter in parameters.items()} == {
        name: getattr(EngineConfig(), name) for name in EngineConfig.__struct_fields__
    }
    assert engine.config == SMALL


def test_config_can_be_sent(engine: Engine) -> None:
    for codec in (msgspec.json, msgspec.msgpack):
        assert codec.decode(codec.encode(engine.config), type=EngineConfig) == SMALL


def test_regions_are_named_descriptors(engine: Engine) -> None:
    regions = engine.regions()
    assert len(regions) == engine.memory().regions == 16
    assert sum(os.fstat(fd).st_size for fd in regions.values()) == engine.memory().bytes
    assert {os.readlink(f"/proc/self/fd/{fd}") for fd in regions.values()} == {
        f"/memfd:{name} (deleted)" for name in regions
    }
    assert not any(os.get_inheritable(fd) for fd in regions.values())


def test_descriptors_are_duplicated(engine: Engine) -> None:
    """Those that were given may be closed at once; a reader keeps none at all."""
    engine.add_eni("198.19.0.5", name="eni0")
    regions = {name: os.dup(fd) for name, fd in engine.regions().items()}
    open_before = len(os.listdir("/proc/self/fd"))
    with Reader(SMALL, regions) as reader:
        assert len(os.listdir("/proc/self/fd")) == open_before
        engine.close()
        successor = Engine.inherit(SMALL, regions)
        for fd in regions.values():
            os.close(fd)
        assert reader.memory() == successor.memory()
        assert successor.claim_eni(1, "198.19.0.5", name="eni0").number == 1
        successor.close()
        assert reader.counters(1).packets_in == 0


def test_other_options_may_differ(engine: Engine) -> None:
    """The tables' sizes are fixed; how they are worked on is the successor's own."""
    config = msgspec.structs.replace(SMALL, io="epoll", buffers=64, refusal_rate=7, port_quarantine=1.0, seed=3)
    with Engine.inherit(config, engine.regions()) as successor:
        assert successor.config == config


@pytest.mark.parametrize("field", ["max_flows", "max_links", "max_addresses", "drop_records", "max_mappings"])
def test_other_sizes_are_refused(engine: Engine, field: str) -> None:
    other = msgspec.structs.replace(SMALL, **{field: 200})
    for error in open_both(other, engine.regions()):
        assert isinstance(error, EngineError)
        assert f"{field} 64" in str(error) or f"{field} {getattr(SMALL, field)}" in str(error)
        assert "give the same configuration" in str(error)


def test_regions_that_are_no_engines(engine: Engine) -> None:
    regions = engine.regions()
    short = os.memfd_create("short", os.MFD_ALLOW_SEALING)
    null = os.open("/dev/null", os.O_RDWR)
    try:
        for given, problem in (
            ({}, "hp-shared is missing"),
            ({name: fd for name, fd in regions.items() if name != "hp-links"}, "hp-links is missing"),
            (regions | {"hp-flows": null}, "is no memory of an engine"),
            (regions | {"hp-flows": short}, "is not sealed"),
            (regions | {"hp-flows": regions["hp-drops"]}, "one and the same memory"),
            (regions | {"hp-flows": 9999}, "descriptor 9999"),
            (regions | {"hp-more": short}, "17 regions were given"),
        ):
            for error in open_both(SMALL, given):
                assert isinstance(error, EngineError)
                assert problem in str(error)
    finally:
        os.close(short)
        os.close(null)


def test_values_that_cannot_be_right(engine: Engine) -> None:
    regions = engine.regions()
    for config, given, problem in (
        (SMALL, None, "regions is None"),
        (SMALL, ["hp-flows"], "give what Engine.regions() gave"),
        (SMALL, {"hp-flows": -1}, "descriptor of hp-flows is -1"),
        (SMALL, {"hp-flows": "3"}, "descriptor of hp-flows is '3'"),
        (SMALL, {"x" * 32: 3}, "31 bytes"),
        (SMALL, {3: 3}, "name of a region is 3"),
        ({"max_flows": 64}, regions, "EngineConfig"),
        (EngineConfig(max_flows=0), regions, "max_flows is 0"),
        (EngineConfig(io="select"), regions, "io is 'select'"),  # type: ignore[arg-type]
    ):
        for error in open_both(config, given):
            assert isinstance(error, InvalidValue), error
            assert problem in str(error)


def test_reader_of_links(engine: Engine) -> None:
    eni = engine.add_eni("198.19.0.5", name="eni0", security_groups=[SecurityGroup.parse("all", ["all"])])
    tunnel = engine.add_tunnel(eni, name="t", address="198.18.0.2")
    with Reader(engine.config, engine.regions()) as reader:
        assert (reader.counters(1), reader.counters(2)) == (engine.counters(eni), engine.counters(tunnel))
        assert (reader.link_flows(1), reader.link_flows(7), reader.link_flows(2**32 - 1)) == (0, 0, 0)
        with pytest.raises(EngineError, match="there is no link 3"):
            reader.counters(3)
        for wrong in (-1, 2**32, True, "1"):
            with pytest.raises(InvalidValue):
                reader.counters(wrong)  # type: ignore[arg-type]
            with pytest.raises(InvalidValue):
                reader.flows(tunnel=wrong)  # type: ignore[arg-type]
        with pytest.raises(InvalidValue):
            reader.note(0, "x")
        with pytest.raises(InvalidValue):
            reader.note(1, "")
        engine.remove(tunnel)
        engine.sweep()
        with pytest.raises(EngineError):
            reader.counters(2)


def test_closed_reader_says_so(engine: Engine) -> None:
    reader = Reader(engine.config, engine.regions())
    reader.close()
    reader.close()
    with pytest.raises(EngineError, match="the reader is closed; make a new Reader"):
        reader.flows()
