"""Documents: apply makes an account what its document says, export writes the document that would make it so.

An apply carries out its steps one after the other under one journal: when one fails, all are taken back; a plan is an
apply that is taken back in any case. So a plan cannot say anything else than what an apply does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from msgspec.structs import replace

from hyperplane.control import addresses, names
from hyperplane.control.functions import Functions
from hyperplane.control.networks import Networks
from hyperplane.control.state import State
from hyperplane.errors import HyperplaneError, InvalidSubnet, InvalidValue, ResourceConflict
from hyperplane.model import Timers
from hyperplane.resources import (
    DEFAULT_ACCOUNT,
    Change,
    Document,
    Function,
    FunctionSpec,
    FunctionState,
    Kind,
    Resource,
    SecurityGroupSpec,
    SubnetSpec,
    VpcSpec,
)

DECLARED: Final[tuple[Kind, ...]] = ("vpc", "subnet", "security-group", "function")  # in order of creation
DELETED: Final[tuple[Kind, ...]] = ("function", "security-group", "subnet", "vpc")


class Documents:
    def __init__(self, state: State, networks: Networks, functions: Functions) -> None:
        self._state = state
        self._networks = networks
        self._functions = functions

    def apply(self, document: Document, prune: bool, now: float) -> tuple[Change, ...]:
        """The caller takes back what was done when it raises."""
        state = self._state
        names.check_name(document.account, "account")
        specs = {kind: _specs(document, kind) for kind in DECLARED}
        unnamed = self._unnamed(document.account, specs) if prune else {}
        state.applying = True
        state.passing = frozenset(unnamed)
        try:
            changes = []
            for kind in DECLARED:
                for position, spec in enumerate(specs[kind]):
                    with _located(kind, position):
                        change = self._declare(kind, spec, now)
                    changes += [change] if change else []
            changes += self._prune(unnamed)
            self._check_inside(document)
            return tuple(changes)
        finally:
            state.applying = False
            state.passing = frozenset()

    def export(self, account: str) -> Document:
        def written(kind: Kind) -> tuple[Any, ...]:
            own = [one for one in self._state.tables[kind].values() if one.account == account]
            return tuple(self.spec_of(kind, one) for one in sorted(own, key=_age))

        return Document(
            account=account,
            vpc=written("vpc"),
            subnet=written("subnet"),
            security_group=written("security-group"),
            function=written("function"),
        )

    def spec_of(self, kind: Kind, one: Any) -> Any:
        """The request that would make it: what is the default is left out, references are names."""
        state = self._state
        if kind == "vpc":
            fields = ("name", "namespace", "dns", "mtu", "timers", "udp_mapping", "silent")
            return VpcSpec(**{name: getattr(one, name) for name in fields})
        vpc = state.vpcs[one.vpc].name
        if kind == "security-group":
            return SecurityGroupSpec(name=one.name, vpc=vpc, rules=one.rules)
        if kind == "subnet":
            gateway = None if one.gateway == addresses.first_host(one.cidr) else one.gateway
            return SubnetSpec(name=one.name, vpc=vpc, cidr=one.cidr, gateway=gateway, reserved=one.reserved)
        default = state.internals(one.id).get("inside") == "default"
        return FunctionSpec(
            name=one.name,
            subnets=tuple(state.subnets[id_].name for id_ in one.subnets),
            security_groups=tuple(state.groups[id_].name for id_ in one.security_groups),
            inside_address=None if default else one.inside_address,
            routed=one.routed,
            routes=one.routes,
            mtu=one.mtu,
            max_flows=one.max_flows,
        )

    def _declare(self, kind: Kind, spec: Any, now: float) -> Change | None:
        state = self._state
        names.check_name(spec.name)
        id_ = state.one("name", kind, spec.account, spec.name)
        if id_ is None:
            if kind == "function":
                self._functions.create(spec, now)
            else:
                self._networks.create(kind, spec, now)
            return Change(action="create", kind=kind, name=spec.name)
        before = state.tables[kind][id_]
        written = self._written(kind, before)
        if kind == "function":
            self._functions.update(before, spec, now)
        else:
            self._networks.update(kind, before, spec)
        after = self._written(kind, state.tables[kind][id_])
        fields = {name: (written.get(name, ""), text) for name, text in after.items() if written.get(name) != text}
        return Change(action="update", kind=kind, name=spec.name, fields=fields) if fields else None

    def _written(self, kind: Kind, one: Any) -> dict[str, str]:
        """Its fields in words; what a document does not say, but an apply changes, included."""
        spec = self.spec_of(kind, one)
        fields: dict[str, str] = {}
        for name in spec.__struct_fields__:
            value = getattr(spec, name)
            if isinstance(value, Timers):
                fields |= {f"{name}.{timer}": _in_words(getattr(value, timer)) for timer in value.__struct_fields__}
            else:
                fields[name] = _in_words(value)
        if isinstance(one, Function):
            failed = one.state is FunctionState.FAILED
            fields["state"] = FunctionState.FAILED if failed else FunctionState.PENDING
            if spec.inside_address is None:
                fields["inside_address"] = str(one.inside_address)
            fields["last_update_status"] = one.last_update_status
        return fields

    def _unnamed(self, account: str, specs: dict[Kind, list[Any]]) -> dict[str, Kind]:
        """What the account has and the document does not name, in order of deletion."""
        found: dict[str, Kind] = {}
        for kind in DELETED:
            named = {spec.name for spec in specs[kind]}
            own = [one for one in self._state.tables[kind].values() if one.account == account]
            for one in sorted(own, key=_age):
                if one.name not in named:
                    found[one.id] = kind
        return found

    def _prune(self, unnamed: dict[str, Kind]) -> Iterator[Change]:
        for id_, kind in unnamed.items():
            one = self._state.tables[kind][id_]
            if kind == "function":
                self._functions.delete(one)
            else:
                self._networks.delete(kind, one)
            yield Change(action="delete", kind=kind, name=one.name)

    def _check_inside(self, document: Document) -> None:
        """Only now is it known what the VPCs have become. Functions in the document have been looked at already."""
        state = self._state
        for function in state.functions.values():
            if function.account != document.account:
                continue
            found = addresses.collision(state, state.vpcs[function.vpc], function.inside_address)
            if not found:
                continue
            address = function.inside_address
            subnets = [number for number, spec in enumerate(document.subnet) if address in spec.cidr]
            field = f"subnet[{subnets[0]}].cidr" if subnets else "vpc"
            message = f"environments of function {function.name} have {address}, which would be {found}"
            remedy = f"give function {function.name} another inside_address first"
            raise InvalidSubnet(message, resource=function.name, remedy=remedy, field=field)


def _specs(document: Document, kind: Kind) -> list[Any]:
    """One table of the document, with its account and without tokens. Raises InvalidValue, ResourceConflict."""
    table = _table(kind)
    found: list[Any] = []
    first: dict[str, int] = {}
    for position, spec in enumerate(getattr(document, table)):
        where = f"{table}[{position}]"
        if spec.account not in (DEFAULT_ACCOUNT, document.account):
            message = f"{where} is of account {spec.account}, the document of {document.account}"
            remedy = "name the account once, at the document's beginning"
            raise InvalidValue(message, resource=spec.name, remedy=remedy, field=f"{where}.account")
        if spec.name in first:
            message = f"{names.words(kind)} {spec.name} is there twice: {table}[{first[spec.name]}] and {where}"
            remedy = "delete or rename one of them"
            raise ResourceConflict(message, resource=spec.name, remedy=remedy, field=f"{where}.name")
        first[spec.name] = position
        found.append(replace(spec, account=document.account, client_token=""))
    return found


@contextmanager
def _located(kind: Kind, position: int) -> Iterator[None]:
    """Errors name the place in the document."""
    try:
        yield
    except HyperplaneError as error:
        where = f"{_table(kind)}[{position}]"
        error.field = f"{where}.{error.field}" if error.field else where
        raise


def _age(one: Resource) -> tuple[float, str]:
    return one.created, one.id


def _table(kind: Kind) -> str:
    return kind.replace("-", "_")


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(str(one) for one in value)
    return "" if value is None else str(value)
