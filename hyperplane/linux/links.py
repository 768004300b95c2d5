"""The network devices of the calling thread's namespace, as rtnetlink(7) describes them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # without type hints

from hyperplane.linux import netlink, rtnl

RTM_GETLINK: Final = 18  # linux/rtnetlink.h
IFF_UP, IFF_LOOPBACK, IFF_NOARP = 0x1, 0x8, 0x80  # linux/if.h
ARPHRD_ETHER: Final = 1  # linux/if_arp.h


@dataclass(frozen=True, slots=True)
class Link:
    """kind: as `ip link add ... type KIND`, "" for hardware. mode: of a kind that has modes (ipvlan: "l2", "l3",
    "l3s"), else "". master: the device that it is a port of, 0 for none. mac: 6 bytes, or what the type has."""

    index: int
    name: str
    mac: bytes
    type: int
    flags: int
    carrier: bool
    kind: str
    mode: str
    master: int

    @property
    def up(self) -> bool:
        return bool(self.flags & IFF_UP)

    @property
    def has_arp(self) -> bool:
        """Ethernet-like, and ARP not switched off (`ip link set DEVICE arp off`)."""
        return self.type == ARPHRD_ETHER and not self.flags & (IFF_NOARP | IFF_LOOPBACK)


IPVLAN_MODES: Final = ("l2", "l3", "l3s")  # linux/if_link.h: enum ipvlan_mode


def links() -> dict[int, Link]:
    """All of them, by index. Raises OSError."""
    request = rtnl.encode(ifinfmsg(), RTM_GETLINK, netlink.NLM_F_DUMP, [], family=socket.AF_UNSPEC)
    return {link.index: link for link in _decoded(request)}


def _decoded(request: bytes) -> Iterator[Link]:
    for message in netlink.ask(request, ifinfmsg):
        mac = message.get_attr("IFLA_ADDRESS") or ""
        info = message.get_attr("IFLA_LINKINFO")
        kind = info.get_attr("IFLA_INFO_KIND") or "" if info else ""
        yield Link(
            index=message["index"],
            name=message.get_attr("IFLA_IFNAME"),
            mac=bytes.fromhex(mac.replace(":", "")),
            type=message["ifi_type"],
            flags=message["flags"],
            carrier=bool(message.get_attr("IFLA_CARRIER")),
            kind=kind,
            mode=_mode(info) if kind == "ipvlan" else "",
            master=message.get_attr("IFLA_MASTER") or 0,
        )


def _mode(info: Any) -> str:
    data = info.get_attr("IFLA_INFO_DATA")
    mode = data.get_attr("IFLA_IPVLAN_MODE") if data else None
    return IPVLAN_MODES[mode] if mode is not None and mode < len(IPVLAN_MODES) else ""
