"""The command line with a daemon that it started: documents, resources, environments, `run` for root and for a user."""

from __future__ import annotations

import grp
import json
import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hyperplane.linux.tun import open_tun

from .daemons import TestDaemon
from .servers import make_cluster, postgresql, program, server_directory
from .support import Namespaces, Within, devices, namespaces, run_in, wait_until

COMMAND = [sys.executable, "-m", "hyperplane.cli"]
ROOT = Path(__file__).parents[2]
SERVER = "198.19.0.80"
SERVE = (
    "import http.server as s; s.test(s.SimpleHTTPRequestHandler, s.ThreadingHTTPServer, port=80, bind='198.19.0.80')"
)
FETCH = (
    "import socket; made = socket.create_connection(('198.19.0.80', 80), 10); "
    "made.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n'); print(made.recv(100).split()[1].decode())"
)
PYTHON = "/usr/bin/python3"  # one that any user can execute
USER = pwd.getpwnam("nobody")


@dataclass
class Site:
    """A daemon, a VPC with a web server, and the document that declares it."""

    daemon: TestDaemon
    vpc: str
    document: Path

    def __call__(
        self, *arguments: str, code: int = 0, prefix: Sequence[str] = (), **more: Any
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*prefix, *COMMAND, *arguments], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False, **more
        )
        assert done.returncode == code, f"{done.stdout}{done.stderr}"
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json").stdout)

    def write(self, text: str) -> str:
        self.document.write_text(text.replace("VPC", self.vpc))
        return str(self.document)


TEXT = """\
[[vpc]]
name = "customer"
namespace = "VPC"
dns = ["198.19.0.80"]

[[subnet]]
name = "private"
vpc = "customer"
cidr = "198.19.0.0/24"
reserved = ["198.19.0.64/27"]

[[security_group]]
name = "web"
vpc = "customer"
rules = ["tcp/80", "tcp/53", "udp/53"]

[[function]]
name = "reports"
subnets = ["private"]
security_groups = ["web"]
"""


