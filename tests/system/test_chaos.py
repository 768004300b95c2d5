"""Random changes by others in a VPC's and environments' namespaces, then quiet: everything passes, and nothing is left.

The same changes in every run; HYPERPLANE_CHAOS=SEED draws others, HYPERPLANE_CHAOS_SECONDS gives how long.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import Counter

import pytest

from hyperplane.client import Client
from hyperplane.resources import EnvironmentState

from .daemons import TestDaemon, declare, start
from .others import UPLINK, Site, attempt, changes_of_environments, changes_of_the_vpc, passes
from .support import PATIENCE, Namespaces, devices, eventually, ip, ip_json, namespaces, run_in

SEED = int(os.environ.get("HYPERPLANE_CHAOS", "18"))
SECONDS = float(os.environ.get("HYPERPLANE_CHAOS_SECONDS", "60"))
QUIET = 2.0 * PATIENCE  # seconds in which everything must pass again


def set_back_what_is_theirs(site: Site) -> None:
    """What is no business of ours: an unreachable route of the environment's own, the uplink, the server."""
    for box in site.boxes:
        attempt("ip", "-n", box, "route", "del", "unreachable", "default")
    site.unplug()
    site.plug()
    site.vpc_ip("route", "del", f"{site.address}/32", "dev", "lo")


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
