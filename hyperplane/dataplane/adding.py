"""A tunnel between the moment when its worker is told of it and the one when it is added."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from hyperplane.dataplane.links import Tunnel


class Adding:
    """What `Engine.adding_tunnel()` gives: a context manager that is left when the tunnel shall be added.

    Within it the worker begins to listen, and the caller may configure the device. Leaving it with an exception removes
    what has been added. tunnel: after it.
    """

    tunnel: Tunnel

    def __init__(self, finish: Callable[[], Tunnel], undo: Callable[[], None]) -> None:
        self._finish = finish
        self._undo = undo

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.tunnel = self._finish()
        else:
            self._undo()
