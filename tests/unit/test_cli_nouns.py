"""The commands of resources against a daemon that is played: requests, output, exit codes, filters, pages."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Self

import msgspec
import pytest

from hyperplane import errors, resources
from hyperplane.cli import main as entry
from hyperplane.cli.commands import MODULES, group
from hyperplane.cli.kinds import NOUNS
from hyperplane.cli.options import Caller
from hyperplane.codec import to_json
from hyperplane.model import Drop, Flow, FlowState, Reason, Timers
from hyperplane.resources import (
    Change,
    Environment,
    EnvironmentState,
    Function,
    FunctionState,
    Page,
    Plan,
    SecurityGroup,
    Subnet,
    Timings,
    Vpc,
)

Kept = dict[str, list[Any]]
VPC = Vpc(id="vpc-1", account="default", name="customer", created=1.0, namespace="c", dns=(IPv4Address("198.19.0.2"),))
SUBNET = Subnet(
    id="subnet-1", account="default", name="private", created=2.0, vpc="vpc-1", cidr=IPv4Network("198.19.0.0/24"),
    gateway=IPv4Address("198.19.0.1"), available=252,
)  # fmt: skip
GROUP = SecurityGroup(id="sg-1", account="default", name="web", created=3.0, vpc="vpc-1", rules=("tcp/443",))
FUNCTION = Function(
    id="function-1", account="default", name="reports", created=4.0, vpc="vpc-1", subnets=("subnet-1",),
    security_groups=("sg-1",), enis=("eni-1",), inside_address=IPv4Address("198.18.0.2"),
    routes=(IPv4Network("0.0.0.0/0"),), mtu=0, max_flows=0, state=FunctionState.ACTIVE,
)  # fmt: skip
ENI = resources.Eni(
    id="eni-1", account="default", name="eni-1", created=4.0, vpc="vpc-1", subnet="subnet-1", security_groups=("sg-1",),
    addresses=(IPv4Address("198.19.0.3"),), device="eni0", mtu=1500, state=resources.EniState.IN_USE,
    functions=("function-1",), environments=1200,
)  # fmt: skip
ENVIRONMENT = Environment(
    id="env-1", account="default", name="job-17", created=5.0, function="function-1", eni="eni-1", namespace="pid:7",
    device="eth0", inside_address=IPv4Address("198.18.0.2"), mtu=1500, state=EnvironmentState.ATTACHED, pid=7,
    timings=Timings(total=0.002, kernel=0.001, engine=0.0005, wait=0.0001, daemon=0.0004),
)  # fmt: skip
FLOW = Flow(
    id=4294967297, tunnel="env-1", tunnel_number=2, eni="eni-1", eni_number=1, protocol="tcp",
    state=FlowState.ESTABLISHED, inside=IPv4Address("198.18.0.2"), inside_port=40000,
    outside=IPv4Address("198.19.0.3"), outside_port=2000, remote=IPv4Address("198.19.0.10"), remote_port=443,
    packets_out=3, bytes_out=300, packets_in=2, bytes_in=2000, started=1, last_seen=2, expires=3,
)  # fmt: skip
DROP = Drop(
    number=7, time=1, link="env-1", link_number=2, reason=Reason.SECURITY_GROUP, protocol=6,
    source=IPv4Address("198.18.0.2"), source_port=40000, destination=IPv4Address("198.19.0.10"), destination_port=25,
    length=60,
)  # fmt: skip


class Daemon:
    """Plays the client: keeps resources, remembers requests, gives lists in pages of two."""

    def __init__(self) -> None:
        self.kept: Kept = {
            "vpc": [VPC], "subnet": [SUBNET], "security_group": [GROUP], "function": [FUNCTION], "eni": [ENI],
            "environment": [ENVIRONMENT], "flow": [FLOW], "drop": [DROP],
        }  # fmt: skip
        self.asked: list[tuple[str, Any]] = []
        self.error: errors.HyperplaneError | None = None
        self.plan = Plan()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        verb, _, kind = name.partition("_")
        play: Any = {"list": self._list, "get": self._get, "delete": self._delete}.get(verb)
        if kind and play:
            return lambda *arguments, **more: play(kind.removesuffix("s"), *arguments, **more)
        if verb in ("create", "update", "start"):
            return lambda *arguments: self._made(name, kind, *arguments)
        raise AttributeError(name)

    def _note(self, name: str, what: Any) -> None:
        self.asked.append((name, what))
        if self.error:
            raise self.error

    def _list(self, kind: str, *, limit: int, next_token: str = "", **filters: Any) -> Page:
        self._note(f"list_{kind}", {name: value for name, value in filters.items() if value is not None})
        begin = int(next_token or 0)
        items = tuple(self.kept[kind][begin : begin + 2])
        more = begin + 2 < len(self.kept[kind])
        return Page(items=items, next_token=str(begin + 2) if more else "")

    def _get(self, kind: str, ref: Any, **more: Any) -> Any:
        self._note(f"get_{kind}", ref)
        for one in self.kept[kind]:
            if ref in (one.id, getattr(one, "name", "")):
                return one
        raise errors.ResourceNotFound(f"no {kind} {ref}", resource=ref)

    def _delete(self, kind: str, ref: str, **more: Any) -> None:
        self._get(kind, ref)
        self._note(f"delete_{kind}", ref)

    def _made(self, name: str, kind: str, *arguments: Any) -> Any:
        self._note(name, arguments[-1])
        return self.kept[kind][0]

    def end_environment(self, ref: str, *, drain: float = 0.0, account: str = "") -> Environment:
        self._note("end_environment", (ref, drain))
        return msgspec.structs.replace(ENVIRONMENT, state=EnvironmentState.DETACHING)

    def apply(self, request: resources.ApplyRequest) -> Plan:
        self._note("apply", request)
        return self.plan

    def export(self, *, account: str) -> resources.Document:
        self._note("export", account)
        return resources.Document(vpc=(resources.VpcSpec(name="customer", namespace="c"),))

    @staticmethod
    def send_descriptor(fd: int) -> str:
        return f"descriptor-{fd}"

    def get_flow(self, flow_id: int) -> Flow:
        self._note("get_flow", flow_id)
        return FLOW


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    made = Daemon()
    monkeypatch.setattr(Caller, "client", lambda caller: made)
    return made


Text = pytest.CaptureFixture[str]


def ran(capsys: Text, *arguments: str, code: int = 0) -> str:
    """What the command printed; its error when it fails."""
    capsys.readouterr()
    assert entry._run(list(arguments)) == code
    captured = capsys.readouterr()
    if code:
        assert captured.out == ""
        assert captured.err.count("\n") == 1
        return captured.err
    assert captured.err == ""
    return captured.out


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
