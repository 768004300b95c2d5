"""The engine as a process of its own: adopted by a second daemon, succeeded when it is killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from hyperplane.daemon import supervisor as supervising
from hyperplane.daemon.supervisor import Supervisor
from hyperplane.engine import EngineOptions
from hyperplane.errors import EngineError, HyperplaneError, InvalidValue, ProtocolMismatch, ResourceConflict
from hyperplane.ipc import conversation
from hyperplane.ipc.messages import LinkSpec
from hyperplane.ipc.remote import RemoteEngine
from hyperplane.ipc.transport import ConnectionLost
from hyperplane.linux.eni import EniDevice, create_eni
from hyperplane.linux.namespaces import NamespaceThreads, open_namespace
from hyperplane.linux.processes import process_alive
from hyperplane.linux.reaper import Reaper
from hyperplane.linux.tunnel import Shape, make_tunnel
from hyperplane.model import Reason
from hyperplane.resources import Problem

from .sockets import socket_in
from .support import ENI, SERVER, SMALL, Namespaces, descriptors, devices, eventually, wait_until
from .traffic import connect_outcome, connection, tcp_listener, transfer

INSIDE = IPv4Address("198.18.0.2")
OTHER_ENI = "198.19.0.6"
CONNECTIONS, ENVIRONMENTS, PINGS = 100, 10, 20
LINKS, HOMES = 1000, 10
EVERYWHERE = IPv4Network("0.0.0.0/0")


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Of a name that is short enough for a socket."""
    made = Path(tempfile.mkdtemp(prefix="hpt"))
    yield made
    shutil.rmtree(made)


@dataclass
class Lab:
    """Makes devices in namespaces and tells an engine of them."""

    vpc: str
    namespaces: Namespaces
    threads: NamespaceThreads
    reaper: Reaper

    def eni(self, remote: RemoteEngine, key: str = "eni-1", address: str = ENI, **values: Any) -> LinkSpec:
        workers = int(remote.config["workers"])

        def make() -> EniDevice:
            with open_namespace(self.vpc) as namespace, self.threads.inside(namespace.fd):
                return create_eni(
                    namespace, device=key, addresses=(IPv4Address(address),), mtu=1500, queues=workers
                )  # fmt: skip

        made = self.threads.submit(make).result()
        assert (made.queues, made.steered) == (workers, workers > 1)
        chosen = {"addresses": (IPv4Address(address),), "rules": ("all",), **values}
        spec = LinkSpec(kind="eni", id=key, name=key, queues=made.queues, steered=made.steered, **chosen)
        remote.add(spec, made.fd, made.more)
        return spec

    def device(self, home: str, device: str = "eth0", route: IPv4Network = EVERYWHERE) -> int:
        shape = Shape(device, INSIDE, 1500, (route,))
        return self.threads.submit(make_tunnel, home, shape, self.threads, self.reaper).result().fd

    def environment(self, remote: RemoteEngine, eni: str = "eni-1") -> str:
        """A namespace with a tunnel of the same name."""
        home = self.namespaces.make("env")
        remote.add(tunnel(home, eni), self.device(home))
        return home

    def remove(self, remote: RemoteEngine, key: str) -> None:
        self.reaper.close(remote.remove(key)).result()


def tunnel(key: str, eni: str = "eni-1", **values: Any) -> LinkSpec:
    return LinkSpec(kind="tunnel", id=key, name=key, eni=eni, address=INSIDE, **values)


@pytest.fixture
def lab(vpc: str, netns_factory: Namespaces, threads: NamespaceThreads) -> Iterator[Lab]:
    reaper = Reaper()
    yield Lab(vpc, netns_factory, threads, reaper)
    reaper.stop()


@asynccontextmanager
async def supervised(run_dir: Path, *, alone: bool = True, **options: Any) -> AsyncIterator[Supervisor]:
    """An engine that ends with it, however it came to be there; no descriptor of it is left here (when it is alone)."""
    before = descriptors()
    errors: list[HyperplaneError] = []
    one = Supervisor(run_dir=run_dir, **{"options": SMALL, "on_error": errors.append, **options})
    try:
        await one.start()
        yield one
    finally:
        await one.shutdown()
    assert not errors, errors
    if alone:
        await eventually(lambda: descriptors() <= before, what="descriptors are closed")


