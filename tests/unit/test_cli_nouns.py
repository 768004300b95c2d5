"""The commands of resources against a daemon that is played: requests, output, exit codes, filters, pages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address
from typing import Any

import msgspec
import pytest

from hyperplane import errors, resources
from hyperplane.cli import main as entry
from hyperplane.cli.commands import MODULES, group
from hyperplane.cli.kinds import NOUNS
from hyperplane.cli.options import Caller
from hyperplane.codec import to_json
from hyperplane.model import Timers
from hyperplane.resources import (
    Change,
    FunctionState,
    Plan,
)
from tests.unit.cli_support import ENVIRONMENT, VPC, Daemon, Text, ran


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    made = Daemon()
    monkeypatch.setattr(Caller, "client", lambda caller: made)
    return made


# Lists


@pytest.mark.parametrize(
    ("noun", "words"),
    [
        ("vpc", ["customer", "vpc-1", "198.19.0.2", "1500"]),
        ("subnet", ["private", "subnet-1", "customer", "198.19.0.0/24", "252"]),
        ("security-group", ["web", "sg-1", "customer", "tcp/443"]),
        ("function", ["reports", "function-1", "Active", "private", "web", "198.18.0.2", "eni-1"]),
        ("eni", ["eni-1", "private", "web", "198.19.0.3", "eni0", "in-use", "reports", "1,200"]),
        ("environment", ["job-17", "env-1", "reports", "eni-1", "pid:7", "eth0", "attached"]),
        ("flow", ["job-17", "198.18.0.2:40000", "198.19.0.3:2000", "198.19.0.10:443", "established"]),
        ("drop", ["security_group", "job-17", "198.18.0.2:40000"]),
    ],
)
def test_lists_show_names(noun: str, words: list[str], daemon: Daemon, capsys: Text) -> None:
    row = ran(capsys, noun, "list").splitlines()[1]
    for word in words:
        assert word in row


@pytest.mark.parametrize("noun", [noun.name for noun in NOUNS] + ["flow"])
def test_lists_as_json_are_the_apis_objects_and_quiet_ones_ids(noun: str, daemon: Daemon, capsys: Text) -> None:
    kept = daemon.kept[noun.replace("-", "_")]
    assert json.loads(ran(capsys, noun, "list", "--json")) == json.loads(to_json(kept))
    assert ran(capsys, noun, "list", "-q") == f"{kept[0].id}\n"
    kept.clear()
    assert ran(capsys, noun, "list", "--json") == "[]\n"
    assert ran(capsys, noun, "list").startswith("no ")


def test_lists_have_all_pages_and_every_filter(daemon: Daemon, capsys: Text) -> None:
    daemon.kept["environment"] = [msgspec.structs.replace(ENVIRONMENT, id=f"env-{n}", name=f"j{n}") for n in range(5)]
    filters = ["--state", "attached", "--function", "reports", "--eni", "eni-1", "--account", "acme"]
    assert ran(capsys, "environment", "list", "-q", *filters).split() == [f"env-{n}" for n in range(5)]
    wanted = {"state": "attached", "function": "reports", "eni": "eni-1", "account": "acme"}
    assert daemon.asked == [("list_environment", wanted)] * 3
    assert "is not one of" in ran(capsys, "environment", "list", "--state", "dead", code=2)


def test_a_list_of_several_accounts_says_whose_each_is(daemon: Daemon, capsys: Text) -> None:
    assert "account" not in ran(capsys, "vpc", "list")
    daemon.kept["vpc"].append(msgspec.structs.replace(VPC, id="vpc-2", account="acme"))
    heading, first, second = ran(capsys, "vpc", "list").splitlines()
    assert [line.split()[-1] for line in (heading, first, second)] == ["account", "default", "acme"]


# One resource


@pytest.mark.parametrize("noun", [noun.name for noun in NOUNS])
def test_show_has_every_field(noun: str, daemon: Daemon, capsys: Text) -> None:
    kept = daemon.kept[noun.replace("-", "_")][0]
    text = ran(capsys, noun, "show", kept.name)
    assert {kept.id, kept.name, kept.account} <= set(text.split())
    assert json.loads(ran(capsys, noun, "show", kept.id, "--json")) == json.loads(to_json(kept))


def test_show_names_what_ids_stand_for(daemon: Daemon, capsys: Text) -> None:
    assert "private (subnet-1)" in ran(capsys, "function", "show", "reports")
    assert "total 2.00 ms, kernel 1.00 ms" in ran(capsys, "environment", "show", "job-17")


def test_create_sends_what_the_options_say(daemon: Daemon, capsys: Text) -> None:
    options = ["--namespace", "n", "--dns", "198.19.0.2,198.19.0.3", "--mtu", "9000", "--timers", "udp=3", "--silent"]
    assert "vpc-1" in ran(capsys, "vpc", "create", "customer", *options)
    dns = (IPv4Address("198.19.0.2"), IPv4Address("198.19.0.3"))
    wanted = resources.VpcSpec(name="customer", namespace="n", dns=dns, mtu=9000, timers=Timers(udp=3), silent=True)
    assert ("create_vpc", wanted) in daemon.asked
    ran(
        capsys,
        "function",
        "create",
        "f",
        "--subnets",
        "a",
        "--subnets",
        "b",
        "--security-groups",
        "g",
        "--account",
        "x",
    )
    wanted_ = resources.FunctionSpec(name="f", subnets=("a", "b"), security_groups=("g",), account="x")
    assert ("create_function", wanted_) in daemon.asked
    ran(capsys, "security-group", "create", "g", "--vpc", "v", "--rules", "tcp/443 198.19.0.0/24, udp/53")
    assert daemon.asked[-2][1].rules == ("tcp/443 198.19.0.0/24", "udp/53")


def test_update_changes_what_is_given_and_keeps_the_rest(daemon: Daemon, capsys: Text) -> None:
    ran(capsys, "vpc", "update", "customer", "--mtu", "1400", "--timers", "udp=3")
    wanted = resources.VpcSpec(name="customer", namespace="c", dns=VPC.dns, mtu=1400, timers=Timers(udp=3))
    assert ("update_vpc", wanted) in daemon.asked
    ran(capsys, "vpc", "update", "customer", "--dns", "")
    assert daemon.asked[-1] == ("update_vpc", resources.VpcSpec(name="customer", namespace="c"))
    error = ran(capsys, "vpc", "update", "customer", code=2)
    assert "nothing to change; give options: hyperplane-nat vpc update --help" in error


def test_delete_says_what_is_gone(daemon: Daemon, capsys: Text) -> None:
    assert ran(capsys, "security-group", "delete", "web") == "deleted security group web\n"
    assert ("delete_security_group", "web") in daemon.asked
    assert ran(capsys, "environment", "delete", "job-17", "--drain", "3") == "environment job-17: detaching\n"
    assert ("end_environment", ("job-17", 3.0)) in daemon.asked


@pytest.mark.parametrize(
    ("options", "fields"),
    [
        ([], {}),
        (
            ["--namespace", "box", "--name", "n", "--device", "tun0"],
            {"namespace": "box", "name": "n", "device": "tun0"},
        ),
        (["--pid", "7"], {"namespace": "pid:7"}),
        (["--fd", "5"], {"descriptor": "descriptor-5"}),
        (["--pid", "7", "--fd", "5"], {"descriptor": "descriptor-5", "pid": 7}),
    ],
)
@pytest.mark.parametrize("verb", ["start", "create"])
def test_environments_start_where_they_are_told_to(
    verb: str, options: list[str], fields: Mapping[str, Any], daemon: Daemon, capsys: Text
) -> None:
    assert "attached" in ran(capsys, "environment", verb, "reports", *options)
    assert ("start_environment", resources.EnvironmentSpec(function="reports", **fields)) in daemon.asked


# Failures


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.InvalidSubnet("subnet a overlaps b"), 2),
        (errors.InvalidValue("mtu is 3"), 2),
        (errors.DaemonUnavailable("nobody listens", remedy="start the daemon"), 3),
        (errors.ResourceNotFound("no vpc x"), 4),
        (errors.ResourceConflict("vpc a is there"), 5),
        (errors.DependencyViolation("subnet a holds it"), 5),
        (errors.FunctionNotActive("function f is Failed"), 5),
        (errors.StoreError("disk full"), 1),
        (errors.TooManyRequests("queue full"), 1),
    ],
)
def test_errors_have_an_exit_code(error: errors.HyperplaneError, code: int, daemon: Daemon, capsys: Text) -> None:
    daemon.error = error
    for command in (["vpc", "list"], ["vpc", "show", "x"], ["vpc", "delete", "x"], ["export"]):
        assert error.message in ran(capsys, *command, code=code)


def test_a_name_that_is_nearly_right_is_suggested(daemon: Daemon, capsys: Text) -> None:
    wanted = "hyperplane-nat: no function repots; did you mean reports?\n"
    for verb in ("show", "delete"):
        assert ran(capsys, "function", verb, "repots", code=4) == wanted
    assert "`hyperplane-nat function list` shows functions" in ran(capsys, "function", "show", "other", code=4)


@pytest.mark.parametrize("noun", [*(noun.name for noun in NOUNS), "flow", "drop"])
def test_a_noun_alone_shows_its_commands(noun: str, capsys: Text) -> None:
    assert entry._run([noun]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Lists " in captured.err


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        ("hyperplane-nat fun", ["function"]),
        ("hyperplane-nat function show rep", ["reports"]),
        ("hyperplane-nat run re", ["reports"]),
        ("hyperplane-nat environment delete ", ["job-17"]),
        ("hyperplane-nat vpc create x --ud", ["--udp-mapping"]),
        ("hyperplane-nat function list --state ", [str(state) for state in FunctionState]),
    ],
)
def test_shells_complete(
    words: str, offers: list[str], daemon: Daemon, capsys: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_HYPERPLANE_NAT_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split(" ")) - 1))
    with pytest.raises(SystemExit, match="0"):
        entry._run([])
    assert capsys.readouterr().out.split() == [f"plain,{offer}" for offer in offers]


def test_shells_complete_nothing_without_a_daemon(
    daemon: Daemon, capsys: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.error = errors.DaemonUnavailable("no daemon listens")
    test_shells_complete("hyperplane-nat function show rep", [], daemon, capsys, monkeypatch)


# Documents


def test_apply_shows_what_it_changes(daemon: Daemon, capsys: Text, tmp_path: Any) -> None:
    file = tmp_path / "net.toml"
    file.write_text('[[vpc]]\nname = "v"\nnamespace = "n"\n')
    changes = (
        Change(action="create", kind="vpc", name="v"),
        Change(action="update", kind="subnet", name="s", fields={"cidr": ("198.19.0.0/24", "198.19.1.0/24")}),
        Change(action="delete", kind="function", name="f"),
    )
    daemon.plan = Plan(changes=changes)
    assert ran(capsys, "apply", str(file), "--dry-run", "--prune") == (
        "+ vpc v\n~ subnet s  cidr: 198.19.0.0/24 → 198.19.1.0/24\n- function f\n"
        "plan: 1 to create, 1 to update, 1 to delete\n"
    )
    request = daemon.asked[-1][1]
    assert (request.dry_run, request.prune, request.document.vpc[0].name) == (True, True, "v")
    daemon.plan = Plan(changes=changes, applied=True)
    assert ran(capsys, "apply", str(file)).endswith("\n1 created, 1 updated, 1 deleted\n")
    assert json.loads(ran(capsys, "apply", str(file), "--json"))["changes"][1]["fields"] == {
        "cidr": ["198.19.0.0/24", "198.19.1.0/24"]
    }
    daemon.plan = Plan(applied=True)
    assert ran(capsys, "apply", str(file)) == "nothing to change\n"


def test_apply_names_file_and_line(daemon: Daemon, capsys: Text, tmp_path: Any) -> None:
    file = tmp_path / "net.toml"
    file.write_text('[[vpc]]\nname = "v"\nnamespace = 3\n')
    assert ran(capsys, "apply", str(file), code=2).startswith(f"{file}:3: vpc[0].namespace: Expected `str`")
    file.write_text('[[vpc]]\nname = "v"\nnamespace = "n"\n')
    daemon.error = errors.ResourceConflict("vpc v exists", field="document.vpc[0].name")
    assert ran(capsys, "apply", str(file), code=5) == f"{file}:2: vpc v exists\n"
    for words in (["apply", str(file)], ["apply", "--account", "default", str(file)]):
        file.write_bytes(b"\xef\xbb\xbf" + b'[[vpc]]\nname = "v"\nnamespace = "n"\n')  # with a byte order mark
        daemon.error = errors.ResourceConflict("vpc v exists", field="document.vpc[0].name")
        assert ran(capsys, *words, code=5) == f"{file}:2: vpc v exists\n"
        assert daemon.asked[-1][1].document.vpc[0].name == "v"
    file.write_bytes(b'\xef\xbb\xbfname = "v"\n')
    assert ran(capsys, "apply", str(file), code=2).startswith(f"{file}:1: ")
    file.write_bytes(b'a = "\xff"\n')
    assert "no UTF-8 from byte 5 on" in ran(capsys, "apply", str(file), code=2)


def test_apply_reads_standard_input(daemon: Daemon) -> None:
    command = [sys.executable, "-m", "hyperplane.cli", "apply", "-", "--instance", "no-such-instance"]
    done = subprocess.run(command, input="[[vpc]\n", capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("stdin:1: ")


def test_export_prints_toml_and_json(daemon: Daemon, capsys: Text) -> None:
    assert ran(capsys, "export") == '[[vpc]]\nname = "customer"\nnamespace = "c"\n'
    assert json.loads(ran(capsys, "export", "--json"))["vpc"][0]["name"] == "customer"


# All commands


def everything() -> Iterator[tuple[str, ...]]:
    import click

    for name in MODULES:
        command = group.get_command(click.Context(group), name)
        yield (name,)
        if isinstance(command, click.Group):
            yield from ((name, verb) for verb in command.commands)


@pytest.mark.parametrize("command", list(everything()), ids=" ".join)
def test_every_command_has_help_and_the_shared_options(command: tuple[str, ...], capsys: Text) -> None:
    text = ran(capsys, *command, "--help")
    assert f"Usage: hyperplane-nat {' '.join(command)}" in text
    asks = len(command) == 2 or command[0] in ("apply", "export", "status")
    for option in ("--instance", "--account", "--json", "--no-color") if asks else ():
        assert option in text


def test_help_loads_nothing_slow() -> None:
    code = (
        "import sys\nfrom hyperplane.cli import main\nmain._run(['--help'])\nmain._run(['vpc', 'create', '--help'])\n"
        "slow = {'hyperplane._native', 'pyroute2', 'uvloop', 'asyncio', 'aiohttp', 'rich', 'http.client', 'tomllib'}\n"
        "assert not slow & set(sys.modules), slow & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=60)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_name_the_command(shell: str, capsys: Text) -> None:
    assert "hyperplane-nat" in ran(capsys, "completion", shell)
