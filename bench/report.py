"""The generated part of docs/performance.md: `python -m bench.report [RESULTS]`, RESULTS being a file below
bench/results, by default the newest of a whole `make bench`.

What it needs of the run is kept in docs/performance.json, so that anybody can draw the page anew and see that it says
what was measured.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from bench import goals
from bench.figures import Figure, number

RESULTS: Final = Path(__file__).parent / "results"
DOCS: Final = Path(__file__).parent.parent / "docs"
PAGE, KEPT, PLOT = DOCS / "performance.md", DOCS / "performance.json", DOCS / "performance.svg"
BEGIN: Final = "<!-- generated from performance.json by `make performance`: what follows is not edited by hand -->"
END: Final = "<!-- end of what is generated -->"
DIGITS: Final = 5  # of each value that is kept
ABOUT: Final = (
    "revision", "effort", "cores", "kernel", "memory_bytes", "huge_pages", "load", "tcp",
    "iperf3", "nft", "pasta", "slirp4netns", "gcc",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """The figures of one run, and where and when it was."""

    when: str
    machine: dict[str, Any]
    figures: Sequence[Figure]

    @classmethod
    def of_results(cls, path: Path) -> Self:
        """Of what pytest-benchmark saved."""
        saved = json.loads(path.read_text())
        machine = saved["machine_info"]["hyperplane_nat"]
        noted = {"processor": saved["machine_info"]["cpu"].get("brand_raw", "unknown")}
        noted |= {key: machine[key] for key in ABOUT if key in machine}
        figures = [figure for each in saved["benchmarks"] for figure in each["extra_info"].get("figures", ())]
        return cls(saved["datetime"][:16].replace("T", " "), noted, [_figure(one) for one in figures])

    @classmethod
    def of_kept(cls, path: Path) -> Self:
        """Of what as_dict() returned, in a file."""
        kept = json.loads(path.read_text())
        return cls(kept["when"], kept["machine"], [_figure(one) for one in kept["figures"]])

    def as_dict(self) -> dict[str, Any]:
        return {
            "when": self.when,
            "machine": self.machine,
            "figures": [
                {
                    "figure": one.name,
                    "unit": one.unit,
                    "better": one.better,
                    "rival": one.rival,
                    "ours": [_rounded(value) for value in one.ours],
                    "theirs": [_rounded(value) for value in one.theirs],
                }
                for one in self.figures
            ],
        }


def _figure(said: dict[str, Any]) -> Figure:
    name, rival = said["figure"], said["rival"]
    ours, theirs = said["ours"], said["theirs"]
    return Figure(name, said["unit"], said["better"], rival, ours, theirs, goals.bars(name, rival))


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def generated(run: Run) -> str:
    """What stands between BEGIN and END."""
    machine = run.machine
    memory = machine["memory_bytes"] / 2**30
    where = (
        f"Revision `{machine['revision']}`, {run.when} UTC: {machine['cores']} cores ({machine['processor']}), "
        f"{memory:.0f} GiB, Linux {machine['kernel'].split()[0]}, TCP {machine['tcp']}, {machine['iperf3']}, "
        f"{machine['nft']}; load of the machine at the end: {machine['load'][0]:.1f}."
    )
    return "\n".join(
        (
            BEGIN,
            "",
            where,
            "",
            *markdown([goals.HEADER, *(line.cells(line.of(run.figures)) for line in goals.LINES)]),
            "",
            f"![How far each line is from what it must reach, and from its goal]({PLOT.name})",
            "",
            "### All figures",
            "",
            *markdown([_ALL, *(_cells(figure) for figure in run.figures)]),
            "",
            END,
        )
    )


_ALL: Final = ("", "next to", "here", "rival", "ratio", "lowest", "highest")


def _cells(figure: Figure) -> tuple[str, ...]:
    several = len(figure.ratios) > 1
    return (
        figure.name,
        figure.rival,
        f"{number(figure.median)} {figure.unit}",
        f"{number(figure.rival_median)} {figure.unit}",
        f"{figure.ratio:.2f}x" + ("" if figure.better == "higher" else " (less is better)"),
        f"{min(figure.ratios):.2f}x" if several else "",
        f"{max(figure.ratios):.2f}x" if several else "",
    )


def markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """A table whose first row is its head; what is not reached stands out."""
    lines = []
    for row in rows:
        line = "| " + " | ".join(row) + " |"
        for word in ("NOT REACHED", goals.NOT_MEASURED):
            line = line.replace(word, f"**{word.lower()}**")
        lines.append(line)
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def inserted(page: str, part: str) -> str:
    """A page with its generated part replaced."""
    assert BEGIN in page, f"{PAGE.name} has no generated part"
    assert END in page, f"{PAGE.name}: nothing says where its generated part ends"
    return page.partition(BEGIN)[0] + part + page.partition(END)[2]


def newest() -> Path:
    """The results of the newest whole `make bench`."""
    saved = sorted(RESULTS.glob("*/*_full.json"), key=lambda path: path.stat().st_mtime)
    if not saved:
        sys.exit(f"no results of a whole run in {os.path.relpath(RESULTS)}: run `make bench`")
    return saved[-1]


def write(results: Path) -> None:
    from bench.plot import draw

    run = Run.of_results(results)
    KEPT.write_text(json.dumps(run.as_dict(), indent=1) + "\n")
    kept = Run.of_kept(KEPT)
    PAGE.write_text(inserted(PAGE.read_text(), generated(kept)))
    draw(kept.figures, PLOT)
    for path in (KEPT, PAGE, PLOT):
        print(f"{os.path.relpath(path)} from {os.path.relpath(results)}")


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else newest())
