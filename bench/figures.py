"""A figure is what was measured of ours next to what was measured of a rival, in turns; the table shows their ratio."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from pytest_benchmark.fixture import BenchmarkFixture

Better = Literal["lower", "higher"]

# What one unit of work takes, in seconds, from a value in that unit: pytest-benchmark's statistics are about times.
SECONDS: Final[dict[str, Callable[[float], float]]] = {
    "ns": lambda value: value * 1e-9,
    "ns/packet": lambda value: value * 1e-9,
    "us": lambda value: value * 1e-6,
    "Gb/s": lambda value: 1e-9 / value,
    "Mpps": lambda value: 1e-6 / value,
    "conn/s": lambda value: 1 / value,
    "CPU s/GB": lambda value: value,
}


@dataclass(frozen=True)
class Bar:
    """What must be reached, and what it is to become: a ratio (ours / the rival's) or a value of ours."""

    of: Literal["ratio", "value"]
    must: float | None
    better: Better
    goal: float | None = None

    def reached(self, figure: Figure, limit: float) -> bool:
        """Whether a figure reaches a limit: must or goal."""
        found = figure.ratio if self.of == "ratio" else figure.median
        return found <= limit if self.better == "lower" else found >= limit

    def text(self, limit: float, unit: str) -> str:
        sign = "<=" if self.better == "lower" else ">="
        return f"{sign} {limit:g}x" if self.of == "ratio" else f"{sign} {limit:g} {unit}"

    def verdict(self, figure: Figure, limit: float | None) -> str:
        if limit is None:
            return ""
        return f"{self.text(limit, figure.unit)} {'reached' if self.reached(figure, limit) else 'NOT REACHED'}"

    def as_dict(self, figure: Figure) -> dict[str, Any]:
        said: dict[str, Any] = {}
        if self.must is not None:
            said |= {"bar": self.text(self.must, figure.unit), "reached": self.reached(figure, self.must)}
        if self.goal is not None:
            said |= {"goal": self.text(self.goal, figure.unit), "goal_reached": self.reached(figure, self.goal)}
        return said


@dataclass(frozen=True)
class Figure:
    """ours[i] and theirs[i] were measured in turn, so their ratio is free of what changes slowly on a machine."""

    name: str
    unit: str
    better: Better
    rival: str
    ours: Sequence[float]
    theirs: Sequence[float]
    bars: tuple[Bar, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for value in (*self.ours, *self.theirs):
            assert 0 < value < float("inf"), f"{self.name}: {value} {self.unit} is impossible: the measurement is void"
        assert len(self.ours) == len(self.theirs) > 0, f"{self.name}: {len(self.ours)} and {len(self.theirs)} values"

    @property
    def median(self) -> float:
        return statistics.median(self.ours)

    @property
    def rival_median(self) -> float:
        return statistics.median(self.theirs)

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """Ours / the rival's, the median over the pairs."""
        return statistics.median(self.ratios)

    def as_dict(self) -> dict[str, Any]:
        return {
            "figure": self.name,
            "unit": self.unit,
            "better": self.better,
            "ours": list(self.ours),
            "rival": self.rival,
            "theirs": list(self.theirs),
            "ratios": self.ratios,
            "ratio": self.ratio,
            "bars": [bar.as_dict(self) for bar in self.bars],
            **self.details,
        }


class ReplayClock:
    """The timer that pytest-benchmark reads: it shows times that were measured already.

    pytest-benchmark times one function after the other; here rivals take turns, so measuring comes first.
    """

    def __init__(self) -> None:
        self._now = 0.0

    def read(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds


CLOCK: Final = ReplayClock()


def replay_clock() -> float:
    """For `@pytest.mark.benchmark(timer=replay_clock)`; in CLOCK's time."""
    return CLOCK.read()


def replay(benchmark: BenchmarkFixture, seconds: Iterable[float]) -> None:
    """Gives pytest-benchmark times (of one unit of work each) as the rounds of its benchmark."""
    times = list(seconds)
    steps = iter(times)
    benchmark.pedantic(lambda: CLOCK.advance(next(steps)), rounds=len(times), iterations=1)


def table(figures: Sequence[Figure]) -> list[str]:
    """The lines of the table of all figures."""
    rows = [("", "here", "rival", "", "ratio", "lowest", "highest", "must", "goal")]
    for figure in figures:
        several = len(figure.ratios) > 1
        rows.append(
            (
                figure.name,
                f"{number(figure.median)} {figure.unit}",
                f"{number(figure.rival_median)} {figure.unit}",
                figure.rival,
                f"{figure.ratio:.2f}x {'' if figure.better == 'higher' else '(less is better)'}".rstrip(),
                f"{min(figure.ratios):.2f}x" if several else "",
                f"{max(figure.ratios):.2f}x" if several else "",
                ", ".join(filter(None, (bar.verdict(figure, bar.must) for bar in figure.bars))),
                ", ".join(filter(None, (bar.verdict(figure, bar.goal) for bar in figure.bars))),
            )
        )
    return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines whose cells stand under each other."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def number(value: float) -> str:
    """Three digits that count."""
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"
