"""Real clients in twenty environments with one and the same address reach real servers through one ENI.

Every test runs on both I/O engines. A server knows its clients only as ENI address and port: what it says about them is
compared with what the engine says about its flows.
"""

from __future__ import annotations

import hashlib
import random
import re
import shlex
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest
import pytest_asyncio

from hyperplane.model import Flow, FlowState

from .servers import (
    DNSMASQ,
    NGINX,
    POSTGRESQL,
    REDIS,
    Server,
    dnsmasq,
    make_cluster,
    nginx,
    postgresql,
    redis,
    server_directory,
)
from .support import Namespaces, ip
from .world import Environment, Session, World, each, run, session, world

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]

ENVIRONMENTS = 20
MIB = 1 << 20
PSQL = ("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h", POSTGRESQL)
TEXTS = [letter * 250 for letter in "abcdefghij"]  # more than a UDP answer holds


@dataclass(frozen=True, slots=True)
class Vpc:
    namespace: str
    directory: Path
    postgresql: Server
    redis: Server
    nginx: Server
    dnsmasq: Server
    file: Path  # what nginx gives as /file, and its SHA-256
    file_hash: str


@pytest.fixture(scope="module")
def vpc() -> Iterator[Vpc]:
    """The VPC's namespace with all four servers."""
    with ExitStack() as stack:
        directory = stack.enter_context(server_directory())
        places = {name: directory / name for name in ("redis", "nginx", "www", "dnsmasq")}
        for place in places.values():
            place.mkdir()
        file = places["www"] / "file"
        file_hash = write_file(file, 1024)
        namespace = stack.enter_context(Namespaces()).make("vpc")
        for address in (POSTGRESQL, REDIS, NGINX, DNSMASQ):
            ip("-n", namespace, "addr", "add", f"{address}/32", "dev", "lo")
        records = [f"--address=/corp.test/{POSTGRESQL}", *(f"--txt-record=long.test,{text}" for text in TEXTS)]
        yield Vpc(
            namespace,
            directory,
            stack.enter_context(postgresql(namespace, make_cluster(directory))),
            stack.enter_context(redis(namespace, places["redis"])),
            stack.enter_context(nginx(namespace, places["nginx"], places["www"])),
            stack.enter_context(dnsmasq(namespace, places["dnsmasq"], records)),
            file,
            file_hash,
        )


def write_file(path: Path, blocks: int) -> str:
    """A file of so many MiB, no two blocks of which are alike; returns its SHA-256."""
    base = random.Random(11).randbytes(MIB)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        for number in range(blocks):
            turn = number * 4099 % MIB
            block = number.to_bytes(8, "big") + base[turn + 8 :] + base[:turn]
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(io: str, vpc: Vpc) -> AsyncIterator[World]:
    """Twenty environments on one ENI."""
    async with AsyncExitStack() as stack:
        namespaces = stack.enter_context(Namespaces())
        made = await stack.enter_async_context(world(vpc.namespace, io=io))
        await each(made.attach(namespaces.make("env")) for _ in range(ENVIRONMENTS))
        assert len({environment.tunnel.address for environment in made.environments}) == 1
        yield made


async def test_all_servers_from_twenty_environments_at_once(lab: World, vpc: Vpc) -> None:
    """Forty connections held open, then a hundred more at once: each flow belongs to whom the server says."""
    async with AsyncExitStack() as stack:
        sessions = [await open_sessions(stack, one) for one in lab.environments]
        ports = await each(introduce(lab, one, *both) for one, both in zip(lab.environments, sessions, strict=True))
        databases, caches = lab.owners("tcp", POSTGRESQL, 5432), lab.owners("tcp", REDIS, 6379)
        # What PostgreSQL tells its clients about themselves ...
        assert [databases[port].tunnel for port in ports] == [one.name for one in lab.environments]
        assert {databases[port].state for port in ports} == {FlowState.ESTABLISHED}
        # ... and what the servers list.
        query = "SELECT client_addr, client_port, application_name FROM pg_stat_activity WHERE client_port > 0"
        listed = await run(vpc.namespace, *PSQL, "-F", " ", "-c", query)
        expect_owners(lab, databases, re.findall(r"(\S+) (\d+) (hpt\S+)", listed))
        listed = await run(vpc.namespace, "redis-cli", "-h", REDIS, "CLIENT", "LIST")
        expect_owners(lab, caches, re.findall(r" addr=([0-9.]+):(\d+) .* name=(hpt\S+)", listed))
        # Beside the connections that are still open.
        await each(use_all_servers(one) for one in lab.environments)
    expect_owners(lab, lab.owners("tcp", NGINX, 80), re.findall(r"(\S+) (\d+) (hpt\S+) 206 ", vpc.nginx.access))
    for protocol in ("udp", "tcp"):
        pattern = rf" ([0-9.]+)/(\d+) query\[A\] {protocol}\.(hpt\S+)\.corp\.test "
        expect_owners(lab, lab.owners(protocol, DNSMASQ, 53), re.findall(pattern, vpc.dnsmasq.log))
    assert lab.engine.counters().drops == {}