def status(pid: int | str) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def bounding_sets(pid: int) -> set[int]:
    """Of all its threads."""
    tasks = (f"{pid}/task/{task}" for task in os.listdir(f"/proc/{pid}/task"))
    return {int(status(task)["CapBnd"], 16) for task in tasks}


def open_files(pid: int) -> list[str]:
    """Its limits, soft and hard."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line for line in lines if line.startswith("Max open files")).split()[3:5]


async def test_it_has_no_privileges(run_dir: Path) -> None:
    async with supervised(run_dir) as one:
        found = status(one.remote.pid)
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(found[name], 16) == 0, name
        assert found["NoNewPrivs"] == "1"
        assert "0" not in found["Uid"].split()
        assert "0" not in found["Gid"].split()
        assert found["Groups"] == ""
        assert int(found["Threads"]) > 1  # the worker's too: they came after
        assert bounding_sets(one.remote.pid) == {0}
        soft, hard = open_files(one.remote.pid)
        assert soft == hard
        assert (run_dir / "engine.sock").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_second_daemon_adopts_it(run_dir: Path, lab: Lab, workers: int) -> None:
    """Links, descriptors, flows and counters are there; traffic went on while there was no daemon."""
    async with AsyncExitStack() as stack:
        first = Supervisor(run_dir=run_dir, options={**SMALL, "workers": workers})
        assert await first.start() is False
        lab.eni(first.remote, silent=True)
        home = lab.environment(first.remote)
        pair = await stack.enter_async_context(connection(home, lab.vpc, SERVER))
        await transfer(pair.client, pair.server, 100_000, seed=1)
        links = [(link.spec, link.number) for link in first.remote.links()]
        pid = first.remote.pid
        await first.stop()
        await transfer(pair.server, pair.client, 100_000, seed=2)

        second = await stack.enter_async_context(supervised(run_dir, options={"max_flows": 77}))
        assert second.remote.pid == pid
        assert second.remote.config["max_flows"] == SMALL["max_flows"]
        assert [(link.spec, link.number) for link in second.remote.links()] == links
        (flow,) = [flow for flow in second.reader.flows() if flow.protocol == "tcp"]
        assert (flow.tunnel, flow.eni) == (home, "eni-1")
        assert flow.bytes_in > 100_000
        await transfer(pair.client, pair.server, 100_000, seed=3)
        lab.remove(second.remote, home)
        assert "eth0" not in devices(home)  # the descriptors that it adopted were the last
        assert second.reader.flows() == []
        assert second.restarts == 0


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_full_state(run_dir: Path, lab: Lab, workers: int) -> None:
    """What is right is acknowledged, what is missing made, what is not named removed, and rules change live."""
    async with supervised(run_dir, options={**SMALL, "workers": workers}) as one:
        eni = lab.eni(one.remote)
        homes = [lab.environment(one.remote) for _ in range(3)]
        specs = [eni, *(tunnel(home) for home in homes)]
        numbers = [link.number for link in one.remote.links()]
        for _ in range(2):
            synced = one.remote.sync(reversed(specs))
            assert (synced.errors, synced.removed) == ({}, ())
        assert [link.number for link in one.remote.links()] == numbers
        async with connection(homes[0], lab.vpc, SERVER) as pair:
            fresh = lab.namespaces.make("env")
            fd = lab.device(fresh)
            changed = replace(eni, rules=("tcp/1",))
            synced = one.remote.sync([changed, *specs[1:3], tunnel(fresh)], {fresh: fd, homes[0]: -7})
            assert synced.errors == {}
            assert [link.spec.id for link in synced.removed] == [homes[2]]
            lab.reaper.close(synced.removed[0].fd).result()
            assert "eth0" not in devices(homes[2])
            await transfer(pair.client, pair.server, 100_000, seed=1)  # rules are for flows that begin
        assert connect_outcome(homes[0], (SERVER, 80), 10.0)[0] == "ECONNREFUSED"
        assert one.reader.drops()[-1].reason == Reason.SECURITY_GROUP
        one.remote.update(eni)
        async with connection(fresh, lab.vpc, SERVER) as pair:
            await transfer(pair.client, pair.server, 100_000, seed=2)
        with pytest.raises(ResourceConflict, match="eni-1 differs in mtu"):
            one.remote.update(replace(eni, mtu=1400))
        with pytest.raises(EngineError, match="in use by tunnels"):
            one.remote.remove("eni-1")
        with pytest.raises(InvalidValue, match="there is a link"):
            one.remote.add(eni, 0)
        for home in (homes[0], homes[1], fresh, "eni-1"):
            lab.remove(one.remote, home)
        assert one.remote.links() == []


@pytest.mark.parametrize("workers", [1, 2])
async def test_draining(run_dir: Path, lab: Lab, workers: int) -> None:
    async with supervised(run_dir, options={**SMALL, "workers": workers}) as one:
        lab.eni(one.remote)
        home = lab.environment(one.remote)
        number = one.remote.links()[-1].number
        async with connection(home, lab.vpc, SERVER) as pair:
            one.remote.drain(home, False)
            await transfer(pair.client, pair.server, 100_000, seed=1)
            one.remote.drain(home, True)
            await eventually(lambda: one.reader.link_flows(number) == 0, what="its flows end")
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(asyncio.get_running_loop().sock_recv(pair.client, 1), 10)


def reached(one: Supervisor, restarts: int, links: int = 0) -> bool:
    return one.restarts == restarts and len(one.remote.links()) >= links


class Pings:
    """Connections on which a byte goes there and back, again and again; and how long the longest of them took."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._tasks: list[asyncio.Task[None]] = []
        self.counts: list[int] = []
        self.gap = 0.0

    async def connect(self, home: str, listener: Any) -> None:
        loop = asyncio.get_running_loop()
        client = self._stack.enter_context(socket_in(home))
        client.setblocking(False)
        async with asyncio.timeout(30):
            await loop.sock_connect(client, listener.getsockname())
            server = self._stack.enter_context((await loop.sock_accept(listener))[0])
        server.setblocking(False)
        self.counts.append(0)
        self._tasks += [
            loop.create_task(self._ping(len(self.counts) - 1, client)),
            loop.create_task(self._echo(server)),
        ]

    def lost(self) -> int:
        """How many connections ended."""
        return sum(task.done() for task in self._tasks)

    async def go_on(self, times: int) -> None:
        """Until each has gone there and back so many times more, or has ended."""
        goal = [count + times for count in self.counts]
        await eventually(
            lambda: self.lost() or all(map(int.__ge__, self.counts, goal)), deadline=60, what="all connections go on"
        )

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _ping(self, which: int, client: Any) -> None:
        loop = asyncio.get_running_loop()
        while True:
            begun = time.perf_counter()
            await loop.sock_sendall(client, b"x")
            assert await loop.sock_recv(client, 1) == b"x"
            self.gap = max(self.gap, time.perf_counter() - begun)
            self.counts[which] += 1
            await asyncio.sleep(0.01)

    async def _echo(self, server: Any) -> None:
        loop = asyncio.get_running_loop()
        while data := await loop.sock_recv(server, 100):
            await loop.sock_sendall(server, data)


