"""`hyperplane-nat demo`: what it shows is so, and it leaves nothing behind, however it ends."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from .support import DEADLINE, PATIENCE, namespaces, wait_until

COMMAND = [sys.executable, "-m", "hyperplane.cli", "demo"]
ROOT = Path(__file__).parents[2]
MOST = 60.0 * PATIENCE  # seconds; 60 are promised
HIDDEN = ["unshare", "--mount", "sh", "-c"]


@dataclass
class Demo:
    """A demo that was started; all its processes have its own TMPDIR, by which they are known."""

    process: subprocess.Popen[str]
    scratch: Path

    def traces(self) -> list[str]:
        """What it has made and not removed."""
        found = [name for name in namespaces() if re.fullmatch(rf"hpdemo-\w+-{self.process.pid}", name)]
        for number in filter(str.isdecimal, os.listdir("/proc")):
            with suppress(OSError):
                process = Path("/proc", number)
                if f"TMPDIR={self.scratch}\0".encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().decode(errors="replace").replace("\0", " "))
        return found

    def finish(self) -> str:
        """Waits for a demo that goes well; returns its output."""
        out, err = self.process.communicate(timeout=MOST)
        assert (self.process.returncode, err) == (0, "")
        assert self.traces() == []
        return out

    def end(self, number: int) -> str:
        """Ends it by a signal, if it has not ended; returns what it said on standard error."""
        self.process.send_signal(number)
        err = self.process.communicate(timeout=MOST)[1]
        assert self.process.returncode in (0, 128 + number), err
        assert self.traces() == []
        return err


@pytest.fixture
def scratch() -> Iterator[Path]:
    """The demos' directory for temporary files, which everybody may enter; it must be empty afterwards."""
    path = Path(tempfile.mkdtemp(prefix="hpt-"))
    path.chmod(0o755)
    yield path
    left = list(path.iterdir())
    shutil.rmtree(path)
    assert left == [], "temporary files are left"


Start = Callable[..., Demo]


