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

import socket
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from pyroute2.netlink.rtnl.rtmsg import rtmsg  # without type hints

from hyperplane.linux import netlink, rtnl, seen
from hyperplane.linux.seen import Link

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
    links = seen.links()
    masters = {link.master for link in links.values()}
    devices = {index: _device(link, masters) for index, link in links.items()}
    return list(devices.values()), frozenset(one.name for index, one in devices.items() if one.leads and _routed(index))


def _device(link: Link, masters: Collection[int]) -> Device:
    """masters: indices of bridges that have ports; one without any may have a carrier all the same."""
    nobody = (
        link.flags & seen.IFF_LOOPBACK or link.kind in ENDS or (link.kind == "bridge" and link.index not in masters)
    )
    return Device(link.name, link.kind, leads=link.up and link.carrier and not nobody, forwarding=link.forwards)


def _routed(index: int) -> bool:
    """Whether a route leads there; also one among several hops, or by a nexthop object (ip-nexthop(8)), which answers
    need not show: the kernel picks them."""
    request = rtnl.encode(
        rtmsg(),
        netlink.RTM_GETROUTE,
        netlink.NLM_F_DUMP,
        [("RTA_OIF", index)],
        family=socket.AF_INET,
        type=rtnl.RTN_UNICAST,
    )
    return any(True for _ in netlink.answers(request, strict=True))
