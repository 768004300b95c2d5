"""A store in memory, for tests of what is kept."""

from __future__ import annotations

from collections.abc import Iterable
from types import MappingProxyType
from typing import Any

from hyperplane.errors import StoreError
from hyperplane.store import Change, Record


class Memory:
    """A store that refuses when it is told to."""

    notices = ()
    begun = True
    meta = MappingProxyType[str, str]({})

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {}
        self.refuses = False

    def set_meta(self, key: str, value: str) -> None: ...

    def load(self) -> list[Record]:
        return []

    def commit(self, changes: Iterable[Change]) -> None:
        if self.refuses:
            raise StoreError("the disk is full")
        for change in changes:
            if change.resource is None:
                self.kept.pop(change.id, None)
            else:
                self.kept[change.id] = change.resource

    def close(self) -> None: ...
