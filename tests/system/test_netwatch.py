"""What wakes whoever watches a namespace's network, and what does not; and what a look costs among many routes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address

import pytest

from hyperplane.errors import NamespaceNotFound
from hyperplane.linux.eni import EniDevice, create_eni, withdraw_eni
from hyperplane.linux.namespaces import Key, NamespaceThreads, open_namespace
from hyperplane.linux.netwatch import NetworkWatch

from .support import Namespaces, Within, eventually, inside, ip, run_in


@asynccontextmanager
async def watching(*namespaces: str) -> AsyncIterator[tuple[NetworkWatch, list[str]]]:
    """The names of the namespaces whose network has changed, as it was told."""
    told: list[str] = []
    names: dict[Key, str] = {}
    threads = NamespaceThreads(1)
    watch = NetworkWatch(asyncio.get_running_loop(), threads, lambda key: told.append(names[key]))
    try:
        for name in namespaces:
            with open_namespace(name) as found:
                names[found.key] = name
                await watch.add(found.key, name)
        yield watch, told
    finally:
        watch.close()
        threads.close()


@pytest.fixture
def vpc(netns_factory: Namespaces) -> str:
    name, other = netns_factory("vpc"), netns_factory("other")
    ip("-n", name, "link", "add", "up0", "type", "veth", "peer", "up0", "netns", other)
    ip("-n", name, "addr", "add", "198.19.0.1/24", "dev", "up0")
    ip("-n", name, "link", "set", "up0", "up")
    ip("-n", other, "link", "set", "up0", "up")
    return name


def routes(namespace: str, action: str, count: int) -> None:
    """So many by a gateway, as a routing daemon has them, in one go."""
    lines = "".join(f"route {action} 203.0.{n >> 8}.{n & 255}/32 via 198.19.0.2\n" for n in range(count))
    subprocess.run(inside(namespace, ["ip", "-batch", "-"]), input=lines, text=True, check=True, timeout=60)


CHANGES: dict[str, list[str]] = {
    "a link": ["link", "set", "up0", "mtu", "1400"],
    "an address": ["addr", "add", "198.19.1.1/24", "dev", "up0"],
    "a direct route": ["route", "add", "198.19.2.0/24", "dev", "up0"],
    "a direct route that goes": ["route", "del", "198.19.0.0/24", "dev", "up0"],
    "a route that is replaced": ["route", "replace", "198.19.0.0/24", "via", "198.19.0.2"],
    "a rule": ["rule", "add", "from", "198.19.0.5", "table", "100"],
}


@pytest.mark.parametrize("change", CHANGES)
async def test_what_matters_is_told(vpc: str, netns_factory: Namespaces, change: str) -> None:
    quiet = netns_factory("quiet")
    async with watching(vpc, quiet) as (_, told):
        ip("-n", vpc, *CHANGES[change])
        await eventually(lambda: bool(told))
        assert set(told) == {vpc}


async def test_settings_are_told(vpc: str) -> None:
    async with watching(vpc) as (_, told):
        run_in(vpc, ["sysctl", "-qw", "net.ipv4.conf.up0.forwarding=1"])
        await eventually(lambda: told == [vpc])


async def test_routes_by_a_gateway_wake_nobody(vpc: str) -> None:
    async with watching(vpc) as (_, told):
        routes(vpc, "add", 1000)
        ip("-n", vpc, "link", "set", "up0", "mtu", "1400")  # what comes last is told
        await eventually(lambda: bool(told))
        assert len(told) <= 3


async def test_one_that_is_not_watched_any_more(vpc: str) -> None:
    async with watching(vpc) as (watch, told):
        with open_namespace(vpc) as found:
            assert found.key in watch
            watch.remove(found.key)
            assert found.key not in watch
            ip("-n", vpc, "link", "set", "up0", "mtu", "1400")
            await watch.add(found.key, vpc)
            ip("-n", vpc, "link", "set", "up0", "mtu", "1401")
            await eventually(lambda: told == [vpc])


async def test_another_namespace_of_the_same_name_is_not_watched(vpc: str) -> None:
    async with watching() as (watch, _):
        await watch.add((0, 0), vpc)
        assert (0, 0) not in watch
        with pytest.raises(NamespaceNotFound):
            await watch.add((0, 0), "hpt-nobody")


class TestLooks:
    @pytest.fixture
    def eni(self, vpc: str, within: Within, threads: NamespaceThreads) -> Iterator[EniDevice]:
        address = IPv4Address("198.19.0.5")
        made: EniDevice = within(vpc, lambda ns: create_eni(ns, device="eni0", addresses=(address,), mtu=1500))
        yield made
        threads.submit(withdraw_eni, made, threads).result(10)
        os.close(made.fd)

    def test_a_look_without_a_notification_does_not_go_through_the_routes(
        self, vpc: str, eni: EniDevice, within: Within
    ) -> None:
        """A ratio: thorough looks do, and notice that there are 20,000; the timer's do not."""

        def cost(*, thorough: bool) -> float:
            def look(_: object) -> float:
                begun = time.thread_time()
                eni.put_right(thorough=thorough)
                return time.thread_time() - begun

            return min(float(within(vpc, look)) for _ in range(20))

        few = {thorough: cost(thorough=thorough) for thorough in (False, True)}
        routes(vpc, "add", 20_000)
        many = {thorough: cost(thorough=thorough) for thorough in (False, True)}
        assert many[True] > 3 * few[True]
        assert many[False] < 2 * few[False]
