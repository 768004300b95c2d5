"""A daemon, its engine, and real namespaces: what is declared is there, what has ended is gone."""

from __future__ import annotations

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from hyperplane.client import Client
from hyperplane.errors import (
    DeviceExists,
    FunctionNotActive,
    InvalidValue,
    NamespaceNotFound,
    NotATunnel,
    ResourceConflict,
    ResourceNotFound,
)
from hyperplane.linux.tun import open_tun
from hyperplane.resources import (
    EniState,
    Environment,
    EnvironmentSpec,
    EnvironmentState,
    FunctionSpec,
    FunctionState,
    ReasonCode,
    SecurityGroupSpec,
    SubnetSpec,
    VpcSpec,
)

from . import traffic
from .daemons import SERVER, SUBNET, TestDaemon, declare, in_state, start, until
from .sockets import call_in, reachable
from .support import Namespaces, devices, eventually, ip, ip_json, wait_until

ATTACHED, ENDED = EnvironmentState.ATTACHED, EnvironmentState.ENDED


@pytest.fixture
def daemon() -> Iterator[TestDaemon]:
    with TestDaemon() as made:
        made.start()
        yield made


@pytest.fixture
async def client(daemon: TestDaemon) -> AsyncIterator[Client]:
    async with daemon.client() as made:
        yield made


async def ended(client: Client, environment: str) -> str:
    """The reason, once it has ended."""

    async def look() -> Environment:
        return await client.get_environment(environment)

    return (await until(look, lambda found: found.state is ENDED)).reason


def started_in(namespaces: Namespaces, name: str) -> subprocess.Popen[str]:
    """A process that is in the namespace by now."""
    process = namespaces.start_in(name, ["sleep", "60"])
    key = os.stat(f"/run/netns/{name}").st_ino
    wait_until(lambda: os.stat(f"/proc/{process.pid}/ns/net").st_ino == key)
    return process


