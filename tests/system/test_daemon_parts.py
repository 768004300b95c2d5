"""The daemon's parts by themselves: the descriptor socket, fresh namespaces, who may give which namespace."""

from __future__ import annotations

import asyncio
import json
import os
import re
import socket
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import pytest

from hyperplane.api.service import Peer
from hyperplane.daemon.descriptors import Descriptors
from hyperplane.daemon.fresh import FreshNamespaces
from hyperplane.daemon.peers import check_target, check_vpc
from hyperplane.errors import AccessDenied, InvalidValue, NamespaceNotFound, ResourceNotFound
from hyperplane.linux.fresh import delete_namespace, fresh_namespace, names_like
from hyperplane.linux.namespaces import NamespaceThreads, open_namespace
from hyperplane.linux.processes import process
from hyperplane.linux.reaper import Reaper
from hyperplane.linux.tun import open_tun
from hyperplane.linux.tunnel import Shape

from .sockets import call_in
from .support import PREFIX, Namespaces, descriptors, devices, eventually, ip_json, namespaces

MARK = f"{os.getpid() & 0xFFFFFF:06x}"
SHAPE = Shape("eth0", IPv4Address("198.18.0.2"), 1400, (IPv4Network("0.0.0.0/0"),))
ROOT, NOBODY = Peer(0, 0, 1), Peer(65534, 65534, 1)


@pytest.fixture
def reaper() -> Iterator[Reaper]:
    made = Reaper()
    yield made
    made.stop()


@pytest.fixture
def tun(netns_factory: Namespaces) -> Iterator[int]:
    fd = call_in(netns_factory("box"), lambda: open_tun("tap0"))
    yield fd
    os.close(fd)


@pytest.fixture
async def listening(reaper: Reaper, tmp_path: Path) -> AsyncIterator[tuple[Descriptors, Path]]:
    before = descriptors()
    made = Descriptors(reaper, most=2, lifetime=0.3)
    made.open(tmp_path / "d.sock", None)
    yield made, tmp_path / "d.sock"
    made.close()
    await asyncio.to_thread(reaper.drain)
    assert descriptors() == before


async def send(path: Path, *fds: int, data: bytes = b"{}") -> dict[str, str]:
    def ask() -> dict[str, str]:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(10)
            client.connect(str(path))
            socket.send_fds(client, [data], fds)
            answer: dict[str, str] = json.loads(client.recv(4096))
            return answer

    return await asyncio.to_thread(ask)


class TestDescriptors:
    async def test_a_token_serves_once(self, listening: tuple[Descriptors, Path], tun: int, reaper: Reaper) -> None:
        waiting, path = listening
        token = (await send(path, tun))["descriptor"]
        assert waiting.sender(token) == process(os.getpid())
        device = waiting.take(token, ROOT)
        assert waiting.sender(token) is None
        assert device.device == "tap0"
        assert device.namespace is None
        with pytest.raises(ResourceNotFound):
            waiting.take(token, ROOT)
        reaper.close(device.fd)

    async def test_it_is_the_sender_s(self, listening: tuple[Descriptors, Path], tun: int) -> None:
        waiting, path = listening
        token = (await send(path, tun))["descriptor"]
        with pytest.raises(AccessDenied, match="another user"):
            waiting.take(token, NOBODY)

    async def test_it_expires(self, listening: tuple[Descriptors, Path], tun: int) -> None:
        waiting, path = listening
        token = (await send(path, tun))["descriptor"]
        await eventually(lambda: len(waiting) == 0)
        with pytest.raises(ResourceNotFound):
            waiting.take(token, ROOT)

    async def test_few_wait(self, listening: tuple[Descriptors, Path], tun: int) -> None:
        _, path = listening
        answers = [await send(path, tun) for _ in range(3)]
        assert answers[2]["error"] == "TooManyRequests"

    async def test_what_is_sent_wrongly_is_refused(self, listening: tuple[Descriptors, Path], tun: int) -> None:
        waiting, path = listening
        assert (await send(path))["error"] == "InvalidValue"
        assert (await send(path, tun, tun))["error"] == "InvalidValue"
        assert (await send(path, *([tun] * 20)))["error"] == "InvalidValue"
        with socket.socket() as other:
            assert (await send(path, other.fileno()))["error"] == "NotATunnel"
        assert (await send(path, tun, data=b"\xff" * 5000))["descriptor"]
        assert len(waiting) == 1

    async def test_who_says_nothing_holds_up_nobody(self, listening: tuple[Descriptors, Path], tun: int) -> None:
        _, path = listening
        idle = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(20)]
        for one in idle:
            one.connect(str(path))
        assert (await send(path, tun))["descriptor"]
        for one in idle:
            one.close()


