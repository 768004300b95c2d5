"""What keeps an ENI's packets from crossing its VPC's namespace, by what was read there."""

from __future__ import annotations

import pytest

from hyperplane.linux.forwarding import Device, troubles

ENI, OTHER = Device("eni0", "tun", leads=True, forwarding=True), Device("eni1", "tun", leads=True, forwarding=False)
UPLINK, SECOND = Device("up0", "veth", leads=True, forwarding=True), Device("up1", "", leads=True, forwarding=True)
LOOPBACK = Device("lo", "", leads=False, forwarding=False)


def shut(device: Device) -> Device:
    return device._replace(forwarding=False)


def found(*devices: Device, routed: tuple[str, ...] = ("eni0", "eni1", "up0", "up1")) -> dict[str, tuple[str, bool]]:
    """Of eni0: by setting, which uplinks it concerns, and whether nothing is left."""
    each = troubles("eni0", devices, routed, ["eni0", "eni1"])
    return {one.setting: (" ".join(one.uplinks), one.hopeless) for one in each}


OWN, UP0, UP1 = (f"net.ipv4.conf.{name}.forwarding" for name in ("eni0", "up0", "up1"))


def test_both_ways_are_needed() -> None:
    assert found(ENI, UPLINK) == {}
    assert found(shut(ENI), UPLINK) == {OWN: ("up0", True)}
    assert found(ENI, shut(UPLINK)) == {UP0: ("up0", True)}
    assert found(shut(ENI), shut(UPLINK)) == {OWN: ("up0", True), UP0: ("up0", True)}


def test_one_of_two_uplinks_may_be_enough() -> None:
    assert found(ENI, shut(UPLINK), SECOND) == {UP0: ("up0", False)}
    assert found(ENI, shut(UPLINK), shut(SECOND)) == {UP0: ("up0", True), UP1: ("up1", True)}
    assert found(shut(ENI), UPLINK, SECOND) == {OWN: ("up0 up1", True)}


@pytest.mark.parametrize("nobody", [LOOPBACK, UPLINK._replace(leads=False, forwarding=False), OTHER])
def test_nobody_is_behind_these(nobody: Device) -> None:
    """A namespace in which only its own servers are reached needs nothing."""
    assert found(shut(ENI), nobody) == {}


def test_a_device_without_a_route_is_no_uplink() -> None:
    assert found(shut(ENI), shut(UPLINK), routed=("eni0",)) == {}


def test_an_eni_that_is_not_there_has_no_troubles() -> None:
    assert found(shut(UPLINK)) == {}


def test_a_dot_in_a_name_is_a_slash_for_sysctl() -> None:
    assert list(found(ENI, Device("up0.5", "vlan", leads=True, forwarding=False), routed=("up0.5",))) == [
        "net.ipv4.conf.up0/5.forwarding"
    ]
