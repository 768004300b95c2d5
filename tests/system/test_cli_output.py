"""What the command line prints in a pipe and on terminals of several widths, and what it loads to do so."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import resource
import statistics
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator, Sequence

import pytest

from hyperplane.client import Client
from hyperplane.resources import Environment

from .daemons import TestDaemon, declare, start
from .support import Namespaces, run_in
from .test_cli_daemon import COMMAND, ROOT

LISTS = (("environment", "list"), ("eni", "list"), ("function", "list"), ("flow", "list"), ("vpc", "list"))
TABLES = (*LISTS, ("status",), ("environment", "show", "of-a-very-long-name-indeed"), ("doctor",))
FREQUENT = (
    "--version", "status", "environment list", "environment show of-a-very-long-name-indeed", "eni list", "flow list",
    "drop list", "function list",
)  # fmt: skip
NAME = "of-a-very-long-name-indeed"


class Shell:
    """Runs commands against the daemon."""

    def __init__(self, daemon: TestDaemon, environment: Environment) -> None:
        self.environment = environment
        self._variables = {
            name: value
            for name, value in os.environ.items()
            if name not in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS", "LINES")
        } | {"HYPERPLANE_RUN_DIR": str(daemon.directory / "run"), "TERM": "xterm"}

    def piped(self, *arguments: str, **variables: str) -> str:
        command = [*COMMAND, *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=self._variables | variables, check=False
        )
        assert not done.stderr, done.stderr
        return done.stdout

    def on_terminal(self, width: int, *arguments: str, **variables: str) -> str:
        """What a terminal of so many columns was sent; its line ends are plain ones."""
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 50, width, 0, 0))
        process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=ROOT,
            env=self._variables | variables,
        )
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
        os.close(ours)
        assert process.wait(60) in (0, 1)
        return shown.decode().replace("\r\n", "\n")

    def redirected(self, how: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """how: a shell's redirections."""
        variables = {name: value for name, value in self._variables.items() if name != "PYTHONUNBUFFERED"}
        command = ["sh", "-c", f'exec "$@" {how}', "sh", *COMMAND, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, env=variables, check=False)

    def loaded(self, arguments: str) -> set[str]:
        """The modules that a command loads."""
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", "hyperplane.cli", *arguments.split()],
            capture_output=True, text=True, timeout=60, cwd=ROOT, env=self._variables, check=True,
        )  # fmt: skip
        return {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}

    def cost(self, command: Sequence[str]) -> float:
        """Processor seconds of a command, the least of some runs."""
        return min(_processor_time(command, self._variables) for _ in range(7))


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # EIO: the last one has closed it
        return b""


