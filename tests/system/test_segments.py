"""Which devices an ENI address is found on, and when the kernel does not let it be found; no engine takes part.

The ENI's device is a veth pair here, and what is behind it a namespace that has the ENI's address.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from hyperplane.linux import segments
from hyperplane.linux.segments import Segment

from .support import Namespaces, Within, ip, ip_json, run_in, wait_until

ENI, OTHER = IPv4Address("198.19.0.5"), IPv4Address("203.0.113.9")
SUBNET = IPv4Network("198.19.0.0/24")
HOST = "198.19.0.80"


def find(within: Within, vpc: str, *addresses: IPv4Address) -> list[Segment]:
    found: list[Segment] = within(vpc, lambda _: segments.find(addresses or (ENI,)))
    return found


def troubles(within: Within, vpc: str) -> list[str]:
    said: list[str] = within(vpc, lambda _: segments.troubles(segments.find((ENI,))))
    return said


def names(found: list[Segment]) -> list[tuple[IPv4Address, str]]:
    return [(one.address, one.device) for one in found]


def set_(namespace: str, setting: str, value: int) -> None:
    run_in(namespace, ["sysctl", "-qw", f"net/ipv4/{setting}={value}"])


def uplink(namespaces: Namespaces, vpc: str, device: str = "up0") -> str:
    """A host with HOST on a segment with a device of the VPC's, which has no address."""
    host = namespaces.make("host")
    ip("-n", vpc, "link", "add", device, "type", "veth", "peer", "name", "lan0", "netns", host)
    ip("-n", vpc, "link", "set", device, "up")
    ip("-n", host, "link", "set", "lan0", "up")
    ip("-n", host, "addr", "add", f"{HOST}/24", "dev", "lan0")
    return host


def serve(namespaces: Namespaces, vpc: str, device: str = "up0") -> str:
    """What an ENI takes, for ENI on device; the namespace that answers for it."""
    behind = namespaces.make("behind")
    ip("-n", vpc, "link", "add", "eni0", "type", "veth", "peer", "name", "out0", "netns", behind)
    ip("-n", vpc, "link", "set", "eni0", "up")
    ip("-n", behind, "link", "set", "out0", "up")
    ip("-n", behind, "addr", "add", f"{ENI}/32", "dev", "out0")
    ip("-n", behind, "route", "add", "default", "dev", "out0")
    ip("-n", vpc, "route", "add", f"{ENI}/32", "dev", "eni0")
    set_(vpc, "conf/eni0/proxy_arp", 1)
    for one in (device, "eni0"):
        set_(vpc, f"conf/{one}/forwarding", 1)
        set_(vpc, f"neigh/{one}/proxy_delay", 0)
    ip("-n", vpc, "neigh", "add", "proxy", str(ENI), "dev", device)
    return behind


def pings(namespace: str, address: object) -> bool:
    return run_in(namespace, ["ping", "-c1", "-W2", str(address)], check=False).returncode == 0


