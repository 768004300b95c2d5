"""Whether records refer to each other as they should: a file that somebody edited may be sound and yet not true."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from hyperplane.resources import (
    Eni,
    EniState,
    Environment,
    EnvironmentState,
    Function,
    Resource,
    SecurityGroup,
    Subnet,
)


def dangling(resources: Collection[Resource]) -> str:
    """The first reference that leads nowhere, in words; "" when there is none."""
    known = {one.id for one in resources}
    for one in resources:
        for id_ in _references(one):
            if id_ not in known:
                return f"{one.id} refers to {id_}, which is not there"
    return ""


def _references(one: Resource) -> Iterator[str]:
    """What has ended, or is being deleted, may outlive what it was of."""
    match one:
        case Subnet() | SecurityGroup():
            yield one.vpc
        case Function():
            yield from (one.vpc, *one.subnets, *one.security_groups, *one.enis)
        case Eni() if one.state is not EniState.DELETING:
            yield from (one.vpc, one.subnet, *one.security_groups)
        case Environment() if one.state is EnvironmentState.DETACHING:
            yield one.function  # its ENI may be lost already
        case Environment() if one.state is not EnvironmentState.ENDED:
            yield from (one.function, one.eni)