class TestLifecycle:
    async def test_from_the_vpc_to_the_last_deletion(
        self, daemon: TestDaemon, client: Client, vpc: str, netns_factory: Namespaces
    ) -> None:
        function = await declare(client, vpc)
        (eni,) = (await client.list_enis()).items
        assert function.enis == (eni.id,)
        assert eni.state is EniState.AVAILABLE
        assert eni.device in devices(vpc)
        box = netns_factory("box")
        environment = await start(client, box)
        assert environment.state is ATTACHED
        assert environment.namespace == box
        assert environment.timings
        assert environment.timings.total == pytest.approx(
            sum(getattr(environment.timings, part) for part in ("kernel", "engine", "wait", "daemon"))
        )
        async with traffic.connection(box, vpc, SERVER) as pair:
            await traffic.transfer(pair.client, pair.server, 100_000, 1)
            (flow,) = (await client.list_flows(environment=environment.id)).items
            assert (flow.tunnel, flow.eni, flow.outside) == (environment.id, eni.id, eni.addresses[0])
            assert await client.get_flow(flow.id)
        before = (await client.status()).traffic
        assert (before.flows, before.flows_created) == (1, 1)
        gone = await client.end_environment(environment.id)
        assert (gone.state, gone.reason) == (ENDED, "deleted")
        assert devices(box) == {"lo"}
        await client.delete_function("f")
        await eventually(lambda: eni.device not in devices(vpc))
        after = (await client.status()).traffic
        assert (after.flows, after.flows_created) == (0, 1)
        assert after.packets_in >= before.packets_in > 0, "a sum has fallen"
        await client.delete_security_group("g")
        await client.delete_subnet("s")
        await client.delete_vpc("v")
        await until(client.status, lambda status: not status.resources["eni"])

    async def test_a_fresh_namespace_is_made_and_deleted(self, daemon: TestDaemon, client: Client, vpc: str) -> None:
        await declare(client, vpc)
        environment = await start(client)
        assert environment.fresh
        assert daemon.fresh_namespaces() == {environment.namespace}
        assert reachable(environment.namespace, SERVER, 9) is False  # and not "no such namespace"
        states = {one["ifname"]: one["flags"] for one in ip_json("-n", environment.namespace, "link")}
        assert set(states) == {"lo", "eth0"}
        assert "UP" in states["lo"]
        await client.end_environment(environment.id)
        assert not daemon.fresh_namespaces()

    async def test_name_path_and_pid(self, client: Client, vpc: str, netns_factory: Namespaces) -> None:
        await declare(client, vpc)
        one, two, three = (netns_factory("box") for _ in range(3))
        process = started_in(netns_factory, three)
        made = [
            await start(client, one),
            await start(client, f"/run/netns/{two}", device="tun7"),
            await start(client, f"pid:{process.pid}"),
        ]
        assert made[2].pid == process.pid
        assert [devices(box) for box in (one, two, three)] == [{"lo", "eth0"}, {"lo", "tun7"}, {"lo", "eth0"}]
        for box in (one, f"/run/netns/{one}", two):
            with pytest.raises(ResourceConflict, match="is used by environment"):
                await start(client, box)

    async def test_what_cannot_be_started_leaves_nothing(
        self, client: Client, vpc: str, netns_factory: Namespaces
    ) -> None:
        await declare(client, vpc)
        box = netns_factory("box")
        ip("-n", box, "link", "add", "eth0", "type", "bridge")
        for namespace, error in (
            ("hpt-not-there", NamespaceNotFound),
            ("pid:4194303", NamespaceNotFound),
            ("/etc/passwd", NamespaceNotFound),
            ("fd:3", InvalidValue),
            (f"pid:{os.getpid()}", InvalidValue),
            (vpc, InvalidValue),
        ):
            with pytest.raises(error):
                await start(client, namespace)
        with pytest.raises(DeviceExists, match="eth0 exists already"):
            await start(client, box)
        assert {one.state for one in (await client.list_environments()).items} == {ENDED}
        ip("-n", box, "link", "del", "eth0")
        assert (await start(client, box)).state is ATTACHED

    async def test_the_same_token_starts_once(self, client: Client, vpc: str, netns_factory: Namespaces) -> None:
        await declare(client, vpc)
        box = netns_factory("box")
        made = await asyncio.gather(*(start(client, box, client_token="t") for _ in range(5)))
        assert len({one.id for one in made}) == 1
        await client.end_environment(made[0].id)
        with pytest.raises(ResourceConflict, match="has ended: deleted"):
            await start(client, box, client_token="t")

    async def test_a_start_waits_for_its_eni(self, client: Client, vpc: str) -> None:
        await declare(client, vpc)
        await client.create_security_group(SecurityGroupSpec(name="g2", vpc="v"))
        await client.create_function(FunctionSpec(name="f2", subnets=("s",), security_groups=("g2",)))
        environment = await client.start_environment(EnvironmentSpec(function="f2"))
        assert environment.state is ATTACHED

    async def test_functions_share_an_eni_by_subnet_and_groups(self, client: Client, vpc: str) -> None:
        one = await declare(client, vpc)
        await client.create_security_group(SecurityGroupSpec(name="g2", vpc="v"))
        same = await client.create_function(FunctionSpec(name="f2", subnets=("s",), security_groups=("g",)))
        other = await client.create_function(FunctionSpec(name="f3", subnets=("s",), security_groups=("g2",)))
        assert same.enis == one.enis
        assert other.enis != one.enis
        assert len([name for name in devices(vpc) if name.startswith("eni")]) <= 2

    async def test_rules_change_under_running_environments(
        self, client: Client, vpc: str, netns_factory: Namespaces
    ) -> None:
        await declare(client, vpc, rules=())
        box = netns_factory("box")
        await start(client, box)
        listener = traffic.tcp_listener(vpc, SERVER)
        port = listener.getsockname()[1]
        assert not reachable(box, SERVER, port)
        await client.update_security_group("g", SecurityGroupSpec(name="g", vpc="v", rules=(f"tcp/{port}",)))
        await eventually(lambda: reachable(box, SERVER, port))
        listener.close()

    async def test_two_instances_side_by_side(
        self, daemon: TestDaemon, client: Client, netns_factory: Namespaces
    ) -> None:
        with TestDaemon(instance="other") as second:
            second.start()
            async with second.client() as other:
                for each in (client, other):
                    await declare(each, netns_factory("vpc"))
                ours, theirs = await start(client), await start(other)
                assert daemon.fresh_namespaces() == {ours.namespace}
                assert second.fresh_namespaces() == {theirs.namespace}


