"""The resources, the indices over them, and the journal that takes steps back.

Everything goes through put() and delete(). What a resource is found by is a pure function of the resource and its
internals (entries()), so indices cannot drift from resources: taking a step back and loading records use the same code.
Structs and dicts in here are never changed in place: the journal keeps the old ones, not copies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from random import Random
from typing import Any, Final

from hyperplane.control.outcome import Action, Delete, Limits, Outcome, Put, Record
from hyperplane.resources import (
    ID_PREFIX,
    KINDS,
    Eni,
    EniState,
    Environment,
    EnvironmentState,
    Function,
    Kind,
    Resource,
    SecurityGroup,
    Subnet,
    Vpc,
)

Internals = dict[str, Any]
EniKey = tuple[str, str, frozenset[str]]  # account, subnet, security groups
Entry = tuple[Hashable, ...]  # the index's name, then the key

NONE: Final[Internals] = {}
BLOCK_BITS: Final = 4


class State:
    """tables: by kind and id. A resource's internals are the control plane's own; the executor's are in their "daemon".

    passing: ids that the apply under way deletes at its end, so that what replaces them may collide with them.
    """

    def __init__(self, random: Random, limits: Limits) -> None:
        self.limits = limits
        self.random = random
        self.vpcs: dict[str, Vpc] = {}
        self.subnets: dict[str, Subnet] = {}
        self.groups: dict[str, SecurityGroup] = {}
        self.functions: dict[str, Function] = {}
        self.enis: dict[str, Eni] = {}
        self.environments: dict[str, Environment] = {}
        self.tables: dict[Kind, dict[str, Any]] = {
            "vpc": self.vpcs,
            "subnet": self.subnets,
            "security-group": self.groups,
            "function": self.functions,
            "eni": self.enis,
            "environment": self.environments,
        }
        self.actions: list[Action] = []
        self.applying = False
        self.passing: frozenset[str] = frozenset()
        self._internals: dict[str, Internals] = {}
        self._journal: list[tuple[Kind, str, Any, Internals]] = []
        self._taken: list[tuple[Kind, str, Any, Internals]] = []
        self._index: dict[Entry, dict[str, None]] = {}

    def new_id(self, kind: Kind) -> str:
        """In the form of AWS's: a prefix and 17 hexadecimal digits."""
        while True:
            found = f"{ID_PREFIX[kind]}-0{self.random.getrandbits(64):016x}"
            if found not in self.tables[kind]:
                return found

    def put(self, kind: Kind, resource: Resource, internals: Internals | None = None) -> None:
        """internals None: as they were."""
        before = self._internals.get(resource.id, NONE)
        self._journal.append((kind, resource.id, self.tables[kind].get(resource.id), before))
        self._set(kind, resource.id, resource, before if internals is None else internals)

    def delete(self, kind: Kind, id_: str) -> None:
        before = self._internals.get(id_, NONE)
        self._journal.append((kind, id_, self.tables[kind][id_], before))
        self._set(kind, id_, None, NONE)

    def load(self, records: Iterable[Record]) -> None:
        for record in records:
            self._set(record.kind, record.resource.id, record.resource, record.internals)
        self._sort_ended()

    def internals(self, id_: str) -> Internals:
        return self._internals.get(id_, NONE)

    def daemon_internals(self, id_: str) -> Internals:
        found: Internals = self._internals.get(id_, NONE).get("daemon", NONE)
        return found

    def ids(self, *entry: Hashable) -> Collection[str]:
        """Everything that is found by this entry, in the order in which it came; not to be kept over a change."""
        return self._index.get(entry, NONE).keys()

    def one(self, *entry: Hashable) -> str | None:
        """The only one that is found by this entry."""
        return next(iter(self._index.get(entry, NONE)), None)

    @property
    def index(self) -> dict[Entry, dict[str, None]]:
        return self._index

    def take(self) -> Outcome:
        """What changed since the last take(), each resource once, and what is to be done for it."""
        if not self._journal and not self.actions:
            self._taken = []
            return Outcome()
        first: dict[tuple[Kind, str], Any] = {}
        for kind, id_, before, _ in self._journal:
            first.setdefault((kind, id_), before)
        changes: list[Put | Delete] = []
        for (kind, id_), before in first.items():
            resource = self.tables[kind].get(id_)
            if resource is not None:
                changes.append(Put(kind, id_, resource, self._internals.get(id_, NONE)))
            elif before is not None:
                changes.append(Delete(kind, id_))
        outcome = Outcome(changes=tuple(changes), actions=tuple(self.actions))
        self._taken, self._journal = self._journal, []
        self.actions.clear()
        return outcome

    def untake(self) -> None:
        """Takes back, besides what rollback() does, what the last take() gave."""
        self._taken, self._journal = [], self._taken + self._journal
        self.rollback()

    def rollback(self, journal: int = 0, actions: int = 0) -> None:
        """Takes back every step after the first `journal` ones."""
        forgotten = False
        while len(self._journal) > journal:
            kind, id_, resource, internals = self._journal.pop()
            forgotten |= kind == "environment" and resource is not None and id_ not in self.environments
            self._set(kind, id_, resource, internals)
        if forgotten:
            self._sort_ended()
        del self.actions[actions:]

    @contextmanager
    def atomic(self, *, keep: bool = True) -> Iterator[None]:
        """All that is done within is done, or nothing: when it raises, or when it was only tried (keep=False)."""
        marks = len(self._journal), len(self.actions)
        try:
            yield
        except BaseException:
            self.rollback(*marks)
            raise
        if not keep:
            self.rollback(*marks)

    def _set(self, kind: Kind, id_: str, resource: Any, internals: Internals) -> None:
        table = self.tables[kind]
        before = table.get(id_)
        entries = ENTRIES[kind]
        old = entries(before, self._internals.get(id_, NONE)) if before is not None else ()
        new = entries(resource, internals) if resource is not None else ()
        if old != new:
            self._reindex(id_, old, new)
        if resource is None:
            table.pop(id_, None)
        else:
            table[id_] = resource
        if internals:
            self._internals[id_] = internals
        else:
            self._internals.pop(id_, None)

    def _sort_ended(self) -> None:
        """The one index whose order counts: the first is the first to be forgotten."""
        ended = self._index.get(("ended",), {})
        if ended:
            self._index["ended",] = dict.fromkeys(sorted(ended, key=lambda id_: self.environments[id_].ended))

    def _reindex(self, id_: str, old: tuple[Entry, ...], new: tuple[Entry, ...]) -> None:
        for entry in old:
            if entry not in new:
                found = self._index[entry]
                del found[id_]
                if not found:
                    del self._index[entry]
        for entry in new:
            if entry not in old:
                self._index.setdefault(entry, {})[id_] = None