@pytest.fixture(scope="module")
def environment() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="module")
def daemon(environment: pytest.MonkeyPatch) -> Iterator[TestDaemon]:
    with TestDaemon() as made:
        environment.setenv("HYPERPLANE_RUN_DIR", str(made.directory / "run"))
        environment.setenv("HYPERPLANE_STATE_DIR", str(made.directory / "state"))
        with made.log_path.open("a") as log:
            group = grp.getgrgid(USER.pw_gid).gr_name
            words = ["--group", group, "--max-flows", "4096", "--max-links", "64", "--no-huge-pages"]
            made.process = subprocess.Popen(
                [*COMMAND, "daemon", *words, "--engine-patience", "30"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=ROOT,
            )  # fmt: skip
        wait_until(lambda: '"event": "ready"' in made.log, 20, "the daemon is ready")
        yield made


@pytest.fixture(scope="module")
def vpc() -> Iterator[str]:
    with Namespaces() as made:
        name = made("vpc")
        made.bridge(name, f"{SERVER}/24")
        quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/"}
        made.start_in(name, [PYTHON, "-c", SERVE], **quiet)
        wait_until(lambda: f"{SERVER}:80" in run_in(name, ["ss", "-Hltn"]).stdout, what="the web server listens")
        yield name


@pytest.fixture
def site(daemon: TestDaemon, vpc: str, tmp_path: Path) -> Iterator[Site]:
    """Everything declared; nothing left of it afterwards."""
    made = Site(daemon, vpc, tmp_path / "net.toml")
    made("apply", made.write(TEXT))
    wait_until(lambda: made.json("function", "show", "reports")["state"] == "Active", what="the function is active")
    yield made
    for one in made.json("environment", "list"):
        if one["state"] != "ended":
            made("environment", "delete", one["id"])
    wait_until(lambda: all(one["state"] == "ended" for one in made.json("environment", "list")), what="all have ended")
    made("apply", "-", "--prune", input="")
    assert made("export").stdout == ""
    wait_until(lambda: made.json("eni", "list") == [], what="the ENI is gone")


def test_a_document_is_applied_once_and_exported_as_it_was(site: Site) -> None:
    assert site("apply", str(site.document)).stdout == "nothing to change\n"
    exported = site("export").stdout
    assert exported == site.document.read_text()
    assert site("apply", "-", "--prune", input=exported).stdout == "nothing to change\n"
    changed = site.write(TEXT.replace('"tcp/80", ', "").replace("198.19.0.80", "198.19.0.81"))
    plan = (
        "~ vpc customer  dns: 198.19.0.80 → 198.19.0.81\n"
        "~ security-group web  rules: tcp/80, tcp/53, udp/53 → tcp/53, udp/53\n"
    )
    assert site("apply", changed, "--dry-run").stdout == f"{plan}plan: 0 to create, 2 to update, 0 to delete\n"
    assert site("export").stdout == exported
    assert site("apply", changed).stdout == f"{plan}0 created, 2 updated, 0 deleted\n"
    assert site("export").stdout == site.document.read_text()


def test_what_is_wrong_in_a_document_has_its_line_and_changes_nothing(site: Site) -> None:
    before = site("export").stdout
    for text, code, words in (
        (TEXT.replace("/24", "/31"), 2, ":9: "),
        (TEXT.replace('"private"]', '"other"]'), 2, ":19: "),
        (TEXT.replace('"tcp/80"', '"sctp"'), 2, ":15: "),
        (TEXT.replace("reserved", "reserve"), 2, ":10: "),
        (TEXT.replace('dns = ["198.19.0.80"]', "dns = ["), 2, ":6: "),
        (f'{TEXT}[[vpc]]\nname = "customer"\nnamespace = "x"\n', 5, ":22: vpc customer is there twice"),
    ):
        error = site("apply", site.write(text), code=code).stderr
        assert error.startswith(f"{site.document}{words}"), error
        assert error.count("\n") == 1
        assert site("export").stdout == before


def test_resources_are_listed_shown_updated_and_kept_while_in_use(site: Site) -> None:
    for noun, name in (("vpc", "customer"), ("subnet", "private"), ("security-group", "web"), ("function", "reports")):
        (one,) = site.json(noun, "list")
        assert one["name"] == name
        assert site.json(noun, "show", name) == site.json(noun, "show", one["id"]) == one
        assert site(noun, "list", "-q").stdout == f"{one['id']}\n"
        assert name in site(noun, "list").stdout
        assert name in site(noun, "show", name).stdout
        assert site.json(noun, "list", "--name", "other") == []
    (eni,) = site.json("eni", "list", "--subnet", "private")
    assert eni["device"] in devices(site.vpc)
    site("security-group", "update", "web", "--rules", "tcp/80,udp/53")
    assert site.json("security-group", "show", "web")["rules"] == ["tcp/80", "udp/53"]
    assert "used by" in site("subnet", "delete", "private", code=5).stderr
    assert "did you mean web?" in site("security-group", "show", "wib", code=4).stderr
    assert "--cidr" in site("subnet", "create", "s", "--vpc", "customer", "--cidr", "here", code=2).stderr
    assert "exists with another namespace" in site("vpc", "create", "customer", "--namespace", "other", code=5).stderr
    other = ["subnet", "create", "more", "--vpc", "customer", "--cidr", "198.19.1.0/24", "--json"]
    made = json.loads(site(*other).stdout)
    assert json.loads(site(*other).stdout) == made
    assert site("subnet", "delete", "more").stdout == "deleted subnet more\n"


def test_environments_start_in_namespaces_on_descriptors_and_in_fresh_ones(
    site: Site, netns_factory: Namespaces, within: Within
) -> None:
    box = netns_factory("box")
    started = json.loads(site("environment", "start", "reports", "--namespace", box, "--name", "one", "--json").stdout)
    assert (started["state"], started["namespace"]) == ("attached", box)
    assert run_in(box, [PYTHON, "-c", FETCH]).stdout == "200\n"
    (flow,) = site.json("flow", "list", "--environment", "one")
    assert (flow["tunnel"], flow["remote_port"]) == (started["id"], 80)
    assert f"one {flow['protocol']}" in " ".join(site("flow", "list").stdout.split())
    assert site("flow", "list", "-q", "--protocol", "udp").stdout == ""
    run_in(box, [PYTHON, "-c", FETCH.replace("80)", "81)")], check=False)
    assert "security_group" in site("drop", "list", "--environment", "one").stdout
    assert site.json("drop", "list")[-1]["destination_port"] == 81
    assert "runs already" in site("environment", "create", "reports", "--name", "one", code=5).stderr
    fresh = site.json("environment", "start", "reports", "--device", "tun7")
    assert "tun7" in devices(fresh["namespace"])
    in_box = netns_factory.start_in(box, ["sleep", "60"])
    key = os.stat(f"/run/netns/{box}").st_ino
    wait_until(lambda: os.stat(f"/proc/{in_box.pid}/ns/net").st_ino == key)
    guest = netns_factory("guest")
    fd = within(guest, lambda namespace: open_tun("tap0"))
    try:
        tun = ["environment", "start", "reports", "--fd", str(fd), "--name", "guest", "--json"]
        by_descriptor = json.loads(site(*tun, pass_fds=[fd]).stdout)
    finally:
        os.close(fd)
    assert (by_descriptor["state"], by_descriptor["namespace"]) == ("attached", "")
    wait_until(lambda: site.json("environment", "list", "--sender", "gone") != [], what="the command has ended")
    assert site.json("environment", "list", "--sender", "gone")[0]["id"] == by_descriptor["id"]
    same = site("environment", "start", "reports", "--pid", str(in_box.pid), code=5).stderr
    assert f"namespace pid:{in_box.pid} is used by environment one" in same
    attached = site("environment", "list", "--state", "attached", "--function", "reports", "-q").stdout.split()
    assert sorted(attached) == sorted([started["id"], fresh["id"], by_descriptor["id"]])
    assert site("environment", "delete", "one", fresh["id"], "guest").stdout.count(": ended") == 3
    wait_until(lambda: fresh["namespace"] not in namespaces(), what="the fresh namespace is gone")


def test_run_as_root(site: Site) -> None:
    done = site("run", "reports", "--name", "job", "--", PYTHON, "-c", f"{FETCH}; raise SystemExit(9)", code=9)
    assert (done.stdout, done.stderr) == ("200\n", "")
    assert site.json("environment", "show", "job")["state"] == "ended"


def test_run_as_a_user_of_the_group(site: Site) -> None:
    user = ["setpriv", "--reuid", str(USER.pw_uid), "--regid", str(USER.pw_gid), "--clear-groups"]
    assert site("run", "reports", "--", PYTHON, "-c", FETCH, prefix=user).stdout == "200\n"
    stranger = ["setpriv", "--reuid", str(USER.pw_uid), "--regid", "12345", "--clear-groups"]
    error = site("run", "reports", "--", "true", prefix=stranger, code=125).stderr
    assert "may not be used by this user" in error
    assert "usermod" in error
    assert "usermod" in site("vpc", "list", prefix=stranger, code=3).stderr


def test_psql_as_a_user_of_the_group(site: Site, vpc: str) -> None:
    """The server sees the ENI; the user is not root, neither here nor for the server."""
    user = ["setpriv", "--reuid", str(USER.pw_uid), "--regid", str(USER.pw_gid), "--clear-groups"]
    site("security-group", "update", "web", "--rules", "tcp/5432,udp/53,tcp/53")
    (eni,) = site.json("eni", "list")
    where = ["-h", SERVER, "-p", "5432", "-U", "postgres", "-XAtc"]
    with server_directory() as directory, postgresql(vpc, make_cluster(directory), SERVER):
        query = "select inet_client_addr() || ' asks ' || inet_server_addr()"
        done = site("run", "reports", "--", program("psql"), *where, query, prefix=user)
        assert done.stdout == f"{eni['addresses'][0]}/32 asks {SERVER}/32\n"
        assert site("run", "reports", "--", program("psql"), *where, "select no", prefix=user, code=1).stdout == ""


def test_an_environment_ends_when_the_program_is_killed(site: Site) -> None:
    process = subprocess.Popen(
        [*COMMAND, "run", "reports", "--name", "job", "--", "sh", "-c", "echo begun; exec sleep 600"],
        stdout=subprocess.PIPE, text=True, cwd=ROOT,
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "begun\n"
    process.kill()
    process.communicate(timeout=10)

    def found() -> dict[str, Any]:
        one: dict[str, Any] = site.json("environment", "show", "job")
        return one

    wait_until(lambda: found()["state"] == "ended", what="the environment has ended")
    assert "ended" in found()["reason"]


def test_status_and_doctor(site: Site) -> None:
    status = site.json("status")
    assert site.daemon.process
    assert status["pid"] == site.daemon.process.pid
    assert status["resources"]["function"] == {"Active": 1}
    words = site("status").stdout
    assert f"pid {status['engine']['pid']}" in words
    assert "1 function (1 Active)" in words
    checks = {one["check"]: one for one in json.loads(site("doctor", "--vpc", site.vpc, "--json").stdout)}
    assert checks["/dev/net/tun"]["state"] == "ok"
    assert checks["daemon"]["found"] == "instance default answers"
    assert f"rp_filter in {site.vpc}" in checks
    assert all(one["remedy"] for one in checks.values() if one["state"] != "ok")


def test_stop_ends_the_daemon_and_then_the_engine() -> None:
    with TestDaemon() as daemon:
        daemon.start()
        environment = os.environ | {"HYPERPLANE_RUN_DIR": str(daemon.directory / "run")}

        def run(*arguments: str, code: int = 0) -> str:
            done = subprocess.run(
                [*COMMAND, *arguments],
                capture_output=True,
                text=True,
                timeout=60,
                cwd=ROOT,
                env=environment,
                check=False,
            )
            assert done.returncode == code, done.stderr
            return done.stdout

        assert daemon.process
        pid, engine = daemon.process.pid, daemon.engine_pid()
        assert run("stop") == f"daemon {pid} has ended\n"
        assert daemon.process.wait(10) == 0
        assert "no daemon listens" in run("status", code=1)
        assert f"engine  pid {engine} goes on" in run("status", code=1)
        assert json.loads(run("status", "--json", code=1))["error"] == "DaemonUnavailable"
        assert run("stop", "--engine") == f"no daemon of instance default runs\nengine {engine} has ended\n"
        assert run("stop", "--engine") == "no daemon of instance default runs\nno engine of instance default runs\n"


def test_a_daemon_that_hangs_is_said(tmp_path: Path) -> None:
    directory = tmp_path / "default"
    directory.mkdir()
    program = (
        "import signal, socket, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1]); s.listen(); print('ready', flush=True); signal.pause()"
    )
    command = [sys.executable, "-c", program, str(directory / "api.sock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
        environment = os.environ | {"HYPERPLANE_RUN_DIR": str(tmp_path)}
        done = subprocess.run(
            [*COMMAND, "stop", "--timeout", "0.05"],
            capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert f"daemon {process.pid} has not ended in time" in done.stderr
        process.send_signal(signal.SIGKILL)


def test_doctor_needs_no_daemon_and_no_root(tmp_path: Path) -> None:
    environment = os.environ | {"HYPERPLANE_RUN_DIR": "/nowhere"}
    user = ["setpriv", "--reuid", "nobody", "--regid", "nogroup", "--clear-groups"]
    for prefix in ([], user):
        done = subprocess.run(
            [*prefix, *COMMAND, "doctor", "--json"],
            capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment, check=False,
        )  # fmt: skip
        checks = json.loads(done.stdout)
        assert done.returncode == any(one["state"] == "fail" for one in checks)
        assert done.stderr == ""
        assert all(one["remedy"] for one in checks if one["state"] != "ok")
