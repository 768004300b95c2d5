"""Standard output for people: whether it takes colour, how wide it is; styled words and tables.

In a pipe or file rows are whole: nothing is cut, left out or wrapped. On a terminal that is too narrow for a table some
of its columns are left out; what is then still too long wraps as the terminal wraps it. Loading rich takes longer than
all that most commands do, so only what redraws a terminal has it (live.py).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple, TextIO

USUAL_WIDTH: Final = 80  # of a terminal that does not say
GAP: Final = "  "
LEFT_OUT: Final = "…"
# ECMA-48, 8.3.117: select graphic rendition.
CODES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


class Styled(NamedTuple):
    """style: words of CODES with blanks between, such as `bold red`."""

    text: str
    style: str


Part = str | Styled


class Table(NamedTuple):
    """title of each column, and rows of as many cells. right: titles of columns that hold numbers. spare: titles of
    those that may be left out, first what can be missed most. free: of a last one that holds sentences: it may wrap."""

    titles: Sequence[str]
    rows: Sequence[Sequence[Part]]
    right: Sequence[str] = ()
    spare: Sequence[str] = ()
    free: str = ""

    def lines(self, width: int) -> list[list[Part]]:
        """The heading and a line for each row; width: columns that there are, 0 for as many as are needed."""
        widths = [max(_cells(_text(cell)) for cell in column) for column in zip(self.titles, *self.rows, strict=True)]
        shown = self._shown(widths, width)
        heading: list[Part] = [Styled(title, "bold") for title in self.titles]
        lines = [self._line(row, shown, widths) for row in (heading, *self.rows)]
        if len(shown) < len(widths):
            lines[0] += [GAP, Styled(LEFT_OUT, "dim")]
        return lines

    def _shown(self, widths: Sequence[int], width: int) -> list[int]:
        """The numbers of the columns that are shown."""
        widths = [
            len(title) if title and title == self.free else n for title, n in zip(self.titles, widths, strict=True)
        ]
        shown = list(range(len(widths)))
        for title in self.spare:
            marked = len(GAP) + len(LEFT_OUT) if len(shown) < len(widths) else 0
            if not width or sum(len(GAP) + widths[i] for i in shown) - 1 + marked <= width:
                break
            shown.remove(self.titles.index(title))
        return shown

    def _line(self, cells: Sequence[Part], shown: Sequence[int], widths: Sequence[int]) -> list[Part]:
        line: list[Part] = [" "]
        for i in shown:
            blanks = " " * (widths[i] - _cells(_text(cells[i])))
            line += [blanks, cells[i]] if self.titles[i] in self.right else [cells[i], blanks]
            line.append(GAP)
        while not _text(line[-1]).strip():
            line.pop()
        return line


class Printer:
    """styled: whether escape sequences may be written; redraws: whether they move a cursor, too. width: of the
    terminal; 0 where there is none."""

    def __init__(self, *, color: bool = True, file: TextIO | None = None) -> None:
        """color False: none, wherever it goes. file: standard output unless given."""
        self._file = file or sys.stdout
        self.width = _width(self._file, os.environ)
        self.styled = color and takes_color(terminal=self.width > 0, environ=os.environ)
        self.redraws = self.styled and self.width > 0

    def line(self, *parts: Part) -> None:
        """Prints one line, at once."""
        self._write([parts])

    def table(self, table: Table, *, indent: int = 0) -> None:
        lines = table.lines(max(self.width - indent, 1) if self.width else 0)
        self._write([(" " * indent, *line) for line in lines])

    def pairs(self, pairs: Sequence[tuple[str, Part]]) -> None:
        """A line for each name with its value."""
        longest = max(len(name) for name, _ in pairs)
        self._write([(Styled(name, "bold"), " " * (longest - len(name)), GAP, value) for name, value in pairs])

    def text(self, *parts: Part) -> str:
        """A line as it would be printed."""
        return "".join(map(self._shown, parts))

    def _write(self, lines: Sequence[Sequence[Part]]) -> None:
        self._file.write("".join(f"{self.text(*line)}\n" for line in lines))
        self._file.flush()

    def _shown(self, part: Part) -> str:
        text = _text(part)
        if not self.styled or not text or isinstance(part, str) or not part.style:
            return text
        return f"\x1b[{';'.join(CODES[word] for word in part.style.split())}m{text}\x1b[0m"


def takes_color(*, terminal: bool, environ: Mapping[str, str]) -> bool:
    """Whether escape sequences may be written: NO_COLOR, TTY_COMPATIBLE and FORCE_COLOR have the first words, as
    no-color.org, force-color.org and rich say; empty ones count as not set."""
    if environ.get("NO_COLOR"):
        return False
    if environ.get("TERM", "").strip().lower() in ("dumb", "unknown"):
        return False
    compatible = environ.get("TTY_COMPATIBLE")
    if compatible in ("0", "1"):
        return compatible == "1"
    return bool(environ.get("FORCE_COLOR")) or terminal


def _width(file: TextIO, environ: Mapping[str, str]) -> int:
    """Columns of the terminal that file is, COLUMNS before what it says itself; 0 for anything else."""
    try:
        if not file.isatty():
            return 0
        own = os.get_terminal_size(file.fileno()).columns
    except (OSError, ValueError):
        return 0
    columns = environ.get("COLUMNS", "")
    return (int(columns) if columns.isdecimal() else 0) or own or USUAL_WIDTH


def _text(part: Part) -> str:
    """Without what a terminal would take for a command: names and paths may hold anything."""
    text = part if isinstance(part, str) else part.text
    return text if text.isprintable() else "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _cells(text: str) -> int:
    """Columns that a text takes on a terminal."""
    if text.isascii():
        return len(text)
    from unicodedata import combining, east_asian_width

    return sum(0 if combining(one) else 2 if east_asian_width(one) in "WF" else 1 for one in text)
