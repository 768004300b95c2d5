"""Which attachment has which device, whatever way its namespace was named by."""

from __future__ import annotations

import threading

from hyperplane.errors import ResourceConflict
from hyperplane.linux.namespaces import Key, Namespace

Place = tuple[Key, str]  # a namespace, and the name of a device in it


class Places:
    """For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken: dict[Place, str] = {}

    def take(self, namespace: Namespace, device: str, name: str) -> Place:
        """name: of who takes it. Raises ResourceConflict: the kernel's word would be to remove the device that is in
        use."""
        place = namespace.key, device
        with self._lock:
            if holder := self._taken.get(place):
                message = f"device {device} in namespace {namespace.name} is used by environment {holder}"
                remedy = "detach that one first, or give another device name"
                raise ResourceConflict(message, resource=namespace.name, remedy=remedy, field="namespace")
            self._taken[place] = name
        return place

    def release(self, place: Place) -> None:
        with self._lock:
            self._taken.pop(place, None)
