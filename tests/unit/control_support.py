"""A small world for tests of the control plane: one VPC with two subnets and two security groups, and a fake clock."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Any

from hyperplane.control import Attach, Control, Detach, Limits, MakeEni, Outcome, Put, RemoveEni
from hyperplane.resources import (
    Environment,
    EnvironmentSpec,
    Function,
    FunctionSpec,
    SecurityGroupSpec,
    SubnetSpec,
    VpcSpec,
)

CIDR_A, CIDR_B = IPv4Network("198.19.0.0/24"), IPv4Network("198.19.1.0/24")


def address(text: str) -> IPv4Address:
    return IPv4Address(text)


class World:
    """control, and its clock, which goes on by a second with every look at it."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.control = Control(Random(1), limits or Limits())
        self.time = 1_000_000.0

    @property
    def now(self) -> float:
        self.time += 1.0
        return self.time

    def network(self, vpc: str = "customer", **subnets: str) -> None:
        """One VPC with subnets a and b, or those given, and the security groups web and db."""
        self.control.create_vpc(VpcSpec(name=vpc, namespace=f"ns-{vpc}"), self.now)
        for name, cidr in (subnets or {"a": str(CIDR_A), "b": str(CIDR_B)}).items():
            self.control.create_subnet(SubnetSpec(name=name, vpc=vpc, cidr=IPv4Network(cidr)), self.now)
        self.control.create_security_group(SecurityGroupSpec(name="web", vpc=vpc, rules=("tcp/443",)), self.now)
        self.control.create_security_group(SecurityGroupSpec(name="db", vpc=vpc, rules=("tcp/5432",)), self.now)

    def function(self, name: str = "f", subnets: Any = ("a",), groups: Any = ("web",), **more: Any) -> Function:
        spec = FunctionSpec(name=name, subnets=tuple(subnets), security_groups=tuple(groups), **more)
        return self.control.create_function(spec, self.now)

    def active(self, name: str = "f", subnets: Any = ("a",), groups: Any = ("web",), **more: Any) -> Function:
        """A function whose ENIs are up."""
        self.function(name, subnets, groups, **more)
        self.make_enis()
        found: Function = self.control.get("function", name)
        return found

    def start(self, function: str = "f", **more: Any) -> Environment:
        return self.control.start_environment(EnvironmentSpec(function=function, **more), self.now)

    def make_enis(self) -> Outcome:
        """Takes, and does what the outcome says about ENIs."""
        outcome = self.control.take()
        for action in outcome.actions:
            if isinstance(action, MakeEni):
                self.control.eni_made(action.eni.id, self.now)
            elif isinstance(action, RemoveEni):
                self.control.eni_removed(action.eni.id, self.now)
        return outcome

    def run(self) -> None:
        """Does everything that is to be done, until nothing is left."""
        while (outcome := self.control.take()).actions:
            for action in outcome.actions:
                if isinstance(action, MakeEni):
                    self.control.eni_made(action.eni.id, self.now)
                elif isinstance(action, RemoveEni):
                    self.control.eni_removed(action.eni.id, self.now)
                elif isinstance(action, Attach):
                    self.control.environment_attached(action.environment.id, self.now)
                elif isinstance(action, Detach):
                    self.control.environment_ended(action.environment.id, "deleted", self.now)

    def kept(self, records: dict[str, Put]) -> dict[str, Put]:
        """What a store would have after the changes of one more take()."""
        for change in self.control.take().changes:
            if isinstance(change, Put):
                records[change.id] = change
            else:
                del records[change.id]
        return records
