"""Fresh environments from the pool of a daemon: what a user has of them, and what becomes of those that nobody took."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from functools import partial
from ipaddress import IPv4Network

import pytest

from hyperplane.client import Client
from hyperplane.resources import Environment, EnvironmentSpec, EnvironmentState, FunctionSpec, SubnetSpec

from . import traffic
from .daemons import SERVER, TestDaemon, active, declare, start, until
from .support import Namespaces, devices, eventually, ip, ip_json, namespaces, wait_until

POOL = 3
ATTACHED, ENDED = EnvironmentState.ATTACHED, EnvironmentState.ENDED


@pytest.fixture
def daemon() -> Iterator[TestDaemon]:
    with TestDaemon(pool=POOL) as made:
        made.start()
        yield made


@pytest.fixture
async def client(daemon: TestDaemon, vpc: str) -> AsyncIterator[Client]:
    """With function f, for which the pool is full."""
    async with daemon.client() as made:
        await declare(made, vpc)
        await full(made)
        yield made


async def full(client: Client) -> None:
    await until(client.status, lambda status: status.pool == POOL)


async def prepared(client: Client, function: str = "f") -> Environment:
    """An environment from the pool: no time in the kernel, none for the engine."""
    found = await client.start_environment(EnvironmentSpec(function=function))
    assert found.state is ATTACHED
    assert found.timings
    assert (found.timings.kernel, found.timings.engine, found.timings.wait) == (0.0, 0.0, 0.0)
    assert found.timings.total == found.timings.daemon > found.timings.decided > 0
    return found


async def works(environment: Environment, vpc: str) -> str:
    """Both ways; the address that the server sees."""
    async with traffic.connection(environment.namespace, vpc, SERVER) as pair:
        await traffic.transfer(pair.client, pair.server, 100_000, 1)
        await traffic.transfer(pair.server, pair.client, 100_000, 2)
        return str(pair.server.getpeername()[0])


async def test_it_is_an_environment_as_any_other(daemon: TestDaemon, client: Client, vpc: str) -> None:
    ready = daemon.fresh_namespaces()
    assert (await client.status()).resources["environment"] == {}
    environment = await prepared(client)
    assert environment.namespace in ready
    assert await client.get_environment(environment.id) == environment
    (address,) = ip_json("-n", environment.namespace, "addr", "show", "dev", environment.device)
    assert address["addr_info"][0]["local"] == str(environment.inside_address)
    async with traffic.connection(environment.namespace, vpc, SERVER):
        (flow,) = (await client.list_flows(environment=environment.name)).items
        assert (flow.tunnel, flow.eni) == (environment.id, environment.eni)
        assert (await client.list_enis()).items[0].environments == 1
        assert (await client.reconcile()).changes == ()
    await full(client)
    assert len(daemon.fresh_namespaces()) == POOL + 1
    assert (await client.end_environment(environment.id)).state is ENDED
    assert environment.namespace not in namespaces()


async def test_nothing_is_counted_before_it_is_one(client: Client, vpc: str) -> None:
    before = await client.status()
    assert before.traffic.packets_in == before.traffic.packets_out == 0
    assert not before.traffic.drops
    assert not (await client.list_drops()).items
    environment = await prepared(client)
    assert (await client.status()).traffic.packets_in == 0
    await works(environment, vpc)
    assert (await client.status()).traffic.packets_in > 0


async def test_more_than_are_ready(client: Client, vpc: str) -> None:
    made = [await start(client) for _ in range(3 * POOL)]
    assert {one.state for one in made} == {ATTACHED}
    assert len({one.namespace for one in made}) == len({one.id for one in made}) == len(made)
    usual = await start(client, device="eth7")
    assert usual.timings
    assert usual.timings.kernel > 0
    assert usual.timings.engine > 0
    assert usual.timings.daemon > usual.timings.decided > 0
    for one in (made[0], made[-1], usual):
        await works(one, vpc)
    await full(client)


async def test_many_at_once(daemon: TestDaemon, client: Client, vpc: str) -> None:
    made = await asyncio.gather(*(start(client) for _ in range(50)))
    assert {one.state for one in made} == {ATTACHED}
    assert len({one.namespace for one in made}) == len({one.name for one in made}) == len(made)
    ended = await asyncio.gather(*(client.end_environment(one.id) for one in made))
    assert {one.state for one in ended} == {ENDED}
    await full(client)
    await eventually(lambda: len(daemon.fresh_namespaces()) == POOL)
    assert (await client.reconcile()).changes == ()


async def test_the_status_says_how_many_are_ready(daemon: TestDaemon, client: Client) -> None:
    run_dir = {"HYPERPLANE_RUN_DIR": str(daemon.places.run.parent)}
    command = [sys.executable, "-m", "hyperplane.cli", "status"]
    said = await asyncio.to_thread(
        subprocess.run, command, env=os.environ | run_dir, capture_output=True, text=True, timeout=60, check=True
    )
    assert re.search(rf"^pool +{POOL} fresh environments ready\s*$", said.stdout, re.M), said.stdout
    assert f"hyperplane_pool_ready {POOL}.0" in await client.metrics()


async def test_it_is_filled_while_an_environment_drains(client: Client, vpc: str) -> None:
    environment = await prepared(client)
    async with traffic.connection(environment.namespace, vpc, SERVER) as pair:
        draining = await client.end_environment(environment.id, drain=600.0)
        assert draining.state is EnvironmentState.DETACHING
        for _ in range(2):
            await full(client)
            await prepared(client)
        await full(client)
        await traffic.transfer(pair.client, pair.server, 100_000, 1)
    await until(partial(client.get_environment, environment.id), lambda found: found.state is ENDED)


async def test_functions_on_different_enis(client: Client, vpc: str) -> None:
    await client.create_subnet(SubnetSpec(name="t", vpc="v", cidr=IPv4Network("198.19.1.0/24")))
    await client.create_function(FunctionSpec(name="h", subnets=("t",), security_groups=("g",), max_flows=1))
    await active(client, "h")
    other = EnvironmentSpec(function="h")
    await until(
        partial(client.start_environment, other), lambda found: bool(found.timings and not found.timings.kernel)
    )
    await full(client)
    enis = {str(one.addresses[0]): one.id for one in (await client.list_enis()).items}
    assert len(enis) == 2
    for function in ("h", "f"):
        environment = await prepared(client, function)
        assert enis[await works(environment, vpc)] == environment.eni
        if function == "h":  # its own limit holds: TIME-WAIT has the only flow
            with pytest.raises(ConnectionRefusedError):
                await works(environment, vpc)


async def test_a_function_is_deleted_though_some_are_ready_for_it(daemon: TestDaemon, client: Client, vpc: str) -> None:
    await client.delete_function("f")
    await until(client.status, lambda status: not status.resources["eni"])
    assert not [name for name in devices(vpc) if name.startswith("eni")]
    await eventually(lambda: not daemon.fresh_namespaces())
    assert (await client.status()).pool == 0


async def test_a_function_that_changes(daemon: TestDaemon, client: Client, vpc: str) -> None:
    old = daemon.fresh_namespaces()
    await client.update_function("f", FunctionSpec(name="f", subnets=("s",), security_groups=("g",), mtu=1300))
    environment = await start(client)
    assert environment.namespace not in old
    assert environment.mtu == 1300
    await eventually(lambda: not old & daemon.fresh_namespaces())
    await full(client)
    environment = await prepared(client)
    (address,) = ip_json("-n", environment.namespace, "addr", "show", "dev", environment.device)
    assert address["mtu"] == environment.mtu == 1300
    await works(environment, vpc)


async def test_a_namespace_that_somebody_deletes(daemon: TestDaemon, client: Client, vpc: str) -> None:
    for name in daemon.fresh_namespaces():
        ip("netns", "del", name)
    await works(await start(client), vpc)
    await full(client)
    taken = await prepared(client)
    await works(taken, vpc)
    ip("netns", "del", taken.namespace)
    ended = await until(partial(client.get_environment, taken.id), lambda found: found.state is ENDED)
    assert ended.reason == f"namespace {taken.namespace} was deleted"


async def test_a_device_that_somebody_deletes(daemon: TestDaemon, client: Client, vpc: str) -> None:
    old = daemon.fresh_namespaces()
    for name in old:
        ip("-n", name, "link", "del", "eth0")
    assert (await client.reconcile()).changes == ()  # the store says nothing of them
    await eventually(lambda: not old & daemon.fresh_namespaces())
    await full(client)
    await works(await prepared(client), vpc)


async def test_an_eni_whose_device_somebody_deletes(client: Client, vpc: str) -> None:
    (eni,) = (await client.list_enis()).items
    ip("-n", vpc, "link", "del", eni.device)
    # The watch or this one makes it again.
    assert {(change.action, change.kind) for change in (await client.reconcile()).changes} <= {("update", "eni")}
    await works(await prepared(client), vpc)


async def test_the_daemon_ends(daemon: TestDaemon, client: Client, vpc: str) -> None:
    environment = await prepared(client)
    await full(client)
    daemon.end()
    assert daemon.fresh_namespaces() == {environment.namespace}
    daemon.start(pool=0)
    assert '"event": "reconciled"' not in daemon.log  # nothing was left in the engine either
    async with daemon.client() as again:
        found = await again.get_environment(environment.id)
        assert found == environment  # its timings, too
        await works(found, vpc)


async def test_the_daemon_is_killed(daemon: TestDaemon, client: Client, vpc: str) -> None:
    environment = await prepared(client)
    await full(client)
    daemon.kill()
    assert len(daemon.fresh_namespaces()) == POOL + 1
    await works(environment, vpc)
    daemon.start(pool=0)
    assert daemon.fresh_namespaces() == {environment.namespace}
    async with daemon.client() as again:
        assert (await again.reconcile()).changes == ()
        assert (await again.status()).resources["environment"] == {"attached": 1}
        await again.end_environment(environment.id)
        await again.delete_function("f")
        await until(again.status, lambda status: not status.resources["eni"])


async def test_the_engine_is_killed(daemon: TestDaemon, client: Client, vpc: str) -> None:
    ready = daemon.fresh_namespaces()
    first = daemon.engine_pid()
    os.kill(first, signal.SIGKILL)
    environment = await start(client)  # whether the engine is there or not
    await eventually(partial(_another, daemon, first))
    await works(environment, vpc)
    other = await prepared(client)
    assert {environment.namespace, other.namespace} <= ready  # its successor has them
    await works(other, vpc)
    await full(client)
    assert (await client.reconcile()).changes == ()


async def test_daemon_and_engine_are_killed(daemon: TestDaemon, client: Client, vpc: str) -> None:
    environment = await prepared(client)
    daemon.kill()
    daemon.end_engine()
    daemon.start()
    wait_until(lambda: "eth0" in devices(environment.namespace))
    async with daemon.client() as again:
        await again.reconcile()
        await works(environment, vpc)
        await full(again)
        await works(await prepared(again), vpc)
    await eventually(lambda: len(daemon.fresh_namespaces()) == POOL + 2)


async def test_the_vpc_goes(daemon: TestDaemon, client: Client, vpc: str, netns_factory: Namespaces) -> None:
    netns_factory.delete(vpc)
    await until(client.status, lambda status: not status.resources["eni"])
    await eventually(lambda: not daemon.fresh_namespaces())


def _another(daemon: TestDaemon, first: int) -> bool:
    return daemon.engine_pid() not in (0, first)
