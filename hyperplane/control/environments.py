"""Environments: started, attached when their ENI is up, detached, ended, and remembered for a while.

An environment that starts while its ENI is pending waits for it; the wait is kept nowhere: those that wait are those
that are attaching on a pending ENI. Each step costs the same however many there are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from math import isfinite
from typing import Any, Final

from msgspec.structs import replace

from hyperplane.control import names
from hyperplane.control.enis import Enis, previous
from hyperplane.control.networks import check_namespace
from hyperplane.control.outcome import Attach, Detach, Prepared, TunnelSpec
from hyperplane.control.state import Internals, State, namespace_key
from hyperplane.errors import FunctionNotActive, InvalidValue, ResourceConflict
from hyperplane.resources import (
    EniState,
    Environment,
    EnvironmentSpec,
    EnvironmentState,
    Function,
    FunctionSpec,
    FunctionState,
    Sender,
    Timings,
)

# What the kernel takes, less "%" and what shells and tools trip over; "all", "default": taken in /proc/sys/net.
DEVICE_NAME: Final = re.compile(r"(?!(?:\.{1,2}|all|default)$)[A-Za-z0-9_.@-]{1,15}")
DEFAULT_ROUTES: Final = FunctionSpec(name="", subnets=(), security_groups=()).routes
DEFAULT_DEVICE: Final = EnvironmentSpec(function="").device
MOST_PID: Final = 1 << 22  # PID_MAX_LIMIT of the kernel
ATTACHING, ATTACHED = EnvironmentState.ATTACHING, EnvironmentState.ATTACHED
DETACHING, ENDED = EnvironmentState.DETACHING, EnvironmentState.ENDED


class Environments:
    def __init__(self, state: State, enis: Enis) -> None:
        self._state = state
        self._enis = enis

    def start(
        self, spec: EnvironmentSpec, now: float, prepared: Callable[[TunnelSpec], Prepared | None]
    ) -> Environment:
        state = self._state
        if spec.name:
            names.check_new(spec)
        found = names.repeated(state, "environment", spec) if spec.client_token else None
        if found is not None:
            return state.environments[found.id]
        self._check_place(spec)
        function: Function = names.require(state, "function", spec.function, spec.account, field="function")
        if function.state not in (FunctionState.ACTIVE, FunctionState.PENDING):
            message = f"function {function.name} is {function.state}: {function.state_reason}"
            remedy = "put the cause right, then create or apply it again"
            raise FunctionNotActive(message, resource=function.name, remedy=remedy, field="function")
        eni, fresh = self._choose(function), not spec.namespace and not spec.descriptor
        up = state.enis[eni].state is EniState.AVAILABLE
        tunnel = self._tunnel(function, eni, spec.device, routed=spec.routed)
        ready = prepared(tunnel) if fresh and up else None
        id_ = ready.id if ready else state.new_id("environment")
        environment = Environment(
            id=id_,
            account=spec.account,
            name=self._free_name(spec, function, id_),
            created=now,
            function=function.id,
            eni=eni,
            namespace=ready.namespace if ready else spec.namespace,
            device=spec.device,
            inside_address=tunnel.inside_address,
            mtu=tunnel.mtu,
            state=ATTACHED if ready else ATTACHING,
            fresh=fresh,
            routed=tunnel.routed,
            pid=spec.pid,
        )
        kept = self._kept(spec, function)
        state.put("environment", environment, {**kept, "daemon": ready.internals} if ready else kept)
        if up and not ready:
            state.actions.append(self.attach(environment))
        self.expire(now)
        return environment

    def end(self, environment: Environment, drain: float, now: float) -> Environment:
        state = self._state
        if not (isfinite(drain) and 0 <= drain <= state.limits.drain_seconds):
            limit = f"0 to {state.limits.drain_seconds:.0f} seconds"
            raise InvalidValue(f"drain is {drain}", resource="drain", limit=limit, field="drain")
        if environment.state is ENDED:
            return environment
        if self.waits(environment):
            return self._over(environment, "deleted before its ENI was up", now)
        internals = state.internals(environment.id)
        until = now + drain
        if environment.state is DETACHING and until >= internals["drain_until"]:
            return environment
        return self.detach_now(environment, until, now)

    def detach_now(self, environment: Environment, until: float, now: float, reason: str = "") -> Environment:
        state = self._state
        environment = replace(environment, state=DETACHING, reason=environment.reason or reason)
        state.put("environment", environment, {**state.internals(environment.id), "drain_until": until})
        state.actions.append(self.detach(environment, now))
        return environment

    def attached(
        self,
        environment: Environment,
        namespace: str,
        device: str,
        pid: int,
        sender: Sender,
        timings: Timings | None,
        internals: Internals | None,
    ) -> None:
        """When it is to be detached by now, only what was found out is kept."""
        state = self._state
        environment = replace(
            environment,
            state=DETACHING if environment.state is DETACHING else ATTACHED,
            namespace=environment.namespace or namespace,
            device=device or environment.device,
            pid=pid or environment.pid,
            sender=sender,
            timings=timings,
        )
        kept = state.internals(environment.id)
        state.put("environment", environment, {**kept, "daemon": internals} if internals else kept)

    def sent_by(self, environment: Environment, sender: Sender) -> None:
        if environment.state is not ENDED and environment.sender != sender:
            self._state.put("environment", replace(environment, sender=sender))

    def over(self, environment: Environment, reason: str, now: float) -> None:
        if environment.state is not ENDED:
            self._over(environment, environment.reason or reason, now)

    def waiting(self, eni: str) -> list[Environment]:
        """Those that wait for this ENI, which is pending, in the order of their start."""
        return [self._state.environments[id_] for id_ in names.running(self._state, eni)]

    def waits(self, environment: Environment) -> bool:
        return environment.state is ATTACHING and self._state.enis[environment.eni].state is EniState.PENDING

    def tunnels(self) -> Iterator[TunnelSpec]:
        """Of the fresh environments that functions might start next, on ENIs that are up."""
        for function in self._state.functions.values():
            if function.state is FunctionState.ACTIVE:
                for eni in previous(self._state, function.id) or function.enis:
                    if self._state.enis[eni].state is EniState.AVAILABLE:
                        yield self._tunnel(function, eni, DEFAULT_DEVICE)

    def attach(self, environment: Environment) -> Attach:
        """With routes and max_flows as they were at its start."""
        state = self._state
        internals = state.internals(environment.id)
        vpc = state.vpcs[state.enis[environment.eni].vpc]
        routes = internals.get("routes")
        return Attach(
            environment=environment,
            namespace="" if environment.fresh else environment.namespace,
            descriptor=internals.get("descriptor", ""),
            routes=DEFAULT_ROUTES if routes is None else tuple(IPv4Network(text) for text in routes),
            max_flows=internals.get("max_flows", 0),
            vpc_namespace=vpc.namespace,
            dns=vpc.dns,
            internals=internals.get("daemon", {}),
        )

    def detach(self, environment: Environment, now: float) -> Detach:
        internals = self._state.internals(environment.id)
        drain = max(internals["drain_until"] - now, 0.0)
        return Detach(environment=environment, drain=drain, internals=internals.get("daemon", {}))

    def expire(self, now: float) -> None:
        """Forgets those that ended long ago, or are too many."""
        state = self._state
        ended = state.ids("ended")
        while ended:
            oldest = next(iter(ended))
            if (
                len(ended) <= state.limits.ended
                and now - state.environments[oldest].ended <= state.limits.ended_seconds
            ):
                break
            state.delete("environment", oldest)

    def _over(self, environment: Environment, reason: str, now: float) -> Environment:
        state = self._state
        environment = replace(environment, state=ENDED, ended=now, reason=reason, sender="")
        kept = {name: one for name, one in state.internals(environment.id).items() if name in ("token", "digest")}
        state.put("environment", environment, kept)
        self._enis.release((environment.eni,))
        self.expire(now)
        return environment

    def _tunnel(self, function: Function, eni: str, device: str, *, routed: bool | None = None) -> TunnelSpec:
        return TunnelSpec(
            eni=eni,
            device=device,
            inside_address=function.inside_address,
            mtu=function.mtu or self._state.vpcs[function.vpc].mtu,
            routes=function.routes,
            max_flows=function.max_flows,
            routed=function.routed if routed is None else routed,
        )

    def _choose(self, function: Function) -> str:
        """The function's ENI with the fewest environments; one that is up rather than one that is not."""
        enis = previous(self._state, function.id) or function.enis
        if len(enis) == 1:
            return enis[0]
        table = self._state.enis
        up = [id_ for id_ in enis if table[id_].state is EniState.AVAILABLE]
        return min(up or enis, key=lambda id_: len(names.running(self._state, id_)))

    def _check_place(self, spec: EnvironmentSpec) -> None:
        if not DEVICE_NAME.fullmatch(spec.device):
            limit = "1 to 15 letters, digits, and . _ @ -; not all, default"
            raise InvalidValue(f"device is {spec.device!r}", resource="device", limit=limit, field="device")
        if spec.descriptor and spec.routed:
            message = "routed and descriptor are both given"
            remedy = "leave routed out: nothing is set up on a device that somebody else has opened"
            raise InvalidValue(message, resource="routed", remedy=remedy, field="routed")
        if spec.pid and not spec.descriptor:
            message = f"pid {spec.pid} is given without a descriptor"
            remedy = f"give namespace pid:{spec.pid} for the namespace of that process"
            raise InvalidValue(message, resource="pid", remedy=remedy, field="pid")
        if not 0 <= spec.pid <= MOST_PID:
            raise InvalidValue(f"pid is {spec.pid}", resource="pid", limit=f"1 to {MOST_PID}", field="pid")
        if not spec.namespace:
            return
        if spec.descriptor:
            message = "namespace and descriptor are both given"
            remedy = "give the one in which the tunnel is to be made, or the other that is one"
            raise InvalidValue(message, resource="descriptor", remedy=remedy, field="descriptor")
        check_namespace(spec.namespace)
        holder = self._state.one("namespace", namespace_key(spec.namespace))
        if holder is not None:
            name = self._state.environments[holder].name
            message = f"namespace {spec.namespace} is used by environment {name}"
            remedy = "delete that one first"
            raise ResourceConflict(message, resource=spec.namespace, remedy=remedy, field="namespace")

    def _free_name(self, spec: EnvironmentSpec, function: Function, id_: str) -> str:
        """One that nobody gave is the function's with the end of the environment's id."""
        state = self._state
        if not spec.name:
            end = id_[-8:]
            while state.one("name", "environment", spec.account, name := f"{function.name[:55]}-{end}") is not None:
                end = f"{state.random.getrandbits(32):08x}"
            return name
        if state.one("name", "environment", spec.account, spec.name) is not None:
            message = f"environment {spec.name} runs already"
            remedy = "delete it first, or choose another name"
            raise ResourceConflict(message, resource=spec.name, remedy=remedy, field="name")
        return spec.name

    def _kept(self, spec: EnvironmentSpec, function: Function) -> Internals:
        """What a repeated attach needs and the resource does not show; nothing in the usual case."""
        kept: dict[str, Any] = {}
        if spec.client_token:
            kept |= names.token_internals("environment", spec)
        if spec.descriptor:
            kept["descriptor"] = spec.descriptor
        if function.routes != DEFAULT_ROUTES:
            kept["routes"] = [str(route) for route in function.routes]
        if function.max_flows:
            kept["max_flows"] = function.max_flows
        return kept
