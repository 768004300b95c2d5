"""Whether what was remembered of a namespace still holds: numbers of processes and names that others have by now."""

from __future__ import annotations

import os
from collections.abc import Callable
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest

from hyperplane.daemon.occupied import Occupied
from hyperplane.daemon.whereabouts import ended, look, process_lost, remembered, remembered_of_descriptor
from hyperplane.errors import ResourceConflict
from hyperplane.ipc.messages import LinkSpec
from hyperplane.ipc.mirror import Link
from hyperplane.linux.namespaces import Namespace, open_namespace
from hyperplane.linux.processes import process
from hyperplane.linux.repair import DELETED, MOVED
from hyperplane.linux.tun import open_tun
from hyperplane.resources import Environment, EnvironmentState

from .sockets import call_in
from .support import Namespaces, ip

KEPT = "process"


def environment(namespace: str, pid: int = 0) -> Environment:
    return Environment(
        id="env-1", account="default", name="e1", created=0.0, function="f", eni="eni-1", namespace=namespace,
        device="eth0", inside_address=IPv4Address("198.18.0.2"), mtu=1500, state=EnvironmentState.ATTACHED, pid=pid,
    )  # fmt: skip


def known(spec: str) -> dict[str, Any]:
    with open_namespace(spec) as namespace:
        found = remembered(namespace.closed())
    assert found
    return found


class Tunnels:
    """Links with a device each."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, namespace: str, device: str = "eth0") -> Link:
        fd = call_in(namespace, lambda: open_tun(device))
        self.made.append(fd)
        spec = LinkSpec(kind="tunnel", id="env-1", name="env-1", mtu=1500, address=IPv4Address("198.18.0.2"))
        return Link(spec, 1, fd)

    def close(self) -> None:
        for fd in self.made:
            os.close(fd)


@pytest.fixture
def tunnel() -> Any:
    made = Tunnels()
    yield made
    made.close()


class TestLook:
    def test_one_that_is_right_missing_or_moved(self, tunnel: Callable[..., Link], netns_factory: Namespaces) -> None:
        box, other = netns_factory("box"), netns_factory("other")
        kept, link = known(box), tunnel(box)
        assert look(environment(box), kept, link).state == "right"
        assert look(environment(box), kept, None).state == "missing"
        ip("-n", box, "link", "set", "eth0", "netns", other)
        found = look(environment(box), kept, link)
        assert (found.state, found.reason) == ("missing", MOVED)
        assert found.namespace
        ip("-n", other, "link", "del", "eth0")
        found = look(environment(box), kept, link)
        assert (found.state, found.reason) == ("missing", DELETED)

    def test_the_name_of_another_one(self, tunnel: Callable[..., Link], netns_factory: Namespaces) -> None:
        """Also when its device was moved into just that one."""
        box, other = netns_factory("box"), netns_factory("other")
        kept, link = known(box), tunnel(box)
        found = look(environment(other), kept, link)
        assert (found.state, found.reason) == ("gone", f"namespace {other} was deleted")
        ip("-n", box, "link", "set", "eth0", "netns", other)
        assert look(environment(other), kept, link).state == "gone"
        assert look(environment("hpt-none"), kept, None).reason == "namespace hpt-none was deleted"

    def test_the_number_of_another_process(self, tunnel: Callable[..., Link], netns_factory: Namespaces) -> None:
        """In the same namespace even: it is told by when it began."""
        here = os.getpid()
        kept = known(f"pid:{here}")
        assert look(environment(f"pid:{here}", here), kept, None).state == "missing"
        assert not process_lost(f"pid:{here}", kept)
        reused = {**kept, KEPT: [here, kept[KEPT][1] - 1]}
        found = look(environment(f"pid:{here}", here), reused, None)
        assert (found.state, found.reason) == ("gone", f"process {here} ended")
        assert process_lost(f"pid:{here}", reused) == f"process {here} ended"
        ended_at_once = {**kept, KEPT: [here, 0]}  # before it could be asked when it began
        assert look(environment(f"pid:{here}", here), ended_at_once, None).state == "gone"

    def test_a_vpc_whose_process_has_another_namespace_now(self, netns_factory: Namespaces) -> None:
        here = os.getpid()
        kept = {**known(f"pid:{here}"), "netns": known(netns_factory("box"))["netns"]}
        assert process_lost(f"pid:{here}", kept) == f"process {here} went to another namespace"
        assert (
            process_lost(f"/proc/{here}/fd/999999", kept) == f"namespace /proc/{here}/fd/999999 is not there any more"
        )

    def test_a_vpc_with_a_name_is_made_again_whatever_has_the_name(self, netns_factory: Namespaces) -> None:
        """As before: somebody named it so."""
        assert process_lost(netns_factory("other"), known(netns_factory("box"))) == ""

    def test_what_is_kept_with_a_descriptor(self) -> None:
        one = process(os.getpid())
        assert one
        assert remembered_of_descriptor(None, None) is None
        assert remembered_of_descriptor(one, None) == {"process": list(one)}
        kept = remembered_of_descriptor(None, one)
        assert kept == {"sender": list(one)}
        assert not ended(kept)
        assert ended({"process": [one[0], one[1] + 1]})
        assert remembered(None) is None


class TestOccupied:
    @pytest.fixture
    def links(self) -> dict[str, Link]:
        return {}

    @pytest.fixture
    def occupied(self, links: dict[str, Link]) -> Occupied:
        return Occupied(links.get, lambda id_: f"name of {id_}")

    def test_a_namespace_is_one_environment_s_until_it_lets_go(self, occupied: Occupied) -> None:
        one, other = Namespace("box", -1, (4, 1)), Namespace("pid:7", -1, (4, 1))
        for _ in range(2):
            occupied.take_namespace(one, "eth0", "env-1")
        with pytest.raises(
            ResourceConflict, match="namespace pid:7 is used by environment name of env-1; delete"
        ) as caught:
            occupied.take_namespace(other, "eth0", "env-2")
        assert caught.value.field == "namespace"
        occupied.release("env-2")  # which has nothing
        with pytest.raises(ResourceConflict):
            occupied.take_namespace(other, "eth1", "env-2")
        occupied.release("env-1")
        occupied.take_namespace(other, "eth0", "env-2")
        occupied.release("env-1")
        with pytest.raises(ResourceConflict):
            occupied.take_namespace(one, "eth0", "env-1")

    def test_a_device_that_was_handed_in(
        self, occupied: Occupied, links: dict[str, Link], tunnel: Callable[..., Link], netns_factory: Namespaces,
        tmp_path: Path,
    ) -> None:  # fmt: skip
        """It is its environment's for as long as it is there by that name."""
        box = netns_factory("box")
        links["env-1"] = tunnel(box, "tap0")
        occupied.take_device(links["env-1"].fd, "env-1")
        with pytest.raises(ResourceConflict, match="device tap0 is the tunnel of environment name of env-1 already"):
            occupied.take_device(links["env-1"].fd, "env-2")
        with open_namespace(box) as namespace:
            with pytest.raises(ResourceConflict, match=f"namespace {box} is used by environment name of env-1"):
                occupied.take_namespace(namespace, "tap0", "env-2")
            occupied.take_namespace(namespace, "eth0", "env-2")
            occupied.release("env-2")
            ip("-n", box, "link", "set", "tap0", "name", "tap1")
            occupied.take_namespace(namespace, "tap0", "env-2")
