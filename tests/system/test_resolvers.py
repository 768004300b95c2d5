"""What a fresh environment's namespace has besides its tunnel: the VPC's resolvers for `ip netns exec`, and pings for
users without privileges."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from hyperplane.client import Client
from hyperplane.linux.resolvers import NETNS_ETC_DIR, remove_resolvers, write_resolvers
from hyperplane.resources import Environment, VpcSpec

from .daemons import TestDaemon, declare, start, until
from .support import PREFIX, Namespaces, run_in

FIRST, SECOND = IPv4Address("198.19.0.80"), IPv4Address("198.19.0.81")
# An ICMP socket without a raw one: icmp(7), ping_group_range. It gets an answer from the server.
PING = """
import socket
made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)
made.settimeout(10)
made.sendto(bytes([8]) + bytes(7), ("198.19.0.80", 0))
print(made.recv(100)[0])
"""
NOBODY = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups"]


@pytest.fixture
def daemon() -> Iterator[TestDaemon]:
    with TestDaemon() as made:
        made.start()
        yield made


@pytest.fixture
async def client(daemon: TestDaemon, vpc: str) -> AsyncIterator[Client]:
    async with daemon.client() as made:
        await declare(made, vpc)
        await set_dns(made, vpc, FIRST)
        yield made


async def set_dns(client: Client, namespace: str, *dns: IPv4Address) -> None:
    await client.update_vpc("v", VpcSpec(name="v", namespace=namespace, dns=dns))


def file_of(namespace: str) -> Path:
    return Path(NETNS_ETC_DIR, namespace, "resolv.conf")


def of_the_host() -> bytes:
    return Path("/etc/resolv.conf").read_bytes()


def seen_in(environment: Environment) -> list[str]:
    """The resolvers that a command under `ip netns exec` has, as a user without privileges."""
    command = [*NOBODY, "cat", "/etc/resolv.conf"]
    lines = run_in(environment.namespace, command).stdout.splitlines()
    return [line.split()[1] for line in lines if line.startswith("nameserver")]


async def test_a_fresh_namespace_has_the_vpc_s_resolvers(client: Client, vpc: str) -> None:
    before = of_the_host()
    environment = await start(client)
    assert seen_in(environment) == [str(FIRST)]
    await set_dns(client, vpc, SECOND, FIRST)
    assert seen_in(environment) == [str(SECOND), str(FIRST)]
    await set_dns(client, vpc)
    assert not file_of(environment.namespace).parent.exists()
    await set_dns(client, vpc, FIRST)
    assert seen_in(environment) == [str(FIRST)]
    await client.end_environment(environment.id)
    assert not file_of(environment.namespace).parent.exists()
    assert of_the_host() == before


async def test_one_from_the_pool_has_them_as_well(vpc: str) -> None:
    with TestDaemon(pool=2) as daemon:
        daemon.start()
        async with daemon.client() as client:
            await declare(client, vpc)
            await set_dns(client, vpc, FIRST)
            await until(client.status, lambda status: status.pool == 2)
            await set_dns(client, vpc, SECOND)
            environment = await start(client)
            assert environment.timings
            assert environment.timings.kernel == 0.0, "it is from the pool"
            assert seen_in(environment) == [str(SECOND)]
            names = daemon.fresh_namespaces()
            await client.end_environment(environment.id)
        daemon.end()
        assert not [name for name in names if file_of(name).parent.exists()]


async def test_a_namespace_that_was_given_is_its_owner_s(client: Client, netns_factory: Namespaces) -> None:
    box, other = netns_factory("box"), netns_factory("other")
    ours = file_of(other)
    ours.parent.mkdir(parents=True)
    try:
        ours.write_text("nameserver 192.0.2.53\n")
        for name in (box, other):
            environment = await start(client, name)
            await client.end_environment(environment.id)
        assert not file_of(box).parent.exists()
        assert ours.read_text() == "nameserver 192.0.2.53\n"
    finally:
        ours.unlink()
        ours.parent.rmdir()


def test_a_file_of_somebody_else_stays() -> None:
    path = file_of(f"{PREFIX}kept")
    path.parent.mkdir(parents=True)
    try:
        path.write_text("# by hand\n")
        write_resolvers(path.parent.name, [FIRST])
        remove_resolvers(path.parent.name)
        assert path.read_text() == "# by hand\n"
        path.unlink()
        (path.parent / "hosts").touch()
        write_resolvers(path.parent.name, [FIRST])
        assert str(FIRST) in path.read_text()
        remove_resolvers(path.parent.name)
        assert [one.name for one in path.parent.iterdir()] == ["hosts"]
    finally:
        (path.parent / "hosts").unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        path.parent.rmdir()


async def test_what_a_reboot_left_is_removed(daemon: TestDaemon, client: Client) -> None:
    environment = await start(client)
    left = f"hpenv-{daemon.places.mark}-0123abcd"
    write_resolvers(left, [FIRST])  # its namespace is no more
    daemon.kill()
    file_of(environment.namespace).unlink()
    daemon.start()
    assert not file_of(left).parent.exists()
    assert seen_in(environment) == [str(FIRST)]


async def test_anybody_may_ping_in_a_fresh_namespace_and_others_are_left_alone(
    client: Client, netns_factory: Namespaces
) -> None:
    environment = await start(client)
    setting = ["cat", "/proc/sys/net/ipv4/ping_group_range"]
    assert run_in(environment.namespace, setting).stdout.split() == ["0", "2147483647"]
    assert run_in(environment.namespace, [*NOBODY, "/usr/bin/python3", "-c", PING]).stdout == "0\n"
    box = netns_factory("box")
    before = run_in(box, setting).stdout
    await start(client, box)
    assert run_in(box, setting).stdout == before
