"""What others do in the namespaces of a VPC and of environments, for tests that it is put right."""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from . import traffic
from .daemons import SERVER
from .support import Namespaces, inside

UPLINK, ADDRESS = "up0", "198.19.0.1/24"


@dataclass
class Site:
    """A VPC's namespace with one uplink to a server's, and environments. eni: its device, and address."""

    made: Namespaces
    vpc: str
    server: str
    boxes: list[str]
    elsewhere: str
    device: str = ""
    address: str = ""

    def vpc_ip(self, *words: str) -> None:
        attempt("ip", "-n", self.vpc, *words)

    def sysctl(self, setting: str) -> None:
        attempt(*inside(self.vpc, ["sysctl", "-qw", f"net.ipv4.{setting}"]))

    def plug(self) -> None:
        """The uplink as the VPC's owner makes it."""
        attempt("ip", "-n", self.vpc, "link", "add", UPLINK, "type", "veth", "peer", "db0", "netns", self.server)
        for namespace, device, address in ((self.vpc, UPLINK, ADDRESS), (self.server, "db0", f"{SERVER}/24")):
            attempt("ip", "-n", namespace, "addr", "add", address, "dev", device)
            attempt("ip", "-n", namespace, "link", "set", device, "up")

    def unplug(self) -> None:
        self.vpc_ip("link", "del", UPLINK)


def attempt(*command: str) -> None:
    """One that may fail: what it is about may not be there just now."""
    subprocess.run(command, capture_output=True, timeout=60, check=False)


def changes_of_the_vpc(site: Site) -> dict[str, Callable[[], None]]:
    device, address = site.device, site.address
    return {
        "uplink down": lambda: site.vpc_ip("link", "set", UPLINK, "down"),
        "uplink up": lambda: site.vpc_ip("link", "set", UPLINK, "up"),
        "carrier lost": lambda: attempt("ip", "-n", site.server, "link", "set", "db0", "down"),
        "carrier back": lambda: attempt("ip", "-n", site.server, "link", "set", "db0", "up"),
        "uplink removed": site.unplug,
        "uplink late": site.plug,
        "uplink's address gone": lambda: site.vpc_ip("addr", "flush", "dev", UPLINK),
        "uplink's address back": lambda: site.vpc_ip("addr", "add", ADDRESS, "dev", UPLINK),
        "uplink's MAC": lambda: site.vpc_ip("link", "set", UPLINK, "address", "02:00:00:00:00:18"),
        "ip_forward on": lambda: site.sysctl("ip_forward=1"),
        "ip_forward off": lambda: site.sysctl("ip_forward=0"),
        "forwarding of the uplink": lambda: site.sysctl(f"conf.{UPLINK}.forwarding=0"),
        "forwarding of the ENI": lambda: site.sysctl(f"conf.{device}.forwarding=0"),
        "proxy_delay": lambda: site.sysctl(f"neigh.{UPLINK}.proxy_delay=80"),
        "proxy neighbour": lambda: site.vpc_ip("neigh", "del", "proxy", address, "dev", UPLINK),
        "neighbours": lambda: site.vpc_ip("neigh", "flush", "all"),
        "ENI's routes": lambda: site.vpc_ip("route", "flush", "dev", device),
        "ENI's route elsewhere": lambda: site.vpc_ip("route", "replace", f"{address}/32", "dev", "lo"),
        "ENI down": lambda: site.vpc_ip("link", "set", device, "down"),
        "ENI's MTU": lambda: site.vpc_ip("link", "set", device, "mtu", "1280"),
        "ENI renamed": lambda: site.vpc_ip("link", "set", device, "name", "mine0"),
        "ENI removed": lambda: site.vpc_ip("link", "del", device),
        "ENI moved": lambda: site.vpc_ip("link", "set", device, "netns", site.elsewhere),
    }


def changes_of_environments(site: Site, draw: random.Random) -> dict[str, Callable[[], None]]:
    def box(*words: str) -> None:
        attempt("ip", "-n", draw.choice(site.boxes), *words)

    return {
        "device down": lambda: box("link", "set", "eth0", "down"),
        "device up": lambda: box("link", "set", "eth0", "up"),
        "MTU": lambda: box("link", "set", "eth0", "mtu", "1300"),
        "addresses": lambda: box("addr", "flush", "dev", "eth0"),
        "routes": lambda: box("route", "flush", "table", "main"),
        "default route": lambda: box("route", "replace", "unreachable", "default"),
        "renamed": lambda: box("link", "set", "eth0", "name", "eth7"),
        "removed": lambda: box("link", "del", "eth0"),
        "moved": lambda: box("link", "set", "eth0", "netns", site.elsewhere),
    }


async def passes(site: Site) -> bool:
    """Whether each environment gets a connection, and its bytes through."""
    for box in site.boxes:
        try:
            async with asyncio.timeout(0.5), traffic.connection(box, site.server, SERVER) as pair:
                await traffic.transfer(pair.client, pair.server, 100_000, 1)
        except (OSError, TimeoutError):
            return False
    return True