@pytest.fixture
def demo(scratch: Path) -> Start:
    def start(*arguments: str, prefix: Sequence[str] = ()) -> Demo:
        environment = os.environ | {"TMPDIR": str(scratch)}
        process = subprocess.Popen(
            [*prefix, *COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
            text=True, cwd=ROOT, env=environment,
        )  # fmt: skip
        return Demo(process, scratch)

    return start


def events(out: str, kind: str) -> list[dict[str, Any]]:
    return [one for one in map(json.loads, out.splitlines()) if one["event"] == kind]


def test_it_shows_the_main_job_with_three_servers(demo: Start) -> None:
    out = demo("--json", "--environments", "4").finish()
    names = ["env-1", "env-2", "env-3", "env-4"]
    (begin,) = events(out, "begin")
    assert begin["servers"] == ["HTTP", "Redis", "PostgreSQL"]
    assert begin["missing"] == []
    attached = events(out, "attached")
    assert [one["environment"] for one in attached] == names
    assert {one["inside_address"] for one in attached} == {"198.18.0.2"}
    assert all(one["veth_has_nft"] for one in attached)
    # Several processes take longer than one system call after another: in all, not each, for this machine is shared.
    assert sum(one["seconds"] for one in attached) < sum(one["veth_seconds"] for one in attached)
    fetched = events(out, "fetched")
    assert [one["environment"] for one in fetched] == names
    assert {(one["inside"], one["inside_port"]) for one in fetched} == {("198.18.0.2", 40000)}
    assert {one["seen"].partition(":")[0] for one in fetched} == {"198.19.0.5"}
    assert len({one["seen"] for one in fetched}) == 4
    # The flow list says of each connection whose it is, and is right.
    flows = {f"{one['outside']}:{one['outside_port']}": one for one in events(out, "flow") if one["remote_port"] == 80}
    assert {one["seen"]: one["environment"] for one in fetched} == {
        seen: flow["environment"] for seen, flow in flows.items()
    }
    assert all(flow["state"] == "established" for flow in flows.values())
    answers = [(one["server"], one["environment"], one["answer"]) for one in events(out, "asked")]
    assert answers == [
        ("Redis", "env-1", "OK"),
        ("Redis", "env-2", "env-1"),
        ("PostgreSQL", "env-4", "198.19.0.5"),
    ]
    (tried_in,), (tried_out,) = events(out, "tried_in"), events(out, "tried_out")
    assert (tried_in["outcome"], tried_in["reason"]) == ("no answer", "no_flow")
    assert f"{tried_in['address']}:{tried_in['port']}" == fetched[0]["seen"]
    assert (tried_out["outcome"], tried_out["reason"]) == ("refused", "security_group")
    assert tried_out["seconds"] < tried_out["silent_seconds"] / 100
    assert events(out, "done")[0]["seconds"] < MOST


def test_it_tells_people_and_works_a_second_time(demo: Start) -> None:
    for _ in range(2):
        out = demo().finish()
        lines = out.splitlines()
        assert len(lines) <= 45, "one screen"
        assert max(map(len, lines)) <= 110
        assert "\x1b" not in out, "no colour outside a terminal"
        for words in ("VPC 198.19.0.0/24", 'server: "you are 198.19.0.5:', "no_flow", "security_group", "Go on:"):
            assert words in out
        for step in range(1, 6):
            assert any(line.startswith(f"{step}. ") for line in lines)
        assert len(re.findall(r"env-\d +198\.18\.0\.2 +[\d.]+ ms +[\d.]+ ms", out)) == 3


def test_servers_and_nft_that_are_not_installed_are_left_out(demo: Start) -> None:
    programs = [shutil.which(name, path="/usr/sbin:/sbin:/usr/bin") for name in ("nft", "redis-server")]
    databases = [str(path) for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")]
    databases += filter(None, [shutil.which("initdb")])
    hide = "".join(f"mount --bind /dev/null {os.path.realpath(path)}; " for path in [*programs, *databases] if path)
    out = demo("--json", prefix=[*HIDDEN, f'{hide} exec "$@"', "sh"]).finish()
    (begin,) = events(out, "begin")
    assert begin["servers"] == ["HTTP"]
    assert begin["missing"][0] == "Redis is not installed"
    assert begin["missing"][1].startswith("PostgreSQL is not installed")
    assert events(out, "asked") == []
    assert len(events(out, "fetched")) == 3
    assert not any(one["veth_has_nft"] for one in events(out, "attached"))
    text = demo(prefix=[*HIDDEN, f'{hide} exec "$@"', "sh"]).finish()
    assert "Redis is not installed, so it is left out" in text
    assert "nft is not installed" in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_moment_leaves_nothing(number: signal.Signals, demo: Start) -> None:
    started = time.monotonic()
    demo().finish()
    took = time.monotonic() - started
    said = f"hyperplane-nat: ended by {number.name} before it was done; everything it had made is removed again\n"
    for step in range(1, 5):
        until = time.monotonic() + took * step / 5
        running = demo()
        wait_until(partial(_is_over, until), MOST, "the moment")
        err = running.end(number)
        assert err == (said if running.process.returncode else "")


def _is_over(moment: float) -> bool:
    return time.monotonic() >= moment


def test_an_impatient_user_leaves_nothing(demo: Start) -> None:
    running = demo()
    wait_until(lambda: any(name.endswith(f"-{running.process.pid}") for name in namespaces()), what="it has begun")
    for _ in range(20):
        if running.process.poll() is None:
            running.process.send_signal(signal.SIGINT)
    running.end(signal.SIGINT)
    assert running.process.returncode == 128 + signal.SIGINT


def test_after_it_was_killed_the_next_one_cleans_up(demo: Start, scratch: Path) -> None:
    killed = demo()
    # A server's directory, and nothing else: tempfile tries out the directory with a file of its own.
    wait_until(lambda: any(scratch.glob("hpdemo-*")), MOST, "servers are being started")
    killed.process.kill()
    killed.process.communicate()
    assert f"hpdemo-vpc-{killed.process.pid}" in killed.traces()
    wait_until(lambda: all(one.startswith("hpdemo-") for one in killed.traces()), DEADLINE, "its servers have ended")
    demo().finish()
    assert killed.traces() == []


def test_a_reader_that_goes_away_leaves_nothing(demo: Start) -> None:
    running = demo("--json")
    assert running.process.stdout
    assert running.process.stderr
    assert running.process.stdout.readline()
    running.process.stdout.close()
    assert running.process.wait(MOST) == 1
    assert running.process.stderr.read() == ""
    running.process.stderr.close()
    assert running.traces() == []


def test_what_it_needs_is_one_line(demo: Start) -> None:
    for prefix, words in (
        (["setpriv", "--bounding-set", "-sys_admin"], "sudo hyperplane-nat demo"),
        ([*HIDDEN, 'mount -t tmpfs none /dev/net && exec "$@"', "sh"], "modprobe tun"),
        ([*HIDDEN, f'mount --bind /dev/null {shutil.which("ip")} && exec "$@"', "sh"], "install iproute2"),
    ):
        process = demo(prefix=prefix).process
        out, err = process.communicate(timeout=MOST)
        assert (process.returncode, out) == (1, "")
        assert words in err
        assert err.count("\n") == 1
