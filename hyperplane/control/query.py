"""Lists of resources: by account, filtered by what they are and what they refer to, in the order of their creation."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from typing import Any, Final

from hyperplane.control import names
from hyperplane.control.state import State
from hyperplane.errors import InvalidValue
from hyperplane.resources import SENDERS, EniState, EnvironmentState, FunctionState, Kind

# Filter -> (field of the resource, kind that its value refers to). A field with several entries matches with any.
_VPC: Final[tuple[str, Kind]] = ("vpc", "vpc")
FILTERS: Final[dict[Kind, dict[str, tuple[str, Kind | None]]]] = {
    "vpc": {"name": ("name", None), "namespace": ("namespace", None)},
    "subnet": {"name": ("name", None), "vpc": _VPC},
    "security-group": {"name": ("name", None), "vpc": _VPC},
    "function": {
        "name": ("name", None),
        "state": ("state", None),
        "vpc": _VPC,
        "subnet": ("subnets", "subnet"),
        "security_group": ("security_groups", "security-group"),
        "eni": ("enis", "eni"),
    },
    "eni": {
        "name": ("name", None),
        "state": ("state", None),
        "vpc": _VPC,
        "subnet": ("subnet", "subnet"),
        "security_group": ("security_groups", "security-group"),
        "function": ("functions", "function"),
    },
    "environment": {
        "name": ("name", None),
        "state": ("state", None),
        "function": ("function", "function"),
        "eni": ("eni", "eni"),
        "namespace": ("namespace", None),
        "sender": ("sender", None),
    },
}
STATES: Final[dict[Kind, type[StrEnum]]] = {
    "function": FunctionState,
    "eni": EniState,
    "environment": EnvironmentState,
}


def select(
    state: State, kind: Kind, resources: Iterable[Any], account: str | None, filters: dict[str, str]
) -> list[Any]:
    """Raises InvalidValue for a filter that the kind does not have, ResourceNotFound for a reference to nothing."""
    found = [one for one in resources if account in (None, one.account)]
    for name, value in filters.items():
        field, wanted = _wanted(state, kind, account, name, value)
        found = [one for one in found if _matches(getattr(one, field), wanted)]
    found.sort(key=lambda one: (one.created, one.id))
    return found


def _wanted(state: State, kind: Kind, account: str | None, name: str, value: str) -> tuple[str, set[str]]:
    if name not in FILTERS[kind]:
        limit = f"one of {', '.join(FILTERS[kind])}"
        raise InvalidValue(f"{names.words(kind)}s have no filter {name!r}", resource=name, limit=limit, field=name)
    field, target = FILTERS[kind][name]
    if target is not None:
        if names.ID.fullmatch(value):  # also of one that is gone: environments that have ended refer to such
            return field, {value}
        if account is None:
            return field, {one.id for one in state.tables[target].values() if one.name == value}
        return field, {names.require(state, target, value, account, field=name).id}
    choices = {"state": tuple(STATES.get(kind, ())), "sender": SENDERS}.get(name)
    if choices is not None and value not in choices:
        raise InvalidValue(f"{name} is {value!r}", resource=name, limit=f"one of {', '.join(choices)}", field=name)
    return field, {value}


def _matches(value: Any, wanted: set[str]) -> bool:
    return not wanted.isdisjoint(value) if isinstance(value, tuple) else value in wanted
