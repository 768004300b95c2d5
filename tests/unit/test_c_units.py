"""The C unit tests (tests/unit/c, cmocka): each program is built plain and with ASan and UBSan, and passes in both."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "c"
OUT = HERE.parents[2] / "build" / "c-units"
VARIANTS = ("plain", "sanitized")
PROGRAMS = sorted(path.stem for path in HERE.glob("test_*.c"))

# Steps through single instructions: of instrumented code there are so many that it takes minutes. What it drives, the
# repair of what a dead process left, goes through the sanitizers in test_inherit.c and tests/packet/test_inherit.py.
PLAIN_ONLY = {"test_crash_engine"}


def run(*command: str | Path, timeout: float) -> None:
    """Run a program and show what it printed; a failure carries the output, as pytest shows it for the failed test."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
    print(done.stdout)
    assert done.returncode == 0, f"{Path(command[0]).name} ended with {done.returncode}"


@pytest.fixture(scope="module")
def variant(request: pytest.FixtureRequest) -> Path:
    """Directory of the built programs of one variant."""
    run("make", "-C", HERE, f"-j{os.cpu_count()}", f"VARIANT={request.param}", timeout=300)
    return OUT / str(request.param)


def test_there_are_programs() -> None:
    """An empty list of parameters would pass without having run anything."""
    assert PROGRAMS


@pytest.fixture(scope="module")
def program(variant: Path, request: pytest.FixtureRequest) -> Path:
    return variant / str(request.param)


def runs_of(programs: Sequence[str]) -> list[tuple[str, str]]:
    return [(kind, name) for kind in VARIANTS for name in programs if kind == "plain" or name not in PLAIN_ONLY]


@pytest.mark.timeout(420)
@pytest.mark.parametrize(("variant", "program"), runs_of(PROGRAMS), indirect=True, scope="module")
def test_program(program: Path) -> None:
    run(program, timeout=300)