async def open_sessions(stack: AsyncExitStack, one: Environment) -> tuple[Session, Session]:
    psql = await stack.enter_async_context(session(one.name, *PSQL))
    return psql, await stack.enter_async_context(session(one.name, "redis-cli", "-h", REDIS))


async def introduce(lab: World, one: Environment, psql: Session, cli: Session) -> int:
    """Tells the servers the environment's name; returns the port that PostgreSQL sees."""
    assert await cli.ask(f"CLIENT SETNAME {one.name}") == "OK"
    assert await psql.ask(f"SET application_name = '{one.name}'; SELECT inet_client_addr();") == lab.address
    return int(await psql.ask("SELECT inet_client_port();"))


async def use_all_servers(one: Environment) -> None:
    url = f"http://{NGINX}/file?by={one.name}"
    answers = await each(
        (
            one.run(*PSQL, "-c", "SELECT sum(n) FROM generate_series(1, 100000) AS n"),
            one.run("redis-cli", "-h", REDIS, "INCR", f"counter of {one.name}"),
            one.run("curl", "-sSf", "-r", "0-0", "-o", "/dev/null", "-w", "%{size_download}", url),
            one.run("dig", "+short", "+tries=1", f"@{DNSMASQ}", f"udp.{one.name}.corp.test"),
            one.run("dig", "+short", "+tcp", f"@{DNSMASQ}", f"tcp.{one.name}.corp.test"),
        )
    )
    assert [answer.strip() for answer in answers] == ["5000050000", "1", "1", POSTGRESQL, POSTGRESQL]


def expect_owners(lab: World, owners: dict[int, Flow], seen: list[tuple[str, str, str]]) -> None:
    """seen: address, port and environment of each client as the server saw it. Every environment is there."""
    seen = [client for client in seen if client[2] in {one.name for one in lab.environments}]
    assert {address for address, _, _ in seen} == {lab.address}
    assert {(port, owners[int(port)].tunnel) for _, port, _ in seen} == {(port, name) for _, port, name in seen}
    assert {name for _, _, name in seen} == {one.name for one in lab.environments}


