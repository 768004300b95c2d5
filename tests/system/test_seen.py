"""Devices as the kernel lists them; `ip` says what is right."""

from __future__ import annotations

from hyperplane.linux import seen
from hyperplane.linux.seen import Link

from .support import Namespaces, Within, ip, ip_json


def test_as_ip_lists_them(netns_factory: Namespaces, within: Within) -> None:
    namespace, other = netns_factory("here"), netns_factory("other")
    netns_factory.connect(namespace, "198.19.0.1/24", other, "198.19.0.2/24")
    netns_factory.bridge(namespace, "198.19.1.1/24")
    (veth,) = (one["ifname"] for one in ip_json("-n", namespace, "link") if one["ifname"].startswith("v"))
    ip("-n", namespace, "link", "set", veth, "master", "lan0")
    ip("-n", namespace, "link", "add", "link", "lan0", "name", "over0", "type", "macvlan", "mode", "private")
    ip("-n", namespace, "link", "add", "x0", "type", "vxlan", "id", "7", "remote", "198.19.0.2", "dstport", "4789")
    ip("-n", namespace, "tuntap", "add", "tun7", "mode", "tun")
    ip("-n", namespace, "link", "set", "x0", "arp", "off")
    found: dict[int, Link] = within(namespace, lambda _: seen.links())
    shown = {one["ifindex"]: one for one in ip_json("-n", namespace, "link", "show")}
    assert set(found) == set(shown)
    indices = {one["ifname"]: index for index, one in shown.items()}
    for index, link in found.items():
        one = shown[index]
        assert (link.index, link.name, link.kind) == (
            index,
            one["ifname"],
            one.get("linkinfo", {}).get("info_kind", ""),
        )
        assert link.mac.hex(":") == one.get("address", "")
        assert link.up == ("UP" in one["flags"])
        assert link.master == indices.get(one.get("master"), 0)
        if link.up:
            assert link.carrier == ("LOWER_UP" in one["flags"])
        assert link.has_arp == (one["link_type"] == "ether" and "NOARP" not in one["flags"])
    assert {link.kind for link in found.values()} == {"", "veth", "bridge", "macvlan", "vxlan", "tun"}
    assert {link.name for link in found.values() if not link.has_arp} == {"lo", "x0", "tun7"}


def test_many(netns_factory: Namespaces, within: Within) -> None:
    """More than one message of the kernel's holds."""
    namespace = netns_factory("here")
    for number in range(60):
        ip("-n", namespace, "tuntap", "add", f"t{number}", "mode", "tun")
    assert len(within(namespace, lambda _: seen.links())) == 61