class TestFresh:
    def test_lo_is_up_and_nothing_else_there(self, threads: NamespaceThreads) -> None:
        name = f"{PREFIX}fresh"

        def make() -> int:
            with fresh_namespace(name, threads) as namespace:
                assert namespace.key != threads.home
                return namespace.key[1]

        inode = threads.submit(make).result(10)
        with open_namespace(name) as found:
            assert found.key[1] == inode
        assert [(one["ifname"], "UP" in one["flags"]) for one in ip_json("-n", name, "link")] == [("lo", True)]
        assert delete_namespace(name)
        assert not delete_namespace(name)
        assert name not in namespaces()

    def test_a_failure_leaves_no_name(self, threads: NamespaceThreads) -> None:
        name = f"{PREFIX}fresh"

        def make() -> None:
            with fresh_namespace(name, threads):
                raise RuntimeError

        with pytest.raises(RuntimeError):
            threads.submit(make).result(10)
        assert name not in namespaces()
        assert threads.submit(lambda: os.stat("/proc/thread-self/ns/net").st_ino).result(10) == threads.home[1]

    def test_a_name_that_is_taken(self, threads: NamespaceThreads, netns_factory: Namespaces) -> None:
        name = netns_factory("box")

        def make() -> None:
            with fresh_namespace(name, threads):
                pass

        with pytest.raises(Exception, match="exists already"):
            threads.submit(make).result(10)
        assert name in namespaces()
        assert names_like(re.compile(re.escape(name))) == [name]

    def test_each_instance_knows_its_own(self, threads: NamespaceThreads, reaper: Reaper) -> None:
        mine, other = FreshNamespaces(MARK, threads, reaper), FreshNamespaces("ffffff", threads, reaper)
        device = threads.submit(mine.make, SHAPE).result(10)
        assert device.namespace
        name = device.namespace.name
        try:
            (address,) = ip_json("-n", name, "addr", "show", "dev", "eth0")
            assert (address["mtu"], address["addr_info"][0]["local"]) == (1400, "198.18.0.2")
            assert mine.leftovers(set()) == other.leftovers(set()) == []  # it is of this process
            assert FreshNamespaces(MARK, threads, reaper).leftovers(set()) == [name]
            assert FreshNamespaces(MARK, threads, reaper).leftovers({name}) == []
            other.delete(name)
            assert name in namespaces()
        finally:
            mine.delete(name)
            reaper.close(device.fd)
        assert name not in namespaces()


class TestPeers:
    def test_root_may_give_any(self) -> None:
        for target in ("box", "/run/netns/box", "pid:1", "/proc/1/ns/net"):
            assert check_target(target, ROOT) is None

    def test_a_descriptor_of_the_daemon_is_nobody_s(self) -> None:
        for peer in (ROOT, NOBODY):
            with pytest.raises(InvalidValue, match="descriptor of the daemon"):
                check_target("fd:3", peer)

    @pytest.mark.parametrize(
        "target",
        [
            "/proc/self/ns/net", "/proc/self/fd/3", "/proc/thread-self/ns/net", "//proc/./self/fd/3",
            "/proc/1/../self/fd/3", "/dev/fd/3", "/dev/stdin",
        ],
    )  # fmt: skip
    def test_the_daemon_itself_is_nobody_s(self, target: str) -> None:
        for peer in (ROOT, NOBODY):
            with pytest.raises(InvalidValue, match="is the daemon's own; give the number"):
                check_target(target, peer)
            with pytest.raises(InvalidValue, match="is the daemon's own") as caught:
                check_vpc(target, peer, field="vpc[1].namespace")
            assert caught.value.field == "vpc[1].namespace"

    def test_others_give_no_path_and_no_other_user_s_process(self) -> None:
        for target in ("/tmp/box", "./box", "pid:1", "/proc/1/ns/net", f"pid:{os.getpid()}"):
            with pytest.raises(AccessDenied):
                check_target(target, NOBODY)
        with pytest.raises(NamespaceNotFound):
            check_target("pid:4194303", NOBODY)

    def test_a_name_is_looked_at_once_it_is_open(self, netns_factory: Namespaces) -> None:
        box = netns_factory("box")
        for peer in (NOBODY, Peer()):
            check = check_target(box, peer)
            assert check
            with open_namespace(box) as namespace, pytest.raises(AccessDenied, match="is not of user"):
                check(namespace)
        assert devices(box) == {"lo"}
