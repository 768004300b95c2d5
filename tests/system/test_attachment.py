"""hyperplane.attachment: environments attached to an ENI, in every way, and everything removed again."""

from __future__ import annotations

import asyncio
import os
import re
import socket
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from hyperplane.attachment import Attachments
from hyperplane.dataplane import Engine, Eni
from hyperplane.errors import (
    DeviceError,
    EngineError,
    InvalidValue,
)
from hyperplane.linux import netlink, tun
from hyperplane.linux.namespaces import Namespace
from hyperplane.model import SecurityGroup

from .support import (
    DEADLINE,
    ENI,
    SERVER,
    SMALL,
    Namespaces,
    Within,
    blocking,
    descriptors,
    devices,
    eventually,
    ip_json,
    run_in,
    wait_until,
)

INSIDE = IPv4Address("198.18.0.2")
DEFAULT = IPv4Network("0.0.0.0/0")
PORT = 8080
# Answers each connection with the address that it came from.
ECHO = f"""
import socketserver
class Handler(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(self.client_address[0].encode())
class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True
Server(("{SERVER}", {PORT}), Handler).serve_forever()
"""


def ask(_: Namespace) -> str:
    """What address the server in the VPC sees."""
    with socket.create_connection((SERVER, PORT), timeout=DEADLINE) as connection:
        return connection.recv(100).decode()


def serve(netns_factory: Namespaces, vpc: str) -> None:
    netns_factory.start_in(vpc, ["python3", "-c", ECHO])
    wait_until(lambda: f":{PORT}" in run_in(vpc, ["ss", "-Hltn"]).stdout)


class TestWays:
    async def test_environments_with_one_address_reach_the_vpc(
        self, attachments: Attachments, eni: Eni, vpc: str, netns_factory: Namespaces, within: Within
    ) -> None:
        """By name, by path and by pid; each flow is attributed to its environment."""
        await blocking(serve, netns_factory, vpc)
        boxes = [netns_factory(f"box{number}") for number in range(3)]
        sleeper = netns_factory.start_in(boxes[2], ["sleep", "600"])
        here = os.stat("/proc/self/ns/net").st_ino
        await eventually(lambda: os.stat(f"/proc/{sleeper.pid}/ns/net").st_ino != here)
        made = [
            await attachments.attach(eni, namespace=boxes[0]),
            await attachments.attach(eni, namespace=Path(f"/run/netns/{boxes[1]}")),
            await attachments.attach(eni, pid=sleeper.pid, name="third", device="tun7", mtu=1400),
        ]
        assert [one.tunnel.name for one in made] == [*boxes[:2], "third"]
        assert [one.device for one in made] == ["eth0", "eth0", "tun7"]
        assert made[2].namespace == f"pid:{sleeper.pid}"
        for one in made:
            parts = (one.timings.wait, one.timings.device, one.timings.netlink, one.timings.engine)
            assert all(part >= 0 for part in parts)
            assert one.seconds >= sum(parts)
        assert [await blocking(within, box, ask) for box in boxes] == [ENI] * 3
        flows = attachments.engine.flows()
        assert sorted(flow.tunnel for flow in flows) == sorted(one.tunnel.name for one in made)
        assert {(str(flow.inside), str(flow.outside)) for flow in flows} == {("198.18.0.2", ENI)}
        assert len({flow.outside_port for flow in flows}) == 3
        assert set(attachments.attachments(eni)) == set(made)
        for one in made:
            await attachments.detach(one)
            assert one.ended.result() == "detached"
        assert [devices(box) for box in boxes] == [{"lo"}] * 3
        assert attachments.attachments() == ()
        await attachments.detach(made[0])

    async def test_a_device_of_our_own_is_believed(
        self, attachments: Attachments, eni: Eni, netns_factory: Namespaces
    ) -> None:
        """A descriptor that is handed in is tried with a packet that no TUN takes, which its device counts."""
        box = netns_factory("box")
        attachment = await attachments.attach(eni, namespace=box)
        (link,) = ip_json("-s", "-n", box, "link", "show", "dev", "eth0")
        assert link["stats64"]["rx"]["dropped"] == 0
        await attachments.detach(attachment)

    async def test_a_descriptor_that_the_platform_configured(
        self, attachments: Attachments, eni: Eni, vpc: str, netns_factory: Namespaces, within: Within
    ) -> None:
        """Only a duplicate is kept: the platform closes its own, and the device stays until detach()."""
        await blocking(serve, netns_factory, vpc)
        box = netns_factory("box")

        def platform(_: Namespace) -> int:
            fd = tun.open_tun("plat0")
            netlink.configure("plat0", mtu=1500, address=INSIDE, routes=[DEFAULT])
            return fd

        theirs = await blocking(within, box, platform)
        before = descriptors()
        made = await attachments.attach(eni, fd=theirs)
        assert descriptors() == before + 1
        assert (made.device, made.namespace) == ("plat0", "")
        os.close(theirs)
        assert await blocking(within, box, ask) == ENI
        await attachments.detach(made)
        assert devices(box) == {"lo"}

    async def test_an_engine_of_the_caller(self, vpc: str, netns_factory: Namespaces) -> None:
        box = netns_factory("box")
        with Engine(**SMALL) as engine:
            async with Attachments(engine) as attachments:
                assert engine.status().running
                eni = await attachments.open_eni(vpc=vpc, addresses=ENI)
                await attachments.attach(eni, namespace=box)
                assert len(engine.tunnels) == 1
            assert not engine.tunnels
            assert not engine.enis
            assert engine.status().running
        with pytest.raises(InvalidValue, match="max_flows"):
            Attachments(engine, max_flows=1)

    async def test_an_engine_that_its_owner_closed(self, vpc: str, netns_factory: Namespaces) -> None:
        box = netns_factory("box")
        before = descriptors()
        async with Attachments(engine := Engine(**SMALL)) as attachments:
            eni = await attachments.open_eni(vpc=vpc, addresses=ENI)
            await attachments.attach(eni, namespace=box)
            engine.close()
        assert devices(box) == {"lo"}
        assert devices(vpc) == {"lo", "lan0"}
        assert descriptors() == before


