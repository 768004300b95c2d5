"""What a store is, whatever it is made of: records of resources, and a few words about the host (meta)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import msgspec

from hyperplane.resources import Kind, Resource


class Record(msgspec.Struct, frozen=True):
    """A resource as it was kept, and what the control plane keeps with it."""

    kind: Kind
    id: str
    resource: Resource
    internals: dict[str, Any]


class Change(Protocol):
    """resource None: forget it. hyperplane.control's Put and Delete are such."""

    @property
    def kind(self) -> Kind: ...
    @property
    def id(self) -> str: ...
    @property
    def resource(self) -> Resource | None: ...
    @property
    def internals(self) -> dict[str, Any]: ...


class Store(Protocol):
    """One writer; calls may come from any thread, one at a time. All raise StoreError, and then nothing was kept."""

    @property
    def notices(self) -> tuple[str, ...]:
        """What the administrator should know about how the store was found."""

    @property
    def begun(self) -> bool:
        """Whether it was empty: it has just been made, or begun anew."""

    @property
    def meta(self) -> Mapping[str, str]:
        """boot_id: of the host's boot during which the store was written last; schema: its version."""

    def set_meta(self, key: str, value: str) -> None: ...

    def load(self) -> list[Record]:
        """Everything, in no order."""

    def commit(self, changes: Iterable[Change]) -> None:
        """All of it or nothing."""

    def close(self) -> None: ...
