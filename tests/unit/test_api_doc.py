"""docs/api.md is right: its example runs and prints what it says, and its tables hold what there is."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from pathlib import Path

from hyperplane import errors, model
from hyperplane.dataplane import Engine

# The sanitized run happens in a mirror below the project: the document is in one of the folders above.
DOCUMENT = next(path for parent in Path(__file__).parents if (path := parent / "docs" / "api.md").exists()).read_text()


def block(kind: str) -> str:
    """The first fenced block of that kind."""
    match = re.search(rf"^```{kind}\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert match
    return match[1]


def test_the_example_prints_what_the_document_says() -> None:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(block("python"), "docs/api.md", "exec"), {"__name__": "example"})
    assert printed.getvalue() == block("text")


def test_every_option_and_method_of_the_engine_is_described() -> None:
    for option, parameter in inspect.signature(Engine).parameters.items():
        row = re.search(rf"^\| `{option}` \| `?\"?([^|]*?)\"?`? \|", DOCUMENT, re.MULTILINE)
        assert row, option
        assert row[1].replace(",", "") == str(parameter.default), option
    for name, _ in inspect.getmembers(Engine):
        assert name.startswith("_") or name == "close" or re.search(rf"`{name}[(`]", DOCUMENT), name


def test_every_reason_error_timer_and_field_is_described() -> None:
    for reason in model.Reason:
        assert reason is model.Reason.NONE or f"`{reason}`" in DOCUMENT, reason
    for name, kind in inspect.getmembers(errors, inspect.isclass):
        assert kind.__module__ != errors.__name__ or f"{name}`" in DOCUMENT, name
    for name in model.Timers.__struct_fields__:
        assert f"{name}={getattr(model.Timers(), name):.0f}" in DOCUMENT.replace("\n", " "), name
    ports = {"inside_port", "outside_port", "remote_port"}
    for struct in (model.Flow, model.Drop, model.Counters):
        for name in set(struct.__struct_fields__) - ports:
            assert f"`{name}`" in DOCUMENT, name
