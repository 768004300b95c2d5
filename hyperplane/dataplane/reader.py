"""Looking at an engine from another process: by its regions, mapped read-only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from hyperplane._native import lib
from hyperplane.dataplane import checks
from hyperplane.dataplane.config import EngineConfig
from hyperplane.dataplane.handle import Handle, given
from hyperplane.model import Counters, Flow

UINT32 = 0xFFFFFFFF


class Reader(Handle):
    """Sees what the engine's own methods see, while its process lives, hangs or is dead; it never waits for that.

    config and regions are the engine's (`Engine.config`, `Engine.regions()`); the descriptors may be closed afterwards.
    Links are known by number: note() gives a number its name. status().running is what the engine said last: of a dead
    process it stays true. After a successor has inherited the regions the same reader goes on. Raises InvalidValue,
    EngineError.
    """

    def __init__(self, config: EngineConfig, regions: Mapping[str, int]) -> None:
        table, count = given(regions)
        super().__init__(config, lambda block, error: lib.hp_reader_new(block, table, count, error))

    def note(self, number: int, name: str) -> None:
        """From when the link of that number was added it has this name, in flows and drops."""
        checks.integer("number of a link", number, 1, lib.HP_MAX_LINKS)
        checks.name("name of a link", name)
        with self._open() as engine:
            self._names.note(number, lib.hp_link_since(engine, number), name)

    def flows(self, *, tunnel: int | None = None) -> list[Flow]:
        """All flows, or those of one tunnel."""
        return list(self.scan(tunnel=tunnel))

    def scan(self, *, tunnel: int | None = None, after: int = -1) -> Iterator[Flow]:
        """As flows(), one after the other, those with a flow number (id & 0xFFFFFFFF) above `after`, in its order."""
        first = checks.integer("after", after, -1, UINT32 - 1) + 1
        return self._scan(-1 if tunnel is None else checks.integer("number of a tunnel", tunnel, 0, UINT32), first)

    def counters(self, number: int) -> Counters:
        """Counters of one link; EngineError when there is none of that number."""
        return self._counters(checks.integer("number of a link", number, 0, UINT32))

    def link_flows(self, number: int) -> int:
        """Live flows of a tunnel or an ENI, draining or not; 0 when there is none of that number."""
        with self._open() as engine:
            return lib.hp_link_flows(engine, checks.integer("number of a link", number, 0, UINT32))
