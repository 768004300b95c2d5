"""A device compared with its shape: each difference is named, and said to what repairs it; others' additions stay."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from msgspec.structs import replace

from hyperplane.linux import seen
from hyperplane.linux.device import Shape
from hyperplane.linux.repair import Difference, compare_link
from hyperplane.linux.seen import Link, Route

ADDRESS, OTHER = IPv4Address("198.18.0.2"), IPv4Address("198.18.0.3")
DEFAULT, SUBNET = IPv4Network("0.0.0.0/0"), IPv4Network("198.19.0.0/16")
SHAPE = Shape("eth0", ADDRESS, 1500, (DEFAULT, SUBNET), forwards=True)
LINK = Link(2, "eth0", 65534, seen.IFF_UP, 1500, b"", "tun", 0, True, 1, True)
ROUTES = [Route(network, 2, ADDRESS, 0, True) for network in SHAPE.routes]
MISSING = Difference("route 0.0.0.0/0", "missing", "set")


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    made: dict[str, list[Any]] = {"addresses": [ADDRESS], "routes": list(ROUTES)}
    monkeypatch.setattr(seen, "addresses", lambda index: made["addresses"] if index == LINK.index else [])
    monkeypatch.setattr(seen, "routes", lambda index: made["routes"] if index == LINK.index else [])
    return made


def test_what_is_right_has_no_difference(kernel: dict[str, list[Any]]) -> None:
    kernel["addresses"].append(OTHER)  # what others have added is theirs
    kernel["routes"].append(Route(DEFAULT, 2, None, 50, False))
    found = compare_link(LINK, SHAPE)
    assert found == (LINK, (), 0, None, False, ())


@pytest.mark.parametrize(
    ("link", "difference", "repairs"),
    [
        ({"name": "eth7"}, Difference("name", "eth7", "eth0"), {}),
        ({"mtu": 1280}, Difference("MTU", "1280", "1500"), {"mtu": 1500}),
        ({"mtu": 9000}, Difference("MTU", "9000", "1500"), {"mtu": 1500}),
        ({"forwards": False}, Difference("net.ipv4.conf.eth0.forwarding", "0", "1"), {"forwards": True}),
        ({"flags": 0}, Difference("link", "down", "up"), {}),
    ],
)
def test_a_link(
    kernel: dict[str, list[Any]], link: dict[str, Any], difference: Difference, repairs: dict[str, Any]
) -> None:
    changed = replace(LINK, **link)
    right = compare_link(LINK, SHAPE)
    assert compare_link(changed, SHAPE) == right._replace(link=changed, differences=(difference,), **repairs)


def test_an_address(kernel: dict[str, list[Any]]) -> None:
    kernel["addresses"][:] = [OTHER]
    found = compare_link(LINK, SHAPE)
    assert (found.differences, found.address) == ((Difference(f"address {ADDRESS}", "missing", "set"),), ADDRESS)


@pytest.mark.parametrize(
    "instead",
    [
        None,
        Route(DEFAULT, 2, ADDRESS, 0, False),  # by a gateway
        Route(DEFAULT, 2, ADDRESS, 100, True),  # behind others
        Route(DEFAULT, 2, OTHER, 0, True),  # from another address
        Route(IPv4Network("0.0.0.0/1"), 2, ADDRESS, 0, True),
    ],
)
def test_a_route(kernel: dict[str, list[Any]], instead: Route | None) -> None:
    kernel["routes"][0:1] = [instead] if instead else []
    found = compare_link(LINK, SHAPE)
    assert (found.differences, found.routes) == ((MISSING,), (DEFAULT,))


def test_all_at_once_in_the_order_in_which_they_are_told(kernel: dict[str, list[Any]]) -> None:
    kernel["addresses"].clear()
    kernel["routes"].clear()
    found = compare_link(replace(LINK, name="x", mtu=1, forwards=False, flags=0), SHAPE)
    assert [one.what for one in found.differences] == [
        "name", "MTU", f"address {ADDRESS}", "net.ipv4.conf.eth0.forwarding", "link",
        "route 0.0.0.0/0", "route 198.19.0.0/16",
    ]  # fmt: skip


def test_what_a_shape_does_not_ask_for(kernel: dict[str, list[Any]]) -> None:
    kernel["addresses"].clear()
    kernel["routes"].clear()
    assert compare_link(replace(LINK, forwards=False), Shape("eth0", None, 1500, ())).differences == ()
