"""Which environment has which namespace and which device, whatever way each was named by.

Control knows environments by the names that were given; two names, or a name and a process, may be of one namespace.
What it is can be told only once it is open.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from hyperplane.errors import ResourceConflict
from hyperplane.ipc.mirror import Link
from hyperplane.linux import tun
from hyperplane.linux.namespaces import Key, Namespace, key_of

Place = tuple[Key, str]  # a namespace, and the name of a device in it, or "" for the namespace as such


class Occupied:
    """For any thread. link: an environment's in the engine. name: an environment's, by its id."""

    def __init__(self, link: Callable[[str], Link | None], name: Callable[[str], str]) -> None:
        self._link = link
        self._name = name
        self._lock = threading.Lock()
        self._taken: dict[Place, str] = {}  # with a name: a device that came by a descriptor
        self._places: dict[str, Place] = {}  # of each environment

    def take_namespace(self, namespace: Namespace, device: str, environment: str) -> None:
        """The environment is to have a device of that name there. Raises ResourceConflict when another one has the
        namespace, or that device."""
        with self._lock:
            holder = self._taken.get((namespace.key, ""), environment)
            if holder == environment:
                holder = self._holder((namespace.key, device), environment)
            if holder != environment:
                message = f"namespace {namespace.name} is used by environment {self._name(holder)}"
                remedy = "delete that one first"
                raise ResourceConflict(message, resource=namespace.name, remedy=remedy, field="namespace")
            self._set((namespace.key, ""), environment)

    def take_device(self, fd: int, environment: str) -> None:
        """The device behind a descriptor that was handed in. Raises ResourceConflict when another environment has it
        too: each would read some of its packets."""
        place = place_of(fd)
        if place is None:  # it is gone: the engine says so
            return
        with self._lock:
            holder = self._holder(place, environment)
            if holder != environment:
                message = f"device {place[1]} is the tunnel of environment {self._name(holder)} already"
                remedy = "delete that one first, or open another TUN"
                raise ResourceConflict(message, resource=place[1], remedy=remedy, field="descriptor")
            self._set(place, environment)

    def release(self, environment: str) -> None:
        """Whatever it has."""
        with self._lock:
            place = self._places.pop(environment, None)
            if place and self._taken.get(place) == environment:
                del self._taken[place]

    def _set(self, place: Place, environment: str) -> None:
        before = self._places.get(environment)
        if before and before != place and self._taken.get(before) == environment:
            del self._taken[before]
        self._taken[place] = environment
        self._places[environment] = place

    def _holder(self, place: Place, otherwise: str) -> str:
        """Of a device that came by a descriptor, which may have been renamed or moved since."""
        holder = self._taken.get(place, otherwise)
        link = self._link(holder) if holder != otherwise else None
        return holder if link and place_of(link.fd) == place else otherwise


def place_of(fd: int) -> Place | None:
    """The device behind a TUN descriptor; None when it is gone."""
    try:
        name, _ = tun.device_of(fd)
        namespace = tun.namespace_of(fd)
    except OSError:
        return None
    try:
        return key_of(namespace), name
    finally:
        os.close(namespace)