class TestEnds:
    async def test_a_namespace_deleted_underneath(
        self, attachments: Attachments, eni: Eni, netns_factory: Namespaces
    ) -> None:
        """The tunnel pins the namespace, so it must be told, and let go; others are left alone."""
        boxes = [netns_factory("box") for _ in range(2)]
        before = descriptors()
        gone, stays = [await attachments.attach(eni, namespace=box) for box in boxes]
        inode = os.stat(f"/run/netns/{boxes[0]}").st_ino
        assert len(attachments.engine.tunnels) == 2
        await blocking(netns_factory.delete, boxes[0])
        assert await asyncio.wait_for(gone.ended, DEADLINE) == f"namespace {boxes[0]} was deleted"
        await attachments.detach(gone)
        assert [one.name for one in attachments.engine.tunnels] == [boxes[1]]
        assert attachments.attachments() == (stays,)
        assert not stays.ended.done()
        assert inode != os.stat(f"/run/netns/{boxes[1]}").st_ino
        assert descriptors() == before + 1, "that of the tunnel that stays"

    async def test_a_process_that_ends(self, attachments: Attachments, eni: Eni, netns_factory: Namespaces) -> None:
        box = netns_factory("box")
        sleeper = netns_factory.start_in(box, ["sleep", "600"])
        here = os.stat("/proc/self/ns/net").st_ino
        await eventually(lambda: os.stat(f"/proc/{sleeper.pid}/ns/net").st_ino != here)
        made = await attachments.attach(eni, pid=sleeper.pid)
        sleeper.kill()
        assert await asyncio.wait_for(made.ended, DEADLINE) == f"process {sleeper.pid} ended"
        await eventually(lambda: devices(box) == {"lo"})

    async def test_the_vpc_deleted_underneath(
        self, attachments: Attachments, eni: Eni, vpc: str, netns_factory: Namespaces
    ) -> None:
        box = netns_factory("box")
        made = await attachments.attach(eni, namespace=box)
        ended = attachments.eni_ended(eni)
        await blocking(netns_factory.delete, vpc)
        reason = f"the VPC's namespace {vpc} was deleted"
        assert await asyncio.wait_for(made.ended, DEADLINE) == reason
        assert await asyncio.wait_for(ended, DEADLINE) == reason
        assert attachments.enis == attachments.engine.enis == ()
        await eventually(lambda: devices(box) == {"lo"})

    async def test_close_removes_everything(self, vpc: str, netns_factory: Namespaces) -> None:
        boxes = [netns_factory("box") for _ in range(4)]
        before = descriptors()
        async with Attachments(**SMALL) as attachments:
            enis = [
                await attachments.open_eni(vpc=vpc, addresses=a, name=d, device=d)
                for a, d in ((ENI, "e0"), ("198.19.0.6", "e1"))
            ]
            made = [await attachments.attach(enis[n % 2], namespace=box) for n, box in enumerate(boxes)]
            assert descriptors() > before
        assert {one.ended.result() for one in made} == {"closed"}
        assert [devices(box) for box in boxes] == [{"lo"}] * 4
        assert devices(vpc) == {"lo", "lan0"}
        assert ip_json("-n", vpc, "neigh", "show", "proxy") == []
        assert run_in(vpc, ["cat", "/proc/sys/net/ipv4/conf/lan0/forwarding"]).stdout == "0\n"
        assert descriptors() == before


