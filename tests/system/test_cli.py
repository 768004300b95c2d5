"""`hyperplane-nat nat` as a process, between namespaces that exist: output, signals, errors; nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from .support import DEADLINE, Namespaces, devices, ip, ip_json, run_in, wait_until

COMMAND = [sys.executable, "-m", "hyperplane.cli"]
ROOT = Path(__file__).parents[2]
ENI = "198.19.0.5"
SERVER = "198.19.0.10"
PORT = 8000
SERVE = (
    "import http.server as s; s.test(s.SimpleHTTPRequestHandler, s.ThreadingHTTPServer, port=8000, bind='198.19.0.10')"
)
FETCH = f"import urllib.request as r; print(r.urlopen('http://{SERVER}:{PORT}/', timeout=10).status)"
CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), float(sys.argv[3]))"


@dataclass
class Run:
    """A running command: its lines so far, by a file each, so that nobody waits for a reader."""

    process: subprocess.Popen[str]
    out: Path
    err: Path

    def lines(self) -> list[str]:
        return self.out.read_text().splitlines()

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        text = self.out.read_text()
        found = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
        return [one for one in found if kind in ("", one["event"])]

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        def check() -> Any:
            assert self.process.poll() is None or condition(), f"ended: {self.err.read_text()}"
            return condition()

        return wait_until(check, 2 * DEADLINE, what)

    def wait_ready(self) -> None:
        self.wait_for(lambda: "ready" in self.out.read_text(), "the command is ready")

    def wait_handlers(self) -> None:
        """Until it handles signals: SIGUSR1 is the last for which it does."""

        def handled() -> bool:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            masks = [line.split()[1] for line in status.splitlines() if line.startswith(("SigIgn:", "SigCgt:"))]
            return any(int(mask, 16) >> (signal.SIGUSR1 - 1) & 1 for mask in masks)

        self.wait_for(handled, "signals are handled")

    def uptime(self) -> float:
        """Seconds since the process began, as the kernel counts them."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")

    def wait_uptime(self, moment: float) -> None:
        self.wait_for(lambda: self.uptime() >= moment, "the moment")

    def end(self, number: int = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(3 * DEADLINE)


@dataclass
class Site:
    """A VPC with a web server and environments, and the command between them."""

    made: Namespaces
    vpc: str
    environments: list[str]
    directory: Path
    runs: list[Run] = field(default_factory=list)

    def arguments(self, *more: str) -> list[str]:
        each = [word for name in self.environments for word in ("--environment", name)]
        return ["nat", "--vpc", self.vpc, "--eni-address", ENI, *each, *more]

    def start(self, *more: str, arguments: Sequence[str] = ()) -> Run:
        place = self.directory / str(len(self.runs))
        out, err = place.with_suffix(".out"), place.with_suffix(".err")
        with out.open("w") as stdout, err.open("w") as stderr:
            command = [*COMMAND, *(arguments or self.arguments(*more))]
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr, text=True, cwd=ROOT)
        self.runs.append(Run(process, out, err))
        return self.runs[-1]

    def ready(self, *more: str) -> Run:
        run = self.start(*more)
        run.wait_ready()
        return run

    def fetch(self, environment: str) -> None:
        assert run_in(environment, [sys.executable, "-c", FETCH]).stdout == "200\n"

    def connect(self, namespace: str, address: str, port: int, patience: float = 5) -> str:
        """What the attempt ended with: the last line of its traceback."""
        command = [sys.executable, "-c", CONNECT, address, str(port), str(patience)]
        return run_in(namespace, command, check=False).stderr.strip().rpartition("\n")[2]

    def traces(self) -> list[Any]:
        """Everything that the command may have made or changed in these namespaces."""
        found: list[Any] = []
        for name in (self.vpc, *self.environments):
            found += [devices(name), ip_json("-n", name, "route"), ip_json("-n", name, "neigh", "show", "proxy")]
        settings = ("lan0/forwarding", "all/forwarding")
        read = [f"cat /proc/sys/net/ipv4/conf/{setting}" for setting in settings]
        found.append(run_in(self.vpc, ["sh", "-c", "; ".join(read)]).stdout)
        return found


