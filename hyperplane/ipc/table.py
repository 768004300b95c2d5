"""The engine's side of Apply: its links by the daemon's ids, and the descriptors that they came with.

What is right already is only acknowledged, so the daemon may send the same state as often as it likes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from functools import partial
from typing import Final

from msgspec.structs import asdict, replace

from hyperplane.dataplane import Engine, Eni, Tunnel, checks
from hyperplane.errors import HyperplaneError, InvalidValue, ResourceConflict
from hyperplane.ipc import messages
from hyperplane.ipc.messages import Applied, Apply, LinkResult, LinkSpec, LinksReply, LinkState
from hyperplane.linux.reaper import Reaper, close_all
from hyperplane.model import SecurityGroup
from hyperplane.resources import Problem

CLOSED_WITHIN: Final = 0.05  # seconds: a close that is not the last takes no time
LEFT_FOR_FRAME: Final = 1024  # bytes of a message around its items
CLIPPED: Final = 100  # characters of each error, when many do not fit one message


@dataclass(slots=True)
class _Held:
    spec: LinkSpec
    link: Eni | Tunnel
    fds: tuple[int, ...]
    generation: int


class LinkTable:
    """Belongs to one thread. The descriptors that it was given are its own, and closed by the reaper."""

    def __init__(self, engine: Engine, reaper: Reaper, *, inherited: bool = False) -> None:
        self.engine = engine
        self.generation = 0
        self._reaper = reaper
        self._unclaimed = inherited  # the engine may have links of its predecessor that nobody has claimed yet
        self._held: dict[str, _Held] = {}
        self._closing: list[Future[None]] = []

    def __len__(self) -> int:
        return len(self._held)

    def apply(self, message: Apply, fds: list[int]) -> Applied:
        """Takes its descriptors out of fds. Never raises for an item: its error is in the results."""
        results = [self._result(one, self._remove, one) for one in message.remove]
        for spec in message.links:
            given = tuple(fds.pop(0) for _ in range(spec.descriptors if spec.has_fd else 0))
            results.append(self._result(spec.id, self._put, spec, given, message.generation))
        self.generation = message.generation
        if message.complete:
            results += self._complete()
        self._settle()
        return _fitting(Applied(request=message.request, generation=message.generation, results=tuple(results)))

    def drain(self, link: str, *, reset: bool) -> None:
        """Raises InvalidValue for what is no tunnel here, EngineError."""
        held = self._held.get(link)
        if held is None or not isinstance(held.link, Tunnel):
            raise InvalidValue(f"no tunnel {link}", resource=link, remedy="drain what was added")
        self.engine.drain(held.link, reset=reset)

    def page(self, offset: int) -> tuple[LinksReply, list[int]]:
        """As many links from offset on as one message takes, and their descriptors."""
        states: list[LinkState] = []
        fds: list[int] = []
        room = messages.MOST_BYTES - LEFT_FOR_FRAME
        held = tuple(self._held.values())
        for one in held[max(offset, 0) :]:
            state = LinkState(spec=one.spec, number=one.link.number)
            room -= len(messages.encode(state))
            if room < 0 or len(fds) + len(one.fds) > messages.MOST_DESCRIPTORS:
                break
            states.append(state)
            fds += one.fds
        return LinksReply(links=tuple(states), more=offset + len(states) < len(held)), fds

    def close(self) -> None:
        """Closes the engine and all descriptors."""
        self.engine.close()
        close_all(fd for held in self._held.values() for fd in held.fds)
        self._held.clear()

    def _result(self, link: str, work: Callable[..., int], *arguments: object) -> LinkResult:
        try:
            return LinkResult(id=link, number=work(*arguments))
        except HyperplaneError as error:
            return LinkResult(id=link, error=messages.problem(error))

    def _put(self, spec: LinkSpec, fds: tuple[int, ...], generation: int) -> int:
        wanted = replace(spec, number=None, has_fd=False)
        held = self._held.get(spec.id)
        if held is not None:
            self._close(fds)
            held.generation = generation
            self._change(held, wanted)
            return held.link.number
        if not fds:
            remedy = "send one with it"
            raise InvalidValue(f"{spec.kind} {spec.name} has no descriptor", resource=spec.id, remedy=remedy)
        try:
            checks.name("id of a link", spec.id)
            link = self._add_eni(spec, fds) if spec.kind == "eni" else self._add_tunnel(spec, fds[0])
        except HyperplaneError:
            self._close(fds)
            raise
        self._held[spec.id] = _Held(wanted, link, fds, generation)
        return link.number

    def _change(self, held: _Held, wanted: LinkSpec) -> None:
        """Only rules can change while a link lives."""
        if held.spec == wanted:
            return
        if replace(held.spec, rules=wanted.rules) != wanted or not isinstance(held.link, Eni):
            old, new = asdict(held.spec), asdict(wanted)
            fields = ", ".join(field for field in old if old[field] != new[field])
            what = f"{held.spec.kind} {held.spec.name}"
            raise ResourceConflict(f"{what} differs in {fields}", resource=wanted.id, remedy="remove it first")
        self.engine.set_security_groups(held.link, _groups(wanted))
        held.spec = wanted

    def _add_eni(self, spec: LinkSpec, fds: tuple[int, ...]) -> Eni:
        make = self.engine.add_eni if spec.number is None else partial(self.engine.claim_eni, spec.number)
        return make(
            spec.addresses,
            name=spec.name,
            fd=fds[0],
            queues=fds[1 : spec.queues],
            steering=fds[-1] if spec.steered else -1,
            mtu=spec.mtu,
            security_groups=_groups(spec),
            timers=spec.timers,
            udp_mapping=spec.udp_mapping,
            silent=spec.silent,
        )

    def _add_tunnel(self, spec: LinkSpec, fd: int) -> Tunnel:
        held = self._held.get(spec.eni)
        if held is None or not isinstance(held.link, Eni):
            remedy = "add the ENI first"
            raise InvalidValue(f"tunnel {spec.name}: no ENI {spec.eni}", resource=spec.id, remedy=remedy)
        if spec.address is None:
            raise InvalidValue(f"tunnel {spec.name} has no address", resource=spec.id, remedy="give it one")
        make = self.engine.add_tunnel if spec.number is None else partial(self.engine.claim_tunnel, spec.number)
        return make(held.link, name=spec.name, address=spec.address, fd=fd, mtu=spec.mtu, max_flows=spec.max_flows)

    def _remove(self, link: str) -> int:
        held = self._held.get(link)
        if held is not None:  # else it is as wanted
            self.engine.remove(held.link)
            del self._held[link]
            self._close(held.fds)
        return -1

    def _complete(self) -> Iterator[LinkResult]:
        """Removes what the full state did not name, and yields what could not be removed."""
        stale = [one for one, held in self._held.items() if held.generation != self.generation]
        for one in sorted(stale, key=lambda one: isinstance(self._held[one].link, Eni)):  # tunnels first
            result = self._result(one, self._remove, one)
            if result.error:
                yield result
        if self._unclaimed:
            self.engine.abandon_unclaimed()
            self._unclaimed = False

    def _close(self, fds: tuple[int, ...]) -> None:
        self._closing += [self._reaper.close(fd) for fd in fds]

    def _settle(self) -> None:
        """Who was told that a link is removed may close its descriptor, as the last: so ours is closed before."""
        if self._closing:
            self._closing = list(wait(self._closing, CLOSED_WITHIN).not_done)


def _groups(spec: LinkSpec) -> tuple[SecurityGroup, ...]:
    return (SecurityGroup.parse("rules", spec.rules),) if spec.rules else ()


def _fitting(applied: Applied) -> Applied:
    """Hundreds of errors may be too much for one message: then only what matters of each."""
    if len(messages.encode(applied)) <= messages.MOST_BYTES:
        return applied
    return replace(applied, results=tuple(_clipped(one) for one in applied.results))


def _clipped(result: LinkResult) -> LinkResult:
    if result.error is None:
        return result
    return replace(result, error=Problem(error=result.error.error, message=result.error.message[:CLIPPED]))