class TestFind:
    def test_a_device_with_an_address(self, netns_factory: Namespaces, within: Within) -> None:
        vpc = netns_factory("vpc")
        uplink(netns_factory, vpc)
        ip("-n", vpc, "addr", "add", "198.19.0.1/24", "dev", "up0")
        (one,) = find(within, vpc, ENI, OTHER)
        assert (one.address, one.device, one.subnet, one.source) == (ENI, "up0", SUBNET, IPv4Address("198.19.0.1"))
        (shown,) = ip_json("-n", vpc, "link", "show", "up0")
        assert (one.link.index, one.link.mac.hex(":")) == (shown["ifindex"], shown["address"])
        assert (one.link.kind, one.link.up, one.link.carrier, one.link.has_arp) == ("veth", True, True, True)

    def test_a_device_without_one(self, netns_factory: Namespaces, within: Within) -> None:
        vpc = netns_factory("vpc")
        uplink(netns_factory, vpc)
        assert find(within, vpc) == []
        ip("-n", vpc, "route", "add", str(SUBNET), "dev", "up0")
        (one,) = find(within, vpc, ENI, OTHER)
        assert (one.address, one.device, one.subnet, one.source) == (ENI, "up0", SUBNET, None)

    @pytest.mark.parametrize(
        "route",
        [
            ["default", "dev", "up0"],
            ["198.19.0.5/32", "dev", "up0"],
            ["198.19.0.0/24", "via", "203.0.113.2", "dev", "up0", "onlink"],
            ["198.19.0.0/24", "via", "inet6", "fe80::1", "dev", "up0"],
            ["198.19.0.0/24", "dev", "up0", "table", "77"],
            ["198.19.0.0/24", "dev", "up0", "scope", "global"],
            ["blackhole", "198.19.0.0/24"],
            ["198.19.1.0/24", "dev", "up0"],
            ["198.19.0.0/24", "dev", "tun7"],
            ["198.19.0.0/24", "dev", "lo"],
        ],
        ids=" ".join,
    )
    def test_routes_that_say_nothing(self, netns_factory: Namespaces, within: Within, route: list[str]) -> None:
        vpc = netns_factory("vpc")
        uplink(netns_factory, vpc)
        ip("-n", vpc, "tuntap", "add", "tun7", "mode", "tun")
        ip("-n", vpc, "link", "set", "tun7", "up")
        ip("-n", vpc, "route", "add", *route)
        assert find(within, vpc) == []

    def test_a_device_without_arp_that_has_an_address(self, netns_factory: Namespaces, within: Within) -> None:
        """As WireGuard: peers reach the ENI by their own tables, and packets are forwarded there."""
        vpc = netns_factory("vpc")
        ip("-n", vpc, "tuntap", "add", "tun7", "mode", "tun")
        ip("-n", vpc, "addr", "add", "198.19.0.1/24", "dev", "tun7")
        (one,) = find(within, vpc)
        assert (one.device, one.link.has_arp) == ("tun7", False)

    def test_several(self, netns_factory: Namespaces, within: Within) -> None:
        """Each device once for each address, whether by address or by route."""
        vpc = netns_factory("vpc")
        for device in ("up0", "up1", "up2"):
            uplink(netns_factory, vpc, device)
        for local in ("198.19.0.1/24", "198.19.0.2/16"):
            ip("-n", vpc, "addr", "add", local, "dev", "up0")
        ip("-n", vpc, "addr", "add", "203.0.113.1/28", "dev", "up1")
        ip("-n", vpc, "route", "add", "198.16.0.0/12", "dev", "up2")
        found = find(within, vpc, ENI, OTHER)
        assert names(found) == [(ENI, "up0"), (ENI, "up2"), (OTHER, "up1")]
        assert found[0].subnet == SUBNET


class TestKernel:
    """What the module relies on: if a kernel did otherwise, its rules would be wrong."""

    @pytest.mark.parametrize("rp_filter", [0, 1, 2])
    @pytest.mark.parametrize("address", ["", "198.19.0.1/24", "198.19.0.1/32"])
    def test_a_route_is_enough(self, netns_factory: Namespaces, within: Within, address: str, rp_filter: int) -> None:
        """Hosts and the ENI find each other on a device with an on-link route, with or without an address there."""
        vpc = netns_factory("vpc")
        host = uplink(netns_factory, vpc)
        for namespace in (vpc, host):
            set_(namespace, "conf/all/rp_filter", rp_filter)
        if address:
            ip("-n", vpc, "addr", "add", address, "dev", "up0")
        if not address.endswith("/24"):
            ip("-n", vpc, "route", "add", str(SUBNET), "dev", "up0")
        behind = serve(netns_factory, vpc)
        assert names(find(within, vpc)) == [(ENI, "up0")]
        assert troubles(within, vpc) == []
        assert pings(behind, HOST)
        ip("-n", host, "neigh", "flush", "dev", "lan0")
        assert pings(host, ENI)

    def test_without_a_route_strict_or_loose_hosts_get_no_answer(
        self, netns_factory: Namespaces, within: Within
    ) -> None:
        """So a device without address and route is no segment."""
        vpc = netns_factory("vpc")
        host = uplink(netns_factory, vpc)
        serve(netns_factory, vpc)
        set_(vpc, "conf/up0/rp_filter", 2)
        assert find(within, vpc) == []
        pings(host, ENI)
        (entry,) = ip_json("-n", host, "neigh", "show", str(ENI), "dev", "lan0")
        assert "lladdr" not in entry