class TestEnds:
    async def test_a_deleted_namespace(self, client: Client, vpc: str, netns_factory: Namespaces) -> None:
        await declare(client, vpc)
        box = netns_factory("box")
        environment = await start(client, box)
        netns_factory.delete(box)
        assert await ended(client, environment.id) == f"namespace {box} was deleted"

    async def test_a_process_that_ends(self, client: Client, vpc: str, netns_factory: Namespaces) -> None:
        await declare(client, vpc)
        process = started_in(netns_factory, netns_factory("box"))
        environment = await start(client, f"pid:{process.pid}")
        process.kill()
        assert await ended(client, environment.id) == f"process {process.pid} ended"

    async def test_the_vpc_s_namespace_takes_all_with_it(
        self, client: Client, vpc: str, netns_factory: Namespaces
    ) -> None:
        await declare(client, vpc)
        environment = await start(client)
        netns_factory.delete(vpc)
        assert f"namespace {vpc} was deleted" in await ended(client, environment.id)
        function = await in_state(client, "f", FunctionState.FAILED)
        assert function.state_reason_code is ReasonCode.INVALID_SUBNET
        with pytest.raises(FunctionNotActive, match="was deleted"):
            await start(client)

    async def test_a_vpc_that_is_not_there(self, client: Client, netns_factory: Namespaces) -> None:
        await client.create_vpc(VpcSpec(name="v", namespace="hpt-none"))
        await client.create_subnet(SubnetSpec(name="s", vpc="v", cidr=SUBNET))
        await client.create_security_group(SecurityGroupSpec(name="g", vpc="v"))
        spec = FunctionSpec(name="f", subnets=("s",), security_groups=("g",))
        await client.create_function(spec)
        function = await in_state(client, "f", FunctionState.FAILED)
        assert function.state_reason.startswith("no network namespace hpt-none")

    async def test_immediate_deletion_resets_both_sides(
        self, client: Client, vpc: str, netns_factory: Namespaces
    ) -> None:
        await declare(client, vpc)
        box = netns_factory("box")
        environment = await start(client, box)
        async with traffic.connection(box, vpc, SERVER) as pair:
            await client.end_environment(environment.id)
            for side in (pair.client, pair.server):
                with pytest.raises(ConnectionResetError):
                    await asyncio.wait_for(asyncio.get_running_loop().sock_recv(side, 1), 5)

    async def test_a_drain_lets_connections_come_to_their_end(
        self, client: Client, vpc: str, netns_factory: Namespaces
    ) -> None:
        await declare(client, vpc)
        box = netns_factory("box")
        environment = await start(client, box)
        async with traffic.connection(box, vpc, SERVER) as pair:
            assert (await client.end_environment(environment.id, drain=30.0)).state is EnvironmentState.DETACHING
            with traffic.tcp_listener(vpc, SERVER) as listener:
                await eventually(lambda: not reachable(box, SERVER, listener.getsockname()[1]))
            await traffic.transfer(pair.client, pair.server, 100_000, 1)
            assert (await client.get_environment(environment.id)).state is EnvironmentState.DETACHING
            # A second deletion shortens it.
            await client.end_environment(environment.id, drain=0.05)
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(asyncio.get_running_loop().sock_recv(pair.server, 1), 5)
        assert await ended(client, environment.id) == "deleted"
        assert devices(box) == {"lo"}


