"""`hyperplane-nat run`: the command's world, its signals, its status; with a played daemon, and with a real one."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from hyperplane.cli.running import refused_resolvers
from hyperplane.codec import to_json
from hyperplane.resources import Environment, EnvironmentState, Function, FunctionState, SecurityGroup, Vpc

from .support import DEADLINE, wait_until

COMMAND = [sys.executable, "-m", "hyperplane.cli"]
ROOT = Path(__file__).parents[2]
RESOLVER, INSIDE = IPv4Address("198.19.0.2"), IPv4Address("198.18.0.2")
VPC = Vpc(id="vpc-1", account="default", name="customer", created=1.0, namespace="c", dns=(RESOLVER,))
GROUP = SecurityGroup(id="sg-1", account="default", name="web", created=3.0, vpc="vpc-1", rules=("tcp/443",))
FUNCTION = Function(
    id="function-1", account="default", name="reports", created=4.0, vpc="vpc-1", subnets=("subnet-1",),
    security_groups=("sg-1",), enis=("eni-1",), inside_address=INSIDE, routes=(), mtu=0, max_flows=0,
    state=FunctionState.ACTIVE,
)  # fmt: skip
ENVIRONMENT = Environment(
    id="env-1", account="default", name="job-17", created=5.0, function="function-1", eni="eni-1", namespace="pid:7",
    device="eth0", inside_address=INSIDE, mtu=1500, state=EnvironmentState.ATTACHED,
)  # fmt: skip
Done = subprocess.CompletedProcess[str]
NOBODY = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]


class Api:
    """Plays the daemon's API for `run`: one function, and environments that it notes."""

    def __init__(self, path: Path) -> None:
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[dict[str, Any]] = []
        self.problem: dict[str, Any] = {}
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def _answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                sent = self.rfile.read(length)
                target = self.path.partition("?")[0].removeprefix("/v1")
                api.requests.append((self.command, target))
                if self.command == "POST":
                    api.bodies.append(json.loads(sent))
                status, body = api.answer(self.command, target)
                self.send_response(status)
                self.send_header("Hyperplane-Protocol", "1")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST = do_DELETE = _answer  # noqa: N815

            def log_message(self, *arguments: object) -> None:
                pass

            def address_string(self) -> str:
                return "unix"

        class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                """Clients that went away are part of the tests."""

        path.parent.mkdir(parents=True)
        self.server = Server(str(path), Handler)
        path.chmod(0o666)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def answer(self, method: str, target: str) -> tuple[int, bytes]:
        known = {
            "/functions/reports": FUNCTION, "/vpcs/vpc-1": VPC, "/security-groups/sg-1": GROUP,
            "/environments": ENVIRONMENT, "/environments/env-1": ENVIRONMENT,
        }  # fmt: skip
        if self.problem and method == "POST":
            return 409, json.dumps(self.problem).encode()
        if target in known:
            return 200, to_json(known[target])
        if target == "/functions":
            return 200, b'{"items":[' + to_json(FUNCTION) + b'],"next_token":""}'
        return 404, json.dumps({"error": "ResourceNotFound", "message": f"no such thing: {target}"}).encode()

    def ended(self) -> int:
        return self.requests.count(("DELETE", "/environments/env-1"))


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    # Where somebody who is nobody gets to.
    for directory in (tmp_path, *list(tmp_path.parents)[:3]):
        if directory.stat().st_uid == os.geteuid() and directory != Path("/tmp"):
            directory.chmod(0o755)
    made = Api(tmp_path / "run" / "default" / "api.sock")
    monkeypatch.setenv("HYPERPLANE_RUN_DIR", str(tmp_path / "run"))
    yield made
    made.server.shutdown()
    made.server.server_close()


def run(
    *command: str, options: Sequence[str] = ("-q",), prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    whole = [*prefix, *COMMAND, "run", *options, "reports", "--", *command]
    return subprocess.run(whole, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)


def start(*command: str, **more: Any) -> subprocess.Popen[str]:
    whole = [*COMMAND, "run", "-q", "reports", "--", *command]
    return subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT, **more)


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return process.stdout.readline()


# The command's world


@pytest.mark.parametrize("prefix", [[], NOBODY], ids=["root", "nobody"])
def test_the_command_has_a_network_of_its_own(prefix: list[str], api: Api) -> None:
    program = "ip -o link show up; readlink /proc/self/ns/net; id -u; cat /etc/resolv.conf"
    resolvers = Path("/etc/resolv.conf").read_bytes()
    done = run("sh", "-c", program, prefix=prefix)
    assert (done.returncode, done.stderr) == (0, "")
    device, namespace, uid, second, third = done.stdout.splitlines()
    assert device.startswith("1: lo: <LOOPBACK,UP")
    assert namespace != os.readlink("/proc/self/ns/net")
    assert uid == ("65534" if prefix else "0")
    assert second.startswith("# VPC customer")
    assert third == "nameserver 198.19.0.2"
    assert Path("/etc/resolv.conf").read_bytes() == resolvers
    (body,) = api.bodies
    assert body["namespace"].startswith("pid:")
    assert body["function"] == "function-1"
    assert api.ended() == 1


