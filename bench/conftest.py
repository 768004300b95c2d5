"""Fixtures and output of the benchmarks: where results go, what is noted of the machine, the table at the end."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from bench import goals
from bench.figures import SECONDS, Bar, Better, Figure, replay, table
from bench.lab import Lab
from bench.plot import draw
from hyperplane.dataplane import io_engines

HERE: Final = Path(__file__).parent
RESULTS: Final = HERE / "results"
ORDER: Final = ("test_memory.py", "test_throughput.py", "test_workers.py", "test_tunnels.py", "test_api_attach.py")
FIGURES: Final = pytest.StashKey[list[Figure]]()


@dataclass(frozen=True)
class Effort:
    """How much is measured: quickly (HYPERPLANE_BENCH=quick) or thoroughly."""

    name: str
    memory_rounds: int
    rounds: int  # of every load over the network
    fewer_rounds: int  # where the rivals lie far apart
    tcp_seconds: int
    seconds: float  # of every other load
    extra: bool  # all loads and rivals
    environments: int  # attached in all


QUICK: Final = Effort("quick", 5, 3, 3, 1, 0.5, False, 1000)
FULL: Final = Effort("full", 11, 5, 3, 2, 1.0, True, 10_000)
EFFORT: Final = QUICK if os.environ.get("HYPERPLANE_BENCH") == "quick" else FULL


class Recorder:
    """Notes a figure: for the table, and for pytest-benchmark with its rival in extra_info."""

    def __init__(self, config: pytest.Config, benchmark: BenchmarkFixture, lab: Lab) -> None:
        self._config = config
        self._benchmark = benchmark
        self._lab = lab

    def __call__(
        self,
        name: str,
        unit: str,
        better: Better,
        rival: str,
        ours: Sequence[float],
        theirs: Sequence[float],
        *,
        bars: tuple[Bar, ...] = (),
        **details: Any,
    ) -> None:
        """The first figure of a test is also what pytest-benchmark's statistics are about. bars: besides its goals."""
        held_to = goals.bars(name, rival)
        besides = [bar for bar in bars if all((bar.of, bar.must) != (one.of, one.must) for one in held_to)]
        figure = Figure(name, unit, better, rival, ours, theirs, (*held_to, *besides), details)
        self._config.stash[FIGURES].append(figure)
        info = self._benchmark.extra_info
        if "figures" not in info:
            info["figures"] = []
            self._benchmark.group = name
            in_seconds = SECONDS.get(unit, float)  # what is no time stands there as it is
            replay(self._benchmark, (in_seconds(value) for value in ours))
        info["figures"].append(figure.as_dict())
        info["commands"] = info.get("commands", []) + self._lab.take_commands()


@pytest.fixture(scope="session")
def effort() -> Effort:
    return EFFORT


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    with Lab() as made:
        yield made


@pytest.fixture
def record(request: pytest.FixtureRequest, benchmark: BenchmarkFixture, lab: Lab) -> Recorder:
    return Recorder(request.config, benchmark, lab)


# Before pytest-benchmark reads its options.
@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.stash[FIGURES] = []
    # Results can be compared with `pytest-benchmark --storage bench/results compare`.
    config.option.benchmark_storage = RESULTS.as_uri()
    config.option.benchmark_save = config.option.benchmark_save or _saved_as(config)
    config.option.benchmark_save_data = True
    # Its own table would show our times without the rival's: meaningless on another day.
    config.option.benchmark_quiet = True


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What needs a quiet machine most comes first; attaching leaves the kernel something to clean up."""
    items.sort(key=lambda item: ORDER.index(item.path.name) if item.path.name in ORDER else len(ORDER))


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["hyperplane_nat"] = {
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.release()} {platform.version()}",
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "huge_pages": _text("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load": os.getloadavg(),
        "io_engines": io_engines(),
        "effort": EFFORT.name,
        "command": sys.orig_argv,
        "revision": _output("git", "-C", str(HERE), "describe", "--always", "--dirty", "--abbrev=12"),
        "iperf3": _output("iperf3", "--version").partition("\n")[0],
        "nft": _output("nft", "--version"),
        "pasta": _output("pasta", "--version").partition("\n")[0],
        "slirp4netns": _output("slirp4netns", "--version").partition("\n")[0],
        "tcp": _text("/proc/sys/net/ipv4/tcp_congestion_control"),
        "gcc": _output("gcc", "--version").partition("\n")[0],
        "python": sys.version,
    }


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    figures = config.stash[FIGURES]
    if not figures:
        return
    terminalreporter.section(f"{EFFORT.name} benchmarks: here / rival, medians of pairs measured in turn")
    for line in table(figures):
        terminalreporter.write_line(line)
    if _whole(config) and EFFORT.extra:
        terminalreporter.section("what must be reached, and the goals")
        for line in goals.table(figures):
            terminalreporter.write_line(line)
    saved = sorted(RESULTS.glob(f"*/*_{_saved_as(config)}.json"), key=lambda path: path.stat().st_mtime)
    if saved:
        drawn = ", drawn beside it as .svg" if draw(figures, saved[-1].with_suffix(".svg")) else ""
        terminalreporter.write_line(
            f"saved as {os.path.relpath(saved[-1])}{drawn}; docs/benchmarks.md says how to read it"
        )
    terminalreporter.write_line(_elapsed(terminalreporter))


def _whole(config: pytest.Config) -> bool:
    """Whether everything is measured, not only some benchmarks."""
    return not config.option.keyword and [Path(one).resolve() for one in config.args] == [HERE]


def _saved_as(config: pytest.Config) -> str:
    return EFFORT.name if _whole(config) else f"{EFFORT.name}_part"


def _elapsed(terminalreporter: pytest.TerminalReporter) -> str:
    spent: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                file = Path(report.location[0]).name
                spent[file] = spent.get(file, 0) + report.duration
    each = ", ".join(f"{file} {seconds:.0f} s" for file, seconds in spent.items())
    minutes, seconds = divmod(round(sum(spent.values())), 60)
    return f"took {minutes} min {seconds} s: {each}"


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip() or "unknown"
    except OSError:
        return "unknown"
