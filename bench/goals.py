"""What the data plane is held to: every line of the table of goals, and which figure it is read from.

A line names a figure and its rival as a benchmark records them. One that no figure belongs to is printed as not
measured, so that none goes missing silently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bench.figures import Bar, Better, Figure, aligned, number
from bench.rivals import BARE, KERNEL, PASTA_1500, SLIRP_1500

NOT_MEASURED: Final = "NOT MEASURED"
TABLE: Final = "bare table"
VETH: Final = "veth by netlink"
HEADER: Final = ("", "next to", "here", "rival", "ratio", "lowest", "highest", "must", "goal")


@dataclass(frozen=True)
class Line:
    """rival: that of the figure; "" when the line is about a value of ours, whose unit is said here."""

    figure: str
    rival: str
    bar: Bar
    unit: str = ""

    def about(self, name: str, rival: str) -> bool:
        return self.figure == name and self.rival in ("", rival)

    def of(self, figures: Sequence[Figure]) -> Figure | None:
        """The figure that the line is read from, when it was measured; of several the last one."""
        found = [figure for figure in figures if self.about(figure.name, figure.rival)]
        return found[-1] if found else None

    def cells(self, figure: Figure | None) -> tuple[str, ...]:
        """What stands in the table under HEADER."""
        if figure is None:
            limits = (self.bar.must, self.bar.goal)
            texts = ("" if limit is None else self.bar.text(limit, self.unit) for limit in limits)
            return (self.figure, self.rival, NOT_MEASURED, "", "", "", "", *texts)
        ratios = figure.ratios if self.bar.of == "ratio" else []
        return (
            self.figure,
            self.rival,
            f"{number(figure.median)} {figure.unit}",
            f"{number(figure.rival_median)} {figure.unit}" if ratios else "",
            f"{figure.ratio:.2f}x" if ratios else "",
            f"{min(ratios):.2f}x" if len(ratios) > 1 else "",
            f"{max(ratios):.2f}x" if len(ratios) > 1 else "",
            self.bar.verdict(figure, self.bar.must),
            self.bar.verdict(figure, self.bar.goal),
        )


def _ratio(figure: str, rival: str, must: float | None, goal: float, better: Better = "higher") -> Line:
    return Line(figure, rival, Bar("ratio", must, better, goal))


def _most(figure: str, must: float, goal: float, unit: str) -> Line:
    return Line(figure, "", Bar("value", must, "lower", goal), unit)


LINES: Final = (
    _ratio("in memory, 64k flows", TABLE, 1.6, 1.2, "lower"),
    _ratio("in memory, 1M flows", TABLE, 1.5, 1.15, "lower"),
    _ratio("in memory, 16M flows", TABLE, 1.4, 1.1, "lower"),
    _most("flow creation, 1M flows", 300, 150, "ns"),
    _most("flow creation, 90 % of the ports taken", 600, 300, "ns"),
    _most("bytes per flow", 176, 150, "bytes"),
    _ratio("UDP 64 B", KERNEL, 2.0, 3.0),
    _ratio("UDP 64 B", BARE, 1.4, 2.0),
    _ratio("UDP 64 B, 64 flows mixed", KERNEL, 1.2, 1.6),
    _ratio("UDP 64 B, 64 flows mixed", BARE, 0.9, 1.0),
    _ratio("UDP 64 B in trains of 32", KERNEL, 1.2, 1.7),
    _ratio("UDP 64 B in trains of 32", BARE, 0.9, 1.0),
    _ratio("one TCP stream", KERNEL, 0.6, 0.8),
    _ratio("one TCP stream", BARE, 0.93, 1.0),
    _ratio("one TCP stream back", KERNEL, 0.6, 0.8),
    _ratio("one TCP stream back", BARE, 0.93, 1.0),
    _ratio("four TCP streams", BARE, 0.93, 1.1),
    _ratio("four TCP streams back", BARE, 0.93, 1.1),
    _ratio("one TCP stream", PASTA_1500, 8, 15),
    _ratio("one TCP stream", SLIRP_1500, 8, 15),
    _ratio("one TCP stream back", PASTA_1500, 8, 15),
    _ratio("one TCP stream back", SLIRP_1500, 8, 15),
    _ratio("short connections", KERNEL, 0.9, 1.15),
    _ratio("short connections", BARE, 0.9, 1.0),
    _ratio("request/response p50", BARE, 1.1, 1.0, "lower"),
    _ratio("request/response p50", KERNEL, 1.9, 1.4, "lower"),
    _ratio("request/response p99 beside a bulk stream", KERNEL, 2.0, 1.0, "lower"),
    _ratio("attach, 1,000 there: p50", VETH, 0.5, 0.2, "lower"),
    _ratio("attach, 10,000 there: p50", VETH, 0.5, 0.2, "lower"),
    _ratio("attach p50, 1,000 there", "at the first", None, 1.1, "lower"),  # flat
    _ratio("attach p50, 10,000 there", "at the first", None, 1.1, "lower"),
    _ratio("one TCP stream beside 10,000 idle tunnels", "alone", 0.95, 1.0),
    _ratio("UDP 64 B beside 10,000 idle tunnels", "alone", 0.95, 1.0),
)


def bars(name: str, rival: str) -> tuple[Bar, ...]:
    """What a figure is held to."""
    return tuple(line.bar for line in LINES if line.about(name, rival))


def table(figures: Sequence[Figure]) -> list[str]:
    """The lines of the table of goals: all of them, measured or not."""
    return aligned([HEADER, *(line.cells(line.of(figures)) for line in LINES)])
