"""Wrong usage: one line that names the option, exit code 2, and nothing is asked of the daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from hyperplane.cli import main as entry
from hyperplane.cli.options import Caller
from tests.unit.cli_support import Daemon, Text, ran


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    made = Daemon()
    monkeypatch.setattr(Caller, "client", lambda caller: made)
    return made


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["vpc", "create", "v"], "Missing option '--namespace'"),
        (["vpc", "create", "v", "--namespace", "n", "--dns", "here"], "--dns: Expected"),
        (["vpc", "create", "v", "--namespace", "n", "--mtu", "big"], "'big' is not a valid integer"),
        (["vpc", "create", "v", "--namespace", "n", "--timers", "tcp=1"], "names are tcp_established"),
        (["vpc", "create", "v", "--namespace", "n", "--udp-mapping", "x"], "is not one of"),
        (["subnet", "create", "s", "--vpc", "v", "--cidr", "198.19.0.1/24"], "--cidr: 198.19.0.1/24 has host bits set"),
        (["environment", "start", "f", "--namespace", "x", "--fd", "4"], "--namespace and --fd are given"),
        (["environment", "start"], "Missing argument 'FUNCTION'"),
        (["eni", "create"], "No such command 'create'"),
        (["vpc", "delete"], "Missing argument 'REF...'"),
        (["apply", "not-there.toml"], "'not-there.toml' does not exist"),
        (["completion", "csh"], "is not one of"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    arguments: list[str], words: str, daemon: Daemon, capsys: Text
) -> None:
    assert words in ran(capsys, *arguments, code=2)
    assert not [name for name, _ in daemon.asked if not name.startswith(("get", "list"))]


WITH_INSTANCE = [
    "status", "export", "vpc list", "eni show x", "environment list", "environment start f", "flow list", "drop list",
    "doctor", "daemon", "engine", "stop", "apply -",
]  # fmt: skip


@pytest.mark.parametrize("name", ["../x", "a/b", "", "-x"])
@pytest.mark.parametrize("command", WITH_INSTANCE)
def test_an_instance_that_cannot_be_is_the_only_error(
    command: str, name: str, daemon: Daemon, capsys: Text, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ran(capsys, *command.split(), f"--instance={name}", code=2)
    assert error.startswith(f"hyperplane-nat: --instance is {name!r} (limit: ")
    if name:
        monkeypatch.setenv("HYPERPLANE_INSTANCE", name)
        assert f"HYPERPLANE_INSTANCE is {name!r}" in ran(capsys, *command.split(), code=2)
    assert not daemon.asked


@pytest.mark.parametrize(
    "arguments",
    [
        "environment start f --namespace @", "environment start f --pid @", "environment start f --fd @",
        "environment start f --name @", "environment start f --device @", "environment start f --client-token @",
        "environment start f --account @", "environment start @", "environment delete one @", "environment show @",
        "environment list --name @", "environment list --namespace @", "flow list --environment @",
        "flow list --remote @", "drop list --eni @", "vpc create v --namespace @", "vpc create @ --namespace n",
        "vpc create v --namespace n --dns @", "vpc update customer --namespace @", "subnet create s --vpc @ --cidr x",
        "subnet create s --vpc v --cidr 198.19.0.0/24 --reserved @", "security-group create g --vpc v --rules @",
        "function create f --subnets @ --security-groups g", "function create f --subnets , --security-groups g",
        "apply --account @ -", "export --account @", "doctor --vpc @", "nat --vpc @ --eni-address a --environment e",
        "nat --vpc v --eni-address @ --environment e", "daemon --run-dir @", "daemon --state-dir @", "daemon --group @",
        "engine --run-dir @", "engine --user @", "stop --run-dir @",
    ],
)  # fmt: skip
def test_an_empty_value_is_an_error_and_no_default(arguments: str, daemon: Daemon, capsys: Text) -> None:
    words = ["" if word == "@" else word for word in arguments.split()]
    error = ran(capsys, *words, code=2)
    assert "it is empty" in error or "'' is not a valid integer" in error
    assert not daemon.asked


@pytest.mark.parametrize(
    "arguments", ["environment list --name @", "environment show @", "vpc create v --namespace n --dns @", "run @ -- a"]
)
def test_bytes_that_are_no_utf_8_are_nobody_s_name(arguments: str, daemon: Daemon, capsys: Text) -> None:
    words = [os.fsdecode(b"\xff") if word == "@" else word for word in arguments.split()]
    assert "it is no UTF-8" in ran(capsys, *words, code=125 if words[0] == "run" else 2)
    assert not daemon.asked


def test_an_empty_value_empties_a_list_in_an_update(daemon: Daemon) -> None:
    assert entry._run(["vpc", "update", "customer", "--dns", ""]) == 0
    assert next(spec for name, spec in daemon.asked if name == "update_vpc").dns == ()
