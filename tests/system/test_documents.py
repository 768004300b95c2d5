"""Every command in the README and in docs/ is run, and its output compared with what stands there.

A fenced block runs when an HTML comment stands right above it, which nobody sees who reads the rendered page:

    <!-- run -->                  console: lines with "# " are commands ("> " continues one), the others their output
                                  python: a program
    <!-- run: customer box1 -->   the same, with these namespaces made before it, and the tour's web server
    <!-- run first ... -->        no block: commands in the comment itself, for what the page does not show

A ```text block after a python block is what it prints.
The blocks of a document run in order in one shell. Numbers and ids in output may be others, but for addresses; "..."
stands for anything. Namespaces are made in a mount namespace of the document's own, so their names may be anybody's.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from .support import DEADLINE, wait_until

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(
    r"<!-- run first\n(?P<first>.*?)-->|<!-- run(?:: (?P<names>[^>]*?))? -->\n```(?P<kind>\w+)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
ADDRESS_OR_NUMBER = re.compile(r"(\d+\.\d+\.\d+\.\d+)|\d[\d,]*(?:\.\d+)?")
ID = re.compile(r"(vpc-|subnet-|sg-|function-|eni-|env-|eni)0?[0-9a-f]{10,16}")
SHELL = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c"]
START = "mkdir -p /run/netns && mount -t tmpfs none /run/netns && exec bash"
SITE = """
ip -n customer link set lo up
ip -n customer addr add 198.19.0.10/32 dev lo
ip netns exec customer python3 -m http.server 80 --bind 198.19.0.10 >/dev/null 2>&1 &
until ip netns exec customer ss -Hltn | grep -q :80; do :; done
"""


@dataclass(frozen=True)
class Step:
    command: str
    output: tuple[str, ...]


class Shell:
    """A bash that runs one command after the other; text is everything that it and its children have written."""

    def __init__(self, directory: Path) -> None:
        programs = directory / "bin"
        programs.mkdir()
        command = programs / "hyperplane-nat"
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m hyperplane.cli "$@"\n')
        command.chmod(0o755)
        for name in ("work", "run", "state"):
            (directory / name).mkdir()
        path = f"{programs}:{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
        self.text = ""
        self.process = subprocess.Popen(
            [*SHELL, START], cwd=directory / "work", text=True, bufsize=1,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env=os.environ
            | {"PATH": path, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", "PYTHONUNBUFFERED": "1"}
            | {"HYPERPLANE_RUN_DIR": str(directory / "run"), "HYPERPLANE_STATE_DIR": str(directory / "state")},
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._count = 0

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.text += line

    def run(self, command: str) -> int:
        """Runs it to its end (or starts it, with &); returns where in .text its output begins."""
        assert self.process.stdin
        begin = len(self.text)
        self._count += 1
        mark = f"--{self._count}--"
        self.process.stdin.write(f"{command}\necho {mark}\n")
        wait_until(lambda: f"{mark}\n" in self.text[begin:] or self.process.poll() is not None, 3 * DEADLINE, command)
        assert self.process.poll() is None, f"the shell ended: {self.text[begin:]}"
        return begin

    def lines(self, begin: int) -> list[str]:
        return [line for line in self.text[begin:].splitlines() if not re.fullmatch(r"--\d+--", line)]

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    made.close()


def steps(text: str) -> list[Step]:
    """Commands of a console block with their outputs."""
    found: list[tuple[list[str], list[str]]] = []
    for line in text.splitlines():
        if line.startswith("# "):
            found.append(([line[2:]], []))
        elif line.startswith(("> ", ">")) and found and not found[-1][1]:
            found[-1][0].append(line[2:])
        else:
            assert found, f"output without a command: {line}"
            found[-1][1].append(line)
    return [Step("\n".join(command), tuple(output)) for command, output in found]


def pattern(line: str) -> re.Pattern[str]:
    """Matches the line with other numbers and blanks."""
    parts = []
    for piece in re.split(r"(\.\.\.|\s+)", line.strip()):
        if piece == "...":
            parts.append(".*")
        elif piece.isspace():
            parts.append(r"\s+")
        else:
            parts.append(_loose(piece))
    return re.compile(r"\s*" + "".join(parts) + r"\s*")


def _loose(word: str) -> str:
    if match := ID.search(word):
        any_id = rf"{match[1]}[0-9a-f]+"
        return _loose(word[: match.start()]) + any_id + _loose(word[match.end() :])
    found, end = "", 0
    for match in ADDRESS_OR_NUMBER.finditer(word):
        found += re.escape(word[end : match.start()])
        found += re.escape(match[0]) if match[1] else r"\d[\d,]*(?:\.\d+)?"
        end = match.end()
    return found + re.escape(word[end:])


def missing(expected: tuple[str, ...], lines: list[str]) -> str:
    """The first expected line that is not there, in order; "" when all are."""
    place = 0
    for line in filter(str.strip, expected):
        wanted = pattern(line)
        place = next((i + 1 for i in range(place, len(lines)) if wanted.fullmatch(lines[i])), 0)
        if not place:
            return line
    return ""


def check(shell: Shell, step: Step) -> None:
    begin = shell.run(step.command)
    try:
        wait_until(lambda: not missing(step.output, shell.lines(begin)))
    except AssertionError:
        line = missing(step.output, shell.lines(begin))
        pytest.fail(f"{step.command}\nshould have printed: {line}\nbut printed:\n{shell.text[begin:]}", pytrace=False)
    if not step.output:
        assert shell.lines(begin) == [], step.command


@pytest.mark.timeout(400)
@pytest.mark.parametrize("document", ["README.md", "docs/api.md", "docs/cli.md", "docs/guests.md", "docs/service.md"])
def test_commands_do_what_the_document_shows(document: str, shell: Shell, tmp_path: Path) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert blocks
    for block in blocks:
        if block["first"]:
            shell.run(block["first"])
        elif block["kind"] == "console":
            for step in steps(block["text"]):
                check(shell, step)
        else:
            assert block["kind"] == "python"
            program = tmp_path / "program.py"
            program.write_text(block["text"], encoding="utf-8")
            for name in (block["names"] or "").split():
                shell.run(f"ip netns add {name}")
            if block["names"]:
                shell.run(SITE)
            expected = re.match(r"\s*[^\n]*\n\n```text\n(.*?)^```$", text[block.end() :], re.DOTALL | re.MULTILINE)
            check(shell, Step(f"python {program}", tuple(expected[1].splitlines()) if expected else ()))
    shell.run("jobs -p | xargs -r kill")


@pytest.mark.parametrize("document", ["README.md", *sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))])
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        other = (path.parent / file) if file else path
        assert other.exists(), target
        if anchor:
            assert anchor in _anchors(other.read_text(encoding="utf-8")), target


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
