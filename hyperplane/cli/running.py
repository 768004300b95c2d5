"""What `run` does: a child in namespaces of its own, an environment for it, the command, and the end of both."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Final

from hyperplane.cli.asking import get
from hyperplane.cli.failures import RunFailed
from hyperplane.cli.options import Caller
from hyperplane.cli.sandbox import FAILED, Sandbox
from hyperplane.errors import HyperplaneError, InvalidValue
from hyperplane.model import Rule
from hyperplane.resources import EnvironmentSpec

if TYPE_CHECKING:
    from hyperplane.client import SyncClient
    from hyperplane.resources import Function, Vpc

DNS: Final = 53


def run(caller: Caller, function: str, command: Sequence[str], *, name: str, device: str, quiet: bool) -> int:
    """Returns the command's status. Raises RunFailed for whatever else fails."""
    try:
        # First of all: a fork wants a process without threads.
        sandbox = Sandbox(command)
        try:
            with caller.client() as client:
                return _run(client, caller, sandbox, function, name=name, device=device, quiet=quiet)
        finally:
            sandbox.end()
    except HyperplaneError as error:
        raise RunFailed(str(error), FAILED) from None


def _run(client: SyncClient, caller: Caller, sandbox: Sandbox, ref: str, *, name: str, device: str, quiet: bool) -> int:
    function: Function = get(client, "function", ref, caller.own)
    vpc: Vpc = client.get_vpc(function.vpc, account=caller.own)
    if not quiet:
        for hint in _hints(client, function, vpc):
            print(f"hyperplane-nat: {hint}", file=sys.stderr, flush=True)
    sandbox.wait_ready()
    spec = EnvironmentSpec(
        function=function.id, account=caller.own, namespace=f"pid:{sandbox.pid}", name=name, device=device
    )
    environment = client.start_environment(spec)
    try:
        sandbox.go(resolv_conf(vpc))
        return sandbox.wait()
    finally:
        # Where this fails, or does not come to it, the daemon sees that the process is gone.
        with suppress(HyperplaneError):
            client.end_environment(environment.id, account=caller.own)


def resolv_conf(vpc: Vpc) -> str:
    lines = [f"# VPC {vpc.name}, by hyperplane-nat", *(f"nameserver {address}" for address in vpc.dns)]
    return "\n".join(lines) + "\n"


def _hints(client: SyncClient, function: Function, vpc: Vpc) -> Iterable[str]:
    """What the user would otherwise learn from a lookup that hangs or fails."""
    if not vpc.dns:
        yield f"VPC {vpc.name} has no dns: names are not looked up; hyperplane-nat vpc update {vpc.name} --dns ADDRESS"
        return
    groups = [client.get_security_group(ref, account=function.account) for ref in function.security_groups]
    rules = [rule for group in groups for rule in group.rules]
    if refused := refused_resolvers(rules, vpc.dns):
        names = " and ".join(group.name for group in groups)
        yield (
            f"names may not be looked up: {names or 'no security group'} does not allow {', '.join(refused)}; "
            "add such rules"
        )


def refused_resolvers(rules: Iterable[str], resolvers: Iterable[IPv4Address]) -> list[str]:
    """The rules that are missing for lookups: `udp/53 198.19.0.10/32`."""
    known = []
    for text in rules:
        with suppress(InvalidValue):
            known.append(Rule.parse(text))
    return [
        f"{protocol}/{DNS} {address}/32"
        for address in resolvers
        for protocol in ("udp", "tcp")
        if not any(_allows(rule, protocol, address) for rule in known)
    ]


def _allows(rule: Rule, protocol: str, address: IPv4Address) -> bool:
    if rule.protocol not in ("all", protocol) or address not in rule.cidr:
        return False
    return rule.ports is None or rule.ports[0] <= DNS <= rule.ports[1]
