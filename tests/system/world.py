"""One VPC and the environments attached to it, all with inside address 198.18.0.2, for tests with real programs."""

from __future__ import annotations

import asyncio
import itertools
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Any

from hyperplane.attachment import Attachment, Attachments
from hyperplane.dataplane import Engine, Eni, SecurityGroup, Tunnel
from hyperplane.model import Flow, Reason

from .servers import in_namespace
from .support import Namespaces, ip

INSIDE = "198.18.0.2"
SERVER, OTHER_SERVER = "198.19.0.10", "198.19.0.11"
# A new ENI address for each world: what servers still send to an earlier one concerns nobody.
_addresses = itertools.cycle(f"198.19.0.{number}" for number in range(64, 250))
ALL = (SecurityGroup.parse("all", ["all"]),)


@dataclass(eq=False)
class Environment:
    """An execution environment: a namespace, and its tunnel under the same name."""

    name: str
    attachment: Attachment

    @property
    def tunnel(self) -> Tunnel:
        return self.attachment.tunnel

    async def run(self, *command: str, seconds: float = 60.0, status: int = 0) -> str:
        return await run(self.name, *command, seconds=seconds, status=status)


@dataclass(eq=False)
class World:
    vpc: str
    attachments: Attachments
    eni: Eni
    environments: list[Environment] = field(default_factory=list)

    @property
    def address(self) -> str:
        """The ENI's: all that servers see of the environments."""
        return str(self.eni.addresses[0])

    @property
    def engine(self) -> Engine:
        return self.attachments.engine

    async def attach(self, namespace: str, **options: Any) -> Environment:
        attachment = await self.attachments.attach(self.eni, namespace=namespace, **options)
        environment = Environment(namespace, attachment)
        self.environments.append(environment)
        return environment

    def drops(self, link: Eni | Tunnel) -> dict[Reason, int]:
        return {Reason(word): count for word, count in self.engine.counters(link).drops.items()}

    def owners(self, protocol: str, remote: str, port: int) -> dict[int, Flow]:
        """The flows towards one destination by the only thing that the server sees of them: their outside port."""
        found: dict[int, Flow] = {}
        for flow in self.engine.flows():
            if (flow.protocol, str(flow.remote), flow.remote_port) == (protocol, remote, port):
                assert flow.outside_port not in found, "two flows with one outside port towards one destination"
                assert (flow.inside, flow.outside) == (IPv4Address(INSIDE), self.eni.addresses[0])
                found[flow.outside_port] = flow
        return found


def vpc_namespace(namespaces: Namespaces) -> str:
    """A VPC in which nothing runs yet; SERVER and OTHER_SERVER are addresses there."""
    vpc = namespaces.make("vpc")
    for address in (SERVER, OTHER_SERVER):
        ip("-n", vpc, "addr", "add", f"{address}/32", "dev", "lo")
    return vpc


@asynccontextmanager
async def world(vpc: str, *, io: str, workers: int = 1, **eni_options: Any) -> AsyncIterator[World]:
    """A started engine with one ENI in namespace vpc that allows everything unless eni_options say otherwise."""
    async with Attachments(io=io, workers=workers) as attachments:
        chosen: dict[str, Any] = {"addresses": next(_addresses), "security_groups": ALL, **eni_options}
        eni = await attachments.open_eni(vpc=vpc, **chosen)
        assert attachments.engine.status().io == io
        yield World(vpc, attachments, eni)


async def run(namespace: str, *command: str, seconds: float = 60.0, status: int = 0) -> str:
    """Runs a program in a namespace; gives its output, errors included. It must end in time, and with status."""
    process = await asyncio.create_subprocess_exec(
        *in_namespace(namespace, command),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds):
            output = (await process.communicate())[0].decode(errors="replace")
    except TimeoutError:
        raise AssertionError(f"{namespace}: {' '.join(command)} has not ended after {seconds:.0f} s") from None
    finally:
        await end(process)
    words = f"{namespace}: {' '.join(command)}"
    assert process.returncode == status, f"{words}: status {process.returncode}\n{output[-2000:]}"
    return output


async def end(process: Process) -> None:
    if process.returncode is None:
        process.kill()
    await process.wait()


@asynccontextmanager
async def session(namespace: str, *command: str) -> AsyncIterator[Session]:
    """A program with a conversation: one line in, one line out."""
    process = await asyncio.create_subprocess_exec(*in_namespace(namespace, command), stdin=PIPE, stdout=PIPE)
    try:
        yield Session(process, " ".join(command))
    finally:
        await end(process)


@dataclass(frozen=True, slots=True)
class Session:
    process: Process
    words: str

    async def ask(self, line: str, seconds: float = 30.0) -> str:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(line.encode() + b"\n")
        try:
            async with asyncio.timeout(seconds):
                answer = await self.process.stdout.readline()
        except TimeoutError:
            raise AssertionError(f"{self.words}: no answer to {line!r}") from None
        assert answer, f"{self.words}: ended at {line!r}"
        return answer.decode().rstrip("\n")


async def each(jobs: Iterable[Any]) -> list[Any]:
    """All at once; when one fails the others are ended."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(job) for job in jobs]
    return [task.result() for task in tasks]
