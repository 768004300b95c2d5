"""What daemon and engine say to each other: one msgpack map per packet, its `type` the message's name.

The daemon asks, the engine answers each message with one, in order. Hello and Refused keep their form for ever: by them
two versions tell each other that they are two. Of everything else both sides need the same VERSION.
"""

from __future__ import annotations

from ipaddress import IPv4Address
from typing import Any, Final, Literal

import msgspec

from hyperplane import errors
from hyperplane.codec import from_text
from hyperplane.errors import EngineError, HyperplaneError
from hyperplane.model import Timers, UdpMapping, to_text
from hyperplane.resources import Problem

VERSION: Final = 2
MOST_DESCRIPTORS: Final = 250  # with one message; the kernel takes 253 (SCM_MAX_FD)
MOST_BYTES: Final = 128 << 10  # of one message: below net.core.wmem_default's 208 KiB, above the largest LinkSpec
LINK_BYTES: Final = 64 << 10  # of one LinkSpec: 1,024 rules and a name take less

Config = dict[str, bool | int | float | str]  # the keyword options of dataplane.Engine
Kind = Literal["eni", "tunnel"]


class LinkSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A link as the daemon wants it; its id is the daemon's name for it. eni: the id of a tunnel's ENI.

    addresses, timers, udp_mapping, silent, rules (texts that `Rule.parse()` reads) are an ENI's, eni, address and
    max_flows a tunnel's; see Engine.add_eni() and add_tunnel(). queues and steered say what descriptors an ENI has:
    of its queues, then of the array that steers its packets. number and has_fd belong to one message: the number of the
    inherited link that this claims, and whether its descriptors come with it.
    """

    kind: Kind
    id: str
    name: str
    mtu: int = 1500
    eni: str = ""
    address: IPv4Address | None = None
    max_flows: int = 0
    addresses: tuple[IPv4Address, ...] = ()
    timers: Timers = Timers()
    udp_mapping: UdpMapping = "endpoint-independent"
    silent: bool = False
    rules: tuple[str, ...] = ()
    queues: int = 1
    steered: bool = False
    number: int | None = None
    has_fd: bool = False

    @property
    def descriptors(self) -> int:
        """How many it has."""
        return self.queues + self.steered


class LinkState(msgspec.Struct, frozen=True, kw_only=True):
    spec: LinkSpec
    number: int


class LinkResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one item of an Apply. number: the link's, -1 when it was removed or refused."""

    id: str
    number: int = -1
    error: Problem | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag=True):
    """The base of all."""


# The daemon's


class Hello(Message, frozen=True, kw_only=True, tag=True):
    """The first message. version: VERSION; product: the package's version, for people."""

    version: int
    product: str = ""


class Inherit(Message, frozen=True, kw_only=True, tag=True):
    """To a successor, before anything else: what its predecessor was made with, and its memory, one descriptor each."""

    config: Config
    regions: tuple[str, ...]


class Apply(Message, frozen=True, kw_only=True, tag=True):
    """Links that must be and links that must not be; carried out in order, removals first. Idempotent.

    Descriptors come in the order of the links that have some. complete: this ends the full state of that generation,
    and what was in none of its messages is removed. One item's error does not stop the others.
    """

    request: int
    generation: int
    links: tuple[LinkSpec, ...] = ()
    remove: tuple[str, ...] = ()
    complete: bool = False


class Start(Message, frozen=True, kw_only=True, tag=True):
    """Start translating; nothing when it does already."""


class Drain(Message, frozen=True, kw_only=True, tag=True):
    """See Engine.drain()."""

    id: str
    reset: bool = False


class Links(Message, frozen=True, kw_only=True, tag=True):
    """Asks for the links, from the one at offset on."""

    offset: int = 0


class Shutdown(Message, frozen=True, kw_only=True, tag=True):
    """End, once this is answered."""


# The engine's


class Welcome(Message, frozen=True, kw_only=True, tag=True):
    """With the descriptors of the regions. generation: the latest that was applied. A successor that has not inherited
    yet has no regions."""

    version: int
    product: str
    pid: int
    config: Config = {}
    generation: int = 0
    regions: tuple[str, ...] = ()
    links: int = 0
    started: bool = False


class Applied(Message, frozen=True, kw_only=True, tag=True):
    """results: one for each of `remove`, then one for each of `links`, then one for each link that was removed because
    the full state did not name it."""

    request: int
    generation: int
    results: tuple[LinkResult, ...] = ()


class LinksReply(Message, frozen=True, kw_only=True, tag=True):
    """With the descriptors of each link. more: ask again from the next offset."""

    links: tuple[LinkState, ...] = ()
    more: bool = False


class Done(Message, frozen=True, kw_only=True, tag=True):
    """It is done."""


class Refused(Message, frozen=True, kw_only=True, tag=True):
    """The message was not understood, or what it asked for failed as a whole."""

    problem: Problem


Request = Hello | Inherit | Apply | Start | Drain | Links | Shutdown
Answer = Welcome | Applied | LinksReply | Done | Refused

_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=to_text)
_REQUESTS: Final = msgspec.msgpack.Decoder(Request, dec_hook=from_text)
_ANSWERS: Final = msgspec.msgpack.Decoder(Answer, dec_hook=from_text)
UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)  # what decoders raise

encode = _ENCODER.encode


def request(data: bytes | memoryview) -> Request:
    """Raises one of UNREADABLE."""
    found: Request = _REQUESTS.decode(data)
    return found


def answer(data: bytes | memoryview) -> Answer:
    """Raises one of UNREADABLE."""
    found: Answer = _ANSWERS.decode(data)
    return found


def expected_descriptors(message: Request) -> int:
    """How many descriptors must come with a request."""
    if isinstance(message, Apply):
        return sum(link.descriptors for link in message.links if link.has_fd)
    return len(message.regions) if isinstance(message, Inherit) else 0


def problem(error: HyperplaneError) -> Problem:
    return Problem(
        error=type(error).__name__,
        message=error.message,
        resource=error.resource,
        limit=error.limit,
        remedy=error.remedy,
        field=error.field,
    )


def exception(told: Problem) -> HyperplaneError:
    """The error that the other side met, of its own class; EngineError when that is not known here."""
    found: Any = getattr(errors, told.error, None)
    kind = found if isinstance(found, type) and issubclass(found, HyperplaneError) else EngineError
    return kind(told.message, resource=told.resource, limit=told.limit, remedy=told.remedy, field=told.field)
