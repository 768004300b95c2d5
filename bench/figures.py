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
}


@dataclass(frozen=True)
class Bar:
    """What is to be reached: a ratio (ours / the rival's) or a value of ours, at least or at most so much."""

    of: Literal["ratio", "value"]
    limit: float
    better: Better

    def reached(self, figure: Figure) -> bool:
        found = figure.ratio if self.of == "ratio" else figure.median
        return found <= self.limit if self.better == "lower" else found >= self.limit

    def text(self, unit: str) -> str:
        sign = "<=" if self.better == "lower" else ">="
        return f"{sign} {self.limit:g}x" if self.of == "ratio" else f"{sign} {self.limit:g} {unit}"


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
            "bars": [{"bar": bar.text(self.unit), "reached": bar.reached(self)} for bar in self.bars],
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
    """The lines of the table of all figures, and then the bars."""
    rows = [("", "here", "rival", "", "ratio", "lowest", "highest", "bar")]
    for figure in figures:
        verdicts = [
            f"{bar.text(figure.unit)} {'reached' if bar.reached(figure) else 'NOT REACHED'}" for bar in figure.bars
        ]
        rows.append(
            (
                figure.name,
                f"{_number(figure.median)} {figure.unit}",
                f"{_number(statistics.median(figure.theirs))} {figure.unit}",
                figure.rival,
                f"{figure.ratio:.2f}x {'' if figure.better == 'higher' else '(less is better)'}".rstrip(),
                f"{min(figure.ratios):.2f}x" if len(figure.ratios) > 1 else "",
                f"{max(figure.ratios):.2f}x" if len(figure.ratios) > 1 else "",
                ", ".join(verdicts),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
