"""What others change in a VPC's or environment's namespace is put right, and the log says what it was."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial

import pytest

from hyperplane.client import Client
from hyperplane.resources import EnvironmentState, FunctionState

from .daemons import ROOT, TestDaemon, active, declare, start, until
from .others import UPLINK, Site, attempt, changes_of_environments, changes_of_the_vpc, passes
from .support import DEADLINE, Namespaces, devices, eventually, ip, ip_json, run_in


@pytest.fixture(scope="module")
def made() -> Iterator[Namespaces]:
    with Namespaces() as namespaces:
        yield namespaces


@pytest.fixture(scope="module")
def daemon() -> Iterator[TestDaemon]:
    """One for all tests here that leave things as they were."""
    with TestDaemon() as found:
        found.start()
        yield found


def new_site(made: Namespaces) -> Site:
    site = Site(made, made("vpc"), made("server"), [made("box")], made("elsewhere"))
    site.plug()
    return site


async def prepare(client: Client, site: Site) -> None:
    await declare(client, site.vpc)
    await start(client, site.boxes[0], name="e")
    (eni,) = (await client.list_enis()).items
    site.device, site.address = eni.device, str(eni.addresses[0])
    assert await passes(site)


@pytest.fixture(scope="module")
def site(daemon: TestDaemon, made: Namespaces) -> Site:
    found = new_site(made)

    async def begin() -> None:
        async with daemon.client() as client:
            await prepare(client, found)

    asyncio.run(begin())
    return found


@asynccontextmanager
async def own_site(made: Namespaces) -> AsyncIterator[tuple[TestDaemon, Client, Site]]:
    """A daemon and a site of a test's own."""
    found = new_site(made)
    with TestDaemon() as daemon:
        daemon.start()
        async with daemon.client() as client:
            await prepare(client, found)
            yield daemon, client, found


def setting(namespace: str, name: str) -> str:
    return run_in(namespace, ["sysctl", "-n", f"net.ipv4.{name}"]).stdout.strip()


def proxies(site: Site) -> list[tuple[str, str]]:
    return [(one["dst"], one["dev"]) for one in ip_json("-n", site.vpc, "neigh", "show", "proxy")]


def eni_is_right(site: Site) -> bool:
    """All that an ENI on a segment needs, as the kernel has it."""
    if site.device not in devices(site.vpc):
        return False
    (link,) = ip_json("-n", site.vpc, "link", "show", "dev", site.device)
    routes = ip_json("-n", site.vpc, "route", "show", f"{site.address}/32")
    return (
        "UP" in link["flags"]
        and link["mtu"] == 1500
        and [one["dev"] for one in routes][:1] == [site.device]
        and proxies(site) == [(site.address, UPLINK)]
        and setting(site.vpc, f"conf.{site.device}.forwarding") == "1"
        and setting(site.vpc, f"conf.{UPLINK}.forwarding") == "1"
        and setting(site.vpc, f"neigh.{UPLINK}.proxy_delay") == "0"
    )


def environment_is_right(box: str) -> bool:
    if devices(box) != {"lo", "eth0"}:
        return False
    (link,) = ip_json("-n", box, "addr", "show", "dev", "eth0")
    (first, *_) = ip_json("-n", box, "route", "show", "default") or [{}]
    return (
        "UP" in link["flags"]
        and link["mtu"] == 1500
        and "198.18.0.2" in [one["local"] for one in link["addr_info"]]
        and (first.get("dev"), first.get("prefsrc")) == ("eth0", "198.18.0.2")
    )


async def right_again(daemon: TestDaemon, client: Client, site: Site, before: int, words: str) -> None:
    """The kernel is as it must be, connections pass, the log has said so since, and nothing is left for reconcile."""
    await eventually(lambda: eni_is_right(site) and all(map(environment_is_right, site.boxes)))
    await until(partial(passes, site), bool)
    await eventually(lambda: words in daemon.log[before:], what=f"{words!r} in {daemon.log[before:]!r}")
    assert (await client.reconcile()).changes == ()
    await until(client.health, lambda health: not health.reasons)


