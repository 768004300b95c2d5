"""Functions: which ENIs each needs, and its state, which follows from how these fare.

state: Pending until all its ENIs are up, then Active; Failed when one cannot be made or is lost. An update that needs
other ENIs leaves the function Active on those it had ("previous") and is InProgress until the new ones are up; when one
of these fails, the update has Failed and the previous ones go on serving. Asking for the same again is a new try.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any, Final

from msgspec.structs import replace

from hyperplane.control import addresses, names
from hyperplane.control.enis import Enis, previous, set_previous
from hyperplane.control.networks import check_mtu
from hyperplane.control.state import State
from hyperplane.errors import (
    DependencyViolation,
    EngineError,
    HyperplaneError,
    InvalidSecurityGroup,
    InvalidSubnet,
    InvalidValue,
    InvalidVpc,
    NamespaceNotFound,
    SubnetOutOfIPAddresses,
)
from hyperplane.resources import EniState, Function, FunctionSpec, FunctionState, ReasonCode, UpdateStatus, Vpc

MOST_FLOWS: Final = 2**31 - 1
CODES: Final = (
    (SubnetOutOfIPAddresses, ReasonCode.SUBNET_OUT_OF_IP_ADDRESSES),
    (InvalidSecurityGroup, ReasonCode.INVALID_SECURITY_GROUP),
    (InvalidSubnet, ReasonCode.INVALID_SUBNET),
    (InvalidVpc, ReasonCode.INVALID_SUBNET),
    (NamespaceNotFound, ReasonCode.INVALID_SUBNET),  # the VPC is not there: to AWS its subnets are invalid
    (EngineError, ReasonCode.ENI_LIMIT_EXCEEDED),
)


class Functions:
    def __init__(self, state: State, enis: Enis) -> None:
        self._state = state
        self._enis = enis

    def create(self, spec: FunctionSpec, now: float) -> Function:
        state = self._state
        names.check_new(spec)
        if (found := names.repeated(state, "function", spec)) is not None:
            return state.functions[found.id]
        named = state.one("name", "function", spec.account, spec.name)
        content = self._content(spec, state.functions[named] if named else None)
        if (found := names.same_name(state, "function", spec, content)) is not None:
            return self._again(found, now)
        function = Function(
            id=state.new_id("function"),
            account=spec.account,
            name=spec.name,
            created=now,
            enis=(),
            state=FunctionState.PENDING,
            **content,
        )
        inside = {} if spec.inside_address else {"inside": "default"}
        state.put("function", function, names.token_internals("function", spec) | inside)
        return self._wire(function, now)

    def update(self, function: Function, spec: FunctionSpec, now: float) -> Function:
        state = self._state
        names.check_name(spec.name)
        names.check_rename(state, "function", function, spec.name)
        content = self._content(spec, function)
        updated = replace(function, name=spec.name, **content)
        internals = {name: value for name, value in state.internals(function.id).items() if name != "inside"}
        if not spec.inside_address:
            internals["inside"] = "default"
        if updated == function and internals == state.internals(function.id):
            return self._again(function, now)
        state.put("function", updated, internals)
        same = function.subnets == updated.subnets and set(function.security_groups) == set(updated.security_groups)
        return self._again(updated, now) if same else self._wire(updated, now)

    def delete(self, function: Function) -> None:
        state = self._state
        if held := names.holders(state, "environment", names.running(state, function.id)):
            message = f"function {function.name} is used by {held}"
            raise DependencyViolation(message, resource=function.name, remedy="end these first")
        used = {*function.enis, *previous(state, function.id)}
        state.delete("function", function.id)
        self._enis.release(sorted(used))

    def settle(self, function: Function) -> Function:
        """What its state becomes once all its ENIs are up."""
        state = self._state
        if any(state.enis[id_].state is not EniState.AVAILABLE for id_ in function.enis):
            return function
        if function.state is FunctionState.PENDING:
            function = replace(function, state=FunctionState.ACTIVE, state_reason="", state_reason_code=None)
        elif function.last_update_status is UpdateStatus.IN_PROGRESS:
            function = replace(function, last_update_status=UpdateStatus.SUCCESSFUL, last_update_status_reason="")
        else:
            return function
        left = previous(state, function.id)
        state.put("function", function)
        set_previous(state, function.id, [])
        self._enis.release(left)
        return function

    def fail(self, function: Function, eni: str, error: HyperplaneError) -> None:
        """One of its ENIs could not be made, or is gone."""
        state = self._state
        before = previous(state, function.id)
        left = [id_ for id_ in before if id_ != eni]
        needed = eni in function.enis
        function = replace(function, enis=tuple(id_ for id_ in function.enis if id_ != eni))
        reason = str(error)
        if needed and left:
            function = replace(function, last_update_status=UpdateStatus.FAILED, last_update_status_reason=reason)
        elif needed or (before and not left and function.last_update_status is UpdateStatus.FAILED):
            code = next((code for kind, code in CODES if isinstance(error, kind)), ReasonCode.INTERNAL_ERROR)
            function = replace(function, state=FunctionState.FAILED, state_reason=reason, state_reason_code=code)
            if function.last_update_status is UpdateStatus.IN_PROGRESS:
                function = replace(function, last_update_status=UpdateStatus.FAILED, last_update_status_reason=reason)
        state.put("function", function)
        set_previous(state, function.id, left)

    def view(self, function: Function) -> Function:
        """With what is derived: the VPC's MTU where it has none of its own."""
        return function if function.mtu else replace(function, mtu=self._state.vpcs[function.vpc].mtu)

    def _again(self, function: Function, now: float) -> Function:
        """A new try for one that has failed."""
        failed = FunctionState.FAILED is function.state or UpdateStatus.FAILED is function.last_update_status
        return self._wire(function, now) if failed else function

    def _wire(self, function: Function, now: float) -> Function:
        """Gives it the ENIs that its subnets and groups ask for; releases those it had."""
        state, vpc = self._state, self._state.vpcs[function.vpc]
        serving = []
        if function.state is FunctionState.ACTIVE:
            serving = previous(state, function.id) or list(function.enis)
            status, reason = UpdateStatus.IN_PROGRESS, ""
            function = replace(function, last_update_status=status, last_update_status_reason=reason)
        else:
            function = replace(
                function,
                state=FunctionState.PENDING,
                state_reason="its ENIs are being made",
                state_reason_code=ReasonCode.CREATING,
                last_update_status=UpdateStatus.SUCCESSFUL,
                last_update_status_reason="",
            )
        used = {*state.functions[function.id].enis, *previous(state, function.id)}
        enis = []
        for position, id_ in enumerate(function.subnets):
            try:
                enis.append(self._enis.ensure(vpc, state.subnets[id_], function.security_groups, now).id)
            except SubnetOutOfIPAddresses as error:
                error.field = f"subnets[{position}]"
                raise
        state.put("function", replace(function, enis=tuple(enis)))
        set_previous(state, function.id, serving)
        function = self.settle(state.functions[function.id])
        self._enis.release(sorted(used))
        return function

    def _content(self, spec: FunctionSpec, existing: Function | None) -> dict[str, Any]:
        """The fields of the function that the request describes, checked."""
        state, limits = self._state, self._state.limits
        subnets = self._references("subnet", "subnets", spec.subnets, spec.account, limits.subnets, InvalidSubnet)
        groups = self._references(
            "security-group",
            "security_groups",
            spec.security_groups,
            spec.account,
            limits.security_groups,
            InvalidSecurityGroup,
        )
        vpc = state.vpcs[subnets[0].vpc]
        for field, error, found in (
            ("subnets", InvalidSubnet, subnets),
            ("security_groups", InvalidSecurityGroup, groups),
        ):
            for position, one in enumerate(found):
                if one.vpc != vpc.id:
                    message = f"{one.name} is of VPC {state.vpcs[one.vpc].name}, subnet {subnets[0].name} of {vpc.name}"
                    remedy = "name subnets and security groups of one VPC"
                    raise error(message, resource=one.name, remedy=remedy, field=f"{field}[{position}]")
        self._enis.check_rules(groups, "security_groups")
        _check_numbers(spec, limits.routes)
        inside, notice = self._inside(spec, vpc, existing)
        return {
            "vpc": vpc.id,
            "subnets": tuple(one.id for one in subnets),
            "security_groups": tuple(one.id for one in groups),
            "inside_address": inside,
            "routed": spec.routed,
            "routes": spec.routes,
            "mtu": spec.mtu,
            "max_flows": spec.max_flows,
            "notice": notice,
        }

    def _references(
        self, kind: Any, field: str, refs: tuple[str, ...], account: str, most: int, error: type[HyperplaneError]
    ) -> list[Any]:
        if not 1 <= len(refs) <= most:
            limit = f"1 to {most} of a function"
            raise error(f"{field} has {len(refs)} entries", resource=field, limit=limit, field=field)
        found: list[Any] = []
        for position, ref in enumerate(refs):
            one = names.require(self._state, kind, ref, account, error, f"{field}[{position}]")
            if one in found:
                message = f"{names.words(kind)} {one.name} is named twice"
                raise error(message, resource=one.name, remedy="name it once", field=f"{field}[{position}]")
            found.append(one)
        return found

    def _inside(self, spec: FunctionSpec, vpc: Vpc, existing: Function | None) -> tuple[IPv4Address, str]:
        """The inside address and the notice about it; a default one stays what it is while the VPC leaves it free."""
        state = self._state
        if spec.inside_address:
            addresses.check_inside(state, vpc, spec.inside_address)
            return spec.inside_address, ""
        if existing is None or state.internals(existing.id).get("inside") != "default":
            return addresses.default_inside(state, vpc)
        found = addresses.collision(state, vpc, existing.inside_address)
        if not found:
            return existing.inside_address, existing.notice
        if held := names.holders(state, "environment", names.running(state, existing.id)):
            message = f"{held} of function {existing.name} have {existing.inside_address}, which becomes {found}"
            field = "inside_address"
            raise DependencyViolation(message, resource=existing.name, remedy="end these first", field=field)
        return addresses.default_inside(state, vpc)


def _check_numbers(spec: FunctionSpec, most_routes: int) -> None:
    if spec.mtu:
        check_mtu(spec.mtu)
    if not 0 <= spec.max_flows <= MOST_FLOWS:
        field, limit = "max_flows", f"0 to {MOST_FLOWS}"
        raise InvalidValue(f"{field} is {spec.max_flows}", resource=field, limit=limit, field=field)
    if len(spec.routes) > most_routes:
        limit = f"{most_routes} routes"
        raise InvalidValue(f"routes has {len(spec.routes)} entries", resource="routes", limit=limit, field="routes")
    for position, route in enumerate(spec.routes):
        if route in spec.routes[:position]:
            field = f"routes[{position}]"
            raise InvalidValue(f"{field} {route} is there twice", resource=field, remedy="give it once", field=field)
