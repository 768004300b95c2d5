"""The engine is told of a tunnel while its device is configured, and what that takes is noted."""

from __future__ import annotations

import time
from pathlib import PurePath
from types import TracebackType
from typing import Self

from hyperplane.attachment.plan import Plan
from hyperplane.dataplane import Adding, Engine, Tunnel
from hyperplane.linux.namespaces import Namespace


class Telling:
    """Of one plan, once: a context manager, as `Adding` is. seconds: what telling and hearing the answer took."""

    def __init__(self, engine: Engine, plan: Plan) -> None:
        self._engine = engine
        self._plan = plan
        self.seconds = 0.0

    def about(self, name: str, fd: int) -> Self:
        """name: of the tunnel, when the plan has none. Raises what `Engine.adding_tunnel()` raises."""
        begun = time.perf_counter()
        plan, shape = self._plan, self._plan.shape
        self._adding: Adding = self._engine.adding_tunnel(
            plan.eni, name=plan.name or name, address=shape.address, fd=fd, mtu=shape.mtu, max_flows=plan.max_flows
        )
        self.seconds += time.perf_counter() - begun
        return self

    def about_namespace(self, namespace: Namespace, fd: int) -> Self:
        return self.about(PurePath(namespace.name).name, fd)

    @property
    def tunnel(self) -> Tunnel:
        return self._adding.tunnel

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        begun = time.perf_counter()
        self._adding.__exit__(kind, value, trace)
        self.seconds += time.perf_counter() - begun
