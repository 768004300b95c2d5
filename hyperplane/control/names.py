"""Names and references: what may be a name, whom a reference means, whether a creation was made before."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection
from typing import Any, Final

from hyperplane.codec import to_json
from hyperplane.control.state import Internals, State
from hyperplane.errors import (
    HyperplaneError,
    IdempotentParameterMismatch,
    InvalidValue,
    ResourceConflict,
    ResourceNotFound,
)
from hyperplane.resources import ID_PREFIX, EnvironmentState, Kind, Request

NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
TOKEN: Final = re.compile(r"[!-~]{1,64}")  # AWS: 1 to 64 printable ASCII characters
ID: Final = re.compile(rf"({'|'.join(ID_PREFIX.values())})-0[0-9a-f]{{16}}")
SHOWN: Final = 3  # names in a message before it says "and N more"


def check_name(value: str, field: str = "name") -> None:
    """Raises InvalidValue."""
    if not NAME.fullmatch(value):
        limit = "1 to 64 letters, digits, and _ . - but these two not in front"
        raise InvalidValue(f"{field} is {value!r}", resource=field, limit=limit, field=field)
    if ID.fullmatch(value):
        remedy = "choose one that does not look like an id"
        raise InvalidValue(f"{field} {value} looks like an id", resource=field, remedy=remedy, field=field)


def check_new(spec: Any) -> None:
    """The fields that every request to create something has. Raises InvalidValue."""
    check_name(spec.name)
    check_name(spec.account, "account")
    if spec.client_token and not TOKEN.fullmatch(spec.client_token):
        limit = "64 printable ASCII characters"
        raise InvalidValue("client_token cannot be used", resource="client_token", limit=limit, field="client_token")


def find(state: State, kind: Kind, ref: str, account: str | None) -> Any:
    """By id or name in the account, by id alone when it is None; an environment that runs before one that has ended."""
    resource = state.tables[kind].get(ref)
    if resource is not None and account in (None, resource.account):
        return resource
    if account is None:
        return None
    id_ = state.one("name", kind, account, ref)
    if id_ is not None:
        return state.tables[kind][id_]
    if kind == "environment":
        ended = [state.environments[one] for one in state.ids("ended")]
        same = [one for one in ended if one.name == ref and one.account == account]
        return max(same, key=lambda one: one.ended, default=None)
    return None


def require(
    state: State,
    kind: Kind,
    ref: str,
    account: str | None,
    error: type[HyperplaneError] = ResourceNotFound,
    field: str = "",
) -> Any:
    """As find(); raises `error` when there is none."""
    found = find(state, kind, ref, account)
    if found is None:
        where = f" in account {account}" if account is not None else ""
        remedy = f"`hyperplane-nat {kind} list` shows those that exist"
        raise error(f"no {words(kind)} {ref!r}{where}", resource=ref, remedy=remedy, field=field)
    return found


def repeated(state: State, kind: Kind, spec: Any) -> Any:
    """What the same request with the same client_token has made, or None. Raises IdempotentParameterMismatch."""
    if not spec.client_token:
        return None
    id_ = state.one("token", spec.account, spec.client_token)
    if id_ is None:
        return None
    if state.internals(id_)["digest"] != _digest(kind, spec):
        message = f"client_token {spec.client_token} was used for another request, which made {id_}"
        remedy = "use a token for one request only"
        raise IdempotentParameterMismatch(message, resource=id_, remedy=remedy, field="client_token")
    return state.tables[kind][id_]


def token_internals(kind: Kind, spec: Any) -> Internals:
    return {"token": spec.client_token, "digest": _digest(kind, spec)} if spec.client_token else {}


def same_name(state: State, kind: Kind, spec: Any, content: dict[str, Any]) -> Any:
    """The resource that has the request's name and content, or None. Raises ResourceConflict on other content."""
    id_ = state.one("name", kind, spec.account, spec.name)
    if id_ is None:
        return None
    found = state.tables[kind][id_]
    other = [name for name, value in content.items() if getattr(found, name) != value]
    if other:
        message = f"{words(kind)} {spec.name} exists with another {', '.join(other)}"
        remedy = "update it, or choose another name"
        raise ResourceConflict(message, resource=spec.name, remedy=remedy, field="name")
    return found


def check_rename(state: State, kind: Kind, resource: Any, name: str) -> None:
    """Raises ResourceConflict when another one has the name."""
    holder = state.one("name", kind, resource.account, name)
    if holder not in (None, resource.id):
        message = f"{words(kind)} {name} exists already"
        raise ResourceConflict(message, resource=name, remedy="choose another name", field="name")


def words(kind: Kind) -> str:
    return kind.replace("-", " ") if kind != "eni" else "ENI"


def listed(names: Collection[str]) -> str:
    """`a, b, c and 7 more`."""
    shown = ", ".join(sorted(names)[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


def holders(state: State, kind: Kind, ids: Collection[str]) -> str:
    """`function web`, `functions api, web`; "" for none."""
    if not ids:
        return ""
    names = [state.tables[kind][id_].name for id_ in ids]
    return f"{words(kind)}{'s' if len(names) > 1 else ''} {listed(names)}"


def running(state: State, id_: str) -> Collection[str]:
    """Environments that have not ended, of a function or on an ENI."""
    return state.ids("environments", id_)


def is_over(state: EnvironmentState) -> bool:
    return state is EnvironmentState.ENDED


def _digest(kind: Kind, spec: Request) -> str:
    return hashlib.sha256(kind.encode() + to_json(spec)).hexdigest()[:32]