VPC = {
    "ip_forward off": ".forwarding: 0 -> 1",
    "forwarding of the uplink": f"net.ipv4.conf.{UPLINK}.forwarding: 0 -> 1",
    "forwarding of the ENI": ".forwarding: 0 -> 1",
    "proxy_delay": f"net.ipv4.neigh.{UPLINK}.proxy_delay: 80 -> 0",
    "proxy neighbour": f"on {UPLINK}: missing -> set",
    "ENI's routes": "/32: missing -> set",
    "ENI's route elsewhere": "/32: missing -> set",
    "ENI down": "link: down -> up",
    "ENI's MTU": "MTU: 1280 -> 1500",
    "ENI renamed": "name: mine0 -> ",
    "ENI removed": '"reason": "deleted", "event": "the device of an ENI is made again',
    "ENI moved": '"reason": "moved to another namespace", "event": "the device of an ENI is made again',
}
ENVIRONMENT = {
    "device down": "link: down -> up",
    "MTU": "MTU: 1300 -> 1500",
    "addresses": "address 198.18.0.2: missing -> set",
    "routes": "route 0.0.0.0/0: missing -> set",
    "renamed": "name: eth7 -> eth0",
    "removed": '"reason": "deleted", "event": "the device of an environment is made again"',
    "moved": '"reason": "moved to another namespace", "event": "the device of an environment is made again"',
}


@pytest.mark.parametrize("name", VPC)
async def test_a_change_in_the_vpc(daemon: TestDaemon, site: Site, name: str) -> None:
    if name == "ip_forward off":
        site.sysctl("ip_forward=1")  # only a change sets the devices
    before = len(daemon.log)
    changes_of_the_vpc(site)[name]()
    async with daemon.client() as client:
        await right_again(daemon, client, site, before, VPC[name])
    site.vpc_ip("route", "del", f"{site.address}/32", "dev", "lo")


@pytest.mark.parametrize("name", ENVIRONMENT)
async def test_a_change_in_an_environment(daemon: TestDaemon, site: Site, name: str) -> None:
    before = len(daemon.log)
    changes_of_environments(site, random.Random(1))[name]()
    async with daemon.client() as client:
        await right_again(daemon, client, site, before, ENVIRONMENT[name])


@pytest.mark.parametrize("way", ["down and up", "carrier", "another MAC", "made again", "address gone and back"])
async def test_a_change_of_the_uplink(daemon: TestDaemon, site: Site, way: str) -> None:
    """Neighbours, too, know the address again at once: they are told."""
    changes = changes_of_the_vpc(site)
    steps = {
        "down and up": ["uplink down", "uplink up"],
        "carrier": ["carrier lost", "carrier back"],
        "another MAC": ["uplink's MAC"],
        "made again": ["uplink removed", "uplink late"],
        "address gone and back": ["uplink's address gone", "uplink's address back"],
    }
    for step in steps[way]:
        changes[step]()
    async with daemon.client() as client:
        await right_again(daemon, client, site, len(daemon.log), "")
    (link,) = ip_json("-n", site.vpc, "link", "show", "dev", UPLINK)

    def known() -> set[str | None]:
        return {one.get("lladdr") for one in ip_json("-n", site.server, "neigh", "show", site.address)}

    await eventually(lambda: known() == {link["address"]}, what="the server knows the MAC")


async def test_what_is_there_already_may_stay_read_only(netns_factory: Namespaces) -> None:
    """Settings that are right are not written: /proc/sys is read-only in many containers."""
    site = new_site(netns_factory)
    site.sysctl("ip_forward=1")
    site.sysctl(f"neigh.{UPLINK}.proxy_delay=0")
    with TestDaemon() as daemon:
        read_only = 'mount --bind /proc/sys /proc/sys && mount -o remount,ro,bind /proc/sys && exec "$@"'
        process = daemon.spawn(prefix=("unshare", "--mount", "--propagation", "slave", "sh", "-c", read_only, "sh"))
        assert process.poll() is None
        await eventually(lambda: '"event": "ready"' in daemon.log, 20.0)
        async with daemon.client() as client:
            await prepare(client, site)
            assert (await client.health()).reasons == ()


