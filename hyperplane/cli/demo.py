"""`hyperplane-nat demo`: the main job before somebody's eyes, with real servers. demo_text.py tells it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Iterable
from contextlib import AsyncExitStack
from ipaddress import IPv4Network
from typing import Any, Final

from msgspec.structs import replace

from hyperplane.cli import loop
from hyperplane.cli.demo_daemon import start_daemon
from hyperplane.cli.demo_lab import Lab, check_privileges
from hyperplane.cli.demo_servers import (
    ADDRESS,
    HTTP_PORT,
    POSTGRES_PORT,
    REDIS_PORT,
    TALKER,
    Server,
    start_http,
    start_postgres,
    start_redis,
)
from hyperplane.cli.demo_text import Attempt, Fetched, JsonTeller, Met, Spoken, TextTeller
from hyperplane.cli.demo_veth import Router
from hyperplane.cli.loop import whole
from hyperplane.cli.render import Attached
from hyperplane.cli.terminal import Printer
from hyperplane.cli.words import boot_time
from hyperplane.client import Client
from hyperplane.errors import HyperplaneError
from hyperplane.model import Drop, Flow
from hyperplane.resources import Document, EnvironmentSpec, FunctionSpec, SecurityGroupSpec, SubnetSpec, VpcSpec

ENI_ADDRESS: Final = "198.19.0.5"
INSIDE_ADDRESS: Final = "198.18.0.2"
INSIDE_PORT: Final = 40000  # of every environment's HTTP client
SUBNET: Final = "198.19.0.0/24"
RESERVED: Final = ("198.19.0.0/30", "198.19.0.4/32", f"{ADDRESS}/32")  # of others, so that the ENI gets its address
FUNCTION: Final = "demo"
ALLOWED: Final = tuple(f"tcp/{port} {SUBNET}" for port in (HTTP_PORT, REDIS_PORT, POSTGRES_PORT))
FORBIDDEN_PORT: Final = 25
PATIENCE: Final = 0.3  # seconds to wait for an answer that does not come


def run(environments: int, printer: Printer, *, as_json: bool) -> int:
    """Returns the exit code. Raises HyperplaneError, Interrupted."""
    check_privileges()
    teller = JsonTeller() if as_json else TextTeller(printer)
    demo = Demo(environments, teller)
    loop.run(demo.run)
    return 0


class Demo:
    def __init__(self, count: int, teller: TextTeller | JsonTeller) -> None:
        self._count = count
        self._labels = [f"env{number}" for number in range(1, count + 1)]
        self._names = [f"env-{number}" for number in range(1, count + 1)]
        self._teller = teller

    async def run(self) -> None:
        started = time.monotonic()
        async with AsyncExitStack() as stack:
            self._lab = Lab()
            stack.push_async_callback(self._remove)
            with self._teller.working("making namespaces, starting servers"):
                await self._prepare()
            self._client = await stack.enter_async_context(Client(path=self._socket))
            await self._declare()
            await self._attach()
            fetched = await self._fetch()
            await self._ask_servers()
            self._teller.flows(await self._flows(), boot_time())
            await self._try_in(fetched[0])
            await self._try_out()
        self._teller.done(time.monotonic() - started)

    async def _remove(self) -> None:
        with self._teller.working("removing everything"):
            await whole(self._lab.close)

    async def _prepare(self) -> None:
        await whole(self._lab.remove_left_over)
        for label in ("vpc", *self._labels):
            await whole(self._lab.add_namespace, label)
        address = [self._lab.ip, "-n", self._lab.name("vpc"), "addr", "add", f"{ADDRESS}/32", "dev", "lo"]
        await whole(lambda: self._lab.command(address))
        jobs: tuple[Awaitable[Any], ...] = (
            whole(start_daemon, self._lab),
            whole(start_http, self._lab),
            whole(start_redis, self._lab),
            whole(start_postgres, self._lab, ENI_ADDRESS),
            whole(Router, self._lab, self._count),
        )
        self._socket, _, self._redis, self._postgres, self._router = await _all(jobs)
        servers = [server.name for server in (self._redis, self._postgres) if isinstance(server, Server)]
        missing = [server for server in (self._redis, self._postgres) if not isinstance(server, Server)]
        self._teller.begin(Met(self._names, INSIDE_ADDRESS, ENI_ADDRESS, SUBNET, ADDRESS, servers, missing))

    async def _declare(self) -> None:
        """What a platform says once, long before the first environment."""
        document = Document(
            vpc=(VpcSpec(name="customer", namespace=self._lab.name("vpc")),),
            subnet=(
                SubnetSpec(
                    name="private", vpc="customer", cidr=IPv4Network(SUBNET),
                    reserved=tuple(IPv4Network(one) for one in RESERVED),
                ),
            ),
            security_group=(SecurityGroupSpec(name="servers", vpc="customer", rules=ALLOWED),),
            function=(FunctionSpec(name=FUNCTION, subnets=("private",), security_groups=("servers",)),),
        )  # fmt: skip
        await self._client.apply(document)
        addresses = [str(address) async for eni in self._client.enis() for address in eni.addresses]
        if addresses != [ENI_ADDRESS]:
            raise HyperplaneError(f"the demo needs {ENI_ADDRESS} for its ENI, which got another address")

    async def _attach(self) -> None:
        attached: list[Attached] = []
        self._named: dict[str, str] = {}
        for label, name in zip(self._labels, self._names, strict=True):
            before = time.perf_counter()
            one = await self._client.start_environment(
                EnvironmentSpec(function=FUNCTION, namespace=self._lab.name(label), name=name)
            )
            seconds = time.perf_counter() - before
            attached.append(Attached(name, one.namespace, one.device, one.inside_address, seconds))
            self._named[one.id] = name
        self._teller.attached(attached, await self._attach_by_veth(), without_nft=self._router.without_nft)

    async def _attach_by_veth(self) -> list[float]:
        """Seconds for each, empty when there is no veth here: a comparison, which the demo can do without."""
        try:
            return [await whole(self._router.attach, number) for number in range(1, self._count + 1)]
        except HyperplaneError:
            return []

    async def _fetch(self) -> list[Fetched]:
        """All clients keep their connections until the end."""
        command = [*TALKER, "fetch", ADDRESS, str(HTTP_PORT), str(INSIDE_PORT)]
        jobs = [whole(self._lab.start_talker, label, command) for label in self._labels]
        fetched = []
        for name, (_, answer) in zip(self._names, await _all(jobs), strict=True):
            if "error" in answer:
                raise HyperplaneError(f"{name} could not fetch http://{ADDRESS}/: {answer['error']}")
            status = f"{answer['status']} {answer['reason']}"
            fetched.append(Fetched(name, INSIDE_ADDRESS, INSIDE_PORT, status, answer["client"]))
        self._teller.fetched(f"http://{ADDRESS}/", fetched)
        return fetched

    async def _flows(self) -> list[Flow]:
        """With the environments' names, where the API gives their ids."""
        return [replace(flow, tunnel=self._named.get(flow.tunnel, "")) async for flow in self._client.flows()]

    async def _ask_servers(self) -> None:
        first, second, last = self._labels[0], self._labels[1], self._labels[-1]
        names = dict(zip(self._labels, self._names, strict=True))
        questions = (
            (self._redis, first, ("SET", "writer", names[first])),
            (self._redis, second, ("GET", "writer")),
            (self._postgres, last, ("select inet_client_addr()",)),
        )
        for server, label, words in questions:
            if isinstance(server, Server):
                answer = await whole(server.ask, label, *words)
                self._teller.spoken(Spoken(server.name, names[label], " ".join(words), answer))

    async def _try_in(self, fetched: Fetched) -> None:
        port = fetched.seen.rpartition(":")[2]
        attempt = await self._connect("vpc", "the VPC", ENI_ADDRESS, int(port), "no answer")
        self._teller.tried_in(attempt, fetched.environment)

    async def _try_out(self) -> None:
        attempt = await self._connect(self._labels[0], self._names[0], ADDRESS, FORBIDDEN_PORT, "refused")
        self._teller.tried_out(attempt, ALLOWED, await whole(self._lab.inside, self._labels[0], syn_timeout))

    async def _connect(self, label: str, name: str, address: str, port: int, expected: str) -> Attempt:
        """Raises HyperplaneError when it does not go as it should."""
        seen = max([drop.number async for drop in self._client.drops()], default=0)
        command = [*TALKER, "connect", address, str(port), str(PATIENCE)]
        answer = json.loads(await whole(lambda: self._lab.command(command, label=label)))
        drops = [drop async for drop in self._client.drops(after=seen) if _is_about(drop, address, port)]
        if answer["outcome"] != expected or not drops:
            raise HyperplaneError(f"{name} to {address}:{port} should have got {expected}, but got {answer['outcome']}")
        return Attempt(name, address, port, answer["outcome"], answer["seconds"], drops[0])


async def _all(jobs: Iterable[Awaitable[Any]]) -> list[Any]:
    """The results of all jobs. Each runs to its end, also when one fails, before that failure is raised."""
    results = await asyncio.gather(*jobs, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _is_about(drop: Drop, address: str, port: int) -> bool:
    return str(drop.destination) == address and drop.destination_port == port


def syn_timeout() -> float:
    """Seconds after which connect(2) gives up when nobody answers, in the namespace of the calling thread.

    net.ipv4.tcp_syn_retries retransmissions, each after twice the time of the one before, and since Linux 6.5
    net.ipv4.tcp_syn_linear_timeouts more, one second each (Documentation/networking/ip-sysctl.rst).
    """
    values = []
    for name in ("tcp_syn_retries", "tcp_syn_linear_timeouts"):
        try:
            with open(f"/proc/sys/net/ipv4/{name}", encoding="ascii") as file:
                values.append(int(file.read()))
        except OSError:
            values.append(0)
    return values[1] + 2.0 ** (values[0] + 1) - 1
