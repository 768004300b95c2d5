"""What the benchmarks are built of: who meets whom in what order, bars, the table of goals, the page of results."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from bench import goals, report
from bench.contest import Contest
from bench.figures import Bar, Figure, table
from bench.goals import LINES, NOT_MEASURED
from bench.lab import Lab
from bench.plot import draw
from bench.processor import Processor
from bench.rivals import BARE, KERNEL, PASTA_1500, SLIRP_1500, Rival

MACHINE = {
    "revision": "0123456789ab", "effort": "full", "cores": 2, "kernel": "6.18.0 #1 SMP", "memory_bytes": 24 << 30,
    "load": [1.5, 1.0, 0.5], "tcp": "cubic", "iperf3": "iperf 3.12", "nft": "nftables v1.0.6",
    "processor": "a processor",
}  # fmt: skip
VETH, TABLE = goals.VETH, goals.TABLE

# What the data plane is held to: measure, rival, must, goal.
HELD_TO = [
    ("64k flows", TABLE, "<= 1.6x", "<= 1.2x"),
    ("1M flows", TABLE, "<= 1.5x", "<= 1.15x"),
    ("16M flows", TABLE, "<= 1.4x", "<= 1.1x"),
    ("flow creation, 1M flows", "", "<= 300 ns", "<= 150 ns"),
    ("flow creation, 90 % of the ports", "", "<= 600 ns", "<= 300 ns"),
    ("bytes per flow", "", "<= 176 bytes", "<= 150 bytes"),
    ("UDP 64 B", KERNEL, ">= 2x", ">= 3x"),
    ("UDP 64 B", BARE, ">= 1.4x", ">= 2x"),
    ("UDP 64 B, 64 flows", KERNEL, ">= 1.2x", ">= 1.6x"),
    ("UDP 64 B, 64 flows", BARE, ">= 0.9x", ">= 1x"),
    ("UDP 64 B in trains", KERNEL, ">= 1.2x", ">= 1.7x"),
    ("UDP 64 B in trains", BARE, ">= 0.9x", ">= 1x"),
    ("one TCP stream", KERNEL, ">= 0.6x", ">= 0.8x"),
    ("one TCP stream", BARE, ">= 0.93x", ">= 1x"),
    ("four TCP streams", BARE, ">= 0.93x", ">= 1.1x"),
    ("one TCP stream", PASTA_1500, ">= 8x", ">= 15x"),
    ("one TCP stream", SLIRP_1500, ">= 8x", ">= 15x"),
    ("short connections", KERNEL, ">= 0.9x", ">= 1.15x"),
    ("short connections", BARE, ">= 0.9x", ">= 1x"),
    ("request/response p50", BARE, "<= 1.1x", "<= 1x"),
    ("request/response p50", KERNEL, "<= 1.9x", "<= 1.4x"),
    ("p99 beside a bulk stream", KERNEL, "<= 2x", "<= 1x"),
    ("attach, 1,000 there", VETH, "<= 0.5x", "<= 0.2x"),
    ("attach, 10,000 there", VETH, "<= 0.5x", "<= 0.2x"),
    ("attach p50, 10,000 there", "at the first", "", "<= 1.1x"),
    ("TCP stream beside 10,000 idle", "alone", ">= 0.95x", ">= 1x"),
]


def figure(name: str = "UDP 64 B", rival: str = KERNEL, ours: tuple[float, ...] = (3.0, 5.0, 4.0)) -> Figure:
    return Figure(name, "Mpps", "higher", rival, ours, (2.0, 2.0, 1.0), goals.bars(name, rival))


class TestContest:
    def order(self, rivals: int, rounds: int = 2) -> tuple[list[str], dict[str, tuple[list[str], list[str]]]]:
        met: list[str] = []

        def load(_: Lab, rival: Rival) -> str:
            met.append(rival.name)
            return f"{rival.name}{len(met)}"

        names = "abcd"[:rivals]
        lab = Lab.__new__(Lab)  # nothing is made in it
        contest = Contest(lab, Rival("us", "", ""), [Rival(name, "", "") for name in names], rounds)
        return met, {pairs.rival.name: (pairs.ours, pairs.theirs) for pairs in contest.run(load)}

    def test_one_rival_goes_before_and_after(self) -> None:
        met, pairs = self.order(1)
        assert met == ["a", "us", "us", "a"]
        assert pairs == {"a": (["us2", "us3"], ["a1", "a4"])}

    def test_ours_is_every_rivals_neighbour(self) -> None:
        met, pairs = self.order(4)
        assert met == ["a", "us", "b", "c", "us", "d", "b", "us", "a", "d", "us", "c"]
        assert pairs["b"] == (["us2", "us8"], ["b3", "b7"])
        assert pairs["d"] == (["us5", "us11"], ["d6", "d10"])

    def test_an_odd_one_has_us_for_itself(self) -> None:
        met, _ = self.order(3, rounds=1)
        assert met == ["a", "us", "b", "c", "us"]


class TestBars:
    @pytest.mark.parametrize(
        ("bar", "must", "goal"),
        [
            (Bar("ratio", 2.0, "higher", 3.0), ">= 2x reached", ">= 3x NOT REACHED"),
            (Bar("ratio", 2.0, "lower", 3.0), "<= 2x NOT REACHED", "<= 3x reached"),
            (Bar("value", 4.0, "lower", 3.0), "<= 4 Mpps reached", "<= 3 Mpps NOT REACHED"),
            (Bar("ratio", None, "higher", 3.0), "", ">= 3x NOT REACHED"),
            (Bar("ratio", 2.5, "higher"), ">= 2.5x reached", ""),
        ],
    )
    def test_must_and_goal_are_told_apart(self, bar: Bar, must: str, goal: str) -> None:
        one = Figure("a", "Mpps", "higher", "b", (3.0, 5.0, 4.0), (2.0, 2.0, 1.0), (bar,))
        assert one.ratio == 2.5
        assert (bar.verdict(one, bar.must), bar.verdict(one, bar.goal)) == (must, goal)
        assert table([one])[1].endswith("  ".join(filter(None, (must, goal))))

    def test_a_figure_is_held_to_its_lines(self) -> None:
        assert goals.bars("UDP 64 B", KERNEL) == (Bar("ratio", 2.0, "higher", 3.0),)
        assert goals.bars("bytes per flow", "anybody") == (Bar("value", 176, "lower", 150),)
        assert goals.bars("UDP 64 B, epoll", KERNEL) == ()


class TestGoals:
    @pytest.mark.parametrize(("measure", "rival", "must", "goal"), HELD_TO)
    def test_no_line_is_missing(self, measure: str, rival: str, must: str, goal: str) -> None:
        shown = [line.cells(None) for line in LINES]
        assert any(measure in cells[0] and cells[1] == rival and cells[-2:] == (must, goal) for cells in shown)

    def test_what_was_not_measured_is_said(self) -> None:
        lines = goals.table([figure()])
        assert len(lines) == 1 + len(LINES)
        assert sum(NOT_MEASURED in line for line in lines) == len(LINES) - 1
        assert [line.split("  ")[0] for line in lines[1:]] == [line.figure for line in LINES]


class TestProcessor:
    def test_time_spent_is_seen(self) -> None:
        before = Processor.read(os.getpid())
        end = time.process_time() + 0.1
        while time.process_time() < end:
            pass
        spent = Processor.read(os.getpid()) - before
        assert spent.process > 0
        assert spent.machine > 0


class TestReport:
    def results(self, path: Path) -> Path:
        """As pytest-benchmark saves them."""
        about = {key: value for key, value in MACHINE.items() if key != "processor"}
        saved: dict[str, Any] = {
            "datetime": "2026-01-02T03:04:05.678+00:00",
            "machine_info": {"cpu": {"brand_raw": MACHINE["processor"]}, "hyperplane_nat": about},
            "benchmarks": [
                {"extra_info": {"figures": [figure().as_dict(), figure("UDP 64 B, epoll").as_dict()]}},
                {"extra_info": {}},
            ],
        }
        path.write_text(json.dumps(saved))
        return path

    def test_the_page_says_what_was_measured(self, tmp_path: Path) -> None:
        run = report.Run.of_results(self.results(tmp_path / "results.json"))
        text = report.generated(run)
        assert text.startswith(report.BEGIN)
        assert text.endswith(report.END)
        assert "Revision `0123456789ab`, 2026-01-02 03:04 UTC: 2 cores (a processor), 24 GiB, Linux 6.18.0" in text
        row = (
            "| UDP 64 B | kernel nft over veth | 4 Mpps | 2 Mpps | 2.50x | 1.50x | 4.00x | >= 2x reached "
            "| >= 3x **not reached** |"
        )
        assert row in text
        assert "| UDP 64 B, epoll | kernel nft over veth | 4 Mpps | 2 Mpps | 2.50x | 1.50x | 4.00x |\n" in text
        for line in LINES:
            assert f"\n| {line.figure} | {line.rival} | " in text

    def test_what_is_kept_gives_the_same_page(self, tmp_path: Path) -> None:
        run = report.Run.of_results(self.results(tmp_path / "results.json"))
        (tmp_path / "kept.json").write_text(json.dumps(run.as_dict()))
        assert report.generated(report.Run.of_kept(tmp_path / "kept.json")) == report.generated(run)

    def test_only_the_generated_part_is_replaced(self) -> None:
        page = f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n"
        new = f"{report.BEGIN}\nnew\n{report.END}"
        assert report.inserted(page, new) == f"before\n{new}\nafter\n"

    def test_the_plot_has_every_line_and_is_the_same_each_time(self, tmp_path: Path) -> None:
        figures = [Figure(line.figure, "ns", "lower", line.rival, (3.0, 2.0), (2.0, 2.0)) for line in LINES]
        for name in ("one.svg", "two.svg"):
            draw(figures, tmp_path / name)
        drawn = (tmp_path / "one.svg").read_text()
        assert drawn == (tmp_path / "two.svg").read_text()
        assert all(line.figure in drawn for line in LINES)


def test_docs_performance_is_what_the_kept_figures_give() -> None:
    page = report.PAGE.read_text()
    assert page == report.inserted(page, report.generated(report.Run.of_kept(report.KEPT))), "make performance"