@pytest.mark.parametrize(("kills", "workers"), [(1, 1), (2, 1), (2, 2)])
async def test_killed_with_a_hundred_connections(
    run_dir: Path, lab: Lab, kills: int, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """None is lost; after that new ones are made, and the counters and numbers of the links went on."""
    restarted: list[list[tuple[str, Problem]]] = []
    async with supervised(run_dir, on_restart=restarted.append, options={**SMALL, "workers": workers}) as one:
        lab.eni(one.remote)
        homes = [lab.environment(one.remote) for _ in range(ENVIRONMENTS)]
        links = one.remote.links()
        with ExitStack() as stack:
            pings = Pings(stack)
            listener = stack.enter_context(tcp_listener(lab.vpc, SERVER))
            for number in range(CONNECTIONS):
                await pings.connect(homes[number % ENVIRONMENTS], listener)
            try:
                await pings.go_on(PINGS)
                flows = {flow.id for flow in one.reader.flows()}
                shares = [worker.flows for worker in one.reader.status().workers]
                assert shares == [CONNECTIONS // workers] * workers
                before = CONNECTIONS - pings.lost()
                for kill in range(1, kills + 1):
                    pings.gap = 0.0
                    begun = time.perf_counter()
                    pid = one.remote.pid
                    os.kill(pid, signal.SIGKILL)
                    await eventually(partial(reached, one, kill), what="a successor")
                    took = time.perf_counter() - begun
                    assert one.remote.pid != pid
                    await pings.go_on(PINGS)
                    with capsys.disabled():
                        print(
                            f"\nengine killed: {before} connections before, {pings.lost()} lost,"
                            f" longest gap {pings.gap:.2f} s, successor after {took:.2f} s"
                        )
                    assert pings.lost() == 0
                assert flows == {flow.id for flow in one.reader.flows()}
                assert shares == [worker.flows for worker in one.reader.status().workers]
                assert not any(worker.taken_over for worker in one.reader.status().workers)
                assert one.remote.links() == links
                assert (restarted, one.restarts) == ([[]] * kills, kills)
                await pings.connect(homes[0], listener)
                await pings.connect(lab.environment(one.remote), listener)
                await pings.go_on(PINGS)
                assert pings.lost() == 0
            finally:
                await pings.end()


async def test_a_thousand_links_are_succeeded(run_dir: Path, lab: Lab, capsys: pytest.CaptureFixture[str]) -> None:
    restarted: list[list[tuple[str, Problem]]] = []
    async with supervised(run_dir, on_restart=restarted.append) as one:
        lab.eni(one.remote)
        homes = [lab.namespaces.make("home") for _ in range(HOMES)]
        for number in range(LINKS):
            route = IPv4Network(f"203.0.113.{number // HOMES}/32")
            fd = lab.device(homes[number % HOMES], f"tun{number}", route)
            one.remote.add(tunnel(f"env-{number}"), fd)
        links = one.remote.links()
        begun = time.perf_counter()
        os.kill(one.remote.pid, signal.SIGKILL)
        await eventually(lambda: restarted, what="a successor")
        with capsys.disabled():
            print(f"\nengine with {LINKS} links: successor after {time.perf_counter() - begun:.2f} s")
        assert one.remote.links() == links
        assert restarted == [[]]
        synced = one.remote.sync([])
        for closing in [lab.reaper.close(link.fd) for link in synced.removed]:
            closing.result()
        assert len(synced.removed) == LINKS + 1


async def test_calls_wait_for_the_successor(run_dir: Path, lab: Lab) -> None:
    """Links are added while the engine is killed again and again: each call succeeds, and nothing is there twice."""
    async with supervised(run_dir) as one:
        lab.eni(one.remote)

        def add() -> list[str]:
            return [lab.environment(one.remote) for _ in range(12)]

        adding = asyncio.create_task(asyncio.to_thread(add))
        for kill in range(2):
            await eventually(partial(reached, one, kill, links=4 * (kill + 1)), what="links come")
            os.kill(one.remote.pid, signal.SIGKILL)
            await eventually(partial(reached, one, kill + 1), what="a successor")
        homes = await asyncio.wait_for(adding, 30)
        assert [link.spec.id for link in one.remote.links()] == ["eni-1", *homes]
        for home in homes[::5]:
            async with connection(home, lab.vpc, SERVER) as pair:
                await transfer(pair.client, pair.server, 10_000, seed=1)


async def test_a_link_that_cannot_go_on_is_reported(run_dir: Path, lab: Lab) -> None:
    restarted: list[list[tuple[str, Problem]]] = []
    async with supervised(run_dir, on_restart=restarted.append) as one:
        lab.eni(one.remote)
        kept, doomed = (lab.environment(one.remote) for _ in range(2))
        link = one.remote.link(doomed)
        assert link
        one.remote.mirror.links[doomed] = replace_number(link, 999)  # as if the memory did not know it
        os.kill(one.remote.pid, signal.SIGKILL)
        await eventually(lambda: restarted, what="a successor")
        ((key, problem),) = restarted[0]
        assert (key, problem.error) == (doomed, "EngineError")
        assert [link.spec.id for link in one.remote.links()] == ["eni-1", kept]
        await eventually(lambda: "eth0" not in devices(doomed), what="its device goes")
        async with connection(kept, lab.vpc, SERVER) as pair:
            await transfer(pair.client, pair.server, 10_000, seed=1)


def replace_number(link: Any, number: int) -> Any:
    return type(link)(link.spec, number, link.fd)


async def test_successors_that_fail_are_tried_again_and_then_without_its_memory(
    run_dir: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each failure says why, with growing pauses; the last resort is an engine whose flows begin anew."""
    monkeypatch.setattr(supervising, "DELAYS", (0.0, 0.01, 0.02, 0.03))
    errors: list[HyperplaneError] = []
    async with AsyncExitStack() as stack:
        one = Supervisor(run_dir=run_dir, options=SMALL, on_error=errors.append)
        await one.start()
        stack.push_async_callback(one.shutdown)
        lab.eni(one.remote)
        home = lab.environment(one.remote)
        first, *_ = one.remote.regions
        inode = os.fstat(one.remote.regions[first]).st_ino
        hole = os.memfd_create("no-region")
        os.dup2(hole, one.remote.regions[first], inheritable=False)
        os.close(hole)
        reader = one.reader
        os.kill(one.remote.pid, signal.SIGKILL)
        await eventually(lambda: one.restarts == 1, what="an engine")
        assert len(errors) == supervising.INHERITING
        assert all(isinstance(error, EngineError) for error in errors)
        assert one.reader is not reader
        assert os.fstat(one.remote.regions[first]).st_ino != inode
        assert [link.spec.id for link in one.remote.links()] == ["eni-1", home]
        async with connection(home, lab.vpc, SERVER) as pair:
            await transfer(pair.client, pair.server, 10_000, seed=1)
            assert {flow.tunnel for flow in one.reader.flows()} == {home}


async def test_a_memory_that_brings_down_each_successor_is_given_up(
    run_dir: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that crashes again and again soon after its start; one that is killed does not count."""
    monkeypatch.setattr(supervising, "DELAYS", (0.0, 0.01))
    async with supervised(run_dir) as one:
        lab.eni(one.remote)
        home = lab.environment(one.remote)
        reader = one.reader
        numbers = (signal.SIGABRT, signal.SIGKILL, *[signal.SIGABRT] * supervising.INHERITING)
        for count, number in enumerate(numbers, 1):
            os.kill(one.remote.pid, number)
            await eventually(partial(reached, one, count), what="a successor")
            assert one.reader is reader
        os.kill(one.remote.pid, signal.SIGABRT)
        await eventually(partial(reached, one, len(numbers) + 1), what="an engine")
        assert one.reader is not reader
        async with connection(home, lab.vpc, SERVER) as pair:
            await transfer(pair.client, pair.server, 10_000, seed=1)


async def test_two_instances(run_dir: Path, lab: Lab) -> None:
    places = [run_dir / name for name in ("one", "two")]
    for place in places:
        place.mkdir()
    async with supervised(places[0], instance="one") as one, supervised(places[1], instance="two", alone=False) as two:
        assert one.remote.pid != two.remote.pid
        lab.eni(one.remote)
        lab.eni(two.remote, "eni-2", OTHER_ENI)
        homes = lab.environment(one.remote), lab.environment(two.remote, "eni-2")
        async with connection(homes[0], lab.vpc, SERVER) as pair, connection(homes[1], lab.vpc, SERVER) as other:
            assert (pair.server.getpeername()[0], other.server.getpeername()[0]) == (ENI, OTHER_ENI)
            os.kill(one.remote.pid, signal.SIGKILL)
            await transfer(other.client, other.server, 1 << 20, seed=1)
            await transfer(pair.client, pair.server, 1 << 20, seed=2)
        await eventually(lambda: one.restarts == 1, what="a successor")
        assert two.restarts == 0


async def test_another_version(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon of another version says what to do, starts nothing, and the engine goes on."""
    async with supervised(run_dir) as one:
        pid = one.remote.pid
        monkeypatch.setattr(conversation, "VERSION", 99)
        other = Supervisor(run_dir=run_dir)
        with pytest.raises(ProtocolMismatch, match=f"kill {pid}"):
            await other.start()
        await other.stop()
        monkeypatch.undo()
        assert process_alive(one.remote.pidfd)
        one.remote.start()


async def test_an_engine_that_hangs(run_dir: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that starts says who does not answer; one that runs too, and what to do."""
    monkeypatch.setattr(conversation, "SECONDS", 0.2)
    async with supervised(run_dir) as one:
        pid = one.remote.pid
        one.remote.patience = 0.2
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(EngineError, match=f"engine {pid} does not answer; if it hangs, kill -9 {pid}"):
                await asyncio.to_thread(one.remote.start)
            assert f"engine {pid} does not answer" in one.remote.trouble
            assert one.alive
            other = Supervisor(run_dir=run_dir)
            with pytest.raises(EngineError, match=f"engine {pid} does not answer; see whether it hangs"):
                await other.start()
            await other.stop()
        finally:
            os.kill(pid, signal.SIGCONT)
        await eventually(lambda: not one.remote.trouble, what="the connection")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"options": {"max_flows": -1}}, "max_flows"),
        ({"options": {"colour": 1}}, "colour"),
        ({"user": "no-such-user"}, "no-such-user"),
        ({"run_dir": Path("/nowhere/at/all")}, "/nowhere/at/all"),
    ],
)
async def test_an_engine_that_does_not_start(run_dir: Path, options: dict[str, Any], text: str) -> None:
    before = descriptors()
    one = Supervisor(**{"run_dir": run_dir, **options})
    with pytest.raises(EngineError) as caught:
        await one.start()
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    await one.stop()
    assert descriptors() == before


