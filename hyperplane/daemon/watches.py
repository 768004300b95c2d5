"""All that is watched of ENIs and environments: whether their namespace goes, and what others change in it."""

from __future__ import annotations

from hyperplane.linux.namespaces import Namespace
from hyperplane.linux.upkeep import Upkeep
from hyperplane.linux.watch import NamespaceWatch

Token = tuple[str, str]  # "eni" or "environment", and the id


class Watches:
    """Belongs to the event loop."""

    def __init__(self, names: NamespaceWatch, upkeep: Upkeep) -> None:
        self._names = names
        self._upkeep = upkeep

    def add(self, token: Token, namespace: Namespace | None) -> None:
        """namespace: None for an environment that was given by a descriptor. Raises as NamespaceWatch.add()."""
        if namespace:
            self._names.add(token, namespace)
        if token[0] == "environment":
            self._upkeep.add_environment(token)
        elif namespace:
            self._upkeep.add_eni(token, namespace)

    def add_process(self, token: Token, pid: int) -> None:
        """The process that the environment ends with. Raises as NamespaceWatch.add_process()."""
        self._names.add_process(token, pid)

    def remove(self, token: Token) -> None:
        """Nothing for one that is not watched."""
        self._names.remove(token)
        self._upkeep.remove(token)

    def close(self) -> None:
        self._names.close()
