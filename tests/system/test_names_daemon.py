"""A daemon whose namespaces and descriptors are not what they were: names, processes, moved devices, senders."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hyperplane.client import Client
from hyperplane.errors import DeviceExists, InvalidValue, ResourceConflict
from hyperplane.linux.tun import open_tun
from hyperplane.resources import (
    Environment,
    EnvironmentSpec,
    EnvironmentState,
    FunctionSpec,
    FunctionState,
    SecurityGroupSpec,
    SubnetSpec,
    VpcSpec,
)

from . import traffic
from .daemons import SERVER, SUBNET, TestDaemon, declare, in_state, start, until
from .sockets import call_in
from .support import Namespaces, devices, ip, wait_until

ENDED = EnvironmentState.ENDED


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
    """A process that is in the namespace by now, with it as descriptor 9 too."""
    shell = ["sh", "-c", f"exec 9</run/netns/{name}; exec sleep 60"]
    process = namespaces.start_in(name, shell)
    key = os.stat(f"/run/netns/{name}").st_ino

    def there() -> bool:
        with suppress(OSError):
            return os.stat(f"/proc/{process.pid}/fd/9").st_ino == key == os.stat(f"/proc/{process.pid}/ns/net").st_ino
        return False

    wait_until(there)
    return process


class TestVpcs:
    async def test_given_by_a_process(
        self, daemon: TestDaemon, client: Client, vpc: str, netns_factory: Namespaces
    ) -> None:
        """It is lost with the process, and nothing is made again under that number until somebody asks for it."""
        process = started_in(netns_factory, vpc)
        await declare(client, f"pid:{process.pid}")
        box = netns_factory("box")
        environment = await start(client, box)
        async with traffic.connection(box, vpc, SERVER) as pair:
            await traffic.transfer(pair.client, pair.server, 10_000, 1)
        daemon.kill()
        daemon.start()
        assert (await client.get_environment(environment.id)).state is EnvironmentState.ATTACHED
        process.kill()
        assert f"process {process.pid} ended" in await ended(client, environment.id)
        function = await in_state(client, "f", FunctionState.FAILED)
        assert f"process {process.pid} ended" in function.state_reason
        assert (await client.reconcile()).changes == ()
        another = started_in(netns_factory, vpc)
        await client.update_vpc("v", VpcSpec(name="v", namespace=f"pid:{another.pid}"))
        await client.create_function(FunctionSpec(name="f", subnets=("s",), security_groups=("g",)))
        await in_state(client, "f", FunctionState.ACTIVE)

    async def test_gone_while_the_daemon_was_away(
        self, daemon: TestDaemon, client: Client, vpc: str, netns_factory: Namespaces
    ) -> None:
        """By a descriptor of a process. The engine has ended as well: no device says any more where it was."""
        process = started_in(netns_factory, vpc)
        await declare(client, f"/proc/{process.pid}/fd/9")
        daemon.kill()
        daemon.end_engine()
        process.kill()
        process.wait()
        daemon.start()
        function = await in_state(client, "f", FunctionState.FAILED)
        assert f"process {process.pid} ended" in function.state_reason

    @pytest.mark.parametrize("path", ["/proc/self/ns/net", "/proc/self/fd/3", "/proc/thread-self/ns/net"])
    async def test_the_daemon_itself_is_nobody_s(self, path: str, client: Client, vpc: str) -> None:
        with pytest.raises(InvalidValue, match="is the daemon's own"):
            await client.create_vpc(VpcSpec(name="own", namespace=path))
        await declare(client, vpc)
        with pytest.raises(InvalidValue, match="is the daemon's own"):
            await start(client, path)

    async def test_nor_what_it_has_open(self, vpc: str, netns_factory: Namespaces, tmp_path: Path) -> None:
        """By whatever links: it may be another one a moment later."""
        box = netns_factory("box")
        process = started_in(netns_factory, netns_factory("other"))
        (tmp_path / "link").symlink_to("/dev/fd/7")
        (tmp_path / "other").symlink_to(f"/proc/{process.pid}/fd/9")
        with TestDaemon() as daemon:
            daemon.start(prefix=("sh", "-c", f'exec 7</run/netns/{box}; exec "$@"', "sh"))
            assert daemon.process
            async with daemon.client() as client:
                await declare(client, vpc)
                with pytest.raises(InvalidValue, match="/dev/fd is the daemon's own"):
                    await start(client, "/dev/fd/7")
                for path in (f"/proc/{daemon.process.pid}/fd/7", str(tmp_path / "link")):
                    with pytest.raises(
                        InvalidValue, match=f"namespace {path} is a descriptor of the daemon; give pid:N"
                    ):
                        await start(client, path)
                with pytest.raises(InvalidValue, match="is the daemon's own"):
                    await start(client, f"pid:{daemon.process.pid}")
                assert (await start(client, str(tmp_path / "other"))).pid == process.pid
        assert devices(box) == {"lo"}


class TestEnvironments:
    @pytest.mark.parametrize("way", ["fd/9", "ns/net", "root/run/netns/NAME"])
    async def test_by_a_path_below_proc(
        self, way: str, daemon: TestDaemon, client: Client, vpc: str, netns_factory: Namespaces
    ) -> None:
        """It ends with the process, also when that was while the daemon was away."""
        await declare(client, vpc)
        for away in (False, True):
            box = netns_factory("box")
            process = started_in(netns_factory, box)
            environment = await start(client, f"/proc/{process.pid}/{way.replace('NAME', box)}")
            assert environment.pid == process.pid
            if away:
                daemon.kill()
            process.kill()
            process.wait()
            if away:
                daemon.start()
            assert await ended(client, environment.id) == f"process {process.pid} ended"

    async def test_a_file_that_was_unmounted(
        self, daemon: TestDaemon, client: Client, vpc: str, netns_factory: Namespaces, tmp_path: Path
    ) -> None:
        await declare(client, vpc)
        for away in (False, True):
            path = tmp_path / f"netns-{away}"
            path.touch()
            subprocess.run(["mount", "--bind", f"/run/netns/{netns_factory('box')}", path], check=True)  # noqa: ASYNC221
            environment = await start(client, str(path))
            if away:
                daemon.kill()
            subprocess.run(["umount", path], check=True)  # noqa: ASYNC221
            if away:
                daemon.start()
            reason = await ended(client, environment.id)
            # A later daemon finds a file that is no namespace.
            assert reason == f"namespace {path} was unmounted"

    async def test_a_device_that_was_moved(
        self, daemon: TestDaemon, client: Client, vpc: str, netns_factory: Namespaces
    ) -> None:
        """It is taken from where nobody named it, and made again where it belongs; also by a later daemon."""
        box, other = netns_factory("box"), netns_factory("other")
        await declare(client, vpc)
        environment = await start(client, box)
        for away in (False, True):
            if away:
                daemon.kill()
            ip("-n", box, "link", "set", "eth0", "netns", other)
            ip("-n", other, "link", "set", "eth0", "up")
            if away:
                daemon.start()
            await client.close()  # what it keeps open leads to a daemon that is no more
            wait_until(lambda: "eth0" not in devices(other) and "eth0" in devices(box))
            await client.reconcile()
            async with traffic.connection(box, vpc, SERVER) as pair:
                await traffic.transfer(pair.client, pair.server, 10_000, 1)
        assert (await client.get_environment(environment.id)).state is EnvironmentState.ATTACHED
        assert daemon.log.count('"the device of an environment is made again"') == 2
        assert daemon.log.count('"reason": "moved to another namespace"') == 2


class TestOneNamespaceTwice:
    async def test_whatever_way_it_is_named(
        self, daemon: TestDaemon, client: Client, vpc: str, netns_factory: Namespaces, tmp_path: Path
    ) -> None:
        """The second start is refused and says by whom; the first one is not disturbed. Also after a restart."""
        await declare(client, vpc)
        box = netns_factory("box")
        process = started_in(netns_factory, box)
        (tmp_path / "link").symlink_to(f"/run/netns/{box}")
        (tmp_path / "mounted").touch()
        subprocess.run(["mount", "--bind", f"/run/netns/{box}", tmp_path / "mounted"], check=True)  # noqa: ASYNC221
        pid = process.pid
        ways = [
            box, f"/run/netns/{box}", f"pid:{pid}", f"/proc/{pid}/ns/net", f"/proc/{pid}/fd/9",
            f"/proc/{pid}/task/{pid}/ns/net", str(tmp_path / "link"), str(tmp_path / "mounted"),
        ]  # fmt: skip
        try:
            for first in (box, f"pid:{pid}", ways[-1]):
                environment = await start(client, first, name="e1")
                for device in ("eth0", "eth1"):
                    for way in ways:
                        with pytest.raises(ResourceConflict, match=f"namespace {way} is used by environment e1;"):
                            await start(client, way, name="e2", device=device)
                assert devices(box) == {"lo", "eth0"}
                if first == box:
                    daemon.kill()
                    daemon.start()
                    await client.close()  # what it keeps open leads to a daemon that is no more
                    with pytest.raises(ResourceConflict, match="is used by environment e1;"):
                        await start(client, f"pid:{pid}", name="e2")
                async with traffic.connection(box, vpc, SERVER) as pair:
                    await traffic.transfer(pair.client, pair.server, 10_000, 1)
                await client.end_environment(environment.id)
        finally:
            subprocess.run(["umount", tmp_path / "mounted"], check=True)  # noqa: ASYNC221
        assert await start(client, f"pid:{pid}", name="e2")

    async def test_a_fresh_one(self, client: Client, vpc: str, netns_factory: Namespaces) -> None:
        await declare(client, vpc)
        fresh = await start(client)
        process = started_in(netns_factory, fresh.namespace)
        with pytest.raises(ResourceConflict, match=f"is used by environment {fresh.name};"):
            await start(client, f"pid:{process.pid}")
        process.kill()
        process.wait()

    async def test_a_refused_start_takes_nothing(self, client: Client, vpc: str, netns_factory: Namespaces) -> None:
        """A device that is nobody's environment is said to be there; without it the next start has the namespace."""
        await declare(client, vpc)
        box = netns_factory("box")
        ip("-n", box, "link", "add", "eth0", "type", "bridge")
        process = started_in(netns_factory, box)
        for way in (box, f"pid:{process.pid}"):
            with pytest.raises(DeviceExists, match="device eth0 exists already in the namespace; remove it"):
                await start(client, way)
        ip("-n", box, "link", "del", "eth0")
        assert await start(client, f"pid:{process.pid}")

    async def test_beside_a_device_by_descriptor(self, client: Client, vpc: str, netns_factory: Namespaces) -> None:
        """Two tunnels in a namespace on purpose: the other device is handed in. One of the same name is told whose."""
        await declare(client, vpc)
        box = netns_factory("box")
        fd = call_in(box, lambda: open_tun("eth1"))
        try:
            by_descriptor = EnvironmentSpec(function="f", descriptor=await client.send_descriptor(fd), name="e1")
            await client.start_environment(by_descriptor)
            with pytest.raises(ResourceConflict, match=f"namespace {box} is used by environment e1;"):
                await start(client, box, device="eth1")
            assert await start(client, box)
        finally:
            os.close(fd)


async def test_two_functions_of_one_vpc_by_process(client: Client, vpc: str, netns_factory: Namespaces) -> None:
    """Each has an ENI of its own there: both are lost."""
    process = started_in(netns_factory, vpc)
    await declare(client, f"pid:{process.pid}")
    await client.create_subnet(SubnetSpec(name="s2", vpc="v", cidr=type(SUBNET)("198.19.1.0/24")))
    await client.create_security_group(SecurityGroupSpec(name="g2", vpc="v"))
    await client.create_function(FunctionSpec(name="f2", subnets=("s2",), security_groups=("g2",)))
    await in_state(client, "f2", FunctionState.ACTIVE)
    process.kill()
    for name in ("f", "f2"):
        await in_state(client, name, FunctionState.FAILED)