async def start_on(client: Client, fd: int) -> Environment:
    return await client.start_environment(EnvironmentSpec(function="f", descriptor=await client.send_descriptor(fd)))


class TestDescriptors:
    async def test_a_platform_attaches_by_descriptor(self, client: Client, vpc: str, netns_factory: Namespaces) -> None:
        await declare(client, vpc)
        box = netns_factory("box")
        fd = call_in(box, lambda: open_tun("tap0"))
        ip("-n", box, "addr", "add", "198.18.0.2/32", "dev", "tap0")
        ip("-n", box, "link", "set", "tap0", "up")
        ip("-n", box, "route", "add", "default", "dev", "tap0")
        try:
            token = await client.send_descriptor(fd)
            environment = await client.start_environment(EnvironmentSpec(function="f", descriptor=token))
            assert (environment.namespace, environment.device) == ("", "tap0")
            async with traffic.connection(box, vpc, SERVER) as pair:
                await traffic.transfer(pair.client, pair.server, 100_000, 1)
            with pytest.raises(ResourceNotFound, match="no such descriptor"):
                await client.start_environment(EnvironmentSpec(function="f", descriptor=token))
            await client.end_environment(environment.id)
            assert "tap0" in devices(box)  # it is the platform's
        finally:
            os.close(fd)

    async def test_a_device_is_one_environment_s(
        self, daemon: TestDaemon, client: Client, vpc: str, netns_factory: Namespaces
    ) -> None:
        """Handed in twice, it would give each environment some of its packets. Also after a restart of the daemon."""
        await declare(client, vpc)
        fd = call_in(netns_factory("box"), lambda: open_tun("tap0"))
        other = call_in(netns_factory("other"), lambda: open_tun("tap0"))
        try:
            first = await start_on(client, fd)
            with pytest.raises(ResourceConflict, match=f"tap0 is the tunnel of environment {first.name} already"):
                await start_on(client, fd)
            await start_on(client, other)
            daemon.kill()
            daemon.start()
            with pytest.raises(ResourceConflict, match="tap0 is the tunnel"):
                await start_on(client, fd)
            await client.end_environment(first.id)
            assert await start_on(client, fd)
        finally:
            os.close(fd)
            os.close(other)

    async def test_what_is_no_tun_is_refused(self, client: Client) -> None:
        read, write = os.pipe()
        try:
            with pytest.raises(NotATunnel, match=r"^the descriptor is no TUN device; give"):
                await client.send_descriptor(read)
        finally:
            os.close(read)
            os.close(write)

    async def test_a_refused_start_keeps_the_descriptor(
        self, client: Client, vpc: str, netns_factory: Namespaces
    ) -> None:
        await declare(client, vpc)
        fd = call_in(netns_factory("box"), lambda: open_tun("tap0"))
        try:
            token = await client.send_descriptor(fd)
            with pytest.raises(ResourceNotFound):
                await client.start_environment(EnvironmentSpec(function="none", descriptor=token))
            assert await client.start_environment(EnvironmentSpec(function="f", descriptor=token))
        finally:
            os.close(fd)


UNPRIVILEGED = """
import ctypes, os, sys
from hyperplane.client import SyncClient
from hyperplane.resources import EnvironmentSpec, VpcSpec
path, wanted = sys.argv[1:]
if wanted == "own":
    uid = os.getuid()
    assert ctypes.CDLL(None, use_errno=True).unshare(0x50000000) == 0  # CLONE_NEWUSER | CLONE_NEWNET
    wanted = f"pid:{os.getpid()}"
with SyncClient(path=path) as client:
    try:
        if wanted.startswith("vpc "):
            print("declared", client.create_vpc(VpcSpec(name="v", namespace=wanted[4:])).id)
        else:
            print(client.start_environment(EnvironmentSpec(function="f", namespace=wanted)).state)
    except Exception as error:
        print(type(error).__name__, error)
sys.stdout.flush()
"""