class TestThreads:
    @pytest.mark.parametrize("in_loop", [True, False])
    async def test_the_loop_stays_in_its_namespace(
        self, vpc: str, netns_factory: Namespaces, within: Within, in_loop: bool
    ) -> None:
        """Whoever does the work; also when it fails, before and after there is a device."""
        await blocking(serve, netns_factory, vpc)
        box, here = netns_factory("box"), os.stat("/proc/thread-self/ns/net")
        before = descriptors()
        async with Attachments(in_loop=in_loop, **SMALL) as attachments:
            everything = SecurityGroup.parse("everything", ["all"])
            eni = await attachments.open_eni(vpc=vpc, addresses=ENI, security_groups=[everything])
            for wrong in ({"device": "lo"}, {"routes": ["198.19.0.0/16"] * 2}):
                with pytest.raises(DeviceError):
                    await attachments.attach(eni, namespace=box, **wrong)
                assert devices(box) == {"lo"}
                assert attachments.engine.tunnels == ()
            one = await attachments.attach(eni, namespace=box)
            assert os.path.samestat(os.stat("/proc/thread-self/ns/net"), here)
            assert await blocking(within, box, ask) == ENI
            await attachments.detach(one)
        assert descriptors() == before

    async def test_a_wish_that_is_none(self) -> None:
        with pytest.raises(InvalidValue, match="in_loop"):
            Attachments(in_loop="no")  # type: ignore[arg-type]


class TestMany:
    async def test_a_thousand_at_once(self, attachments: Attachments, eni: Eni, netns_factory: Namespaces) -> None:
        """Served in the order in which they came, one descriptor each; then all detached at once."""
        boxes = [netns_factory("box") for _ in range(20)]
        before = descriptors()
        order: list[int] = []

        async def one(number: int) -> Any:
            name = f"t{number}"
            made = await attachments.attach(eni, namespace=boxes[number % 20], device=name, name=name, routes=())
            order.append(number)
            return made

        made = await asyncio.gather(*(one(number) for number in range(1000)))
        assert len(attachments.engine.tunnels) == 1000
        assert max(abs(place - number) for place, number in enumerate(order)) <= 50
        assert descriptors() <= before + 1001
        assert sum(len(devices(box)) - 1 for box in boxes) == 1000
        await asyncio.gather(*(attachments.detach(each) for each in made))
        assert [devices(box) for box in boxes] == [{"lo"}] * 20
        assert descriptors() <= before + 1

    async def test_cancelled_at_any_moment(self, attachments: Attachments, eni: Eni, netns_factory: Namespaces) -> None:
        """Before it begins, while it runs, when it is done: what was cancelled is not there."""
        boxes = [netns_factory("box") for _ in range(4)]
        before = descriptors()
        attach = partial(attachments.attach, eni, routes=())
        tasks = [asyncio.create_task(attach(namespace=boxes[n % 4], device=f"t{n}", name=f"t{n}")) for n in range(120)]
        for number, task in enumerate(tasks):
            if number % 3 == 0:
                await tasks[max(number - 1, 0)]
            elif number % 3 == 1:
                task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        kept = [one for one in results if not isinstance(one, BaseException)]
        assert {type(one) for one in results if isinstance(one, BaseException)} <= {asyncio.CancelledError}
        assert len(kept) < len(tasks)
        await eventually(lambda: len(attachments.engine.tunnels) == len(kept))
        await eventually(lambda: sum(len(devices(box)) - 1 for box in boxes) == len(kept))
        assert set(attachments.attachments()) == set(kept)
        assert descriptors() <= before + 1 + len(kept)

    async def test_closed_while_attaching(self, vpc: str, netns_factory: Namespaces) -> None:
        """What is under way then is refused or closed; nothing of it stays."""
        boxes = [netns_factory("box") for _ in range(4)]
        before = descriptors()
        async with Attachments(**SMALL) as attachments:
            eni = await attachments.open_eni(vpc=vpc, addresses=ENI)
            attach = partial(attachments.attach, eni, routes=())
            work = [
                asyncio.create_task(attach(namespace=boxes[n % 4], device=f"t{n}", name=f"t{n}")) for n in range(60)
            ]
            await work[0]
        results = await asyncio.gather(*work, return_exceptions=True)
        for one in results:
            if isinstance(one, BaseException):
                assert isinstance(one, (EngineError, InvalidValue)), one
            else:
                assert one.ended.result() == "closed"
        assert [devices(box) for box in boxes] == [{"lo"}] * 4
        assert devices(vpc) == {"lo", "lan0"}
        assert descriptors() == before

    async def test_more_than_the_engine_has_room_for(self, vpc: str, netns_factory: Namespaces) -> None:
        box = netns_factory("box")
        async with Attachments(**{**SMALL, "max_links": 4}) as attachments:
            eni = await attachments.open_eni(vpc=vpc, addresses=ENI)
            jobs = (attachments.attach(eni, namespace=box, device=f"t{n}", name=f"t{n}", routes=()) for n in range(8))
            results = await asyncio.gather(*jobs, return_exceptions=True)
            refused = [one for one in results if isinstance(one, BaseException)]
            assert all(isinstance(one, EngineError) for one in refused), refused
            assert all(re.search(r"\b4\b", str(one)) for one in refused), refused
            assert len(devices(box)) - 1 == len(results) - len(refused) == len(attachments.attachments())
