"""VPCs in which somebody has to forward: what is said of their settings is what the kernel does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from itertools import product

import pytest

from hyperplane.attachment import Attachments
from hyperplane.linux.forwarding import look, troubles

from .daemons import ROOT, TestDaemon, declare, start, until
from .support import ALL, Namespaces, Within, blocking, ip, run_in

ENI, UPLINK, BEYOND = "198.19.0.5", "198.19.7.1", "198.19.8.10"


@pytest.fixture
def routed_vpc(netns_factory: Namespaces) -> tuple[str, str]:
    """A VPC whose servers are behind a router, and its uplink's name. The ENI's address lies in none of its subnets."""
    vpc, router = netns_factory("vpc"), netns_factory("router")
    uplink, other = netns_factory.connect(vpc, f"{UPLINK}/30", router, "198.19.7.2/30")
    ip("-n", router, "addr", "add", f"{BEYOND}/32", "dev", "lo")
    ip("-n", router, "route", "add", "198.19.0.0/24", "via", UPLINK, "dev", other)
    ip("-n", vpc, "route", "add", "default", "via", "198.19.7.2")
    return vpc, uplink


def write(namespace: str, **settings: int) -> None:
    for name, value in settings.items():
        run_in(namespace, ["sysctl", "-q", f"net.ipv4.{name.replace('__', '.')}={value}"])


def reaches(box: str, address: str, seconds: int = 5) -> bool:
    """Whether an answer comes within that time."""
    ping = ["ping", "-c", "1", "-i", "0.2", "-w", str(seconds), address]
    return run_in(box, ping, check=False).returncode == 0


async def test_the_rule_is_the_kernels(
    attachments: Attachments, routed_vpc: tuple[str, str], netns_factory: Namespaces, within: Within
) -> None:
    """Every combination, and also the namespace's own setting, which does not count."""
    vpc, uplink = routed_vpc
    box = netns_factory("box")
    eni = await attachments.open_eni(vpc=vpc, addresses=ENI, security_groups=ALL)
    await attachments.attach(eni, namespace=box)
    for everybody, own, other in product((0, 1), repeat=3):
        write(vpc, ip_forward=1 - everybody)  # so that the next one changes something
        write(vpc, ip_forward=everybody, conf__eni0__forwarding=own, **{f"conf__{uplink}__forwarding": other})
        devices, routed = within(vpc, lambda _: look())
        found = {one.device for one in troubles("eni0", devices, routed, ["eni0"])}
        assert found == {name for name, value in (("eni0", own), (uplink, other)) if not value}
        assert reaches(box, BEYOND, 1 if found else 5) is (not found), (everybody, own, other)
        assert reaches(box, UPLINK)  # an address of the namespace's own needs none


def doctor(daemon: TestDaemon, vpc: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Its exit code, and what it says of the namespace, by the check's name."""
    command = [sys.executable, "-m", "hyperplane.cli", "doctor", "--vpc", vpc, "--json"]
    run_dir = {"HYPERPLANE_RUN_DIR": str(daemon.directory / "run")}
    done = subprocess.run(command, cwd=ROOT, env=os.environ | run_dir, capture_output=True, text=True, timeout=60)
    return done.returncode, {one["check"].removesuffix(f" in {vpc}"): one for one in json.loads(done.stdout)}


async def test_doctor_names_eni_and_setting(
    daemon: TestDaemon, routed_vpc: tuple[str, str], netns_factory: Namespaces
) -> None:
    vpc, uplink = routed_vpc
    box = netns_factory("box")
    async with daemon.client() as client:
        (function,) = [await declare(client, vpc)]
        await start(client, box)
        eni = await client.get_eni(function.enis[0])
    assert not reaches(box, BEYOND, 1)
    code, said = doctor(daemon, vpc)
    assert (code, said["ENIs"]["state"]) == (1, "fail")
    settings = [f"net.ipv4.conf.{device}.forwarding is 0" for device in (eni.device, uplink)]
    assert said["ENIs"]["found"].startswith(f"{eni.device} ({eni.id}): {' and '.join(settings)}: ")
    for again in (False, True):
        if again:  # ip_forward is 1 by then, and writing that once more would change nothing
            write(vpc, **{f"conf__{uplink}__forwarding": 0})
            assert not reaches(box, BEYOND, 1)
            code, said = doctor(daemon, vpc)
            assert code == 1
        await blocking(run_in, vpc, said["ENIs"]["remedy"].removeprefix(f"ip netns exec {vpc} ").split())
        assert reaches(box, BEYOND)
        code, said = doctor(daemon, vpc)
        assert (code, said["ENIs"]["state"]) == (0, "ok")


async def test_doctor_says_what_the_daemon_cannot_put_right(daemon: TestDaemon, netns_factory: Namespaces) -> None:
    vpc, server = netns_factory("vpc"), netns_factory("server")
    uplink, _ = netns_factory.connect(vpc, "198.19.0.1/24", server, "198.19.0.80/24")
    async with daemon.client() as client:
        await declare(client, vpc)
        assert doctor(daemon, vpc)[1]["daemon"]["state"] == "ok"
        ip("-n", vpc, "link", "set", uplink, "down")
        await until(client.health, lambda health: bool(health.reasons))
        code, said = doctor(daemon, vpc)
        assert (code, said["daemon"]["state"]) == (1, "fail")
        assert said["daemon"]["found"].startswith(f"device {uplink} is down: ENI address 198.19.0.2 is not found")
        assert said["daemon"]["remedy"] == f"`ip link set {uplink} up`"
        ip("-n", vpc, "link", "set", uplink, "up")
        await until(client.health, lambda health: not health.reasons)
        assert doctor(daemon, vpc)[1]["daemon"]["state"] == "ok"


async def test_without_a_daemon_the_device_alone_is_named(
    attachments: Attachments, routed_vpc: tuple[str, str], daemon: TestDaemon
) -> None:
    vpc, _ = routed_vpc
    await attachments.open_eni(vpc=vpc, addresses=ENI, security_groups=ALL)
    daemon.end()
    _, said = doctor(daemon, vpc)
    assert said["ENIs"]["found"].startswith("eni0: net.ipv4.conf.eni0.forwarding is 0 and ")
    write(vpc, ip_forward=1)
    assert doctor(daemon, vpc)[1]["ENIs"]["state"] == "ok"


async def test_a_vpc_with_only_servers_of_its_own_needs_nothing(
    attachments: Attachments, vpc: str, daemon: TestDaemon
) -> None:
    """Its bridge has no ports; its ENI's address lies elsewhere."""
    await attachments.open_eni(vpc=vpc, addresses="203.0.113.5", security_groups=ALL)
    assert doctor(daemon, vpc)[1]["ENIs"]["state"] == "ok"


@pytest.fixture
def daemon() -> Iterator[TestDaemon]:
    with TestDaemon() as made:
        made.start()
        yield made