def _processor_time(command: Sequence[str], variables: dict[str, str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, stdout=subprocess.DEVNULL, timeout=60, cwd=ROOT, env=variables, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    with Namespaces() as made, TestDaemon() as daemon:
        vpc, box = made("vpc"), made("a-long-name-of-a-box")
        made.bridge(vpc, "198.19.0.80/24")
        daemon.start()

        async def fill() -> Environment:
            async with Client(path=daemon.places.api) as client:
                await declare(client, vpc)
                return await start(client, box, name=NAME)

        environment = asyncio.run(fill())
        run_in(box, ["ping", "-c", "1", "198.19.0.80"])
        yield Shell(daemon, environment)


def test_rows_in_a_pipe_are_whole(shell: Shell) -> None:
    for columns in ("", "20", "500"):
        row = shell.piped("environment", "list", COLUMNS=columns).splitlines()[1]
        one = shell.environment
        for word in (one.name, one.id, "f", one.eni, one.namespace, "eth0", "198.18.0.2", "attached"):
            assert word in row.split()
    enis = shell.piped("eni", "list", COLUMNS="20").splitlines()
    assert enis[0].split() == ["id", "subnet", "security", "groups", "addresses", "device", "state", "functions",
                               "environments"]  # fmt: skip
    assert shell.piped("flow", "list", COLUMNS="20").splitlines()[0].split()[-3:] == ["out", "in", "idle"]


@pytest.mark.parametrize("command", TABLES, ids=" ".join)
def test_no_escape_sequence_where_none_is_wanted(command: tuple[str, ...], shell: Shell) -> None:
    assert "\x1b" not in shell.piped(*command)
    plain = [
        shell.on_terminal(300, *command, NO_COLOR="1"),
        shell.on_terminal(300, *command, TERM="dumb"),
        shell.on_terminal(300, *command, "--no-color"),
    ]
    for text in plain:
        assert "\x1b" not in text
    assert "\x1b[" in shell.on_terminal(300, *command)
    assert "\x1b[" in shell.piped(*command, FORCE_COLOR="1")
    assert "\x1b" not in shell.piped(*command, FORCE_COLOR="1", NO_COLOR="1")
    assert "…" not in "".join(plain)


@pytest.mark.parametrize("width", [70, 80, 100, 140])
@pytest.mark.parametrize("command", LISTS, ids=" ".join)
def test_a_terminals_width_leaves_columns_out_and_cuts_nothing(
    command: tuple[str, ...], width: int, shell: Shell
) -> None:
    whole = {word for line in shell.piped(*command).splitlines() for word in line.split()}
    by_size = shell.on_terminal(width, *command, NO_COLOR="1")
    by_columns = shell.on_terminal(300, *command, NO_COLOR="1", COLUMNS=str(width))
    assert by_size.splitlines()[0] == by_columns.splitlines()[0]
    shown = [word for line in by_size.splitlines() for word in line.split() if not word[0].isdecimal()]
    assert set(shown) <= whole | {"…"}
    heading, *rows = by_size.splitlines()
    if any(len(row) > width for row in rows):  # nothing more could be left out: the terminal wraps them
        assert heading.endswith("…")


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_output_that_cannot_be_written_is_an_error(more: list[str], shell: Shell) -> None:
    done = shell.redirected(">/dev/full", "environment", "list", *more)
    assert done.returncode == 1
    assert done.stderr == "hyperplane-nat: standard output cannot be written: No space left on device\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_do_no_harm(closed: str, shell: Shell) -> None:
    done = shell.redirected(closed, "environment", "list")
    assert (done.returncode, done.stderr) == (0, "")
    assert (NAME in done.stdout) == (closed == "2>&-")


def test_a_wide_terminal_shows_what_a_pipe_gets(shell: Shell) -> None:
    wide = shell.on_terminal(300, "environment", "list", NO_COLOR="1")
    assert wide == shell.piped("environment", "list")


@pytest.mark.parametrize("arguments", FREQUENT)
def test_frequent_commands_load_nothing_slow(arguments: str, shell: Shell) -> None:
    slow = {
        "aiohttp", "asyncio", "cffi", "ctypes", "dataclasses", "difflib", "email", "http.client", "hyperplane._native",
        "hyperplane.control", "hyperplane.daemon", "hyperplane.dataplane", "hyperplane.linux", "importlib.metadata",
        "multiprocessing", "prometheus_client", "pyroute2", "pytun", "rich", "sqlite3", "ssl", "structlog",
        "subprocess", "tomllib", "uvloop",
    }  # fmt: skip
    loaded = shell.loaded(arguments)
    assert "click" in loaded
    assert not slow & loaded


def test_a_list_costs_little_more_than_its_libraries(shell: Shell) -> None:
    """In processor time, which other programs change less than a clock's: it took 7.7 times what Python takes to start,
    and now takes 2.6 times that."""
    compiled = subprocess.run([sys.executable, "-m", "compileall", "-q", "hyperplane"], cwd=ROOT, check=False)
    assert compiled.returncode == 0
    ratios = []
    for _ in range(3):
        libraries = shell.cost([sys.executable, "-c", "import click, msgspec, socket"])
        ratios.append(shell.cost([*COMMAND, "environment", "list"]) / libraries)
    assert statistics.median(ratios) < 1.5
