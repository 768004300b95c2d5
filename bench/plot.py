"""The plot of the goals: one line of dots, all on one scale on which 1 is what must be reached and right is better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import matplotlib
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from bench.figures import Figure
from bench.goals import LINES, Line

MISSED, MUST, GOAL, FAINT = "#c0392b", "#d9902f", "#2a7f62", "#b8bdc4"
LEAST, MOST = 0.25, 4.0  # what lies further away stands at the edge
TICKS: Final = (0.25, 0.5, 0.7, 1, 1.4, 2, 3, 4)
ROW_INCHES: Final = 0.27


@dataclass(frozen=True)
class Dot:
    """How far something is: 1 is the must; lowest and highest are extremes of single pairs."""

    label: str
    text: str
    place: float
    lowest: float
    highest: float
    goal: float
    colour: str

    @classmethod
    def of(cls, line: Line, figure: Figure) -> Self:
        bar = line.bar
        base = bar.must if bar.must is not None else bar.goal
        goal = bar.goal if bar.goal is not None else bar.must
        assert base is not None
        assert goal is not None

        def place(value: float) -> float:
            return min(MOST, max(LEAST, value / base if bar.better == "higher" else base / value))

        found = figure.ratio if bar.of == "ratio" else figure.median
        all_found = figure.ratios if bar.of == "ratio" else figure.ours
        lowest, highest = sorted((place(min(all_found)), place(max(all_found))))
        colour = GOAL if bar.reached(figure, goal) else MUST if bar.reached(figure, base) else MISSED
        text = f"{found:.2f}x" if bar.of == "ratio" else f"{found:.0f} {figure.unit}"
        label = f"{line.figure}  /  {line.rival}" if line.rival else line.figure
        return cls(label, text, place(found), lowest, highest, place(goal), colour)


def draw(figures: Sequence[Figure], path: Path) -> bool:
    """Writes an SVG of the lines that were measured; False when none was."""
    dots = [Dot.of(line, figure) for line in LINES if (figure := line.of(figures)) is not None]
    if not dots:
        return False
    # Text stays text, and the same figures give the same file.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "hyperplane-nat", "font.size": 9}):
        canvas = Canvas(figsize=(10, 1.1 + ROW_INCHES * len(dots)), layout="constrained")
        axes = canvas.subplots()
        for row, dot in enumerate(dots):
            axes.plot([dot.lowest, dot.highest], [row, row], color=FAINT, linewidth=3, solid_capstyle="round", zorder=1)
            axes.plot(dot.place, row, "o", color=dot.colour, markersize=7, zorder=3)
            axes.plot(dot.goal, row, "D", markerfacecolor="none", markeredgecolor="black", markersize=6, zorder=2)
            axes.annotate(dot.text, (1.01, row), xycoords=("axes fraction", "data"), va="center", color=dot.colour)
        axes.axvline(1, color="black", linewidth=1, zorder=0)
        axes.set_xscale("log")
        axes.set_xlim(LEAST * 0.95, MOST * 1.05)
        axes.xaxis.set_major_locator(FixedLocator(TICKS))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_yticks(range(len(dots)), [dot.label for dot in dots])
        axes.set_ylim(len(dots) - 0.5, -0.5)
        axes.grid(axis="x", color=FAINT, linewidth=0.4)
        axes.set_xlabel("1: must be reached; diamond: goal; grey: from the lowest to the highest pair; right is better")
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        canvas.savefig(path, format="svg", metadata={"Date": None})
    return True
