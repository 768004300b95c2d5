"""Guests that own the inside address, behind an environment's namespace: what stays when devices are made again.

A namespace behind a veth stands for the guest behind a TAP, but in one test, which has a real one; more of them are in
docs/guests.md, whose commands are run too.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from subprocess import DEVNULL

import pytest

from hyperplane.attachment import Attachments
from hyperplane.client import Client
from hyperplane.dataplane import Eni
from hyperplane.errors import InvalidValue
from hyperplane.model import Reason
from hyperplane.resources import EnvironmentState

from .daemons import SERVER, TestDaemon, declare, start, until
from .guest import machine, said
from .support import Namespaces, eventually, ip, ip_json, run_in

INSIDE, GATEWAY = "198.18.0.2", "198.18.0.1"
BOOTED = 60.0  # seconds until a virtual machine has started


@pytest.fixture
def daemon() -> Iterator[TestDaemon]:
    with TestDaemon() as made:
        made.start()
        yield made


@pytest.fixture
async def client(daemon: TestDaemon) -> AsyncIterator[Client]:
    async with daemon.client() as made:
        yield made


def guest(namespaces: Namespaces, box: str) -> str:
    """A guest of a namespace: behind a device "tap0" there, with the inside address and a default route."""
    name = namespaces("guest")
    ip("-n", box, "link", "add", "tap0", "type", "veth", "peer", "eth0", "netns", name)
    set_up(box)
    ip("-n", name, "link", "set", "eth0", "up")
    ip("-n", name, "addr", "add", f"{INSIDE}/30", "dev", "eth0")
    ip("-n", name, "route", "add", "default", "via", GATEWAY)
    return name


def set_up(box: str) -> None:
    """What a platform sets on the TAP of its guest."""
    ip("-n", box, "addr", "add", f"{GATEWAY}/30", "dev", "tap0")
    ip("-n", box, "link", "set", "tap0", "up")
    run_in(box, ["sysctl", "-q", "net.ipv4.conf.tap0.forwarding=1"])


def reaches(name: str, seconds: int = 5) -> bool:
    """Whether an answer comes within that time."""
    ping = ["ping", "-c", "1", "-i", "0.2", "-w", str(seconds), SERVER]
    return run_in(name, ping, check=False).returncode == 0


def addresses(box: str) -> list[str]:
    """Of the environment's device."""
    (link,) = ip_json("-n", box, "addr", "show", "dev", "eth0")
    return [one["local"] for one in link["addr_info"] if one["family"] == "inet"]


async def made_again(client: Client, daemon: TestDaemon, how: str, box: str) -> None:
    """Has the environment's device made again."""
    if how == "deleted":
        ip("-n", box, "link", "del", "eth0")
        await client.reconcile()  # what the watch has not put right by itself is now
    else:  # daemon and engine both die
        daemon.kill()
        daemon.end_engine()
        daemon.start()


@pytest.mark.parametrize("how", ["deleted", "engine lost"])
async def test_a_guest_keeps_its_address_when_the_device_is_made_again(
    daemon: TestDaemon, client: Client, vpc: str, netns_factory: Namespaces, how: str
) -> None:
    box = netns_factory("box")
    inside = guest(netns_factory, box)
    await declare(client, vpc, routed=True)
    environment = await start(client, box)
    assert environment.routed
    assert reaches(inside)
    await made_again(client, daemon, how, box)
    async with daemon.client() as again:
        found = await again.get_environment(environment.id)
        assert (found.state, found.routed) == (EnvironmentState.ATTACHED, True)
        assert addresses(box) == []
        assert reaches(inside)
        assert (await again.reconcile()).changes == ()


async def test_a_virtual_machine_goes_on_when_the_device_is_made_again(
    client: Client, vpc: str, netns_factory: Namespaces, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text("hello\n")
    command = [sys.executable, "-m", "http.server", "80", "--bind", SERVER, "--directory", str(tmp_path)]
    netns_factory.start_in(vpc, command, stdout=DEVNULL, stderr=DEVNULL)
    box, log = netns_factory("box"), tmp_path / "log"
    await declare(client, vpc)
    await start(client, box, routed=True)
    with machine(box, log, address=f"{INSIDE}/30", gateway=GATEWAY, fetch=f"http://{SERVER}/"):
        set_up(box)
        await eventually(lambda: "hello" in said(log), BOOTED)
        ip("-n", box, "link", "del", "eth0")
        await client.reconcile()
        before = said(log).count("hello")
        await eventually(lambda: said(log).count("hello") > before + 1)
        assert addresses(box) == []


@pytest.mark.parametrize(
    "command",
    [
        ["sysctl", "-q", "net.ipv4.conf.eth0.forwarding=0"],
        ["ip", "route", "flush", "dev", "eth0"],
        # The kernel deletes all routes of a device with its last address.
        ["sh", "-c", f"ip addr add {INSIDE}/32 dev eth0 && ip addr flush dev eth0"],
        ["ip", "link", "set", "eth0", "down"],
    ],
)
async def test_what_others_change_is_put_right_without_an_address(
    client: Client, vpc: str, netns_factory: Namespaces, command: list[str]
) -> None:
    box = netns_factory("box")
    inside = guest(netns_factory, box)
    await declare(client, vpc, routed=True)
    await start(client, box)
    assert reaches(inside)
    run_in(box, command)
    assert await eventually(lambda: reaches(inside, 1))
    assert addresses(box) == []
    assert (await client.reconcile()).changes == ()


async def test_what_the_namespace_itself_sends_is_not_the_guests(
    client: Client, vpc: str, netns_factory: Namespaces
) -> None:
    """It has no address of the environment, and the drop says so."""
    box = netns_factory("box")
    guest(netns_factory, box)
    await declare(client, vpc)
    environment = await start(client, box, routed=True)
    assert not reaches(box, 1)

    async def dropped() -> set[tuple[Reason, str]]:
        return {(one.reason, str(one.source)) async for one in client.drops(environment=environment.id)}

    assert await until(dropped, bool) == {(Reason.SPOOFED_SOURCE, GATEWAY)}


async def test_a_fresh_namespace_can_hold_a_guest(
    daemon: TestDaemon, client: Client, vpc: str, netns_factory: Namespaces
) -> None:
    """From the pool as well: it keeps those with and without an address apart."""
    daemon.end()
    daemon.start(pool=2)
    async with daemon.client() as again:
        await declare(again, vpc, routed=True)
        for _ in range(3):
            environment = await start(again)
            box = environment.namespace.removeprefix("/run/netns/")
            assert addresses(box) == []
            assert reaches(guest(netns_factory, box))
        other = await start(again, routed=False)
        assert addresses(other.namespace.removeprefix("/run/netns/")) == [INSIDE]


async def test_in_a_process_of_ones_own(attachments: Attachments, eni: Eni, netns_factory: Namespaces) -> None:
    box = netns_factory("box")
    inside = guest(netns_factory, box)
    attachment = await attachments.attach(eni, namespace=box, routed=True)
    assert str(attachment.tunnel.address) == INSIDE
    assert addresses(box) == []
    assert await eventually(lambda: reaches(inside))


async def test_a_descriptor_is_set_up_by_others(client: Client, vpc: str) -> None:
    await declare(client, vpc)
    with pytest.raises(InvalidValue, match="routed and descriptor"):
        await start(client, descriptor="one", routed=True)
