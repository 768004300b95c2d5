"""Which kernel gives what: measured.json, and the table of docs/service.md that is made from it.

`make test-kernels` fails when a kernel gives something else. A series that is not there yet is said, not failed: what
Debian packages next is not this tree's fault. `python -m tests.kernels --record` writes both files anew.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from tests.kernels.report import Report, series

RESULTS: Final = Path(__file__).parent / "measured.json"
DOCUMENT: Final = Path(__file__).parents[2] / "docs" / "service.md"
RELEASE: Final = "release"
# The words of facts.py, and what they are for whoever reads the document.
HEADS: Final[Mapping[str, str]] = {
    "packet I/O": "`--io auto` takes",
    "reads without waiting": "TUN reads by `RWF_NOWAIT`",
    "UDP segmentation": "UDP segmented by the kernel (USO)",
    "steering program": "steering by a program (eBPF)",
    "huge pages": "tables on huge pages",
}

Known = Mapping[str, Mapping[str, str]]


def read() -> dict[str, dict[str, str]]:
    """By series, as in 6.12."""
    found: dict[str, dict[str, str]] = json.loads(RESULTS.read_text(encoding="utf-8"))
    return found


def document(known: Known) -> str:
    """The table, in Markdown."""
    lines = [f"| Linux | {' | '.join(HEADS.values())} |", f"|---|{'---|' * len(HEADS)}"]
    for one in sorted(known, key=_number):
        lines.append(f"| {known[one][RELEASE]} | {' | '.join(known[one][name] for name in HEADS)} |")
    return "\n".join(lines)


def differences(known: Known, reports: Sequence[Report]) -> list[str]:
    """What a kernel gives and the document does not say so."""
    return [
        f"{one.name}: {name} is {value}, docs/service.md says {known[own][name]}"
        for one in reports
        if (own := series(one.facts.get(RELEASE, ""))) in known
        for name, value in one.facts.items()
        if name != RELEASE and value != known[own].get(name)
    ]


def unknown(known: Known, reports: Sequence[Report]) -> list[str]:
    """Series that were tried and are not in the document."""
    return [own for one in reports if (own := series(one.facts.get(RELEASE, ""))) and own not in known]


def record(reports: Sequence[Report]) -> None:
    """Writes what was measured: results, and the document's table in the place of the one that is there."""
    known = read()
    before = document(known)
    known.update({series(one.facts[RELEASE]): one.facts for one in reports if one.facts})
    RESULTS.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(text.replace(before, document(known)), encoding="utf-8")


def _number(name: str) -> list[int]:
    return [int(one) for one in re.findall(r"\d+", name)]