async def test_pgbench_from_twenty_environments_at_once(lab: World, vpc: Vpc) -> None:
    """TPC-B: forty clients write to the same tables; what they added up is there."""
    environments, transactions = lab.environments, 50
    await environments[0].run("pgbench", "-h", POSTGRESQL, "-U", "postgres", "-i", "-q", "-s", "5", "postgres")
    load = ("pgbench", "-h", POSTGRESQL, "-U", "postgres", "-n", "-c", "2", "-t", str(transactions // 2), "postgres")
    for output in await each(one.run(*load) for one in environments):
        assert f"actually processed: {transactions}/{transactions}" in output
        assert "number of failed transactions: 0 " in output
    query = "SELECT count(*), sum(delta) = (SELECT sum(bbalance) FROM pgbench_branches) FROM pgbench_history"
    assert (await environments[-1].run(*PSQL, "-c", query)).strip() == f"{transactions * len(environments)}|t"
    assert {flow.tunnel for flow in lab.owners("tcp", POSTGRESQL, 5432).values()} == {one.name for one in environments}


async def test_redis_benchmark_from_twenty_environments_at_once(lab: World) -> None:
    load = ("redis-benchmark", "-h", REDIS, "-c", "5", "-n", "1000", "-q", "--csv", "-t", "set,get,lpush,mset")
    for output in await each(one.run(*load) for one in lab.environments):
        assert re.findall(r'^"([A-Z]+)', output, re.MULTILINE) == ["SET", "GET", "LPUSH", "MSET"]
    flows = lab.owners("tcp", REDIS, 6379).values()
    for one in lab.environments:
        assert len([flow for flow in flows if flow.tunnel == one.name]) >= 5


async def test_redis_pipelines_and_large_values(lab: World) -> None:
    """Many small segments in one direction, values of 256 KiB in both."""
    await lab.environments[0].run(
        "redis-benchmark", "-h", REDIS, "-c", "10", "-n", "20000", "-P", "64", "-q", "-t", "incr"
    )
    one = lab.environments[1]
    await one.run("redis-benchmark", "-h", REDIS, "-c", "4", "-n", "200", "-d", str(256 << 10), "-q", "-t", "set,get")


async def test_redis_with_a_connection_for_each_request(lab: World) -> None:
    """Ten thousand short connections to one destination, each with a port of its own."""
    environments, requests = lab.environments[:5], 1000
    before = [lab.engine.counters(one.tunnel).flows_created for one in environments]
    load = ("redis-benchmark", "-h", REDIS, "-c", "5", "-n", str(requests), "-k", "0", "-q", "-t", "ping_inline,set")
    await each(one.run(*load) for one in environments)
    for one, created in zip(environments, before, strict=True):
        assert lab.engine.counters(one.tunnel).flows_created - created >= 2 * requests
    assert lab.engine.counters().drops == {}


async def test_one_gibibyte_arrives_as_it_was_sent(lab: World, vpc: Vpc) -> None:
    """In super-segments: the engine reads far fewer packets than there were on the wire."""
    one = lab.environments[0]
    before, read = lab.engine.counters(one.tunnel), lab.engine.status().packets
    assert await fetch(one) == vpc.file_hash
    after = lab.engine.counters(one.tunnel)
    assert after.bytes_out - before.bytes_out > 1024 * MIB
    assert after.drops == before.drops == {}
    on_the_wire = after.packets_out - before.packets_out + after.packets_in - before.packets_in
    assert on_the_wire > 5 * (lab.engine.status().packets - read)


async def test_twenty_environments_fetch_one_twentieth_each_at_once(lab: World, vpc: Vpc) -> None:
    size = vpc.file.stat().st_size
    bounds = [size * number // ENVIRONMENTS for number in range(ENVIRONMENTS + 1)]
    parts = list(pairwise(bounds))
    jobs = zip(lab.environments, parts, strict=True)
    arrived = await each(fetch(one, "-r", f"{start}-{end - 1}") for one, (start, end) in jobs)
    assert arrived == [hash_of(vpc.file, start, end) for start, end in parts]


async def fetch(one: Environment, *options: str) -> str:
    """The SHA-256 of nginx's file, or of a part of it, as it arrived in an environment."""
    command = shlex.join(["curl", "-sSf", *options, f"http://{NGINX}/file?by={one.name}"])
    return (await one.run("sh", "-c", f"{command} | sha256sum", seconds=120)).split()[0]


async def test_upload_of_256_mebibytes(lab: World, vpc: Vpc) -> None:
    source = vpc.directory / "source"
    expected = write_file(source, 256)
    one = lab.environments[3]
    await one.run("curl", "-sSf", "-T", str(source), f"http://{NGINX}/upload/file?by={one.name}")
    stored = vpc.nginx.directory / "upload" / "file"
    assert hash_of(stored, 0, 256 * MIB + 1) == expected
    stored.unlink()
    source.unlink()


def hash_of(path: Path, start: int, end: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        file.seek(start)
        while block := file.read(min(MIB, end - file.tell())):
            digest.update(block)
    return digest.hexdigest()


async def test_dns_over_udp_and_tcp_from_twenty_environments_at_once(lab: World) -> None:
    """Ten names by UDP in one run of dig, ten by TCP, and an answer too long for UDP."""

    async def resolve(one: Environment) -> None:
        names = [f"{number}.{one.name}.corp.test" for number in range(10)]
        for way in ("+notcp", "+tcp"):
            output = await one.run("dig", "+short", "+tries=1", way, f"@{DNSMASQ}", *names)
            assert output.split() == [POSTGRESQL] * len(names)
        output = await one.run("dig", "+tries=1", f"@{DNSMASQ}", "long.test", "TXT")
        assert "Truncated, retrying in TCP mode" in output
        assert all(text in output for text in TEXTS)

    await each(resolve(one) for one in lab.environments)
