"""docs/service.md names every metric, every event of the log, every file and every variable. tests/system/
test_documents.py runs its commands."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hyperplane.api.metrics import Metrics
from hyperplane.api.service import EniMeasures, Measures
from hyperplane.control import Limits
from hyperplane.daemon import places
from hyperplane.daemon.executor import MOST_STARTS
from hyperplane.dataplane import EngineConfig
from hyperplane.model import Counters, WorkerStatus
from hyperplane.resources import KINDS

# The sanitized run happens in a mirror below the project: the document is in one of the folders above.
DOCUMENT = next(path for parent in Path(__file__).parents if (path := parent / "docs" / "service.md").exists())
TEXT = DOCUMENT.read_text(encoding="utf-8")
SOURCES = Path(places.__file__).parents[1]
STATELESS = ("vpc", "subnet", "security-group")
LEVELS = {"info": "info", "warning": "warning", "error": "error", "exception": "error"}  # by method


def test_every_metric_is_described() -> None:
    counters = Counters(drops={"no_flow": 1})
    measures = Measures(
        traffic=counters,
        flows=0,
        max_flows=1,
        restarts=0,
        engine_running=True,
        resources={kind: {"" if kind in STATELESS else "some": 1} for kind in KINDS},
        enis=[EniMeasures(eni="eni-1", account="default", counters=counters, flows=0)],
        workers=[WorkerStatus(flows=1, loops=2, batches=2, packets=3, writes=3, handed_over=1, taken_over=0)],
    )
    exposition = Metrics().exposition(measures).decode()
    shown = {family.name: family for family in text_string_to_metric_families(exposition)}
    described = dict(re.findall(r"^\| (`hyperplane_.*?) \| (.*?) \|", TEXT, re.MULTILINE))
    names = {name: text for cell, text in described.items() for name in re.findall(r"`(\w+)`", cell)}
    ours = {name for name in shown if name.startswith("hyperplane_") and not name.endswith("_created_created")}
    ours -= {"hyperplane_attach_duration_seconds_created"}  # prometheus_client's
    assert set(names) == ours
    for name in ours:
        labels = {label for sample in shown[name].samples for label in sample.labels} - {"le"}
        assert set(re.findall(r"`(\w+)`", names[name])) == labels, name


def events() -> list[tuple[str, str]]:
    """(level, event) of every call of a log with a constant."""
    found = set()
    for path in (*SOURCES.glob("daemon/*.py"), *SOURCES.glob("api/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            where = node.func.value
            level = LEVELS.get(node.func.attr)
            if isinstance(where, ast.Name) and where.id in ("log", "LOG") and level and node.args:
                first = node.args[0]
                choices = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
                found |= {(level, str(one.value)) for one in choices if isinstance(one, ast.Constant)}
    return sorted(found)


@pytest.mark.parametrize(("level", "event"), events())
def test_every_event_is_described(level: str, event: str) -> None:
    rows = re.findall(r"^\| (`.*?) \| ([a-z, ]+) \|", TEXT, re.MULTILINE)
    levels = [levels.split(", ") for names, levels in rows if f"`{event}`" in names]
    assert levels, event
    assert level in levels[0], event


def test_files_variables_and_limits() -> None:
    found = places.Places("x", Path("/run/hyperplane-nat"), Path("/var/lib/hyperplane-nat"))
    documented = (found.api, found.descriptors, found.engine, found.lock, found.state_lock, found.engine_log)
    for path in (*documented, found.settings):
        assert f"/{path.name}`" in TEXT, path
    assert f"`{places.STATE_DIR}/INSTANCE/{found.database.name}`" in TEXT
    for path in SOURCES.rglob("*.py"):
        for name in re.findall(r"\bHYPERPLANE_[A-Z_]*[A-Z]\b", path.read_text(encoding="utf-8")):
            assert name == "HYPERPLANE_NAT_COMPLETE" or f"`{name}`" in TEXT, name
    limits, config = Limits(), EngineConfig()
    assert f"| {limits.subnets}, {limits.security_groups}, {limits.routes} |" in TEXT
    assert f"| {limits.rules:,}, of all its groups together |" in TEXT
    assert f"| {MOST_STARTS:,} (`TooManyRequests`) |" in TEXT
    assert f"| flows | {config.max_flows:,};" in TEXT
    assert f"| environments and ENIs | {config.max_links:,};" in TEXT
    assert f"| ENI addresses | {config.max_addresses} in all |" in TEXT
