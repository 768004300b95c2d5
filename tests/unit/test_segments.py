"""What is said of devices that an ENI address cannot be found on. Not every kernel has every kind of device."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

import pytest

from hyperplane.linux import segments
from hyperplane.linux.seen import ARPHRD_ETHER, IFF_NOARP, IFF_UP, Link
from hyperplane.linux.segments import Segment


def link(name: str, kind: str, *, index: int = 2, flags: int = IFF_UP, master: int = 0) -> Link:
    mac = bytes.fromhex("020000000001")
    return Link(
        index=index, name=name, type=ARPHRD_ETHER, flags=flags, mtu=1500, mac=mac, kind=kind, master=master,
        carrier=True, ups=1, forwards=False,
    )  # fmt: skip


def said(device: Link, master: Link | None = None) -> list[str]:
    segment = Segment(IPv4Address("198.19.0.5"), device, IPv4Network("198.19.0.0/24"), IPv4Address("198.19.0.1"))
    return segments.of_device(segment, master)


@pytest.mark.parametrize("kind", ["", "veth", "bridge", "vlan", "vxlan", "macvlan", "bond", "wireguard"])
def test_nothing_of_others(kind: str) -> None:
    assert said(link("up0", kind)) == []


@pytest.mark.parametrize("flags", [IFF_UP, IFF_UP | IFF_NOARP], ids=["mode l2", "modes l3, l3s"])
def test_ipvlan(flags: int) -> None:
    assert said(link("up0", "ipvlan", flags=flags)) == [
        "device up0 is ipvlan: it gets packets for its own addresses only, none for ENI address 198.19.0.5; "
        "use macvlan, or route 198.19.0.5 to this namespace"
    ]


@pytest.mark.parametrize("kind", ["bridge", "bond", "team", "openvswitch"])
def test_a_port(kind: str) -> None:
    assert said(link("up0", "", master=7), link("all0", kind, index=7)) == [
        f"device up0 is a port of {kind} all0, which takes its packets: ENI address 198.19.0.5 is not found there; "
        "move addresses and routes of 198.19.0.0/24 to all0"
    ]


def test_a_vrf() -> None:
    assert said(link("up0", "", master=7), link("red", "vrf", index=7, flags=IFF_UP | IFF_NOARP)) == [
        "device up0 is in VRF red, and the ENI's routes are not: ENI address 198.19.0.5 is not found there; "
        "take up0 out of the VRF (`ip link set up0 nomaster`)"
    ]


def test_down() -> None:
    assert said(link("up0", "", flags=0)) == [
        "device up0 is down: ENI address 198.19.0.5 is not found there; `ip link set up0 up`"
    ]
