"""What an engine and a reader have in common: a C engine that is looked at from many threads, until it is closed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

from hyperplane._native import ffi, lib
from hyperplane.dataplane import checks, native
from hyperplane.dataplane.config import EngineConfig, compiled
from hyperplane.errors import EngineError, InvalidValue
from hyperplane.model import Counters, Drop, Flow, Memory, Status

ROOM = 1024  # records read at once
UINT64 = 0xFFFFFFFFFFFFFFFF


class Handle:
    """Owns an hp_engine. Every method may be called from any thread; none stops a worker or waits for one."""

    _config: EngineConfig

    def __init__(self, config: EngineConfig, make: Callable[[Any, Any], Any]) -> None:
        """make: from hp_config and hp_error to an engine or NULL."""
        block = compiled(checks.instance("config", config, EngineConfig))
        self._config = config
        self._lock = threading.RLock()
        self._names = native.Names()
        self._error = ffi.new("hp_error *")
        self._engine: Any = None
        engine = make(block, self._error)
        if not engine:
            native.fail(self._error, "engine")
        self._engine = ffi.gc(engine, lib.hp_engine_free)

    @property
    def config(self) -> EngineConfig:
        return self._config

    def close(self) -> None:
        """Frees everything; descriptors stay the caller's to close. May be called twice."""
        with self._lock:
            if self._engine is not None:
                engine, self._engine = self._engine, None
                ffi.release(engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def drops(self, *, after: int = 0) -> list[Drop]:
        """Records of the drop ring, oldest first, from the one numbered after + 1 on."""
        cursor = ffi.new("uint64_t *", checks.integer("after", after, 0, UINT64 >> 1))
        records = ffi.new("hp_drop[]", ROOM)
        return [
            native.drop(records[i], self._names)
            for count in self._read(lib.hp_drops, cursor, records)
            for i in range(count)
        ]

    def status(self) -> Status:
        with self._open() as engine:
            block = ffi.new("hp_status *")
            lib.hp_engine_status(engine, block)
            return native.status(block)

    def memory(self) -> Memory:
        with self._open() as engine:
            block = ffi.new("hp_memory *")
            lib.hp_engine_memory(engine, block)
            return native.memory(block)

    # Within

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """The C engine, which cannot be closed meanwhile: calls take turns. The worker waits for nobody."""
        with self._lock:
            if self._engine is None:
                what = type(self).__name__
                raise EngineError(f"the {what.lower()} is closed", resource=what.lower(), remedy=f"make a new {what}")
            yield self._engine

    def _read(self, read: Callable[[Any, Any, Any, int], int], cursor: Any, records: Any) -> Iterator[int]:
        """Fills records again and again; gives how many. Others may call meanwhile: a million flows take their time."""
        while True:
            with self._open() as engine:
                count = read(engine, cursor, records, ROOM)
            if not count:
                return
            yield count

    def _flows(self, number: int) -> list[Flow]:
        """All flows, or those of the tunnel with that link number; -1 for all."""
        return list(self._scan(number, 0))

    def _scan(self, number: int, first: int) -> Iterator[Flow]:
        """As _flows(), by flow number (id & 0xFFFFFFFF), from the first on; those that nobody asks for cost nothing."""
        records = ffi.new("hp_flow_info[]", ROOM)
        for count in self._read(lib.hp_flows, ffi.new("uint32_t *", first), records):
            for i in range(count):
                if number in (-1, records[i].tunnel):
                    yield native.flow(records[i], self._names)

    def _counters(self, number: int) -> Counters:
        with self._open() as engine:
            block = ffi.new("hp_counters *")
            if lib.hp_link_counters(engine, number, block, self._error):
                native.fail(self._error, f"link {number}")
            return native.counters(block)


def given(regions: Mapping[str, int]) -> tuple[Any, int]:
    """hp_region_fd[] and its length; raises InvalidValue."""
    if not isinstance(regions, Mapping):
        raise InvalidValue(f"regions is {regions!r}", resource="regions", remedy="give what Engine.regions() gave")
    table = ffi.new("hp_region_fd[]", max(len(regions), 1))
    for entry, (name, fd) in zip(table, regions.items(), strict=False):
        raw = checks.name("name of a region", name).encode()
        if len(raw) >= lib.HP_REGION_NAME:
            limit = f"{lib.HP_REGION_NAME - 1} bytes"
            raise InvalidValue(f"name of a region is {name}", resource="regions", limit=limit)
        entry.name = raw
        entry.fd = checks.integer(f"descriptor of {name}", fd, 0, 0x7FFFFFFF)
    return table, len(regions)
