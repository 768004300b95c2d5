"""What is known of an environment that is attached, and of an ENI."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from msgspec import Struct

from hyperplane.dataplane import Eni, Tunnel
from hyperplane.linux.device import Shape
from hyperplane.linux.eni import EniDevice
from hyperplane.linux.namespaces import Namespace


class Timings(Struct, frozen=True):
    """Where an attach's time went, in seconds.

    wait: until a thread was free. device: finding and entering the namespace, opening the TUN. netlink: MTU, address,
    up and routes. engine: until the engine had taken it. kernel: of device and netlink, those inside system calls.
    """

    wait: float
    device: float
    netlink: float
    engine: float
    kernel: float


class Made(Struct, frozen=True):
    """What a thread made of a plan; namespace and shape None when it was given by a descriptor."""

    fd: int
    device: str
    namespace: Namespace | None
    shape: Shape | None
    tunnel: Tunnel
    timings: Timings


@dataclass(eq=False, slots=True)
class Attachment:
    """One environment's tunnel on an ENI.

    seconds: what attach() took as its caller saw it. ended: done when the tunnel has left the engine, with the reason
    in words: "detached", "closed", "namespace box1 was deleted", "process 4711 ended", or what became of the VPC.
    """

    tunnel: Tunnel
    namespace: str  # "" when given by a descriptor
    device: str
    seconds: float
    timings: Timings
    ended: asyncio.Future[str]
    _made: Made
    _end: asyncio.Task[None] | None = None


@dataclass(eq=False, slots=True)
class OpenEni:
    """An ENI that was made, and what is attached to it."""

    eni: Eni
    device: EniDevice
    ended: asyncio.Future[str]
    attachments: set[Attachment] = field(default_factory=set)
    end: asyncio.Task[None] | None = None
