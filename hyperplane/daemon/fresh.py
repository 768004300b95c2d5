"""Fresh namespaces of this instance, made with an environment's device inside, and the VPC's resolvers for them."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Final

import structlog

from hyperplane.linux.fresh import delete_namespace, fresh_namespace, names_like
from hyperplane.linux.namespaces import NamespaceThreads
from hyperplane.linux.reaper import Reaper
from hyperplane.linux.resolvers import names_with_resolvers, remove_resolvers, write_resolvers
from hyperplane.linux.tunnel import Shape, TunnelDevice, build_tunnel

PREFIX: Final = "hpenv"

log = structlog.get_logger()


class FreshNamespaces:
    """Names them `hpenv-MARK-NUMBER`; its methods are for threads."""

    def __init__(self, mark: str, threads: NamespaceThreads, reaper: Reaper) -> None:
        self._mark = mark
        self._threads = threads
        self._reaper = reaper
        self._made: set[str] = set()  # by this process, and not deleted

    def make(self, shape: Shape, dns: Iterable[IPv4Address] = ()) -> TunnelDevice:
        """dns: what `ip netns exec` shows as resolvers there. Raises DeviceError, PermissionMissing; HalfWay as
        linux.tunnel.make_tunnel(), without a namespace left."""
        begun = time.perf_counter()
        name = f"{PREFIX}-{self._mark}-{secrets.token_hex(4)}"
        self._made.add(name)
        try:
            with fresh_namespace(name, self._threads) as namespace:
                entered = time.perf_counter() - begun
                device = build_tunnel(namespace, shape, self._reaper, begun=begun, entered=entered)
            self.set_resolvers({name: dns})
            return device
        except BaseException:
            self._made.discard(name)
            raise

    def delete(self, name: str) -> None:
        """Nothing for a name that is not ours or is gone. Raises DeviceError, PermissionMissing."""
        if self._pattern.fullmatch(name):
            delete_namespace(name)
            self._made.discard(name)
            with suppress(OSError):
                remove_resolvers(name)

    def set_resolvers(self, wanted: Mapping[str, Iterable[IPv4Address]]) -> None:
        """By namespace; those that are right already are left alone. Where /etc cannot be written there are none."""
        for name, dns in wanted.items():
            try:
                if self._pattern.fullmatch(name):
                    write_resolvers(name, dns)
            except OSError as error:
                log.warning("resolvers of a fresh namespace cannot be set", namespace=name, error=str(error))

    def leftovers(self, known: set[str]) -> list[str]:
        """Those with this instance's mark that are not known, and that a predecessor made. Of one that a reboot ended
        its resolvers may be left."""
        found = {*names_like(self._pattern), *names_with_resolvers(self._pattern)}
        return sorted(name for name in found if name not in known and name not in self._made)

    @property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"{PREFIX}-{self._mark}-[0-9a-f]{{8}}")
