"""ENIs: one per (account, subnet, set of security groups), there as long as a function or an environment needs it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from msgspec.structs import replace

from hyperplane import model
from hyperplane.control import addresses, names
from hyperplane.control.outcome import MakeEni, RemoveEni, UpdateEni
from hyperplane.control.state import State
from hyperplane.errors import InvalidSecurityGroup
from hyperplane.resources import Eni, EniState, SecurityGroup, Subnet, Vpc


class Enis:
    def __init__(self, state: State) -> None:
        self._state = state

    def ensure(self, vpc: Vpc, subnet: Subnet, groups: tuple[str, ...], now: float) -> Eni:
        """The ENI of this key, made unless it is there. Raises SubnetOutOfIPAddresses."""
        state = self._state
        found = state.one("key", (subnet.account, subnet.id, frozenset(groups)))
        if found is not None:
            return state.enis[found]
        id_ = state.new_id("eni")
        eni = Eni(
            id=id_,
            account=subnet.account,
            name=id_,
            created=now,
            vpc=vpc.id,
            subnet=subnet.id,
            security_groups=tuple(sorted(groups)),
            addresses=(addresses.allocate(state, vpc, subnet, now),),
            device=f"eni{id_[-10:]}",  # IFNAMSIZ leaves 15 characters
            mtu=vpc.mtu,
            state=EniState.PENDING,
        )
        state.put("eni", eni, {"namespace": vpc.namespace})
        state.actions.append(self.make(eni))
        return eni

    def make(self, eni: Eni) -> MakeEni:
        vpc = self._state.vpcs[eni.vpc]
        return MakeEni(
            eni=eni,
            namespace=vpc.namespace,
            timers=vpc.timers,
            udp_mapping=vpc.udp_mapping,
            silent=vpc.silent,
            security_groups=self._compiled(eni),
            internals=self._state.daemon_internals(eni.id),
        )

    def remove(self, eni: Eni) -> RemoveEni:
        """The namespace is kept with the ENI: its VPC may be gone by then."""
        internals = self._state.internals(eni.id)
        return RemoveEni(eni=eni, namespace=internals["namespace"], internals=internals.get("daemon", {}))

    def release(self, ids: Collection[str]) -> None:
        """Removes those of these that nobody needs any more."""
        state = self._state
        for id_ in ids:
            eni = state.enis.get(id_)
            if eni is None or eni.state is EniState.DELETING:
                continue
            if not state.ids("functions", id_) and not names.running(state, id_):
                self.discard(eni)

    def discard(self, eni: Eni) -> None:
        """Removes it, whoever uses it: from now on it holds its address and nothing else."""
        eni = replace(eni, state=EniState.DELETING)
        self._state.put("eni", eni)
        self._state.actions.append(self.remove(eni))

    def let_go(self, id_: str) -> None:
        """Gives up ENIs of a subnet or group that functions only keep until their new ones are up, if nobody is on
        them: the subnet or group is to go."""
        state = self._state
        for eni in list(state.ids("enis", id_)):
            functions = [state.functions[one] for one in state.ids("functions", eni)]
            if names.running(state, eni) or any(eni in function.enis for function in functions):
                continue
            for function in functions:
                set_previous(state, function.id, [one for one in previous(state, function.id) if one != eni])
            self.release([eni])

    def check_rules(self, groups: Collection[SecurityGroup], field: str) -> None:
        """Raises InvalidSecurityGroup when one ENI cannot have the rules of all of these."""
        most = self._state.limits.rules
        total = sum(len(group.rules) for group in groups)
        if total > most:
            text = names.listed([group.name for group in groups])
            message = f"security groups {text} have {total} rules together"
            raise InvalidSecurityGroup(message, limit=f"{most} rules of an ENI", field=field)

    def rules_changed(self, group: SecurityGroup) -> None:
        """Raises InvalidSecurityGroup."""
        state = self._state
        for id_ in state.ids("enis", group.id):
            eni = state.enis[id_]
            self.check_rules([state.groups[one] for one in eni.security_groups], "rules")
            internals = state.daemon_internals(id_)
            state.actions.append(UpdateEni(eni=eni, security_groups=self._compiled(eni), internals=internals))

    def view(self, eni: Eni) -> Eni:
        """With what is derived: who uses it."""
        state = self._state
        count = len(names.running(state, eni.id))
        shown = EniState.IN_USE if count and eni.state is EniState.AVAILABLE else eni.state
        functions = tuple(sorted(state.ids("functions", eni.id)))
        return replace(eni, functions=functions, environments=count, state=shown)

    def _compiled(self, eni: Eni) -> tuple[model.SecurityGroup, ...]:
        groups = (self._state.groups[id_] for id_ in eni.security_groups)
        return tuple(model.SecurityGroup.parse(group.name, group.rules) for group in groups)


def previous(state: State, function: str) -> list[str]:
    """ENIs that a function had before the update under way; they serve until the new ones are up."""
    found: list[str] = state.internals(function).get("previous", [])
    return found


def set_previous(state: State, function: str, enis: list[str]) -> None:
    internals: dict[str, Any] = {name: one for name, one in state.internals(function).items() if name != "previous"}
    if enis:
        internals["previous"] = enis
    state.put("function", state.functions[function], internals)
