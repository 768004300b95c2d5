"""An ENI's device on segments that change: what neighbours are told, who else has its address, whose settings stay."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address
from typing import Any

import pytest
from scapy.layers.l2 import ARP, Ether

from hyperplane.linux import arp
from hyperplane.linux import eni as eni_module
from hyperplane.linux.eni import EniDevice, create_eni, withdraw_eni
from hyperplane.linux.namespaces import NamespaceThreads
from hyperplane.linux.repair import Report

from .support import DEADLINE, Namespaces, Within, ip, ip_json, run_in, wait_until

ENI, SECOND = IPv4Address("198.19.0.5"), IPv4Address("198.19.0.6")
WRONG = "02:00:00:00:00:99"
Make = Callable[..., EniDevice]
Look = Callable[..., Report]


@pytest.fixture
def server(netns_factory: Namespaces) -> str:
    return netns_factory("server")


@pytest.fixture
def vpc(netns_factory: Namespaces, server: str) -> str:
    name = netns_factory("vpc")
    plug(name, server)
    return name


def plug(vpc: str, server: str, device: str = "up0") -> None:
    ip("-n", vpc, "link", "add", device, "type", "veth", "peer", "db0", "netns", server)
    for namespace, end, address in ((vpc, device, "198.19.0.1/24"), (server, "db0", "198.19.0.9/24")):
        ip("-n", namespace, "addr", "add", address, "dev", end)
        ip("-n", namespace, "link", "set", end, "up")


@pytest.fixture
def make(vpc: str, within: Within, threads: NamespaceThreads) -> Iterator[Make]:
    made: list[EniDevice] = []

    def run(device: str = "eni0", address: IPv4Address = ENI) -> EniDevice:
        eni: EniDevice = within(vpc, lambda ns: create_eni(ns, device=device, addresses=(address,), mtu=1500))
        made.append(eni)
        return eni

    yield run
    for eni in made:
        threads.submit(withdraw_eni, eni, threads).result(DEADLINE)
        os.close(eni.fd)


@pytest.fixture
def look(vpc: str, within: Within) -> Look:
    return lambda eni: within(vpc, lambda _: eni.put_right())


@pytest.fixture
def heard(server: str, vpc: str, within: Within) -> Iterator[Callable[[], list[Any]]]:
    """Announcements of ENI that have reached the server since; scapy's."""

    def opened(_: object) -> socket.socket:
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        packets.bind(("db0", arp.ETH_P_ARP))
        return packets

    with within(server, opened) as packets:
        packets.setblocking(False)

        def read() -> list[Any]:
            frames: list[Any] = []
            while True:
                try:
                    frame = Ether(packets.recv(2048))
                except BlockingIOError:
                    return [one for one in frames if one[ARP].psrc == one[ARP].pdst == str(ENI)]
                except OSError:  # the device was down
                    continue
                frames.append(frame)

        yield read


def mac(namespace: str, device: str) -> str:
    (link,) = ip_json("-n", namespace, "link", "show", "dev", device)
    return str(link["address"])


def known(server: str) -> str:
    found = ip_json("-n", server, "neigh", "show", str(ENI))
    return str(found[0].get("lladdr", "")) if found else ""


def setting(namespace: str, name: str) -> str:
    return run_in(namespace, ["sysctl", "-n", f"net.ipv4.{name}"]).stdout.strip()


def proxies(vpc: str) -> list[str]:
    return sorted(one["dst"] for one in ip_json("-n", vpc, "neigh", "show", "proxy"))


EVENTS = {
    "MAC": [["link", "set", "up0", "address", "02:00:00:00:00:18"]],
    "down and up": [["link", "set", "up0", "down"], ["link", "set", "up0", "up"]],
    "proxy neighbour deleted": [["neigh", "del", "proxy", str(ENI), "dev", "up0"]],
}


