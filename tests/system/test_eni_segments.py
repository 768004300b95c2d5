"""An ENI's device between hosts with addresses of their own, on segments of several kinds; no engine takes part."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

import pytest

from hyperplane.errors import AddressInUse
from hyperplane.linux.eni import EniDevice, create_eni, withdraw_eni
from hyperplane.linux.namespaces import NamespaceThreads

from .support import DEADLINE, Namespaces, Within, descriptors, devices, ip, ip_json, run_in, wait_until

ENI = IPv4Address("198.19.0.5")
Make = Callable[..., EniDevice]


@pytest.fixture
def make(within: Within, threads: NamespaceThreads) -> Iterator[Make]:
    made: list[EniDevice] = []

    def run(name: str, *addresses: IPv4Address) -> EniDevice:
        eni: EniDevice = within(name, lambda ns: create_eni(ns, device="eni0", addresses=addresses or (ENI,), mtu=1500))
        made.append(eni)
        return eni

    yield run
    for eni in made:
        remove(eni, threads)


def remove(eni: EniDevice, threads: NamespaceThreads) -> None:
    threads.submit(withdraw_eni, eni, threads).result(DEADLINE)
    for fd in (eni.fd, *eni.more):
        try:
            os.close(fd)
        except OSError:  # removed in the test already
            return


@pytest.fixture
def host(netns_factory: Namespaces) -> Callable[[], str]:
    """A host with `up0` and 198.19.0.81/24, .82, ... on one segment with the others."""
    switch = netns_factory("switch")
    ip("-n", switch, "link", "add", "br0", "type", "bridge")
    ip("-n", switch, "link", "set", "br0", "up")
    hosts: list[str] = []

    def run() -> str:
        name = netns_factory("host")
        hosts.append(name)
        ip("-n", switch, "link", "add", f"p{len(hosts)}", "type", "veth", "peer", "name", "up0", "netns", name)
        ip("-n", switch, "link", "set", f"p{len(hosts)}", "master", "br0", "up")
        ip("-n", name, "link", "set", "up0", "up")
        ip("-n", name, "addr", "add", f"198.19.0.{80 + len(hosts)}/24", "dev", "up0")
        return name

    return run


def mac(namespace: str, device: str = "up0") -> str:
    (link,) = ip_json("-n", namespace, "link", "show", "dev", device)
    return str(link["address"])


def known(namespace: str, device: str = "up0") -> str:
    """The MAC by which a host knows ENI."""
    found = ip_json("-n", namespace, "neigh", "show", str(ENI), "dev", device)
    return str(found[0].get("lladdr", "")) if found else ""


def ask(namespace: str) -> None:
    """Has a host look for ENI; nobody answers the ping itself."""
    run_in(namespace, ["ping", "-c1", "-W1", str(ENI)], check=False)


def test_a_host_that_has_the_address(make: Make, host: Callable[[], str]) -> None:
    vpc, server = host(), host()
    ip("-n", server, "addr", "add", f"{ENI}/24", "dev", "up0")
    before = descriptors()
    with pytest.raises(AddressInUse, match=rf"^{ENI} is in use on up0 by {mac(server)}"):
        make(vpc)
    assert devices(vpc) == {"lo", "up0"}
    assert ip_json("-n", vpc, "neigh", "show", "proxy") == []
    assert descriptors() == before
    run_in(vpc, ["ping", "-c1", "-W5", str(ENI)])  # the VPC has not lost its server


def test_another_host_s_eni(make: Make, host: Callable[[], str], threads: NamespaceThreads) -> None:
    """Two hosts with one VPC, and the same subnet: the second one takes another address, until the first is gone."""
    one, two, client = host(), host(), host()
    eni = make(one)
    with pytest.raises(AddressInUse, match=rf"^{ENI} is in use on up0 by {mac(one)}"):
        make(two)
    ask(client)
    assert known(client) == mac(one)
    remove(eni, threads)
    wait_until(lambda: "eni0" not in devices(one))
    make(two)
    wait_until(lambda: known(client) == mac(two))


def test_an_uplink_with_a_route_only(
    make: Make, netns_factory: Namespaces, host: Callable[[], str], threads: NamespaceThreads
) -> None:
    """VXLAN between two hosts; in the VPC's namespace the device has no address, and the namespace no other."""
    underlay, other = host(), host()
    vpc = netns_factory("vpc")
    for namespace, peer in ((underlay, "198.19.0.82"), (other, "198.19.0.81")):
        vxlan = ("type", "vxlan", "id", "7", "remote", peer, "dstport", "4789", "dev", "up0")
        ip("-n", namespace, "link", "add", "x0", *vxlan)
    ip("-n", underlay, "link", "set", "x0", "netns", vpc)
    ip("-n", vpc, "link", "set", "x0", "up")
    ip("-n", vpc, "route", "add", "198.18.7.0/24", "dev", "x0")
    ip("-n", other, "addr", "add", "198.18.7.80/24", "dev", "x0")
    ip("-n", other, "link", "set", "x0", "up")
    address = IPv4Address("198.18.7.5")
    eni = make(vpc, address)
    assert eni.segments == (("x0", address),)
    ping = netns_factory.start_in(other, ["ping", "-c9", "-i0.3", str(address)], stdout=subprocess.DEVNULL)
    packet = wait_until(lambda: read_ipv4(eni.fd, address))
    assert packet[12:16] == IPv4Address("198.18.7.80").packed
    ping.kill()
    remove(eni, threads)
    assert ip_json("-n", vpc, "neigh", "show", "proxy") == []


def test_an_uplink_without_arp(make: Make, netns_factory: Namespaces) -> None:
    """As WireGuard, with an address whose subnet holds the ENI's: packets are forwarded, and nothing is proxied."""
    vpc = netns_factory("vpc")
    ip("-n", vpc, "tuntap", "add", "wg0", "mode", "tun")
    ip("-n", vpc, "addr", "add", "198.19.0.1/24", "dev", "wg0")
    ip("-n", vpc, "link", "set", "wg0", "up")
    make(vpc)
    for device in ("wg0", "eni0"):
        shown = run_in(vpc, ["sysctl", "-n", f"net/ipv4/conf/{device}/forwarding"]).stdout.strip()
        assert shown == "1", device


def read_ipv4(fd: int, destination: IPv4Address) -> bytes:
    """A packet to that address, b"" while there is none."""
    try:
        packet = os.read(fd, 65536)[10:]
    except BlockingIOError:
        return b""
    return packet if packet[:1] == b"E" and packet[16:20] == destination.packed else b""
