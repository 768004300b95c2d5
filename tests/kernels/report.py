"""What came back from the kernels, and how it is shown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.kernels.guest import Record
from tests.kernels.selection import ITEMS, SYSTEM

LINES: Final = 20  # of what a failed test said, and characters of each
WIDTH: Final = 200


@dataclass
class Report:
    """Of one kernel. name: its column. problem: of the guest itself, "" for none."""

    name: str
    facts: dict[str, str] = field(default_factory=dict)
    tests: list[Record] = field(default_factory=list)
    status: str = ""
    problem: str = ""
    seconds: float = 0.0

    def take(self, record: Record) -> None:
        if record.kind == "fact":
            self.facts[record.name] = record.value
        elif record.kind == "test":
            self.tests.append(record)
        elif record.kind == "end":
            self.status = record.value

    def of(self, item: str) -> list[Record]:
        chosen = [f"{SYSTEM}{one}" for one in ITEMS[item]]
        return [one for one in self.tests if any(_is_in(one.name, test) for test in chosen)]

    def cell(self, item: str) -> str:
        found = self.of(item)
        failed = sum(not one.ok for one in found)
        if failed:
            return f"FAILED {failed} of {len(found)}"
        return f"ok {sum(one.seconds for one in found):.0f} s" if found else "NOT RUN"

    @property
    def good(self) -> bool:
        return not self.problem and self.status == "0" and all(self.cell(item).startswith("ok") for item in ITEMS)


def _is_in(test: str, chosen: str) -> bool:
    """Whether a test is one of those that a file's name or a test's, without its parameters, chooses."""
    return test == chosen or test.startswith((f"{chosen}::", f"{chosen}["))


def table(reports: Sequence[Report]) -> str:
    """A row for each item, a column for each kernel."""
    rows = [["", *(one.name for one in reports)]]
    facts = dict.fromkeys(name for one in reports for name in one.facts)
    rows += [[name, *(one.facts.get(name, "?") for one in reports)] for name in facts]
    rows += [[item, *(one.cell(item) for one in reports)] for item in ITEMS]
    rows.append(["in all", *(f"{one.seconds:.0f} s" for one in reports)])
    return text(rows)


def text(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def failed(kernel: str, record: Record) -> str:
    """A test that failed, with the last lines of what it said."""
    said = "\n    ".join(line[:WIDTH] for line in record.said.splitlines()[-LINES:])
    return f"kernels: {kernel}: FAILED {record.name}\n    {said}"


def failures(reports: Iterable[Report]) -> list[str]:
    """A line for each thing that went wrong."""
    found = []
    for one in reports:
        if one.problem:
            found.append(f"{one.name}: {one.problem}")
        elif one.status != "0" and all(test.ok for test in one.tests):
            found.append(f"{one.name}: pytest ended with {one.status or 'nothing'}")
        else:
            found += [f"{one.name}: {item}: no test ran" for item in ITEMS if not one.of(item)]
        found += [f"{one.name}: failed: {test.name}" for test in one.tests if not test.ok]
    return found


def series(release: str) -> str:
    """6.1 of 6.1.0-57-amd64."""
    match = re.match(r"\d+\.\d+", release)
    return match[0] if match else release
