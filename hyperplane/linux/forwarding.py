"""Whether a VPC's namespace forwards between its ENIs and what is beyond it: what the kernel decides that by.

A packet that is for an address of the namespace itself is delivered, whatever the settings. Any other is forwarded if
`net.ipv4.conf.DEVICE.forwarding` is 1 for the device that it *arrived* by (ip_route_input_slow() in the kernel's
net/ipv4/route.c); the device that it would leave by is not asked, nor is `conf.all`. `net.ipv4.ip_forward` is no
condition of its own either: writing another value than it has sets that of every device, and of those to come; writing
the one that it has changes nothing, whatever the devices have meanwhile (devinet_sysctl_forward()). What is not
forwarded is dropped without an answer, and counted nowhere near an ENI.

So an ENI needs the setting of its own device for what environments send, and that of each device by which answers
come. A namespace in which only servers of its own are reached needs neither.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final, NamedTuple

# pyroute2 has no type hints: what is read from its messages is given a type below.
from pyroute2 import IPRoute

from hyperplane.linux.rtnl import RTN_UNICAST

# linux/if.h
IFF_UP, IFF_LOOPBACK, IFF_LOWER_UP = 0x1, 0x8, 0x10000
AF_INET: Final = 2
ENDS: Final = ("dummy", "ifb")  # kinds of devices with nobody behind


class Device(NamedTuple):
    """kind: IFLA_INFO_KIND, "" for hardware. leads: it is up, has a carrier, and somebody may be behind it."""

    name: str
    kind: str
    leads: bool
    forwarding: bool


class Trouble(NamedTuple):
    """device: the one whose setting is 0. uplinks: which cannot be used for that: all when it is the ENI's own, else
    the one by which answers come. hopeless: no uplink is left that could."""

    eni: str
    device: str
    uplinks: tuple[str, ...]
    hopeless: bool

    @property
    def setting(self) -> str:
        return f"net.ipv4.conf.{self.device.replace('.', '/')}.forwarding"  # sysctl(8): dots and slashes trade places


def troubles(eni: str, devices: Sequence[Device], routed: Collection[str], enis: Collection[str]) -> list[Trouble]:
    """What keeps packets of an ENI's device from crossing the namespace; nothing when all of it is right.

    devices: all of the namespace. routed: those that a unicast route leads to. enis: the ENIs' among them, this one's
    too: what is behind another ENI cannot be reached anyhow.
    """
    by_name = {device.name: device for device in devices}
    uplinks = [one for one in devices if one.leads and one.name in routed and one.name not in enis]
    if eni not in by_name or not uplinks:
        return []
    names = tuple(one.name for one in uplinks)
    closed = [one.name for one in uplinks if not one.forwarding]
    own = [] if by_name[eni].forwarding else [Trouble(eni, eni, names, hopeless=True)]
    return own + [Trouble(eni, name, (name,), hopeless=len(closed) == len(uplinks)) for name in closed]


def look() -> tuple[list[Device], frozenset[str]]:
    """The devices of the calling thread's namespace, and those that unicast IPv4 routes of any table lead to. Raises
    OSError."""
    with IPRoute() as kernel:
        found = list(kernel.get_links())
        indices = {index for route in kernel.get_routes(family=AF_INET) for index in _leads_to(route)}
    masters = {link.get_attr("IFLA_MASTER") for link in found}
    links = {link["index"]: _device(link, masters) for link in found}
    return list(links.values()), frozenset(links[index].name for index in indices if index in links)


def _device(link: Any, masters: Collection[Any]) -> Device:
    """masters: indices of bridges that have ports; one without any may have a carrier all the same."""
    info, family = link.get_attr("IFLA_LINKINFO"), link.get_attr("IFLA_AF_SPEC")
    kind: str = (info.get_attr("IFLA_INFO_KIND") if info else "") or ""
    flags = link["flags"]
    inet = family.get_attr("AF_INET") if family else None  # none: its MTU is too small for IPv4
    nobody = flags & IFF_LOOPBACK or kind in ENDS or (kind == "bridge" and link["index"] not in masters)
    return Device(
        name=link.get_attr("IFLA_IFNAME"),
        kind=kind,
        leads=bool(flags & IFF_UP and flags & IFF_LOWER_UP and not nobody),
        forwarding=bool(inet and inet["forwarding"]),
    )


def _leads_to(route: Any) -> list[int]:
    """Indices of devices."""
    if route["type"] != RTN_UNICAST:
        return []
    hops = route.get_attr("RTA_MULTIPATH") or ()
    return [index for index in (route.get_attr("RTA_OIF"), *(hop["oif"] for hop in hops)) if index]
