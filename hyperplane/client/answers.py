"""What the daemon tells about itself, and pages of lists: the client's copies of what the API answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, Literal, TypeVar

import msgspec

from hyperplane.model import Counters, Memory, Status
from hyperplane.resources import Kind, Page

T = TypeVar("T")


class Listed(Page, Generic[T], frozen=True, kw_only=True):
    """A page whose items are of one class; iterating it gives them."""

    items: tuple[T, ...]

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """reasons: what does not work, when status is degraded."""

    status: Literal["ok", "degraded"]
    version: str
    instance: str
    reasons: tuple[str, ...] = ()


class EngineProcess(msgspec.Struct, frozen=True, kw_only=True):
    """restarts: engines that the daemon has started in the place of one that died."""

    pid: int
    version: str
    generation: int
    restarts: int
    status: Status
    memory: Memory


class DaemonStatus(msgspec.Struct, frozen=True, kw_only=True):
    """started: seconds since the epoch. engine None: none runs. traffic: the sum over all links that exist. resources:
    {kind: {state: count}}, state "" for a kind without states. pool: prepared namespaces that are ready. notices: what
    the operator should know, one line each."""

    instance: str
    version: str
    pid: int
    started: float
    engine: EngineProcess | None
    traffic: Counters
    resources: dict[Kind, dict[str, int]]
    pool: int = 0
    notices: tuple[str, ...] = ()