def eni_key(eni: Eni) -> EniKey:
    return eni.account, eni.subnet, frozenset(eni.security_groups)


def namespace_key(namespace: str) -> str:
    """One text for the usual ways to write a namespace: its name, or pid:N."""
    for directory in ("/run/netns/", "/var/run/netns/"):
        if namespace.startswith(directory) and "/" not in namespace[len(directory) :]:
            return namespace[len(directory) :]
    if namespace.startswith("/proc/") and namespace.endswith("/ns/net") and namespace[6:-7].isdecimal():
        return f"pid:{namespace[6:-7]}"
    return namespace


def range_entry(vpc: str, address: IPv4Address) -> Entry:
    """Finds the subnets of the VPC which may have that address: none is larger than a /16."""
    return "range", vpc, int(address) >> 16


def block_entry(namespace: str, address: int) -> Entry:
    """Finds the ENIs in a namespace (namespace_key()) whose address is in the same /28: no subnet is smaller."""
    return "block", namespace, address >> BLOCK_BITS


def _common(kind: Kind, resource: Resource, internals: Internals) -> list[Entry]:
    entries: list[Entry] = [("name", kind, resource.account, resource.name)]
    if "token" in internals:
        entries.append(("token", resource.account, internals["token"]))
    return entries


def _vpc_entries(vpc: Vpc, internals: Internals) -> tuple[Entry, ...]:
    return tuple(_common("vpc", vpc, internals))


def _subnet_entries(subnet: Subnet, internals: Internals) -> tuple[Entry, ...]:
    return (*_common("subnet", subnet, internals), ("subnets", subnet.vpc), range_entry(subnet.vpc, subnet.cidr[0]))


def _group_entries(group: SecurityGroup, internals: Internals) -> tuple[Entry, ...]:
    return (*_common("security-group", group, internals), ("groups", group.vpc))


def _function_entries(function: Function, internals: Internals) -> tuple[Entry, ...]:
    """previous: the ENIs of before an update, which serve until the new ones are up."""
    entries = _common("function", function, internals)
    entries.append(("functions", function.vpc))
    entries += [("functions", id_) for id_ in function.subnets]
    entries += [("functions", id_) for id_ in function.security_groups]
    entries += [("functions", id_) for id_ in dict.fromkeys((*function.enis, *internals.get("previous", ())))]
    return tuple(entries)


def _eni_entries(eni: Eni, internals: Internals) -> tuple[Entry, ...]:
    """One that is being deleted holds nothing but its address."""
    namespace = namespace_key(internals["namespace"])
    entries: list[Entry] = [("name", "eni", eni.account, eni.name), ("at", namespace)]
    entries += [("address", namespace, int(address)) for address in eni.addresses]
    entries += dict.fromkeys(block_entry(namespace, int(address)) for address in eni.addresses)
    if eni.state is not EniState.DELETING:
        entries += [("key", eni_key(eni)), ("enis", eni.vpc), ("enis", eni.subnet)]
        entries += [("enis", id_) for id_ in eni.security_groups]
    return tuple(entries)


def _environment_entries(environment: Environment, internals: Internals) -> tuple[Entry, ...]:
    """One that has ended holds neither name nor namespace nor ENI."""
    if environment.state is EnvironmentState.ENDED:
        entries: tuple[Entry, ...] = (("ended",),)
    else:
        entries = (
            ("name", "environment", environment.account, environment.name),
            ("environments", environment.eni),
            ("environments", environment.function),
        )
        if environment.namespace:
            entries += (("namespace", namespace_key(environment.namespace)),)
    if "token" in internals:
        entries += (("token", environment.account, internals["token"]),)
    return entries


ENTRIES: Final[dict[Kind, Callable[[Any, Internals], tuple[Entry, ...]]]] = {
    "vpc": _vpc_entries,
    "subnet": _subnet_entries,
    "security-group": _group_entries,
    "function": _function_entries,
    "eni": _eni_entries,
    "environment": _environment_entries,
}
assert tuple(ENTRIES) == KINDS
