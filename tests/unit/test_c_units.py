"""The C unit tests (tests/unit/c, cmocka): each program is built plain and with ASan and UBSan, and passes in both."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "c"
OUT = HERE.parents[2] / "build" / "c-units"
VARIANTS = ("plain", "sanitized")
PROGRAMS = sorted(path.stem for path in HERE.glob("test_*.c"))


def run(*command: str | Path, timeout: float) -> None:
    """Run a program and show what it printed; a failure carries the output, as pytest shows it for the failed test."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)
    print(done.stdout)
    assert done.returncode == 0, f"{Path(command[0]).name} ended with {done.returncode}"


@pytest.fixture(scope="module", params=VARIANTS)
def variant(request: pytest.FixtureRequest) -> Path:
    """Directory of the built programs of one variant."""
    run("make", "-C", HERE, f"-j{os.cpu_count()}", f"VARIANT={request.param}", timeout=300)
    return OUT / str(request.param)


def test_there_are_programs() -> None:
    """An empty list of parameters would pass without having run anything."""
    assert PROGRAMS


@pytest.mark.timeout(420)
@pytest.mark.parametrize("program", PROGRAMS)
def test_program(variant: Path, program: str) -> None:
    run(variant / program, timeout=300)
