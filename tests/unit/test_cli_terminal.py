"""What may be written where: colour, widths, tables. tests/system/test_cli_output.py tries it with real terminals."""

from __future__ import annotations

import io
import os
import pty
from collections.abc import Iterator
from typing import TextIO

import pytest

from hyperplane.cli.terminal import Printer, Styled, Table, takes_color

VARIABLES = ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TERM", "COLUMNS")
TABLE = Table(("name", "id", "size"), [[Styled("a", "cyan"), "env-0123456789", "5"]], right=("size",), spare=("size",))
PLAIN = Printer(color=False, file=io.StringIO())


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def terminal() -> Iterator[TextIO]:
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    with open(theirs, "w", encoding="utf-8") as file:
        yield file
    os.close(ours)


@pytest.mark.parametrize(
    ("terminal", "environ", "color"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"NO_COLOR": "0"}, False),  # any value: no-color.org
        (True, {"NO_COLOR": ""}, True),
        (True, {"TERM": "dumb"}, False),
        (True, {"TERM": "Unknown"}, False),
        (False, {"FORCE_COLOR": "1"}, True),
        (False, {"FORCE_COLOR": ""}, False),
        (False, {"FORCE_COLOR": "1", "NO_COLOR": "1"}, False),
        (False, {"FORCE_COLOR": "1", "TERM": "dumb"}, False),
        (True, {"TTY_COMPATIBLE": "0"}, False),
        (False, {"TTY_COMPATIBLE": "1"}, True),
    ],
)
def test_who_decides_about_colour(terminal: bool, environ: dict[str, str], color: bool) -> None:
    assert takes_color(terminal=terminal, environ=environ) is color


def test_a_pipe_gets_whole_rows_whatever_columns_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "10")
    file = io.StringIO()
    Printer(file=file).table(TABLE)
    assert file.getvalue() == " name  id              size\n a     env-0123456789     5\n"


@pytest.mark.parametrize(("columns", "width"), [("33", 33), ("", 80), ("0", 80), ("wide", 80)])
def test_a_terminal_is_as_wide_as_columns_says(
    columns: str, width: int, terminal: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)  # a new pseudo-terminal says 0
    assert Printer(file=terminal).width == width


def test_a_terminal_gets_colours_unless_it_is_told_not_to(terminal: TextIO) -> None:
    assert Printer(file=terminal).text(Styled("no", "bold red"), " way") == "\x1b[1;31mno\x1b[0m way"
    for plain in (Printer(color=False, file=terminal), Printer(file=io.StringIO())):
        assert plain.text(Styled("no", "bold red"), " way") == "no way"
        assert not plain.redraws


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb"), ("TTY_COMPATIBLE", "0")])
def test_nothing_is_redrawn_without_escape_sequences(
    name: str, value: str, terminal: TextIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Printer(file=terminal).redraws
    monkeypatch.setenv(name, value)
    assert not Printer(file=terminal).redraws
    monkeypatch.delenv(name)
    monkeypatch.setenv("FORCE_COLOR", "1")
    coloured = Printer(file=io.StringIO())
    assert (coloured.styled, coloured.redraws, coloured.width) == (True, False, 0)


def test_columns_are_left_out_before_anything_is_cut() -> None:
    texts = [[PLAIN.text(*line) for line in TABLE.lines(n)] for n in (27, 26, 5)]
    assert texts[0] == [" name  id              size", " a     env-0123456789     5"]
    assert texts[1] == texts[2] == [" name  id  …", " a     env-0123456789"]


def test_sentences_at_the_end_wrap_and_push_nothing_out() -> None:
    table = Table(
        ("name", "id", "why"), [["a", "env-0", "a long story"], ["b", "env-1", ""]], spare=("id",), free="why"
    )
    assert [PLAIN.text(*line) for line in table.lines(17)] == [
        " name  id     why",
        " a     env-0  a long story",
        " b     env-1",
    ]


def test_wide_characters_take_two_columns() -> None:
    table = Table(("name", "n"), [["日本", "1"], ["e\N{COMBINING ACUTE ACCENT}", "2"], ["plain", "3"]])
    lines = [PLAIN.text(*line) for line in table.lines(0)]
    assert lines == [" name   n", " 日本   1", " e\N{COMBINING ACUTE ACCENT}      2", " plain  3"]


def test_pairs_stand_below_each_other() -> None:
    file = io.StringIO()
    Printer(file=file).pairs([("id", "x"), ("inside address", Styled("198.18.0.2\n", "cyan"))])
    assert file.getvalue() == "id              x\ninside address  198.18.0.2\\n\n"