PLATFORM = """
import ctypes, fcntl, os, socket, struct, sys
from ipaddress import IPv4Address, IPv4Network
assert ctypes.CDLL(None, use_errno=True).unshare(0x50000000) == 0  # CLONE_NEWUSER | CLONE_NEWNET
from hyperplane.client import SyncClient
from hyperplane.linux import netlink
from hyperplane.resources import EnvironmentSpec
path, server, port, node = sys.argv[1:]
fd = os.open(node, os.O_RDWR)
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"tap0", 0x5001))  # TUNSETIFF: IFF_TUN, IFF_NO_PI, IFF_VNET_HDR
netlink.configure("tap0", mtu=1500, address=IPv4Address("198.18.0.2"), routes=[IPv4Network("0.0.0.0/0")])
with SyncClient(path=path) as client:
    environment = client.start_environment(EnvironmentSpec(function="f", descriptor=client.send_descriptor(fd)))
    with socket.create_connection((server, int(port)), timeout=10) as connection:
        print(environment.state, environment.device, connection.recv(100).decode(), flush=True)
    client.end_environment(environment.id)
"""


class TestPeers:
    async def test_a_platform_without_privileges_attaches_by_descriptor(self, vpc: str) -> None:
        with TestDaemon(group="nogroup") as daemon, traffic.tcp_listener(vpc, SERVER) as listener:
            daemon.start()
            async with daemon.client() as client:
                await declare(client, vpc)
            # /dev/net/tun as distributions have it, for everybody.
            node = daemon.directory / "tun"
            os.mknod(node, stat.S_IFCHR | 0o666, os.stat("/dev/net/tun").st_rdev)
            os.chmod(node, 0o666)
            where = (str(daemon.places.api), SERVER, str(listener.getsockname()[1]), str(node))
            words = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", sys.executable, "-c"]
            process = await asyncio.create_subprocess_exec(*words, PLATFORM, *where, stdout=asyncio.subprocess.PIPE)
            async with asyncio.timeout(30):
                accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
                with accepted:
                    await asyncio.get_running_loop().sock_sendall(accepted, b"hello")
                    said, _ = await process.communicate()
            assert said == b"attached tap0 hello\n"
            assert process.returncode == 0

    async def test_whose_namespaces_a_user_may_give(self, vpc: str, netns_factory: Namespaces) -> None:
        with TestDaemon(group="nogroup") as daemon:
            daemon.start()
            box = netns_factory("box")
            async with daemon.client() as client:
                await declare(client, vpc)

            def as_nobody(wanted: str) -> str:
                words = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", sys.executable, "-c"]
                done = subprocess.run(
                    [*words, UNPRIVILEGED, str(daemon.places.api), wanted],
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                assert not done.stderr, done.stderr
                return done.stdout

            assert as_nobody("own") == "attached\n"
            assert as_nobody("") == "attached\n"
            for namespace, answer in ((vpc, "declared"), ("pid:1", "AccessDenied"), ("/run/netns/x", "AccessDenied")):
                assert as_nobody(f"vpc {namespace}").startswith(answer), namespace
            for other in ("pid:1", f"pid:{os.getpid()}", box, f"/run/netns/{box}", "/proc/1/ns/net"):
                assert as_nobody(other).startswith("AccessDenied"), other
            assert devices(box) == {"lo"}


async def test_many_starts_at_once_are_all_served(daemon: TestDaemon, vpc: str) -> None:
    async with Client(path=daemon.places.api, timeout=100) as client:
        await declare(client, vpc)
        made = await asyncio.gather(*(start(client) for _ in range(200)))
        assert {one.state for one in made} == {ATTACHED}
        assert len(daemon.fresh_namespaces()) == 200
        ends = await asyncio.gather(*(client.end_environment(one.id) for one in made))
        assert {one.state for one in ends} == {ENDED}
    assert not daemon.fresh_namespaces()
