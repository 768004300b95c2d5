"""Whether namespaces are still those that were named, and environments' devices where they were made.

A name may be another namespace's by now, a process number another process's, and the root of an environment may move
its device elsewhere: there nobody was given a tunnel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hyperplane.daemon.occupied import place_of
from hyperplane.errors import NamespaceNotFound
from hyperplane.ipc.mirror import Link
from hyperplane.linux.namespaces import Key, Namespace, open_namespace, path_of, what_became
from hyperplane.linux.processes import Process, same_process, started
from hyperplane.linux.repair import DELETED, MOVED, Difference
from hyperplane.resources import Environment


@dataclass(frozen=True, slots=True)
class Found:
    """What has become of an environment. missing: its device or link, while its namespace lives; reason MOVED: the
    device is elsewhere, and is to be made again where it belongs. changed: others have changed what differences say."""

    state: Literal["right", "changed", "missing", "gone"]
    reason: str = ""
    namespace: Namespace | None = None
    differences: tuple[Difference, ...] = ()


def remembered(namespace: Namespace | None) -> dict[str, Any] | None:
    """What is kept with an environment or ENI, to tell its namespace from a later one of the same name, and the process
    it was found through from a later one of the same number."""
    if namespace is None:
        return None
    kept: dict[str, Any] = {"netns": list(namespace.key)}
    return {**kept, "process": [namespace.pid, started(namespace.pid)]} if namespace.pid else kept


def remembered_of_descriptor(process: Process | None, sender: Process | None) -> dict[str, Any] | None:
    """What is kept with an environment that came by a descriptor: the process that it ends with, and who sent it."""
    kept = {"process": process, "sender": sender}
    return {name: list(one) for name, one in kept.items() if one} or None


def look(environment: Environment, kept: Mapping[str, Any], link: Link | None) -> Found:
    """For one that was started in a namespace. kept: remembered() of that. Raises HyperplaneError when it cannot be
    told. Blocks."""
    device = namespace_key(link) if link else None
    try:
        with open_namespace(environment.namespace) as namespace:
            found = namespace.closed()
    except NamespaceNotFound:
        return Found("gone", _reason(environment.namespace, kept, environment.pid))
    named = tuple(kept["netns"]) if "netns" in kept else device or found.key
    if found.key != named or ended(kept):
        return Found("gone", _reason(environment.namespace, kept, environment.pid))
    if device in (None, found.key):
        return Found("right", namespace=found) if device else Found("missing", DELETED if link else "missing", found)
    return Found("missing", MOVED, found)


def process_lost(vpc: str, kept: Mapping[str, Any]) -> str:
    """What became of a VPC's namespace, in words, when that was found through a process: then nothing is made again
    under its name, which may be anybody's by now. "" while it is the same. Blocks."""
    if "process" not in kept:
        return ""
    if not ended(kept):
        try:
            with open_namespace(vpc) as namespace:
                if namespace.key == tuple(kept["netns"]):
                    return ""
        except NamespaceNotFound:
            pass
    return _reason(vpc, kept, kept["process"][0])


def ended(kept: Mapping[str, Any]) -> bool:
    """Whether the process that was remembered has ended; False when there is none."""
    return "process" in kept and not same_process(kept["process"])


def named_by_process(namespace: str) -> bool:
    return namespace.startswith(("pid:", "/proc/"))


def namespace_key(link: Link) -> Key | None:
    """The namespace that a link's device is in; None when the device is gone."""
    place = place_of(link.fd)
    return place[0] if place else None


def _reason(name: str, kept: Mapping[str, Any], pid: int) -> str:
    if ended(kept) or (pid and "process" not in kept):
        return f"process {pid} ended"
    namespace = Namespace(name, -1, tuple(kept.get("netns", (0, 0))), path_of(name), pid)
    return what_became(namespace) or f"namespace {name} was deleted"
