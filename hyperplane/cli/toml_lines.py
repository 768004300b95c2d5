"""Where in a TOML text a field stands: errors name fields such as `subnet[1].cidr`, people look for lines.

tomllib gives values without places, so the text is walked once more here. It has been parsed by tomllib before: what
is no TOML may give a wrong line, but never an exception.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import Final

Path = tuple[str | int, ...]

_STEP: Final = re.compile(r"\[(\d+)\]|([^.\[\]]+)")
_UNKNOWN_FIELD: Final = re.compile(r"unknown field `([^`]+)`")
_PLACE: Final = re.compile(r"^(?P<message>.*) \(at (?:line (?P<line>\d+), column (?P<column>\d+)|end of document)\)$")
_SPACE: Final = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BARE: Final = re.compile(r"[^\s=.\[\]{},#\"']+")
_SCALAR: Final = re.compile(r"[^,\]}#\n]*")
_STRINGS: Final = (
    re.compile(r'"""(?:\\.|[^\\])*?"{3,5}', re.DOTALL),
    re.compile(r"'''.*?'{3,5}", re.DOTALL),
    re.compile(r'"(?:\\.|[^"\\\n])*"'),
    re.compile(r"'[^'\n]*'"),
)


def line_of(text: str, field: str, message: str = "") -> int:
    """The line, from 1 on, of a field or of the nearest table around it that is there; 0 when none is.

    message: the error's; where it names an unknown field, that field's line.
    """
    path: Path = tuple(int(number) if number else name for number, name in _STEP.findall(field))
    if match := _UNKNOWN_FIELD.search(message):
        path += (match[1],)
    lines = _Walk(text).lines
    while path and path not in lines:
        path = path[:-1]
    return lines.get(path, 0)


def syntax_error(text: str, error: Exception) -> tuple[int, str]:
    """The line of what tomllib complains about, and its words without the place."""
    match = _PLACE.match(str(error))
    if match is None:
        return 0, str(error)
    last = text.rstrip("\n").count("\n") + 1
    return int(match["line"] or last), match["message"]


class _Walk:
    """One pass over a text; lines: the line of each table, key and array element."""

    def __init__(self, text: str) -> None:
        self.lines: dict[Path, int] = {}
        self._text = text
        self._at = 0
        self._ends = [match.start() for match in re.finditer("\n", text)]
        self._last: dict[Path, int] = {}  # of each array of tables, the number of its latest
        table: Path = ()
        while self._skip():
            if self._take("["):
                table = self._header()
            else:
                self._pair(table, ending="\n")

    # A text's parts

    def _header(self) -> Path:
        line, array = self._line(), self._take("[")
        self._skip()
        *parents, name = self._key() or ("",)
        path: Path = ()
        for parent in parents:
            path = self._latest((*path, parent))
        path = (*path, name)
        if array:
            self._last[path] = self._last.get(path, -1) + 1
            self.lines.setdefault(path, line)
            path = (*path, self._last[path])
        self.lines.setdefault(path, line)
        while self._take("]") or self._take(" "):
            pass
        return path

    def _latest(self, path: Path) -> Path:
        return (*path, self._last[path]) if path in self._last else path

    def _pair(self, table: Path, ending: str) -> None:
        """`key = value`, or a step over one character where there is none."""
        line, begin = self._line(), self._at
        path = (*table, *self._key())
        self._blank()
        if len(path) > len(table) and self._take("="):
            for length in range(len(table) + 1, len(path) + 1):
                self.lines.setdefault(path[:length], line)
            self._value(path)
        elif self._at == begin:
            self._at += 1

    def _key(self) -> Path:
        parts: list[str] = []
        while True:
            self._blank()
            begin = self._at
            if quoted := self._string():
                parts.append(quoted[1:-1])
            elif match := _BARE.match(self._text, begin):
                parts.append(match[0])
                self._at = match.end()
            else:
                return tuple(parts)
            self._blank()
            if not self._take("."):
                return tuple(parts)

    def _value(self, path: Path) -> None:
        self._blank()
        if self._take("["):
            self._array(path)
        elif self._take("{"):
            while self._skip() and not self._take("}"):
                if not self._take(","):
                    self._pair(path, ending="}")
        elif not self._string():
            match = _SCALAR.match(self._text, self._at)
            self._at = match.end() if match else self._at

    def _array(self, path: Path) -> None:
        number = 0
        while self._skip() and not self._take("]"):
            if self._take(","):
                continue
            begin = self._at
            self.lines[(*path, number)] = self._line()
            self._value((*path, number))
            number += 1
            self._at += self._at == begin

    # Characters

    def _string(self) -> str:
        for pattern in _STRINGS:
            if match := pattern.match(self._text, self._at):
                self._at = match.end()
                return match[0]
        return ""

    def _skip(self) -> bool:
        """Over blanks, lines and comments; False at the end of the text."""
        match = _SPACE.match(self._text, self._at)
        self._at = match.end() if match else self._at
        return self._at < len(self._text)

    def _blank(self) -> None:
        while self._text[self._at : self._at + 1] in (" ", "\t"):
            self._at += 1

    def _take(self, character: str) -> bool:
        found = self._text.startswith(character, self._at)
        self._at += found
        return found

    def _line(self) -> int:
        return bisect_right(self._ends, self._at - 1) + 1