@pytest.mark.parametrize("event", EVENTS)
def test_neighbours_are_told_twice_an_event(
    vpc: str, server: str, make: Make, look: Look, heard: Callable[[], list[Any]],
    monkeypatch: pytest.MonkeyPatch, event: str,
) -> None:  # fmt: skip
    """Each time a request and a reply: one that held another MAC for the address has the new one. Then nothing."""
    assert arp.ANNOUNCE_AGAIN == (2.0,)
    monkeypatch.setattr(arp, "ANNOUNCE_AGAIN", (0.1,))

    def settle() -> None:
        wait_until(lambda: look(eni).again is None)

    ip("-n", server, "neigh", "replace", str(ENI), "lladdr", WRONG, "dev", "db0", "nud", "stale")
    eni = make()
    wait_until(lambda: known(server) == mac(vpc, "up0"))
    settle()
    assert [one[ARP].op for one in heard()] == [1, 2, 1, 2]
    for step in EVENTS[event]:
        ip("-n", vpc, *step)
        look(eni)
    ip("-n", server, "neigh", "replace", str(ENI), "lladdr", WRONG, "dev", "db0", "nud", "stale")
    wait_until(lambda: look(eni).again is not None or known(server) == mac(vpc, "up0"))
    settle()
    wait_until(lambda: known(server) == mac(vpc, "up0"))
    told = heard()
    assert [one[ARP].op for one in told] == [1, 2, 1, 2]
    assert {one[ARP].hwsrc for one in told} == {mac(vpc, "up0")}
    for _ in range(5):
        assert look(eni) == Report()
    assert heard() == []


def test_a_late_uplink_is_served_once_its_host_gives_the_address_up(
    vpc: str, server: str, make: Make, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    ip("-n", vpc, "link", "del", "up0")
    eni = make()
    plug(vpc, server)
    ip("-n", server, "addr", "add", f"{ENI}/24", "dev", "db0")
    (trouble,) = look(eni).troubles
    assert trouble.startswith(f"{mac(server, 'db0')} has {ENI} on up0 too")
    ip("-n", server, "addr", "del", f"{ENI}/24", "dev", "db0")
    assert look(eni).troubles == (trouble,)  # it is not asked at every look
    assert proxies(vpc) == []
    monkeypatch.setattr(eni_module, "PROBE_AGAIN", 0.0)
    report = look(eni)
    assert report.troubles == ()
    assert f"proxy neighbour {ENI} on up0" in [one.what for one in report.differences]
    assert proxies(vpc) == [str(ENI)]


@pytest.mark.parametrize("first", [0, 1])
def test_settings_stay_until_the_last_eni_of_a_segment_goes(
    vpc: str, make: Make, look: Look, threads: NamespaceThreads, first: int
) -> None:
    def kept() -> tuple[str, str]:
        return setting(vpc, "conf.up0.forwarding"), setting(vpc, "neigh.up0.proxy_delay")

    assert kept() == ("0", "80")
    enis = [make("eni0", ENI), make("eni1", SECOND)]
    run_in(vpc, ["sysctl", "-qw", "net.ipv4.neigh.up0.proxy_delay=70"])
    look(enis[first])
    assert kept() == ("1", "0")
    threads.submit(withdraw_eni, enis[first], threads).result(DEADLINE)
    assert kept() == ("1", "0")
    assert proxies(vpc) == [str((ENI, SECOND)[1 - first])]
    threads.submit(withdraw_eni, enis[1 - first], threads).result(DEADLINE)
    assert kept() == ("0", "70")  # as others wanted it last
    assert proxies(vpc) == []


@pytest.mark.parametrize("enis", [1, 2])
def test_a_renamed_uplink_keeps_what_it_was(
    vpc: str, make: Make, look: Look, threads: NamespaceThreads, enis: int
) -> None:
    """Settings go with a device that gets another name."""
    made = [make("eni0", ENI), make("eni1", SECOND)][:enis] if enis > 1 else [make()]
    for step in (["down"], ["name", "up9"], ["up"]):
        ip("-n", vpc, "link", "set", "up0" if step != ["up"] else "up9", *step)
    for one in made:
        look(one)
        assert look(one).differences == ()
    assert (setting(vpc, "conf.up9.forwarding"), setting(vpc, "neigh.up9.proxy_delay")) == ("1", "0")
    for one in made:
        threads.submit(withdraw_eni, one, threads).result(DEADLINE)
    assert (setting(vpc, "conf.up9.forwarding"), setting(vpc, "neigh.up9.proxy_delay")) == ("0", "80")
    assert proxies(vpc) == []
