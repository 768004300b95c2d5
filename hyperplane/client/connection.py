"""One HTTP/1.1 connection (RFC 9112) to the API's Unix socket, for one request at a time.

The standard library's http.client brings TLS and the parser of mail with it: loading these takes longer than everything
else that a command of the command line does. The daemon's answers have a Content-Length; no other form is read here.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple

LONGEST_LINE: Final = 65_536  # bytes
MOST_HEADERS: Final = 100
CONTINUE: Final = range(100, 200)  # RFC 9110, 15.2: the answer itself follows
WITHOUT_BODY: Final = (204, 304)


class BadAnswer(Exception):
    """What came is no answer of the API, or only a part of one."""


class Answer(NamedTuple):
    """headers: names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """timeout: seconds that a single read or write may take."""

    def __init__(self, path: Path, timeout: float) -> None:
        self._path = path
        self._timeout = timeout
        self._reader: BinaryIO | None = None
        self.sock: socket.socket | None = None

    def connect(self) -> None:
        """Raises OSError."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self._timeout)
        self.sock.connect(str(self._path))
        self._reader = self.sock.makefile("rb")

    def close(self) -> None:
        """May be called twice; connect() opens it anew."""
        for one in (self._reader, self.sock):
            if one:
                one.close()
        self._reader = self.sock = None

    def exchange(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        """Sends one request and reads its answer; the connection may be closed then. Raises OSError (TimeoutError),
        BadAnswer."""
        assert self.sock
        assert self._reader
        lines = [f"{method} {target} HTTP/1.1", "Host: localhost", *(f"{name}: {headers[name]}" for name in headers)]
        if body is not None or method in ("POST", "PUT"):
            lines.append(f"Content-Length: {len(body or b'')}")
        self.sock.sendall("\r\n".join((*lines, "", "")).encode("latin-1") + (body or b""))
        answer = self._read(self._reader)
        if answer.headers.get("connection", "").lower() == "close":
            self.close()
        return answer

    def _read(self, reader: BinaryIO) -> Answer:
        status = 100
        while status in CONTINUE:
            status = _status(_line(reader))
            headers = _headers(reader)
        if status in WITHOUT_BODY:
            return Answer(status, headers, b"")
        length = headers.get("content-length", "")
        if not length.isdecimal() or "transfer-encoding" in headers:
            raise BadAnswer("an answer without Content-Length")
        body = reader.read(int(length))
        if len(body) < int(length):
            raise BadAnswer("the answer's end is missing")
        return Answer(status, headers, body)


def _status(line: str) -> int:
    version, _, rest = line.partition(" ")
    code = rest[:3]
    if not version.startswith("HTTP/1.") or not (code.isascii() and code.isdecimal() and len(code) == 3):
        raise BadAnswer("no status line")
    return int(code)


def _headers(reader: BinaryIO) -> dict[str, str]:
    headers: dict[str, str] = {}
    while line := _line(reader):
        name, colon, value = line.partition(":")
        if not colon or len(headers) >= MOST_HEADERS:
            raise BadAnswer("no header line")
        headers[name.lower()] = value.strip()
    return headers


def _line(reader: BinaryIO) -> str:
    line = reader.readline(LONGEST_LINE)
    if not line.endswith(b"\n"):
        raise BadAnswer("a line without its end")
    return line.rstrip(b"\r\n").decode("latin-1")
