"""Fresh namespaces of this instance, made with an environment's device inside."""

from __future__ import annotations

import re
import secrets
import time
from typing import Final

from hyperplane.linux.fresh import delete_namespace, fresh_namespace, names_like
from hyperplane.linux.namespaces import NamespaceThreads
from hyperplane.linux.reaper import Reaper
from hyperplane.linux.tunnel import Shape, TunnelDevice, build_tunnel

PREFIX: Final = "hpenv"


class FreshNamespaces:
    """Names them `hpenv-MARK-NUMBER`; make(), delete() and leftovers() are for threads."""

    def __init__(self, mark: str, threads: NamespaceThreads, reaper: Reaper) -> None:
        self._mark = mark
        self._threads = threads
        self._reaper = reaper
        self._made: set[str] = set()  # by this process, and not deleted

    def make(self, shape: Shape) -> TunnelDevice:
        """Raises DeviceError, PermissionMissing; HalfWay as linux.tunnel.make_tunnel(), without a namespace left."""
        begun = time.perf_counter()
        name = f"{PREFIX}-{self._mark}-{secrets.token_hex(4)}"
        self._made.add(name)
        try:
            with fresh_namespace(name, self._threads) as namespace:
                entered = time.perf_counter() - begun
                return build_tunnel(namespace, shape, self._reaper, begun=begun, entered=entered)
        except BaseException:
            self._made.discard(name)
            raise

    def delete(self, name: str) -> None:
        """Nothing for a name that is not ours or is gone. Raises DeviceError, PermissionMissing."""
        if self._pattern.fullmatch(name):
            delete_namespace(name)
            self._made.discard(name)

    def leftovers(self, known: set[str]) -> list[str]:
        """Those with this instance's mark that are not known, and that a predecessor made."""
        return [name for name in names_like(self._pattern) if name not in known and name not in self._made]

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"{PREFIX}-{self._mark}-[0-9a-f]{{8}}")
