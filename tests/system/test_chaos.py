"""Random changes by others in a VPC's and environments' namespaces, then quiet: everything passes, and nothing is left.

The same changes in every run; HYPERPLANE_CHAOS=SEED draws others, HYPERPLANE_CHAOS_SECONDS gives how long.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from hyperplane.client import Client
from hyperplane.resources import EnvironmentState

from . import traffic
from .daemons import SERVER, TestDaemon, declare, start
from .support import Namespaces, devices, eventually, inside, ip, ip_json, namespaces, run_in

SEED = int(os.environ.get("HYPERPLANE_CHAOS", "18"))
SECONDS = float(os.environ.get("HYPERPLANE_CHAOS_SECONDS", "60"))
QUIET = 2.0 * float(os.environ.get("HYPERPLANE_PATIENCE", "1"))  # seconds in which everything must pass again
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


def set_back_what_is_theirs(site: Site) -> None:
    """What is no business of ours: an unreachable route of the environment's own, the uplink, the server."""
    for box in site.boxes:
        attempt("ip", "-n", box, "route", "del", "unreachable", "default")
    site.unplug()
    site.plug()
    site.vpc_ip("route", "del", f"{site.address}/32", "dev", "lo")


async def passes(site: Site) -> bool:
    """Whether each environment gets a connection, and its bytes through."""
    for box in site.boxes:
        try:
            async with asyncio.timeout(0.5), traffic.connection(box, site.server, SERVER) as pair:
                await traffic.transfer(pair.client, pair.server, 100_000, 1)
        except (OSError, TimeoutError):
            return False
    return True


@pytest.mark.timeout(300)
async def test_whatever_others_change(netns_factory: Namespaces) -> None:
    names = [netns_factory(label) for label in ("vpc", "server", "box", "box", "elsewhere")]
    site = Site(netns_factory, names[0], names[1], names[2:4], names[4])
    site.plug()
    with TestDaemon() as daemon:
        daemon.start()
        async with daemon.client() as client:
            await declare(client, site.vpc)
            ids = [(await start(client, box)).id for box in site.boxes]
            fresh = await start(client)
            site.boxes.append(fresh.namespace)
            (eni,) = (await client.list_enis()).items
            site.device, site.address = eni.device, str(eni.addresses[0])
            assert await passes(site)
            before = open_files(daemon)
            done = await change(site)
            quiet = time.monotonic()
            set_back_what_is_theirs(site)
            while not await passes(site):
                assert time.monotonic() - quiet < QUIET, await what_is_wrong(site, client, daemon, done)
            took = time.monotonic() - quiet
            await right(site, client, [*ids, fresh.id])
            await eventually(lambda: open_files(daemon) <= before, what="descriptors are closed")
            print(f"chaos: seed {SEED}: {sum(done.values())} changes of {len(done)} kinds; passes after {took:.2f} s")


async def change(site: Site) -> Counter[str]:
    draw, done = random.Random(SEED), Counter[str]()
    every = {**changes_of_the_vpc(site), **changes_of_environments(site, draw)}
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        name = draw.choice(sorted(every))
        done[name] += 1
        await asyncio.to_thread(every[name])
        await asyncio.sleep(draw.uniform(0.0, 0.25))
    return done


async def right(site: Site, client: Client, ids: list[str]) -> None:
    """Nothing is left to be put right, and nobody has more than it had."""
    assert (await client.reconcile()).changes == ()
    assert (await client.health()).reasons == ()
    for id_ in ids:
        assert (await client.get_environment(id_)).state is EnvironmentState.ATTACHED
    assert [one for one in devices(site.vpc) if one not in ("lo", UPLINK)] == [site.device]
    for box in site.boxes:
        assert devices(box) == {"lo", "eth0"}
    await eventually(lambda: devices(site.elsewhere) == {"lo"}, what="moved devices are gone")
    proxies = ip_json("-n", site.vpc, "neigh", "show", "proxy")
    assert [(one["dst"], one["dev"]) for one in proxies] == [(site.address, UPLINK)]


async def what_is_wrong(site: Site, client: Client, daemon: TestDaemon, done: Counter[str]) -> str:
    said = [f"does not pass after {QUIET} s; {dict(done)}", f"health: {(await client.health()).reasons}"]
    for namespace in {site.vpc, *site.boxes} & namespaces():
        said += [f"-- {namespace}", ip("-n", namespace, "addr"), ip("-n", namespace, "route", "show", "table", "all")]
    said.append(run_in(site.vpc, ["sh", "-c", "grep . /proc/sys/net/ipv4/conf/*/forwarding"]).stdout)
    return "\n".join([*said, daemon.log[-9000:]])


def open_files(daemon: TestDaemon) -> int:
    assert daemon.process
    return len(os.listdir(f"/proc/{daemon.process.pid}/fd"))