class TestTroubles:
    def test_an_address_of_elsewhere(self, netns_factory: Namespaces, within: Within) -> None:
        """The kernel asks as that one; a host that filters by route does not answer it."""
        vpc = netns_factory("vpc")
        host = uplink(netns_factory, vpc)
        ip("-n", vpc, "route", "add", str(SUBNET), "dev", "up0")
        ip("-n", vpc, "addr", "add", "203.0.113.7/32", "dev", "lo")
        behind = serve(netns_factory, vpc)
        set_(host, "conf/all/rp_filter", 1)
        assert not pings(behind, HOST)
        assert troubles(within, vpc) == [
            "device up0 has no address in 198.19.0.0/24: it asks for hosts there as 203.0.113.7, which those with "
            "rp_filter do not answer; give it an address in 198.19.0.0/24"
        ]
        ip("-n", vpc, "addr", "add", "198.19.0.1/24", "dev", "up0")  # what the line says
        assert troubles(within, vpc) == []
        # Until then the kernel may go on with requests that it has begun.
        wait_until(lambda: pings(behind, HOST))

    def test_two_devices_and_a_strict_filter(self, netns_factory: Namespaces, within: Within) -> None:
        vpc = netns_factory("vpc")
        for number, device in enumerate(("up0", "up1")):
            host = uplink(netns_factory, vpc, device)
            ip("-n", vpc, "addr", "add", f"198.19.0.{number + 1}/24", "dev", device)
        assert troubles(within, vpc) == []
        set_(vpc, "conf/up1/rp_filter", 1)
        serve(netns_factory, vpc, "up1")
        pings(host, ENI)
        (entry,) = ip_json("-n", host, "neigh", "show", str(ENI), "dev", "lan0")
        assert "lladdr" not in entry
        assert troubles(within, vpc) == [
            "device up1 has rp_filter=1, and 198.19.0.0/24 is routed to device up0: hosts on up1 get no answer for ENI "
            "address 198.19.0.5; set net.ipv4.conf.up1.rp_filter to 2"
        ]
        set_(vpc, "conf/up1/rp_filter", 2)
        assert troubles(within, vpc) == []

        def is_found() -> bool:
            pings(host, ENI)
            return "lladdr" in ip_json("-n", host, "neigh", "show", str(ENI), "dev", "lan0")[0]

        wait_until(is_found)

    def test_a_port_of_a_bridge(self, netns_factory: Namespaces, within: Within) -> None:
        vpc = netns_factory("vpc")
        host = uplink(netns_factory, vpc)
        ip("-n", vpc, "addr", "add", "198.19.0.1/24", "dev", "up0")
        ip("-n", vpc, "link", "add", "br0", "type", "bridge")
        ip("-n", vpc, "link", "set", "br0", "up")
        ip("-n", vpc, "link", "set", "up0", "master", "br0")
        serve(netns_factory, vpc)
        assert not pings(host, ENI)
        assert troubles(within, vpc) == [
            "device up0 is a port of bridge br0, which takes its packets: ENI address 198.19.0.5 is not found there; "
            "move addresses and routes of 198.19.0.0/24 to br0"
        ]

    def test_down(self, netns_factory: Namespaces, within: Within) -> None:
        vpc = netns_factory("vpc")
        uplink(netns_factory, vpc)
        ip("-n", vpc, "addr", "add", "198.19.0.1/24", "dev", "up0")
        ip("-n", vpc, "link", "set", "up0", "down")
        assert troubles(within, vpc) == [
            "device up0 is down: ENI address 198.19.0.5 is not found there; `ip link set up0 up`"
        ]
