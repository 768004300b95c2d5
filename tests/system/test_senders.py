"""Environments on descriptors: who sent them, and which process they end with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest

from hyperplane.client import Client
from hyperplane.errors import InvalidValue
from hyperplane.linux.tun import open_tun
from hyperplane.resources import Environment, EnvironmentSpec, EnvironmentState

from .daemons import ROOT, TestDaemon, declare, start, until
from .sockets import call_in
from .support import Namespaces

ENDED = EnvironmentState.ENDED

# Sends the descriptor that it was started with, says what came back, and waits.
SENDER = """
import sys
from hyperplane.client import SyncClient
path, fd = sys.argv[1:]
with SyncClient(path=path) as client:
    print(client.send_descriptor(int(fd)), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def daemon() -> Iterator[TestDaemon]:
    with TestDaemon() as made:
        made.start()
        yield made


@pytest.fixture
async def client(daemon: TestDaemon) -> AsyncIterator[Client]:
    async with daemon.client() as made:
        yield made


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    made: list[subprocess.Popen[str]] = []
    yield made
    for process in made:
        with process:
            process.kill()


async def ended(client: Client, environment: str) -> str:
    """The reason, once it has ended."""

    async def look() -> Environment:
        return await client.get_environment(environment)

    return (await until(look, lambda found: found.state is ENDED)).reason


async def started_on(client: Client, token: str, **more: int) -> Environment:
    return await client.start_environment(EnvironmentSpec(function="f", descriptor=token, **more))  # type: ignore[arg-type]


async def senders(client: Client, sender: str) -> list[str]:
    return [one.id async for one in client.environments(sender=sender)]  # type: ignore[arg-type]


def token_of(sender: subprocess.Popen[str]) -> str:
    assert sender.stdout
    return sender.stdout.readline().strip()


class TestSenders:
    @pytest.fixture
    def tun(self, netns_factory: Namespaces) -> Iterator[int]:
        fd = call_in(netns_factory("box"), lambda: open_tun("tap0"))
        yield fd
        os.close(fd)

    @pytest.fixture
    def sender(self, daemon: TestDaemon, tun: int, processes: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
        """Its first line is the token."""
        command = [sys.executable, "-c", SENDER, str(daemon.places.api), str(tun)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        made = subprocess.Popen(command, cwd=ROOT, pass_fds=(tun,), text=True, **pipes)  # type: ignore[call-overload]
        processes.append(made)
        return made  # type: ignore[no-any-return]

    async def test_one_that_ends_is_said_to_be_gone(
        self, daemon: TestDaemon, client: Client, vpc: str, sender: subprocess.Popen[str]
    ) -> None:
        """Its environment goes on; that survives the daemon, which says it of later ends as well."""
        await declare(client, vpc)
        environment = await started_on(client, token_of(sender))
        assert environment.sender == "running"
        assert await senders(client, "running") == [environment.id]
        daemon.kill()
        daemon.start()
        assert (await client.get_environment(environment.id)).sender == "running"
        sender.kill()
        await until(lambda: senders(client, "gone"), lambda found: found == [environment.id])
        assert await senders(client, "running") == []
        assert daemon.log.count('"the sender of a descriptor has ended"') == 1
        daemon.kill()
        daemon.start()
        found = await client.get_environment(environment.id)
        assert (found.state, found.sender) == (EnvironmentState.ATTACHED, "gone")
        await client.end_environment(environment.id)
        assert (await client.get_environment(environment.id)).sender == ""

    async def test_one_that_ends_while_the_daemon_is_away(
        self, daemon: TestDaemon, client: Client, vpc: str, sender: subprocess.Popen[str]
    ) -> None:
        await declare(client, vpc)
        environment = await started_on(client, token_of(sender))
        daemon.kill()
        sender.kill()
        sender.wait()
        daemon.start()
        assert (await client.get_environment(environment.id)).sender == "gone"

    async def test_one_that_has_gone_before(self, client: Client, vpc: str, sender: subprocess.Popen[str]) -> None:
        """As a command that hands in a descriptor and exits. Environments that came otherwise have no sender."""
        await declare(client, vpc)
        token = token_of(sender)
        sender.kill()
        sender.wait()
        environment = await started_on(client, token)
        assert environment.sender == "gone"
        assert (await start(client)).sender == ""
        assert await senders(client, "gone") == [environment.id]
        with pytest.raises(InvalidValue, match=r"sender is 'lost'"):
            await senders(client, "lost")

    @pytest.mark.parametrize("away", [False, True])
    async def test_a_process_is_named_that_it_ends_with(
        self,
        away: bool,
        daemon: TestDaemon,
        client: Client,
        vpc: str,
        tun: int,
        processes: list[subprocess.Popen[str]],
    ) -> None:
        await declare(client, vpc)
        machine = subprocess.Popen(["sleep", "60"], text=True)  # noqa: ASYNC220
        processes.append(machine)
        environment = await started_on(client, await client.send_descriptor(tun), pid=machine.pid)
        assert (environment.pid, environment.sender) == (machine.pid, "")
        assert (await client.reconcile()).changes == ()
        if away:
            daemon.kill()
        machine.kill()
        machine.wait()
        if away:
            daemon.start()
        assert await ended(client, environment.id) == f"process {machine.pid} ended"
        assert await started_on(client, await client.send_descriptor(tun))

    async def test_a_process_that_cannot_be(self, client: Client, vpc: str, tun: int) -> None:
        await declare(client, vpc)
        token = await client.send_descriptor(tun)
        for pid, said in ((1 << 22, "no process 4194304"), (-1, "pid is -1"), ((1 << 22) + 1, "pid is 4194305")):
            with pytest.raises(InvalidValue, match=said):
                await started_on(client, token, pid=pid)
        with pytest.raises(InvalidValue, match="pid 1 is given without a descriptor; give namespace pid:1"):
            await client.start_environment(EnvironmentSpec(function="f", pid=1))
        assert await started_on(client, token, pid=os.getpid())