def test_name_and_device_are_asked_for(api: Api) -> None:
    assert run("true", options=["-q", "--name", "job", "--device", "tun3"]).returncode == 0
    assert (api.bodies[0]["name"], api.bodies[0]["device"]) == ("job", "tun3")


def test_options_of_the_command_are_its_own(api: Api) -> None:
    done = subprocess.run(
        [*COMMAND, "run", "-q", "reports", "echo", "--name", "x", "-q"],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.stdout == "--name x -q\n"


def test_a_file_that_the_user_makes_is_theirs(api: Api, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert run("touch", str(tmp_path / "made"), prefix=NOBODY).returncode == 0
    assert (tmp_path / "made").stat().st_uid == 65534


def test_it_starts_with_signals_as_any_command_does(api: Api) -> None:
    lines = run("grep", "^Sig[BI]", "/proc/self/status").stdout.split()
    # But for 32 and 33, which are glibc's own (nptl(7)): timeout(1), for one, passes them on ignored.
    assert {int(mask, 16) & ~(3 << 31) for mask in lines[1::2]} == {0}


# Status


@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (["sh", "-c", "exit 7"], 7, ""),
        (["sh", "-c", "kill -TERM $$"], 143, ""),
        (["sh", "-c", "kill -KILL $$"], 137, ""),
        (["not-there"], 127, "hyperplane-nat: not-there: No such file or directory\n"),
        (["/etc/passwd"], 126, "hyperplane-nat: /etc/passwd: Permission denied\n"),
    ],
)
def test_the_status_is_the_commands(command: list[str], code: int, words: str, api: Api) -> None:
    done = run(*command)
    assert (done.returncode, done.stderr) == (code, words)
    assert api.ended() == 1