@pytest.fixture
def site(netns_factory: Namespaces, tmp_path: Path) -> Iterator[Site]:
    vpc = netns_factory("vpc")
    netns_factory.bridge(vpc, f"{SERVER}/24")
    made = Site(netns_factory, vpc, [netns_factory(f"box{number}") for number in (1, 2)], tmp_path)
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    netns_factory.start_in(vpc, [sys.executable, "-c", SERVE], **quiet)
    wait_until(lambda: f"{SERVER}:{PORT}" in run_in(vpc, ["ss", "-Hltn"]).stdout, what="the web server listens")
    before = made.traces()
    yield made
    for run in made.runs:
        if run.process.poll() is None:
            run.end()
    made.environments = [name for name in made.environments if name in netns_factory.names]
    if vpc in netns_factory.names and len(made.environments) == 2:
        wait_until(lambda: made.traces() == before, what="namespaces as before")


def refused(site: Site, arguments: Sequence[str], *, prefix: Sequence[str] = (), code: int = 1) -> str:
    """Runs the command, which fails with one line and leaves nothing; returns the line."""
    before = site.traces()
    done = subprocess.run(
        [*prefix, *COMMAND, *arguments], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("hyperplane-nat: ")
    assert done.stderr.count("\n") == 1
    wait_until(lambda: site.traces() == before, what="nothing left behind")
    return done.stderr


def test_environments_reach_the_vpc_and_sigusr1_shows_who_did(site: Site) -> None:
    run = site.ready()
    text = run.out.read_text()
    assert "everything, since no --allow is given" in text
    assert text.count(" ms") == 2, "an attach time for each environment"
    for name in site.environments:
        site.fetch(name)
    assert "timed out" in site.connect(site.vpc, ENI, 2000, 0.2)
    run.process.send_signal(signal.SIGUSR1)
    run.wait_for(lambda: f"→ {ENI}:2000" in run.out.read_text(), "flows and drops are shown")
    rows = [line.split() for line in run.lines()]
    for name in site.environments:
        flow = next(row for row in rows if row[:2] == [name, "tcp"])
        assert flow[2].startswith("198.18.0.2:")
        assert flow[3].startswith(f"{ENI}:")
        assert flow[4] == f"{SERVER}:{PORT}"
    assert any(row[1:4] == ["no_flow", "eni0", "tcp"] for row in rows)
    assert run.end(signal.SIGTERM) == 0
    assert run.lines()[-1].startswith("ended: interrupted; 2 flows in all, dropped packets: 1 (no_flow 1)")
    assert run.err.read_text() == ""


def test_json_names_every_environment_flow_and_drop(site: Site) -> None:
    run = site.ready("--json", "--allow", f"tcp/{PORT} 198.19.0.0/24", "--timers", "tcp_closing=1")
    assert [one["environment"] for one in run.events("attached")] == site.environments
    assert all(0 < one["seconds"] < 60 for one in run.events("attached"))
    ready = run.events("ready")[0]
    assert (ready["eni_addresses"], ready["allow"]) == ([ENI], [f"tcp/{PORT} 198.19.0.0/24"])
    assert ready["io"] in ("io_uring", "epoll")
    assert ready["pid"] == run.process.pid
    first, second = site.environments
    site.fetch(second)
    assert "refused" in site.connect(first, SERVER, 25)
    run.process.send_signal(signal.SIGUSR1)
    run.wait_for(lambda: run.events("counters"), "counters, the last of what SIGUSR1 shows")
    (flow,), (drop,) = run.events("flow"), run.events("drop")
    assert (flow["environment"], flow["inside"], flow["outside"], flow["remote_port"]) == (
        second,
        "198.18.0.2",
        ENI,
        PORT,
    )
    assert (drop["link"], drop["reason"], drop["destination_port"]) == (first, "security_group", 25)
    assert run.events("counters")[0]["drops"] == {"security_group": 1}
    # A second time: drops are told once.
    run.process.send_signal(signal.SIGUSR1)
    run.wait_for(lambda: len(run.events("counters")) == 2, "shown again")
    assert len(run.events("drop")) == 1
    assert run.end() == 0
    assert run.events("ended")[0]["reason"] == "interrupted"


def test_watch_tells_flows_as_they_come_and_go(site: Site) -> None:
    run = site.ready("--json", "--watch", "--timers", "tcp_closing=3")
    for name in site.environments:
        site.fetch(name)
    run.wait_for(lambda: len(run.events("flow_ended")) == 2, "both have begun and ended")
    for kind in ("flow_started", "flow_ended"):
        assert {one["environment"] for one in run.events(kind)} == set(site.environments)
    assert {one["id"] for one in run.events("flow_started")} == {one["id"] for one in run.events("flow_ended")}
    last = run.events("counters")[-1]
    assert (last["flows"], last["flows_created"]) == (0, 2)
    assert run.end() == 0


def test_watch_in_plain_text_is_one_line_per_event(site: Site) -> None:
    run = site.ready("--watch", "--allow", "icmp")
    assert "refused" in site.connect(site.environments[0], SERVER, PORT)
    line = run.wait_for(lambda: next((one for one in run.lines() if "security_group" in one), ""), "the drop is told")
    assert line.split()[1:4] == ["drop", site.environments[0], "tcp"]
    assert run.end() == 0


@pytest.mark.parametrize("engine", ["io_uring", "epoll"])
def test_each_io_engine_can_be_asked_for(site: Site, engine: str) -> None:
    run = site.ready("--json", "--io", engine, "--mtu", "1400", "--device", "tun7", "--eni-device", "eni7")
    assert run.events("ready")[0]["io"] == engine
    assert "tun7" in devices(site.environments[0])
    assert "eni7" in devices(site.vpc)
    (link,) = [one for one in ip_json("-n", site.environments[0], "link") if one["ifname"] == "tun7"]
    assert link["mtu"] == 1400
    site.fetch(site.environments[0])
    assert run.end() == 0


def test_one_namespace_by_two_names(site: Site) -> None:
    """The second one is told whose the device is, and nobody to remove it."""
    first = site.environments[0]
    each = ("--environment", f"{first}=one", "--environment", f"/run/netns/{first}=two")
    command = [sys.executable, "-m", "hyperplane.cli", "nat", "--vpc", site.vpc, "--eni-address", ENI, *each]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 5
    assert f"device eth0 in namespace /run/netns/{first} is used by environment one" in done.stderr
    assert devices(first) == {"lo"}


def test_two_commands_share_a_vpc(site: Site) -> None:
    first, second = site.environments
    arguments = ["nat", "--vpc", site.vpc, "--json"]
    runs = [
        site.start(arguments=[*arguments, "--eni-address", ENI, "--environment", f"{first}=one"]),
        site.start(
            arguments=[*arguments, "--eni-address", "198.19.0.6", "--eni-device", "eni1", "--environment", second]
        ),
    ]
    for run, name in zip(runs, (first, second), strict=True):
        run.wait_ready()
        site.fetch(name)
    assert runs[0].end() == 0
    site.fetch(second)
    assert runs[1].end() == 0
    # The one that came second found these set, so nobody has set them back: docs/cli.md says so.
    for setting in ("lan0/forwarding", "lan0/proxy_delay"):
        kind, value = ("neigh", "80") if setting.endswith("delay") else ("conf", "0")
        run_in(site.vpc, ["sh", "-c", f"echo {value} > /proc/sys/net/ipv4/{kind}/{setting}"])


def test_an_environment_that_goes_away_is_told_and_the_last_one_ends_the_command(site: Site) -> None:
    run = site.ready("--json")
    first, second = site.environments
    site.made.delete(first)
    run.wait_for(lambda: run.events("detached"), "the end of the first")
    detached = run.events("detached")[0]
    assert (detached["environment"], detached["environments"]) == (first, 1)
    assert detached["reason"] == f"namespace {first} was deleted"
    site.fetch(second)
    ip("-n", second, "link", "del", "eth0")
    assert run.process.wait(3 * DEADLINE) == 0
    assert run.events("detached")[1]["reason"] == "device eth0 was deleted"
    assert run.events("ended")[0]["reason"] == "no environment is left"


def test_a_vpc_that_goes_away_is_a_failure(site: Site) -> None:
    run = site.ready()
    site.made.delete(site.vpc)
    assert run.process.wait(3 * DEADLINE) == 1
    assert f"the VPC's namespace {site.vpc} was deleted" in run.err.read_text()
    assert run.err.read_text().count("\n") == 1


def test_a_deleted_eni_device_is_a_failure(site: Site) -> None:
    run = site.ready()
    ip("-n", site.vpc, "link", "del", "eni0")
    assert run.process.wait(3 * DEADLINE) == 1
    assert "device eni0 was deleted" in run.err.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_at_any_moment_leaves_nothing(site: Site, number: signal.Signals) -> None:
    before = site.traces()
    run = site.ready()
    took = 1.2 * run.uptime()
    assert run.end(number) == 0
    for step in range(8):
        run = site.start()
        run.wait_handlers()  # Python itself has to be there before anything can be done about a signal
        run.wait_uptime(took * step / 8)
        code = run.end(number)
        said = run.err.read_text()
        assert code in (0, 128 + number), said
        assert "Traceback" not in said
        assert said.count("\n") == (1 if code else 0), said
        wait_until(lambda: site.traces() == before, what="nothing left behind")


def test_a_reader_that_goes_away_ends_it(site: Site) -> None:
    command = [*COMMAND, *site.arguments("--json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout
        assert process.stderr
        assert json.loads(process.stdout.readline())["event"] == "attached"
        process.stdout.close()
        assert process.wait(3 * DEADLINE) == 1
        assert process.stderr.read() == ""


def test_sigusr1_before_it_is_ready_does_no_harm(site: Site) -> None:
    run = site.start("--json")
    run.wait_handlers()
    run.process.send_signal(signal.SIGUSR1)
    run.wait_ready()
    assert run.end() == 0


# What cannot be


def test_wrong_values_fail_before_or_without_a_trace(site: Site) -> None:
    first = site.environments[0]
    for more, code, words in (
        (["--environment", "not-there"], 1, "no network namespace not-there; `ip netns list` shows"),
        (["--environment", f"{site.vpc}=x"], 2, "is the VPC's"),
        (["--environment", f"pid:{os.getpid()}"], 2, "is this program's own namespace"),
        (["--environment", "pid:999999999"], 1, "no process for namespace pid:999999999"),
        (["--eni-address", SERVER], 1, f"{SERVER} is the address of device lan0"),
        (["--eni-address", "198.19.0.255"], 2, "no host's in 198.19.0.0/24"),
        (["--eni-address", "127.0.0.1"], 2, "a unicast address of one host"),
        (["--inside-address", ENI], 1, f"inside address {ENI} is an address of ENI eni0"),
        (["--inside-address", "everywhere"], 2, "give an IPv4 address"),
        (["--route", "198.19.0.1/24"], 2, "has host bits set"),
        (["--mtu", "100"], 2, "limit: 576 to 65535"),
        (["--max-flows", "0"], 2, "max_flows is 0 (limit: 1 to"),
        (["--device", "lo"], 1, "device lo exists already in the namespace"),
        (["--eni-device", "lan0"], 1, "device lan0 exists already in the namespace"),
        (["--device", "a b"], 2, "device name is 'a b'"),
    ):
        assert words in refused(site, site.arguments(*more), code=code)
    assert devices(first) == {"lo"}


def test_without_privileges_the_line_says_which(site: Site) -> None:
    without = ["setpriv", "--bounding-set"]
    line = refused(site, site.arguments(), prefix=[*without, "-sys_admin"])
    assert "CAP_SYS_ADMIN" in line
    line = refused(site, site.arguments(), prefix=[*without, "-net_admin"])
    assert "CAP_NET_ADMIN" in line


def test_without_dev_net_tun_the_line_says_how_to_get_it(site: Site) -> None:
    hidden = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"]
    assert "modprobe tun" in refused(site, site.arguments(), prefix=hidden)
