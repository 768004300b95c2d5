"""A pytest plugin: each test that has ended is a record."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

import pytest

from tests.kernels.guest import Record
from tests.kernels.work import REPORT_VARIABLE, say

LONGEST: Final = 4000  # characters of what a failed test says

_seconds: dict[str, float] = {}
_said: dict[str, str] = {}


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration
    if report.outcome != "passed":
        _said.setdefault(report.nodeid, f"{report.when}: {report.longreprtext[-LONGEST:]}")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    yield
    said = _said.get(item.nodeid, "")
    say(int(os.environ[REPORT_VARIABLE]), Record("test", item.nodeid, "", not said, _seconds[item.nodeid], said))