def test_what_fails_before_the_command_is_125(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    api.problem = {"error": "FunctionNotActive", "message": "function reports is Failed", "remedy": "look at it"}
    done = run("touch", "/tmp/not-made")
    assert (done.returncode, done.stderr) == (125, "hyperplane-nat: function reports is Failed; look at it\n")
    assert not Path("/tmp/not-made").exists()
    done = subprocess.run([*COMMAND, "run", "repots", "true"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (125, "hyperplane-nat: no function repots; did you mean reports?\n")
    done = subprocess.run([*COMMAND, "run", "--bad"], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 125
    assert done.stderr.startswith("hyperplane-nat: No such option")
    monkeypatch.setenv("HYPERPLANE_INSTANCE", "other")
    done = run("true")
    assert done.returncode == 125
    assert "hyperplane-nat daemon --instance other" in done.stderr


def test_hints_say_what_the_security_group_lacks(api: Api) -> None:
    done = run("true", options=[])
    assert done.returncode == 0
    assert done.stderr == (
        "hyperplane-nat: names may not be looked up: web does not allow udp/53 198.19.0.2/32, tcp/53 198.19.0.2/32; "
        "add such rules\n"
    )


@pytest.mark.parametrize(
    ("rules", "refused"),
    [
        (["all"], []),
        (["udp/53"], ["tcp/53 198.19.0.2/32"]),
        (["udp/1-100 198.19.0.0/24", "tcp/53"], []),
        (["udp/53 198.19.1.0/24", "tcp/54"], ["udp/53 198.19.0.2/32", "tcp/53 198.19.0.2/32"]),
        ([], ["udp/53 198.19.0.2/32", "tcp/53 198.19.0.2/32"]),
    ],
)
def test_refused_resolvers(rules: list[str], refused: list[str]) -> None:
    assert refused_resolvers(rules, VPC.dns) == refused


# Signals

TELL = "import signal, sys\nfor n in (1, 2, 3, 10, 12, 15): signal.signal(n, lambda n, f: print(n, flush=True))\n"
TELLS = f"{TELL}print('ready', flush=True)\nwhile True: signal.pause()"


def test_signals_are_sent_on(api: Api) -> None:
    process = start(sys.executable, "-c", TELLS)
    assert said(process) == "ready\n"
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP):
        process.send_signal(number)
        assert said(process) == f"{number.value}\n"
    os.kill(api_child(api), signal.SIGKILL)
    process.communicate(timeout=DEADLINE)
    assert process.returncode == 137
    assert api.ended() == 1


def test_the_command_dies_with_the_program(api: Api) -> None:
    process = start(sys.executable, "-c", TELLS)
    assert said(process) == "ready\n"
    child = api_child(api)
    process.kill()
    process.communicate(timeout=DEADLINE)
    wait_until(lambda: not Path(f"/proc/{child}").exists() or _is_zombie(child), what="the command has ended")


def test_a_signal_before_the_command_runs_ends_it_all(api: Api) -> None:
    hold = threading.Event()
    answer = api.answer

    def slow(method: str, target: str) -> tuple[int, bytes]:
        if method == "POST":
            hold.wait(DEADLINE)
        return answer(method, target)

    api.answer = slow  # type: ignore[method-assign]
    process = start("true")
    wait_until(lambda: ("POST", "/environments") in api.requests, what="the environment is asked for")
    child = api_child(api)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=DEADLINE)
    hold.set()
    assert process.returncode == 130
    assert "ended by SIGINT" in words
    assert not Path(f"/proc/{child}").exists()


def api_child(api: Api) -> int:
    wait_until(lambda: api.bodies, what="an environment is asked for")
    return int(api.bodies[-1]["namespace"].removeprefix("pid:"))


def _is_zombie(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    return True


# A terminal


class Terminal:
    """A pseudo-terminal whose session a shell leads; text is what it showed."""

    def __init__(self) -> None:
        pid, self.fd = pty.fork()
        if not pid:
            os.chdir(ROOT)
            os.environ.update({"PS1": "$ ", "ENV": "", "PS2": ""})
            os.execvp("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])
        self.pid = pid
        self.text = ""

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait_for(self, words: str, begin: int = 0) -> int:
        end = time.monotonic() + 2 * DEADLINE
        while words not in self.text[begin:]:
            assert time.monotonic() < end, f"no {words!r} in {self.text!r}"
            if select.select([self.fd], [], [], 0.1)[0]:
                self.text += os.read(self.fd, 65536).decode(errors="replace")
        return self.text.index(words, begin) + len(words)

    def close(self) -> None:
        os.close(self.fd)  # the session hangs up
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    made = Terminal()
    yield made
    made.close()


def test_a_terminals_keys_do_what_they_do(api: Api, terminal: Terminal) -> None:
    place = terminal.wait_for("$ ")
    words = " ".join([*COMMAND, "run", "-q", "reports"])
    terminal.type(f"{words} -- cat\n")
    wait_until(lambda: api.bodies, what="an environment is asked for")
    terminal.type("one\n")
    place = terminal.wait_for("one\r\none\r\n", place)
    terminal.type("\x1a")  # Ctrl-Z
    place = terminal.wait_for("$ ", terminal.wait_for("Stopped", place))
    terminal.type("fg\n")
    place = terminal.wait_for("-- cat\r\n", place)
    terminal.type("two\n")
    place = terminal.wait_for("two\r\ntwo\r\n", place)
    terminal.type("\x03")  # Ctrl-C
    place = terminal.wait_for("$ ", place)
    terminal.type("echo status=$?\n")
    terminal.wait_for("status=130\r\n", place)
    assert api.ended() == 1


def test_ctrl_c_reaches_the_command_once(api: Api, terminal: Terminal, tmp_path: Path) -> None:
    program = tmp_path / "tells.py"
    program.write_text(TELLS)
    place = terminal.wait_for("$ ")
    terminal.type(f"{' '.join(COMMAND)} run -q reports {sys.executable} {program}\n")
    place = terminal.wait_for("ready\r\n", place)
    terminal.type("\x03")
    place = terminal.wait_for("2\r\n", place)
    os.kill(api_child(api), signal.SIGUSR1)
    assert "2\r\n" not in terminal.text[place : terminal.wait_for("10\r\n", place)]
    os.kill(api_child(api), signal.SIGKILL)
    terminal.wait_for("$ ", place)


def test_a_shell_can_be_run(api: Api, terminal: Terminal) -> None:
    place = terminal.wait_for("$ ")
    terminal.type(f"{' '.join(COMMAND)} run -q reports -- bash --norc --noprofile --noediting\n")
    wait_until(lambda: api.bodies, what="an environment is asked for")
    place = terminal.wait_for("$ ", place)
    terminal.type("sh -c 'tty; exec sleep 600'\n")
    place = terminal.wait_for("/dev/pts/", place)
    terminal.type("\x03")
    place = terminal.wait_for("$ ", place)
    terminal.type("exit 9\n")
    place = terminal.wait_for("$ ", place)
    terminal.type("echo status=$?\n")
    terminal.wait_for("status=9\r\n", place)
    assert "no job control" not in terminal.text