async def test_an_uplink_that_is_down_is_said(netns_factory: Namespaces) -> None:
    async with own_site(netns_factory) as (_, client, site):
        site.vpc_ip("link", "set", UPLINK, "down")
        health = await until(client.health, lambda health: bool(health.reasons))
        assert health.reasons == (
            f"device {UPLINK} is down: ENI address {site.address} is not found there; `ip link set {UPLINK} up`",
        )
        site.vpc_ip("link", "set", UPLINK, "up")
        await until(client.health, lambda health: not health.reasons)


async def test_a_late_uplink_whose_host_has_the_address(netns_factory: Namespaces) -> None:
    async with own_site(netns_factory) as (_, client, site):
        site.unplug()
        await eventually(lambda: proxies(site) == [])
        # The host has it before the VPC's end is up: who comes later than the probe is another case.
        site.vpc_ip("link", "add", UPLINK, "type", "veth", "peer", "db0", "netns", site.server)
        ip("-n", site.server, "addr", "add", f"{site.address}/24", "dev", "db0")
        ip("-n", site.server, "link", "set", "db0", "up")
        site.plug()
        health = await until(client.health, lambda health: any("has" in one for one in health.reasons))
        (link,) = ip_json("-n", site.server, "link", "show", "dev", "db0")
        assert f"{link['address']} has {site.address} on {UPLINK} too" in " ".join(health.reasons)
        assert proxies(site) == []


async def test_two_that_disagree(netns_factory: Namespaces) -> None:
    """It is put right ever more seldom, which is said once; then it stays right."""
    async with own_site(netns_factory) as (daemon, client, site):
        name = f"conf.{UPLINK}.forwarding"
        for _ in range(8):
            site.sysctl(f"{name}=0")
            if "somebody else changes it again and again" in daemon.log:
                break
            await eventually(lambda: setting(site.vpc, name) == "1")
        await eventually(lambda: "somebody else changes it again and again" in daemon.log)
        health = await until(client.health, lambda health: bool(health.reasons))
        assert f"somebody else changes net.ipv4.{name} again and again" in health.reasons[0]
        await eventually(lambda: setting(site.vpc, name) == "1", 3 * DEADLINE)
        await until(client.health, lambda health: not health.reasons, 3 * DEADLINE)
        assert daemon.log.count("somebody else changes it again and again") == 1


@pytest.mark.parametrize("killed", [False, True])
async def test_what_was_broken_while_no_daemon_ran(netns_factory: Namespaces, killed: bool) -> None:
    async with own_site(netns_factory) as (daemon, client, site):
        await client.close()
        daemon.kill() if killed else daemon.end()
        changes = changes_of_the_vpc(site)
        for name in ("ip_forward on", "ip_forward off", "proxy neighbour", "ENI's routes", "ENI's MTU"):
            changes[name]()
        attempt("ip", "-n", site.boxes[0], "route", "flush", "table", "main")
        attempt("ip", "-n", site.boxes[0], "link", "set", "eth0", "mtu", "1300")
        daemon.start()
        async with daemon.client() as again:
            await right_again(daemon, again, site, 0, "ready")
            assert (await again.get_environment("e")).state is EnvironmentState.ATTACHED


@pytest.mark.parametrize("way", ["made again", "another MAC", "late"])
async def test_an_uplink_that_changed_while_no_daemon_ran(netns_factory: Namespaces, way: str) -> None:
    async with own_site(netns_factory) as (daemon, client, site):
        await client.close()
        if way == "late":
            site.unplug()
            await eventually(lambda: proxies(site) == [])
        daemon.kill()
        if way == "another MAC":
            changes_of_the_vpc(site)["uplink's MAC"]()
        else:
            site.unplug()
            site.plug()
        daemon.start()
        async with daemon.client() as again:
            await right_again(daemon, again, site, 0, "ready")


async def test_an_eni_that_is_deleted_while_its_address_is_routed_elsewhere(netns_factory: Namespaces) -> None:
    """It is made again; nobody loses the environment."""
    async with own_site(netns_factory) as (daemon, client, site):
        site.vpc_ip("route", "add", f"{site.address}/32", "dev", "lo", "metric", "5")
        before = len(daemon.log)
        site.vpc_ip("link", "del", site.device)
        await right_again(daemon, client, site, before, VPC["ENI removed"])
        assert (await client.get_environment("e")).state is EnvironmentState.ATTACHED


