"""The command line without devices: options, exit codes, what is printed, signals. None of it needs root."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import hyperplane
from hyperplane.cli import loop, nat, render, signals
from hyperplane.cli import main as entry
from hyperplane.cli.demo_lab import OURS, Lab
from hyperplane.model import Rule, Timers

NAT = ["nat", "--vpc", "v", "--eni-address", "198.19.0.5", "--environment", "e"]


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
        "--workers",
        "2",
        "--pin",
        "0-1",
        "--spin",
        "50",
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
            workers=2,
            pin="0-1",
            io="epoll",
            spin=50,
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
        ([*NAT, "--allow", "sctp"], "sctp is not translated"),
        ([*NAT, "--timers", "tcp=1"], "names are tcp_established"),
        ([*NAT, "--timers", "udp=soon"], "give a number of seconds"),
        ([*NAT, "--timers", "udp=0"], "0.001 to"),
        ([*NAT, "--io", "dpdk"], "is not one of 'auto', 'io_uring', 'epoll'"),
        ([*NAT, "--mtu", "big"], "not a valid integer"),
        ([*NAT, "--environment", "e"], "two environments have the namespace e"),
        ([*NAT, "--environment", "f=e"], "two environments have the name e"),
        ([*NAT[:-1], f"pid:{os.getpid()}"], "this program's own namespace"),
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
    assert entry._run([*NAT[:-1], "not-there"]) == 1
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


def test_names_that_the_demo_gives_tell_whose_they_are() -> None:
    match = OURS.match(Lab.name("env1"))
    assert match
    assert int(match["pid"]) == os.getpid()
    directory = OURS.match("hpdemo-4711-x1y2")
    assert directory
    assert directory["owner"] == "4711"
    for other in ("hpdemo-env1", "my-hpdemo-env1-12", "hpdemo-env1-12x", "hpdemo-my-env-12"):
        assert OURS.match(other) is None


def test_the_demo_says_in_one_line_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hyperplane.cli.demo_lab.STATUS", "/dev/null")
    assert entry._run(["demo"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "run it as root" in error
