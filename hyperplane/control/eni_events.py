"""What becomes of functions and environments when an ENI is up, cannot be made, is lost, or is removed."""

from __future__ import annotations

from msgspec.structs import replace

from hyperplane.control import addresses
from hyperplane.control.enis import Enis
from hyperplane.control.environments import ENDED, Environments
from hyperplane.control.functions import Functions
from hyperplane.control.state import Internals, State
from hyperplane.errors import AddressInUse, HyperplaneError, SubnetOutOfIPAddresses
from hyperplane.resources import Eni, EniState


class EniEvents:
    """Events about an ENI that is gone, or came too late, change nothing."""

    def __init__(self, state: State, enis: Enis, functions: Functions, environments: Environments) -> None:
        self._state = state
        self._enis = enis
        self._functions = functions
        self._environments = environments

    def made(self, id_: str, internals: Internals | None) -> None:
        state = self._state
        eni = state.enis.get(id_)
        if eni is None or eni.state is EniState.DELETING:
            return
        waiting = self._environments.waiting(id_) if eni.state is EniState.PENDING else []
        kept = state.internals(id_)
        eni = replace(eni, state=EniState.AVAILABLE)
        state.put("eni", eni, {**kept, "daemon": internals} if internals is not None else kept)
        for function in list(state.ids("functions", id_)):
            self._functions.settle(state.functions[function])
        state.actions += [self._environments.attach(one) for one in waiting]

    def failed(self, id_: str, error: HyperplaneError, now: float) -> None:
        eni = self._state.enis.get(id_)
        if eni is None or eni.state is EniState.DELETING:
            return
        if eni.state is EniState.AVAILABLE:
            self._lost(eni, error, now)
            return
        if isinstance(error, AddressInUse):
            try:
                self._try_another(eni, now)
                return
            except SubnetOutOfIPAddresses as none_left:
                error = none_left
        waiting = self._environments.waiting(id_)
        functions = list(self._state.ids("functions", id_))
        self._state.delete("eni", id_)
        for function in functions:
            self._functions.fail(self._state.functions[function], id_, error)
        for environment in waiting:
            self._environments.over(environment, f"ENI {id_} could not be made: {error}", now)

    def removed(self, id_: str) -> None:
        eni = self._state.enis.get(id_)
        if eni is not None and eni.state is EniState.DELETING:
            self._state.delete("eni", id_)

    def _try_another(self, eni: Eni, now: float) -> None:
        """Raises SubnetOutOfIPAddresses; the address stays marked then too."""
        state = self._state
        subnet = state.subnets[eni.subnet]
        addresses.mark_taken(state, subnet, eni.addresses, now)
        another = addresses.allocate(state, state.vpcs[eni.vpc], subnet, now)
        eni = replace(eni, addresses=(another,))
        state.put("eni", eni)
        state.actions.append(self._enis.make(eni))

    def _lost(self, eni: Eni, error: HyperplaneError, now: float) -> None:
        """It was up, and is no more: nobody stays on it, and a new try makes a new one."""
        state = self._state
        for id_ in list(state.ids("environments", eni.id)):
            environment = state.environments[id_]
            if environment.state is not ENDED:
                self._environments.detach_now(environment, now, now, f"ENI {eni.id} was lost: {error}")
        functions = list(state.ids("functions", eni.id))
        self._enis.discard(eni)
        for function in functions:
            self._functions.fail(state.functions[function], eni.id, error)