async def test_an_engine_that_never_inherited_is_replaced(run_dir: Path) -> None:
    """Its daemon died before it could hand the memory over."""
    orphan = supervising._spawn(EngineOptions(run_dir=run_dir, successor=True), run_dir / supervising.LOG)
    await eventually((run_dir / "engine.sock").exists, what="it listens")
    async with supervised(run_dir) as one:
        assert one.remote.pid != orphan.pid
        assert orphan.wait(10) == 0


def test_one_engine_per_instance_and_a_clean_end(run_dir: Path) -> None:
    options = EngineOptions(run_dir=run_dir, options=SMALL)
    log = run_dir / supervising.LOG
    first = supervising._spawn(options, log)

    def listens() -> RemoteEngine | None:
        try:
            return RemoteEngine.connect(run_dir / "engine.sock")
        except ConnectionLost:
            return None

    remote = wait_until(listens)
    assert remote
    second = supervising._spawn(options, log)
    assert second.wait(10) == 1
    assert "an engine listens on" in log.read_text().splitlines()[-1]
    remote.start()
    first.terminate()
    assert first.wait(10) == 0
    assert log.read_text().splitlines()[-1].endswith("ends: SIGTERM")
    remote.close()


def test_it_loads_only_what_it_needs() -> None:
    code = "import sys, hyperplane.engine; print(*sorted(name.partition('.')[0] for name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"asyncio", "aiohttp", "pyroute2", "rich", "click", "structlog", "uvloop"} & set(loaded)
