"""A new daemon over what an old one left: nothing that is right is touched, everything else is put right."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hyperplane.client import Client
from hyperplane.errors import HyperplaneError, ResourceNotFound
from hyperplane.resources import (
    EniState,
    EnvironmentSpec,
    EnvironmentState,
    FunctionSpec,
    FunctionState,
    SecurityGroupSpec,
    SubnetSpec,
    VpcSpec,
)

from . import traffic
from .daemons import RESERVED, SERVER, SMALL, SUBNET, TestDaemon, active, declare, in_state, start, until
from .sockets import call_in
from .support import Namespaces, devices, eventually, ip, ip_json, namespaces, wait_until

FUNCTION = FunctionSpec(name="f", subnets=("s",), security_groups=("g",))
ATTACHED, ENDED = EnvironmentState.ATTACHED, EnvironmentState.ENDED


@pytest.fixture
def daemon() -> Iterator[TestDaemon]:
    with TestDaemon() as made:
        made.start()
        yield made


def links(*names: str) -> dict[str, list[tuple[str, int]]]:
    """Devices with their numbers: another number is another device."""
    return {name: [(one["ifname"], one["ifindex"]) for one in ip_json("-n", name, "link")] for name in names}


def setting(namespace: str, name: str) -> str:
    return call_in(namespace, lambda: Path(f"/proc/sys/net/ipv4/{name}").read_text().strip())


def proxies(namespace: str) -> set[str]:
    return {one["dst"] for one in ip_json("-n", namespace, "neigh", "show", "proxy")}


@pytest.mark.parametrize("way", ["end", "kill"])
async def test_a_restart_touches_nothing(way: str, daemon: TestDaemon, vpc: str, netns_factory: Namespaces) -> None:
    box = netns_factory("box")
    async with daemon.client() as client:
        await declare(client, vpc)
        environment, fresh = await start(client, box), await start(client)
    before = links(vpc, box, fresh.namespace)
    engine = daemon.engine_pid()
    async with traffic.connection(box, vpc, SERVER) as pair:
        getattr(daemon, way)()
        await traffic.transfer(pair.client, pair.server, 100_000, 1)  # nobody is there
        daemon.start()
        await traffic.transfer(pair.server, pair.client, 100_000, 2)
        assert links(vpc, box, fresh.namespace) == before
        assert daemon.engine_pid() == engine
        async with daemon.client() as client:
            assert (await client.reconcile()).changes == ()
            assert (await client.get_environment(environment.id)).state is ATTACHED
            (flow,) = (await client.list_flows()).items
            assert flow.tunnel == environment.id
            # It is watched again, and what a new daemon does not know from birth it can remove.
            netns_factory.delete(box)
            await until(lambda: client.get_environment(environment.id), lambda found: found.state is ENDED)
            await client.end_environment(fresh.id)
            await client.delete_function("f")
            await eventually(lambda: not [name for name in devices(vpc) if name.startswith("eni")])
    assert fresh.namespace not in namespaces()


async def test_a_hundred_environments_are_adopted_in_a_second(daemon: TestDaemon, vpc: str) -> None:
    async with daemon.client() as client:
        await declare(client, vpc)
        made = [await start(client) for _ in range(100)]
    daemon.kill()
    seconds = daemon.start()
    async with daemon.client() as client:
        assert (await client.reconcile()).changes == ()
        assert (await client.status()).resources["environment"] == {"attached": len(made)}
    assert seconds < 5  # of which most is Python's own start, on a busy machine


async def test_an_engine_with_other_options_is_adopted_and_said(daemon: TestDaemon, vpc: str) -> None:
    async with daemon.client() as client:
        assert (await client.status()).notices == ()
        daemon.kill()
        daemon.start(engine={**SMALL, "max_flows": 4096})
        (notice,) = (await client.status()).notices
        assert "has max_flows 8192 instead of 4096" in notice
        assert "stop --engine" in notice
        assert notice in daemon.log


async def test_what_went_away_meanwhile_has_ended(daemon: TestDaemon, vpc: str, netns_factory: Namespaces) -> None:
    box, other = netns_factory("box"), netns_factory("other")
    process = netns_factory.start_in(netns_factory("third"), ["sleep", "60"])
    wait_until(lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino != os.stat("/proc/self/ns/net").st_ino)
    async with daemon.client() as client:
        await declare(client, vpc)
        one, two = await start(client, box), await start(client, other)
        three = await start(client, f"pid:{process.pid}")
    daemon.kill()
    netns_factory.delete(box)
    ip("netns", "del", other)  # and another one takes its name
    ip("netns", "add", other)
    process.kill()
    process.wait()
    daemon.start()
    async with daemon.client() as client:
        for environment, reason in (
            (one, f"namespace {box} was deleted"),
            (two, f"namespace {other} was deleted"),
            (three, f"process {process.pid} ended"),
        ):
            found = await until(partial(client.get_environment, environment.id), lambda it: it.state is ENDED)
            assert found.reason == reason
        assert devices(other) == {"lo"}
        assert await start(client, other)


async def test_daemon_and_engine_both_gone(daemon: TestDaemon, vpc: str, netns_factory: Namespaces) -> None:
    box = netns_factory("box")
    async with daemon.client() as client:
        await declare(client, vpc)
        one, two = await start(client, box), await start(client)
    daemon.kill()
    daemon.end_engine()
    wait_until(lambda: devices(box) == {"lo"})
    daemon.start()
    async with daemon.client() as client:
        await eventually(lambda: "eth0" in devices(box) and "eth0" in devices(two.namespace))
        for environment in (one, two):
            assert (await client.get_environment(environment.id)).state is ATTACHED
        await client.reconcile()
        async with traffic.connection(box, vpc, SERVER) as pair:
            await traffic.transfer(pair.client, pair.server, 100_000, 1)
        (eni,) = (await client.list_enis()).items
        assert proxies(vpc) == {str(eni.addresses[0])}


async def test_devices_that_somebody_deleted(daemon: TestDaemon, vpc: str, netns_factory: Namespaces) -> None:
    box = netns_factory("box")
    async with daemon.client() as client:
        await declare(client, vpc)
        await start(client, box)
        (eni,) = (await client.list_enis()).items
        ip("-n", box, "link", "del", "eth0")
        ip("-n", vpc, "link", "del", eni.device)
        await client.reconcile()  # what the watch has not put right by itself is now
        async with traffic.connection(box, vpc, SERVER) as pair:
            await traffic.transfer(pair.client, pair.server, 100_000, 1)
        assert (await client.reconcile()).changes == ()


async def test_after_a_reboot_every_environment_has_ended(
    daemon: TestDaemon, vpc: str, netns_factory: Namespaces
) -> None:
    box = netns_factory("box")
    async with daemon.client() as client:
        await declare(client, vpc)
        environment, fresh = await start(client, box), await start(client)
    daemon.end()
    daemon.end_engine()
    with sqlite3.connect(daemon.places.database) as database:
        database.execute("UPDATE meta SET value = 'another' WHERE key = 'boot_id'")
    database.close()
    daemon.start()
    async with daemon.client() as client:
        found = await client.get_environment(environment.id)
        assert (found.state, found.reason) == (ENDED, "the host was rebooted")
        assert fresh.namespace not in namespaces()
        await active(client, "f")
        (eni,) = (await client.list_enis()).items
        assert eni.state is EniState.AVAILABLE
        assert (await start(client, box)).state is ATTACHED


async def test_a_vpc_that_did_not_come_back(daemon: TestDaemon, vpc: str, netns_factory: Namespaces) -> None:
    async with daemon.client() as client:
        await declare(client, vpc)
    daemon.end()
    netns_factory.delete(vpc)
    daemon.start()
    async with daemon.client() as client:
        await in_state(client, "f", FunctionState.FAILED)
        await client.delete_function("f")
        await until(client.status, lambda status: not status.resources["eni"])


async def test_a_vpc_that_comes_later(daemon: TestDaemon, netns_factory: Namespaces) -> None:
    name = netns_factory("vpc")
    ip("netns", "del", name)
    async with daemon.client() as client:
        await client.create_vpc(VpcSpec(name="v", namespace=name))
        await client.create_subnet(SubnetSpec(name="s", vpc="v", cidr=SUBNET))
        await client.create_security_group(SecurityGroupSpec(name="g", vpc="v"))
        await client.create_function(FUNCTION)
        await in_state(client, "f", FunctionState.FAILED)
        ip("netns", "add", name)
        (change,) = (await client.reconcile()).changes
        assert (change.action, change.kind, change.name) == ("update", "function", "f")
        assert (await client.get_function("f")).state is FunctionState.ACTIVE
        assert (await client.reconcile()).changes == ()


async def test_a_reconciliation_does_not_wait_for_drains(
    daemon: TestDaemon, vpc: str, netns_factory: Namespaces
) -> None:
    box = netns_factory("box")
    async with daemon.client() as client:
        await declare(client, vpc)
        environment = await start(client, box)
        async with traffic.connection(box, vpc, SERVER) as pair:
            await client.end_environment(environment.id, drain=600.0)
            assert (await client.reconcile()).changes == ()
            # Neither does the end of the daemon, and its successor goes on with what is left of the time.
            daemon.end()
            daemon.start()
            await traffic.transfer(pair.client, pair.server, 100_000, 1)
            assert (await client.get_environment(environment.id)).state is EnvironmentState.DETACHING
        await until(lambda: client.get_environment(environment.id), lambda found: found.state is ENDED)


async def test_links_that_nobody_knows_are_removed_when_asked(daemon: TestDaemon, vpc: str) -> None:
    async with daemon.client() as client:
        await declare(client, vpc)
        fresh = await start(client)
    daemon.kill()
    for end in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            os.unlink(f"{daemon.places.database}{end}")
    daemon.start()
    async with daemon.client() as client:
        assert (await client.status()).resources["vpc"] == {}
        assert devices(fresh.namespace) == {"lo", "eth0"}  # a lost database cuts nobody's connections
        assert {change.action for change in (await client.reconcile()).changes} == {"delete"}
    wait_until(lambda: not [name for name in devices(vpc) if name.startswith("eni")])
    assert proxies(vpc) == set()
    assert setting(vpc, "conf/lan0/forwarding") == "0"
    assert fresh.namespace not in namespaces()


async def test_a_damaged_database_is_kept_and_said(daemon: TestDaemon, vpc: str, netns_factory: Namespaces) -> None:
    box = netns_factory("box")
    async with daemon.client() as client:
        await declare(client, vpc)
        await start(client, box)
    daemon.end()
    daemon.places.database.write_bytes(b"no database" * 1000)
    async with traffic.connection(box, vpc, SERVER) as pair:
        daemon.start()
        async with daemon.client() as client:
            (notice,) = (await client.status()).notices
            assert "is damaged" in notice
            assert "kept as" in notice
            assert list(daemon.places.state.glob("state.db.corrupt-*"))
            # What works is left alone until somebody asks.
            await traffic.transfer(pair.client, pair.server, 100_000, 1)
            assert {change.action for change in (await client.reconcile()).changes} == {"delete"}
    wait_until(lambda: devices(box) == {"lo"})


async def test_a_database_that_was_lost_ends_no_connection(
    daemon: TestDaemon, vpc: str, netns_factory: Namespaces
) -> None:
    box = netns_factory("box")
    async with daemon.client() as client:
        await declare(client, vpc)
        await start(client, box)
    daemon.kill()
    for file in daemon.places.state.glob("state.db*"):
        file.unlink()
    async with traffic.connection(box, vpc, SERVER) as pair:
        daemon.start()
        async with daemon.client() as client:
            (notice,) = (await client.status()).notices
            assert "left alone" in notice
            await traffic.transfer(pair.client, pair.server, 100_000, 1)
            assert {change.action for change in (await client.reconcile()).changes} == {"delete"}


async def test_settings_are_set_back_by_a_successor(daemon: TestDaemon, vpc: str) -> None:
    names = ("conf/lan0/forwarding", "neigh/lan0/proxy_delay")
    before = [setting(vpc, name) for name in names]
    async with daemon.client() as client:
        await declare(client, vpc)
    assert [setting(vpc, name) for name in names] == ["1", "0"] != before
    daemon.kill()
    daemon.start()
    async with daemon.client() as client:
        await client.delete_function("f")
        await until(client.status, lambda status: not status.resources["eni"])
    assert [setting(vpc, name) for name in names] == before


class TestKilledAtACommitPoint:
    """Then a new daemon comes: store, kernel and engine agree."""

    @pytest.mark.parametrize("point", ["creation stored", "eni device made", "eni told", "eni stored"])
    async def test_creating_a_function(self, point: str, vpc: str) -> None:
        with TestDaemon() as daemon:
            daemon.start()
            async with daemon.client() as client:
                await client.create_vpc(VpcSpec(name="v", namespace=vpc))
                await client.create_subnet(SubnetSpec(name="s", vpc="v", cidr=SUBNET, reserved=RESERVED))
                await client.create_security_group(SecurityGroupSpec(name="g", vpc="v", rules=("all",)))
            daemon.kill()
            daemon.start(point)
            await self._lost(daemon, "create_function", FUNCTION)
            daemon.start()
            async with daemon.client() as client:
                await active(client, "f")
                environment = await start(client)
                await agree(daemon, client, vpc)
                await client.end_environment(environment.id)
                await client.delete_function("f")
                await until(client.status, lambda status: not status.resources["eni"])
                await agree(daemon, client, vpc)

    @pytest.mark.parametrize("point", ["start stored", "tunnel device made", "tunnel told", "start attached"])
    @pytest.mark.parametrize("kind", ["existing", "fresh"])
    async def test_starting(self, point: str, kind: str, vpc: str, netns_factory: Namespaces) -> None:
        with TestDaemon() as daemon:
            box = netns_factory("box") if kind == "existing" else ""
            daemon.start()
            async with daemon.client() as client:
                await declare(client, vpc)
            daemon.kill()
            daemon.start(point)
            await self._lost(daemon, "start_environment", EnvironmentSpec(function="f", namespace=box))
            daemon.start()
            async with daemon.client() as client:
                await agree(daemon, client, vpc)
                states = {one.state for one in (await client.list_environments()).items}
                assert states == {ATTACHED if point == "start attached" else ENDED}
                if point != "start attached":
                    await start(client, box)
                await agree(daemon, client, vpc)

    async def test_preparing_a_tunnel(self, vpc: str) -> None:
        with TestDaemon() as daemon:
            daemon.start()
            async with daemon.client() as client:
                await declare(client, vpc)
            daemon.kill()
            daemon.spawn("tunnel prepared", pool=2)
            await asyncio.to_thread(daemon.killed_itself)
            assert len(daemon.fresh_namespaces()) == 1
            daemon.start()
            async with daemon.client() as client:
                await agree(daemon, client, vpc)
                await start(client)
                await agree(daemon, client, vpc)

    async def test_starting_with_a_prepared_tunnel(self, vpc: str) -> None:
        with TestDaemon() as daemon:
            daemon.start("start attached", pool=2)
            async with daemon.client() as client:
                await declare(client, vpc)
                await until(client.status, lambda status: status.pool == 2)
            await self._lost(daemon, "start_environment", EnvironmentSpec(function="f"))
            assert len(daemon.fresh_namespaces()) >= 2
            daemon.start()
            async with daemon.client() as client:
                await agree(daemon, client, vpc)
                (environment,) = (await client.list_environments()).items
                assert environment.state is ATTACHED
                async with traffic.connection(environment.namespace, vpc, SERVER) as pair:
                    await traffic.transfer(pair.client, pair.server, 100_000, 1)

    async def test_deleting_a_function_with_prepared_tunnels(self, vpc: str) -> None:
        with TestDaemon() as daemon:
            daemon.start("tunnel removed", pool=2)
            async with daemon.client() as client:
                await declare(client, vpc)
                await until(client.status, lambda status: status.pool == 2)
            await self._lost(daemon, "delete_function", "f")
            await asyncio.to_thread(daemon.start)
            async with daemon.client() as client:
                await until(client.status, lambda status: not status.resources["eni"])
                await agree(daemon, client, vpc)
                assert devices(vpc) == {"lo", "lan0"}

    @pytest.mark.parametrize("point", ["end stored", "flows reset", "tunnel removed", "end done"])
    @pytest.mark.parametrize("kind", ["existing", "fresh"])
    async def test_ending(self, point: str, kind: str, vpc: str, netns_factory: Namespaces) -> None:
        with TestDaemon() as daemon:
            daemon.start(point)
            async with daemon.client() as client:
                await declare(client, vpc)
                environment = await start(client, netns_factory("box") if kind == "existing" else "")
            async with traffic.connection(environment.namespace, vpc, SERVER):
                await self._lost(daemon, "end_environment", environment.id)
                daemon.start()
                async with daemon.client() as client:
                    look = client.get_environment
                    await until(lambda: look(environment.id), lambda found: found.state is ENDED)
                    await agree(daemon, client, vpc)
            assert not daemon.fresh_namespaces()

    @pytest.mark.parametrize("point", ["deletion stored", "eni removed", "deletion done"])
    async def test_deleting_a_function(self, point: str, vpc: str) -> None:
        with TestDaemon() as daemon:
            daemon.start(point)
            async with daemon.client() as client:
                await declare(client, vpc)
            await self._lost(daemon, "delete_function", "f")
            daemon.start()
            async with daemon.client() as client:
                with pytest.raises(ResourceNotFound):
                    await client.get_function("f")
                await until(client.status, lambda status: not status.resources["eni"])
                await agree(daemon, client, vpc)
                assert devices(vpc) == {"lo", "lan0"}
                assert setting(vpc, "conf/lan0/forwarding") == "0"

    @staticmethod
    async def _lost(daemon: TestDaemon, method: str, argument: Any) -> None:
        """Asks for something during which the daemon kills itself."""
        async with daemon.client() as client:
            with suppress(HyperplaneError):
                await getattr(client, method)(argument)
        await asyncio.to_thread(daemon.killed_itself)


async def agree(daemon: TestDaemon, client: Client, vpc: str) -> None:
    """What the API says, the kernel and the engine have; nothing is left to be put right."""
    assert (await client.reconcile()).changes == ()
    enis = (await client.list_enis()).items
    running = [one for one in (await client.list_environments()).items if one.state is not ENDED]
    assert {name for name in devices(vpc) if name.startswith("eni")} == {one.device for one in enis}
    assert proxies(vpc) == {str(address) for one in enis for address in one.addresses}
    assert daemon.fresh_namespaces() == {one.namespace for one in running if one.fresh}
    for environment in running:
        assert environment.device in devices(environment.namespace)
    status = await client.status()
    assert status.engine
    assert status.engine.status.running
    measures = await client.metrics()
    assert measures.count("hyperplane_eni_flows{") == len(enis)
