"""docs/api.md is right: its example runs and prints what it says, and its tables hold what there is."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from pathlib import Path

import pytest

from hyperplane import errors, model, resources
from hyperplane.api.routes import BASE, FILTERS, ROUTES
from hyperplane.client import Client, SyncClient
from hyperplane.dataplane import Engine, Reader

# The sanitized run happens in a mirror below the project: the document is in one of the folders above.
DOCUMENT = next(path for parent in Path(__file__).parents if (path := parent / "docs" / "api.md").exists()).read_text()


# A python block that no comment above it has a daemon for (tests/system/test_documents.py runs those), and its output.
EXAMPLE = re.compile(r"(?<!-->\n)^```python\n(.*?)^```$\s+(?:It prints:\s+)?^```text\n(.*?)^```$", re.M | re.S)


@pytest.mark.parametrize(("program", "output"), EXAMPLE.findall(DOCUMENT), ids=["engine", "successor"])
def test_the_examples_print_what_the_document_says(program: str, output: str) -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(program, "docs/api.md", "exec"), {"__name__": "example"})
    assert printed.getvalue() == output


def test_every_option_and_method_of_the_engine_is_described() -> None:
    for option, parameter in inspect.signature(Engine).parameters.items():
        row = re.search(rf"^\| `{option}` \| `?\"?([^|]*?)\"?`? \|", DOCUMENT, re.MULTILINE)
        assert row, option
        assert row[1].replace(",", "") == str(parameter.default), option
    for kind in (Engine, Reader):
        for name in _public(kind):
            assert name == "close" or re.search(rf"`{name}[(`]", DOCUMENT), name


def test_every_reason_timer_and_field_is_described() -> None:
    for reason in model.Reason:
        assert reason is model.Reason.NONE or f"`{reason}`" in DOCUMENT, reason
    for name in model.Timers.__struct_fields__:
        assert f"{name}={getattr(model.Timers(), name):.0f}" in DOCUMENT.replace("\n", " "), name
    ports = {"inside_port", "outside_port", "remote_port"}
    for struct in (model.Flow, model.Drop, model.Counters):
        for name in set(struct.__struct_fields__) - ports:
            assert f"`{name}`" in DOCUMENT, name


def test_every_error_has_its_status() -> None:
    rows = dict(re.findall(r"^\| (.*?) \| (\d+|none) \|", section("Errors"), re.M))
    told = {name: status for names, status in rows.items() for name in re.findall(r"`(\w+)`", names)}
    never = {"ProtocolMismatch": "400", "AlreadyRunning": "none"}  # answered otherwise, and not at all
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        if issubclass(kind, errors.HyperplaneError):
            assert told[name] == never.get(name, str(kind.status)), name


@pytest.mark.parametrize("kind", [Client, SyncClient])
def test_every_method_of_the_clients_is_described(kind: type) -> None:
    for name in _public(kind):
        assert f"`{name}(" in section("The control API"), name


def test_every_route_is_described() -> None:
    table = section("The control API")
    for route in ROUTES:
        noun = route.path.partition("{")[0].rstrip("/")
        assert f"{noun}`" in table or f"{noun}/{{" in table, f"{route.method} {BASE}{route.path}"


def test_every_field_state_and_filter_is_described() -> None:
    text = section("The control API")
    kinds = [kind for _, kind in inspect.getmembers(resources, inspect.isclass)]
    for kind in kinds:
        if issubclass(kind, (resources.Request, resources.Resource)) and kind not in (
            resources.Request, resources.ApplyRequest, resources.Document, resources.EndEnvironment,
        ):  # fmt: skip
            for name in kind.__struct_fields__:
                assert f"`{name}`" in text, f"{kind.__name__}.{name}"
    for states in (resources.FunctionState, resources.EniState, resources.EnvironmentState, resources.UpdateStatus):
        for state in states:
            assert f"`{state}`" in text, state
    for parameters in FILTERS.values():
        for parameter in parameters:
            assert f"`{parameter.name}`" in text, parameter.name


def section(heading: str) -> str:
    match = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", DOCUMENT, re.M | re.S)
    assert match, heading
    return match[1]


def _public(kind: type) -> list[str]:
    return [name for name, _ in inspect.getmembers(kind) if not name.startswith("_")]