async def test_an_address_that_a_rule_leads_elsewhere_is_said(netns_factory: Namespaces) -> None:
    async with own_site(netns_factory) as (daemon, client, site):
        site.vpc_ip("route", "add", f"{site.address}/32", "dev", "lo", "table", "100")
        site.vpc_ip("rule", "add", "to", site.address, "table", "100")
        health = await until(client.health, lambda health: bool(health.reasons))
        assert f"{site.address} is routed to device lo, not to {site.device}" in health.reasons[0]
        await eventually(lambda: '"event": "it cannot be put right"' in daemon.log)
        site.vpc_ip("rule", "del", "to", site.address, "table", "100")
        await until(client.health, lambda health: not health.reasons)
        await eventually(lambda: '"event": "it is right again"' in daemon.log)


class TestSettingsAtTheEnd:
    """What others wanted last is what is left of them."""

    @pytest.mark.parametrize(
        ("written", "left"),
        [
            ([], "0"),
            (["ip_forward=1"], "1"),
            (["ip_forward=1", "ip_forward=0"], "0"),
            ([f"conf.{UPLINK}.forwarding=0"], "0"),
            (["ip_forward=1", f"conf.{UPLINK}.forwarding=0"], "0"),
        ],
    )
    @pytest.mark.parametrize("restarted", [False, True])
    async def test_forwarding(self, netns_factory: Namespaces, written: list[str], left: str, restarted: bool) -> None:
        async with own_site(netns_factory) as (daemon, client, site):
            for one in written:
                site.sysctl(one)
                await eventually(lambda: setting(site.vpc, f"conf.{UPLINK}.forwarding") == "1")
            await until(client.health, lambda health: not health.reasons)
            assert (await client.reconcile()).changes == ()
            if restarted:
                await client.close()
                daemon.kill()
                daemon.start()
            async with daemon.client() as last:
                await last.end_environment("e")
                await last.delete_function("f")
                await eventually(lambda: devices(site.vpc) == {"lo", UPLINK})
            await eventually(lambda: proxies(site) == [])
            await eventually(lambda: setting(site.vpc, f"conf.{UPLINK}.forwarding") == left)
            assert setting(site.vpc, f"neigh.{UPLINK}.proxy_delay") == "80"


async def test_a_vpc_whose_uplink_comes_late(netns_factory: Namespaces) -> None:
    """The function is active before it, and reaches its servers once it is there."""
    site = Site(netns_factory, netns_factory("vpc"), netns_factory("server"), [netns_factory("box")], "")
    with TestDaemon() as daemon:
        daemon.start()
        async with daemon.client() as client:
            await declare(client, site.vpc)
            await start(client, site.boxes[0])
            assert not await passes(site)
            site.plug()
            await until(partial(passes, site), bool)
            (eni,) = (await client.list_enis()).items
            assert [one["dst"] for one in ip_json("-n", site.vpc, "neigh", "show", "proxy")] == [str(eni.addresses[0])]
            assert (await active(client, "f")).state is FunctionState.ACTIVE


def test_nat_says_what_it_puts_right(netns_factory: Namespaces) -> None:
    vpc, box = netns_factory("vpc"), netns_factory("box")
    command = [sys.executable, "-m", "hyperplane.cli", "nat", "--vpc", vpc, "--eni-address", "203.0.113.9"]
    nat = subprocess.Popen(
        [*command, "--environment", f"{box}=job", "--allow", "all", "--json"],
        cwd=ROOT, env={**os.environ}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert nat.stdout
    with nat:
        try:
            for line in nat.stdout:
                if '"ready"' in line:
                    ip("-n", vpc, "link", "set", "eni0", "mtu", "1280")
                    ip("-n", box, "link", "set", "eth0", "down")
                elif '"put_right"' in line and '"job"' in line and '"link"' in line and '"down"' in line:
                    break
                elif '"put_right"' in line:
                    assert '"what":"MTU","found":"1280","wanted":"1500"' in line or '"job"' in line, line
            assert ip_json("-n", vpc, "link", "show", "dev", "eni0")[0]["mtu"] == 1500
            assert environment_is_right(box)
        finally:
            nat.terminate()
