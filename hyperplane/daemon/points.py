"""The places at which a killed daemon leaves something behind for its successor to find.

Tests give a function that is told each of them, and kill the process there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal

Point = Literal[
    "creation stored",
    "eni device made",
    "eni told",
    "eni stored",
    "tunnel prepared",
    "start stored",
    "tunnel device made",
    "tunnel told",
    "start attached",
    "end stored",
    "flows reset",
    "tunnel removed",
    "end done",
    "deletion stored",
    "eni removed",
    "deletion done",
]
CommitPoints = Callable[[Point], None]


def no_points(point: Point) -> None:
    """Nothing happens."""


NO_POINTS: Final[CommitPoints] = no_points
