"""A daemon that is played, for the command line's tests."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any, Self

import msgspec
import pytest

from hyperplane import errors, resources
from hyperplane.cli import main as entry
from hyperplane.model import Drop, Flow, FlowState, Reason
from hyperplane.resources import (
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
