"""The command line without devices: options, exit codes, what is printed, signals. None of it needs root."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Any

import pytest
from rich.console import Console

import hyperplane
from hyperplane.cli import loop, nat, render, signals
from hyperplane.cli import main as entry
from hyperplane.cli.demo_lab import OURS, Lab
from hyperplane.cli.render import Attached, Changes, JsonOutput, Ready, Snapshot, TextOutput
from hyperplane.model import Counters, Drop, Flow, FlowState, Reason, Rule, Timers

NAT = ["nat", "--vpc", "v", "--eni-address", "198.19.0.5", "--environment", "e"]
NOW = 5_000_000


def flow(number: int = 1, **fields: Any) -> Flow:
    given: dict[str, Any] = {
        "id": number, "tunnel": f"box{number}", "tunnel_number": number, "eni": "eni0", "eni_number": 9,
        "protocol": "tcp", "state": FlowState.ESTABLISHED,
        "inside": IPv4Address("198.18.0.2"), "inside_port": 40000,
        "outside": IPv4Address("198.19.0.5"), "outside_port": 2000 + number,
        "remote": IPv4Address("198.19.0.10"), "remote_port": 80,
        "packets_out": 3, "bytes_out": 1500, "packets_in": 2, "bytes_in": 120,
        "started": NOW - 2000, "last_seen": NOW - 500, "expires": NOW + 1000,
    }  # fmt: skip
    return Flow(**given | fields)


def drop(number: int = 1, **fields: Any) -> Drop:
    given: dict[str, Any] = {
        "number": number, "time": NOW - 100, "link": "box1", "link_number": 1, "reason": Reason.SECURITY_GROUP,
        "protocol": 6, "source": IPv4Address("198.18.0.2"), "source_port": 40000,
        "destination": IPv4Address("198.19.0.10"), "destination_port": 25, "length": 60,
    }  # fmt: skip
    return Drop(**given | fields)


def snapshot(flows: Sequence[Flow] = (), records: Sequence[Drop] = (), **counters: Any) -> Snapshot:
    return Snapshot(NOW, flows, records, Counters(**counters))


def ready(count: int = 2, rules: tuple[Rule, ...] = ()) -> Ready:
    attached = tuple(
        Attached(f"box{n}", f"ns{n}", "eth0", IPv4Address("198.18.0.2"), 0.0004) for n in range(1, count + 1)
    )
    return Ready("customer", "eni0", (IPv4Address("198.19.0.5"),), rules, "epoll", 1024, 1500, 4711, attached)


def text_output(*, terminal: bool = False, width: int = 120) -> tuple[TextOutput, io.StringIO]:
    file = io.StringIO()
    console = Console(file=file, width=width, height=24, force_terminal=terminal, highlight=False)
    return TextOutput(console), file


@pytest.fixture
def plans(monkeypatch: pytest.MonkeyPatch) -> list[nat.Plan]:
    """The plans that `hyperplane-nat nat` was about to carry out."""
    seen: list[nat.Plan] = []

    def run(plan: nat.Plan, output: object) -> int:
        seen.append(plan)
        return 0

    monkeypatch.setattr(nat, "run", run)
    return seen


# Options


def test_version_and_help_say_what_they_should(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry._run(["--version"]) == 0
    assert capsys.readouterr().out == f"hyperplane-nat {hyperplane.__version__}\n"
    for command in (["--help"], ["nat", "-h"], ["demo", "--help"]):
        assert entry._run(command) == 0
        assert "Usage: hyperplane-nat" in capsys.readouterr().out


def test_nothing_asked_for_shows_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry._run([]) == 2
    assert "hyperplane-nat demo" in capsys.readouterr().err


def test_options_reach_the_plan(plans: list[nat.Plan]) -> None:
    more = ["--eni-address", "198.19.0.6", "--environment", "pid:7=job", "--environment", "/run/n=1/x=y"]
    limits = [
        "--mtu",
        "9000",
        "--max-flows",
        "1000",
        "--io",
        "epoll",
        "--timers",
        "udp=10,dns=1.5",
        "--timers",
        "icmp=2",
    ]
    names = ["--device", "tun0", "--eni-device", "eni7", "--inside-address", "198.18.0.9", "--route", "198.19.0.0/24"]
    rules = ["--allow", "tcp/443 198.19.0.0/24", "--allow", "icmp"]
    assert entry._run([*NAT, *more, *limits, *names, *rules, "--watch"]) == 0
    assert plans == [
        nat.Plan(
            vpc="v",
            eni_addresses=("198.19.0.5", "198.19.0.6"),
            environments=(("e", "e"), ("pid:7", "job"), ("/run/n=1/x", "y")),
            rules=(Rule.parse("tcp/443 198.19.0.0/24"), Rule("icmp")),
            inside_address="198.18.0.9",
            routes=("198.19.0.0/24",),
            mtu=9000,
            device="tun0",
            eni_device="eni7",
            max_flows=1000,
            io="epoll",
            timers=Timers(udp=10, dns=1.5, icmp=2),
            watch=True,
        )
    ]


def test_an_environment_is_named_after_its_namespace(plans: list[nat.Plan]) -> None:
    assert entry._run([*NAT, "--environment", "/run/netns/box", "--environment", "pid:7"]) == 0
    assert plans[0].environments == (("e", "e"), ("/run/netns/box", "box"), ("pid:7", "pid:7"))
    assert plans[0].timers == Timers()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["unknown"], "No such command 'unknown'"),
        (["nat"], "Missing option '--vpc'"),
        ([*NAT, "--environment", "=x"], "'=x' is not NAMESPACE or NAMESPACE=NAME"),
        ([*NAT, "--environment", ""], "'' is not NAMESPACE"),
        ([*NAT, "--allow", "tcp/80", "198.19.0.0/24"], "put a value with a blank into quotes"),
        ([*NAT, "--allow", "sctp"], "PROTOCOL"),
        ([*NAT, "--timers", "tcp=1"], "names are tcp_established"),
        ([*NAT, "--timers", "udp=soon"], "give a number of seconds"),
        ([*NAT, "--timers", "udp=0"], "0.001 to"),
        ([*NAT, "--io", "dpdk"], "is not one of 'auto', 'io_uring', 'epoll'"),
        ([*NAT, "--mtu", "big"], "not a valid integer"),
        ([*NAT, "--environment", "e"], "two environments have the namespace e"),
        ([*NAT, "--environment", "f=e"], "two environments have the name e"),
        ([*NAT, "--max-flows", "0"], "max_flows is 0 (limit: 1 to"),
        (["demo", "--environments", "1"], "2<=x<=20"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert entry._run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert captured.err.startswith("hyperplane-nat: ")
    assert captured.err.count("\n") == 1


def test_a_namespace_that_is_not_there_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert entry._run(["nat", "--vpc", "not-there", *NAT[3:]]) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("hyperplane-nat: no network namespace not-there; `ip netns list`")
    assert captured.err.count("\n") == 1


def test_an_unexpected_error_says_how_to_report_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(plan: nat.Plan, output: object) -> int:
        raise KeyError("a\nb")

    monkeypatch.setattr(nat, "run", run)
    monkeypatch.delenv("HYPERPLANE_DEBUG", raising=False)
    assert entry._run(NAT) == 1
    captured = capsys.readouterr()
    assert "unexpected KeyError" in captured.err
    assert captured.err.count("\n") == 1
    monkeypatch.setenv("HYPERPLANE_DEBUG", "1")
    with pytest.raises(KeyError):
        entry._run(NAT)


def test_help_does_not_load_the_engine() -> None:
    code = (
        "import sys\nfrom hyperplane.cli import main\nmain._run(['nat', '--help'])\n"
        "assert not {'hyperplane._native', 'pyroute2', 'uvloop', 'asyncio'} & set(sys.modules), 'loaded'"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


# Words and tables


def test_sizes_and_times_are_short() -> None:
    assert [render.volume(size) for size in (0, 999, 1000, 2_500_000, 3e9, 4e12, 5e15)] == [
        "0 B", "999 B", "1.0 kB", "2.5 MB", "3.0 GB", "4.0 TB", "5000.0 TB",
    ]  # fmt: skip
    assert [render.duration(seconds) for seconds in (-1, 0.44, 59.6, 131, 7440)] == [
        "0.0 s", "0.4 s", "60 s", "2 min", "2 h 4 min",
    ]  # fmt: skip
    assert render.milliseconds(0.00051) == "0.51 ms"
    assert render.milliseconds(0.0123) == "12.3 ms"
    assert render.many(1, "flow") == "1 flow"
    assert render.many(1200, "flow") == "1,200 flows"
    assert render.drops_text({}) == "0"
    assert render.drops_text({"no_flow": 1, "security_group": 2}) == "3 (security_group 2, no_flow 1)"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "tcp 198.18.0.2:40000 → 198.19.0.10:25"),
        ({"protocol": 17}, "udp 198.18.0.2:40000 → 198.19.0.10:25"),
        ({"protocol": 1, "source_port": 8}, "icmp type 8 198.18.0.2 → 198.19.0.10"),
        ({"protocol": 47}, "protocol 47 198.18.0.2 → 198.19.0.10"),
    ],
)
def test_a_dropped_packet_in_words(fields: dict[str, Any], text: str) -> None:
    assert render.packet_text(drop(**fields)) == text


def test_the_time_of_an_event_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_boot", 0.0)
    first = render.wall_time(NOW, NOW)
    assert abs(first.timestamp() - time.time()) < 5
    later = render.wall_time(NOW, NOW + 1)  # one ms of that clock has passed, maybe less of the other
    assert later == first
    assert render.iso(first) == first.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_ready_says_what_is_allowed() -> None:
    output, file = text_output()
    output.ready(ready())
    text = file.getvalue()
    assert "ENI eni0 with 198.19.0.5 in VPC namespace customer" in text
    assert "allowed out: everything, since no --allow is given; in: nothing" in text
    assert "kill -USR1 4711" in text
    assert text.count("0.40 ms") == 2
    output, file = text_output()
    output.ready(ready(rules=(Rule("icmp"), Rule.parse("tcp/443 198.19.0.0/24"))))
    assert "allowed out: icmp (anywhere), tcp/443 198.19.0.0/24" in file.getvalue()


def test_many_environments_do_not_fill_the_screen() -> None:
    output, file = text_output()
    output.ready(ready(1000))
    assert len(file.getvalue().splitlines()) < 40
    assert "and 975 more; of all: median 0.40 ms, slowest 0.40 ms" in file.getvalue()


def test_names_are_not_taken_for_markup() -> None:
    output, file = text_output(terminal=True)
    output.detached("[red]box", "namespace [/] was deleted", 1)
    assert "[red]box" in file.getvalue()
    assert "namespace [/] was deleted; 1 environment left" in file.getvalue()


def test_a_snapshot_shows_flows_and_drops_with_their_environments() -> None:
    output, file = text_output()
    icmp = flow(2, protocol="icmp", remote_port=0, state=FlowState.ACTIVE)
    output.snapshot(snapshot([flow(), icmp], [drop()], drops={"security_group": 1}))
    rows = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert "box1 tcp 198.18.0.2:40000 198.19.0.5:2001 198.19.0.10:80 established 1.5 kB 120 B 0.5 s" in rows
    assert "box2 icmp 198.18.0.2:40000 198.19.0.5:2002 198.19.0.10 active 1.5 kB 120 B 0.5 s" in rows
    assert any(row.endswith("security_group box1 tcp 198.18.0.2:40000 → 198.19.0.10:25") for row in rows)
    assert any(row.endswith("2 flows; dropped packets: 1 (security_group 1)") for row in rows)


@pytest.mark.parametrize(("width", "last"), [(120, "idle"), (90, "state"), (60, "remote")])
def test_a_narrow_terminal_loses_columns_and_no_digits(width: int, last: str) -> None:
    file = io.StringIO()
    Console(file=file, width=width).print(render.flow_table([flow()], NOW, 10, width))
    heading, row = file.getvalue().splitlines()
    assert heading.split()[-1] == last
    assert "…" not in row or width == 60


def test_changes_are_lines_where_there_is_no_terminal() -> None:
    output, file = text_output()
    output.ready(ready())
    file.truncate(0)
    output.changes(Changes([flow(1)], [flow(2)], snapshot([flow(1)], [drop()])))
    lines = [line.split("  ", 1)[1] for line in file.getvalue().lstrip("\0").splitlines()]
    assert lines == [
        "flow   box1  tcp 198.18.0.2:40000 → 198.19.0.5:2001 → 198.19.0.10:80",
        "ended  box2  tcp 198.18.0.2:40000 → 198.19.0.5:2002 → 198.19.0.10:80  out 1.5 kB, in 120 B",
        "drop   box1  tcp 198.18.0.2:40000 → 198.19.0.10:25  security_group",
    ]


def test_on_a_terminal_a_table_is_kept_up_to_date_and_fits() -> None:
    output, file = text_output(terminal=True)
    output.ready(ready())
    flows, drops = [flow(number) for number in range(1, 200)], [drop(number) for number in range(1, 50)]
    output.changes(Changes([], [], snapshot(flows, drops, bytes_out=1000)))
    file.truncate(0)
    file.seek(0)
    later = Snapshot(NOW + 1000, flows, [], Counters(bytes_out=3000, drops={"no_flow": 5}))
    output.changes(Changes([], [], later))
    shown = file.getvalue()
    assert shown.count("\n") < 24
    assert "199 flows; out 2.0 kB/s, in 0 B/s; dropped packets: 5 (no_flow 5)" in shown
    output.ending("interrupted", Counters(flows_created=200, drops={"no_flow": 5}))
    assert "ended: interrupted; 200 flows in all, dropped packets: 5 (no_flow 5)" in file.getvalue()


# JSON

FLOW_FIELDS = {
    "time", "event", "id", "environment", "eni", "protocol", "state", "inside", "inside_port", "outside",
    "outside_port", "remote", "remote_port", "packets_out", "bytes_out", "packets_in", "bytes_in", "started",
    "last_seen", "expires",
}  # fmt: skip
DROP_FIELDS = {
    "time", "event", "number", "reason", "link", "protocol", "source", "source_port", "destination", "destination_port",
    "length",
}  # fmt: skip


def test_json_is_one_object_per_line_with_stable_names(capsys: pytest.CaptureFixture[str]) -> None:
    output = JsonOutput()
    output.ready(ready(1, (Rule("icmp"),)))
    output.snapshot(snapshot([flow()], [drop(protocol=47)], packets_out=7))
    output.changes(Changes([flow()], [flow(2)], snapshot([flow()])))
    output.detached("box1", "namespace ns1 was deleted", 0)
    output.ending("no environment is left", Counters(flows_created=2, drops={"no_flow": 1}))
    lines: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == [
        "attached", "ready", "flow", "drop", "counters", "flow_started", "flow_ended", "counters", "detached", "ended",
    ]  # fmt: skip
    by_event = {line["event"]: line for line in lines}
    assert all(set(by_event[event]) == FLOW_FIELDS for event in ("flow", "flow_started", "flow_ended"))
    assert set(by_event["drop"]) == DROP_FIELDS
    assert by_event["drop"]["reason"] == "security_group"
    assert by_event["drop"]["protocol"] == "47"
    assert by_event["flow"]["environment"] == "box1"
    assert by_event["flow"]["state"] == "established"
    assert by_event["ready"]["allow"] == ["icmp"]
    assert by_event["ready"]["pid"] == 4711
    assert by_event["attached"]["seconds"] == 0.0004
    assert by_event["ended"]["drops"] == {"no_flow": 1}
    assert all(line["time"].endswith("Z") for line in lines)


# Signals


@pytest.fixture
def own_signals() -> Any:
    """Puts back what was set for the signals that end the program."""
    before = {number: signal.getsignal(number) for number in signals.ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_cancels_once_and_cleaning_up_goes_on(number: signal.Signals, own_signals: None) -> None:
    cleaned = []

    async def main() -> None:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(60)
        finally:
            for _ in range(3):
                os.kill(os.getpid(), number)
                await asyncio.sleep(0)
            cleaned.append(True)

    signals.catch()
    with pytest.raises(signals.Interrupted) as caught:
        loop.run(main)
    assert (caught.value.number, caught.value.name, cleaned) == (number, number.name, [True])


def test_a_signal_before_the_loop_runs_interrupts(own_signals: None) -> None:
    signals.catch()
    with pytest.raises(signals.Interrupted):
        os.kill(os.getpid(), signal.SIGTERM)


def test_main_that_ends_by_itself_gives_its_result(own_signals: None) -> None:
    async def main() -> int:
        return 7

    assert loop.run(main) == 7


def test_what_runs_in_a_thread_is_never_left_half_done(own_signals: None) -> None:
    done = threading.Event()
    begun = threading.Event()

    def job() -> None:
        begun.set()
        for _ in range(20):
            time.sleep(0.001)  # work
        done.set()

    async def main() -> None:
        task = asyncio.create_task(loop.whole(job))
        await asyncio.to_thread(begun.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done.is_set()

    loop.run(main)


def test_a_reader_that_is_gone_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with open(writing, "w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert not render.reader_is_gone()
        os.close(reading)
        assert render.reader_is_gone()
        monkeypatch.undo()


# The demo


def test_namespaces_of_the_demo_tell_whose_they_are() -> None:
    match = OURS.fullmatch(Lab.name("env1"))
    assert match
    assert int(match[1]) == os.getpid()
    assert OURS.fullmatch("hpdemo-env1") is None
    assert OURS.fullmatch("my-hpdemo-env1-12") is None


def test_the_demo_says_in_one_line_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hyperplane.cli.demo_lab.STATUS", "/dev/null")
    assert entry._run(["demo"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "run it as root" in error
