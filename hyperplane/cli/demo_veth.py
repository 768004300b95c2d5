"""The usual way, for comparison: a veth pair to a router's namespace and a masquerading rule, by `ip` and `nft`.

Unlike tunnels, the pairs need addresses of their own: a router cannot tell two environments with one address apart.
"""

from __future__ import annotations

import time
from ipaddress import IPv4Address
from typing import Final

from hyperplane.cli.demo_lab import Lab, find
from hyperplane.errors import HyperplaneError

FIRST: Final = IPv4Address("198.18.4.0")  # a /30 for each pair
TABLE: Final = """
table ip demo {
  chain postrouting {
    type nat hook postrouting priority srcnat
  }
}
"""


class Router:
    """without_nft: "", or why there is no `nft` here: then the rule is left out, and so is its time."""

    def __init__(self, lab: Lab, count: int) -> None:
        self._lab = lab
        lab.add_namespace("router")
        for number in range(1, count + 1):
            lab.add_namespace(f"veth{number}")
        self._nft = find("nft")
        self.without_nft = "" if self._nft else "nft is not installed"
        if self._nft:
            try:
                # Before the clock runs: the kernel loads what it needs for NAT.
                lab.command([self._nft, "-f", "-"], text=TABLE, label="router")
            except HyperplaneError as error:
                self._nft, self.without_nft = "", str(error)

    def attach(self, number: int) -> float:
        """Connects environment `number` with as few processes as these tools allow; returns seconds.

        Raises HyperplaneError.
        """
        outer = FIRST + 4 * number + 1
        inner = outer + 1
        namespace = self._lab.name(f"veth{number}")
        at_router = (
            f"link add v{number} type veth peer name eth0 netns {namespace}\n"
            f"addr add {outer}/30 dev v{number}\nlink set v{number} up\n"
        )
        within = f"addr add {inner}/30 dev eth0\nlink set eth0 up\nroute add default via {outer}\n"
        rule = f"add rule ip demo postrouting ip saddr {inner} masquerade\n"

        def connect() -> float:
            started = time.perf_counter()
            self._lab.command([self._lab.ip, "-batch", "-"], text=at_router)
            self._lab.command([self._lab.ip, "-n", namespace, "-batch", "-"], text=within)
            if self._nft:
                self._lab.command([self._nft, "-f", "-"], text=rule)
            return time.perf_counter() - started

        seconds: float = self._lab.inside("router", connect)
        return seconds
