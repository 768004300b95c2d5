"""What the data plane is told and what it tells: plain immutable values, no I/O.

Units, everywhere in this file: times that a person sets are seconds (float), times that the engine reports are
milliseconds of CLOCK_BOOTTIME (int), sizes are bytes, packets are wire packets (a super-segment counts as the number of
its segments). Every value here can be written as JSON with `to_json()`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Literal, get_args

import msgspec

from hyperplane.errors import InvalidValue

Protocol = Literal["tcp", "udp", "icmp"]
RuleProtocol = Literal["tcp", "udp", "icmp", "all"]
UdpMapping = Literal["endpoint-independent", "endpoint-dependent"]
Io = Literal["auto", "io_uring", "epoll"]
IoInUse = Literal["none", "io_uring", "epoll"]

ANYWHERE = IPv4Network("0.0.0.0/0")
NO_HOSTS = tuple(IPv4Network(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3"))  # RFC 1812 section 5.3.7
ECHO = 8  # ICMP
LONGEST_TIMER = 1_000_000.0  # seconds: 11.5 days; the engine compares 32-bit milliseconds


class Reason(StrEnum):
    """Why a packet was dropped: the one word for it in counters, drop records, the CLI and the documentation.

    In the order of `enum hp_reason` in csrc/hyperplane.cdef.h.
    """

    NONE = "none"
    MALFORMED_IP = "malformed_ip"
    MALFORMED_L4 = "malformed_l4"
    BAD_VNET_HEADER = "bad_vnet_header"
    BAD_CHECKSUM = "bad_checksum"
    TRUNCATED = "truncated"
    FRAGMENT = "fragment"
    UNSUPPORTED_IPV6 = "unsupported_ipv6"
    UNSUPPORTED_PROTOCOL = "unsupported_protocol"
    UNSUPPORTED_ICMP = "unsupported_icmp"
    SPOOFED_SOURCE = "spoofed_source"
    INVALID_DESTINATION = "invalid_destination"
    SECURITY_GROUP = "security_group"
    NO_FLOW = "no_flow"
    ICMP_NO_FLOW = "icmp_no_flow"
    TCP_OUT_OF_STATE = "tcp_out_of_state"
    FLOW_TABLE_FULL = "flow_table_full"
    FLOW_QUOTA = "flow_quota"
    PORTS_EXHAUSTED = "ports_exhausted"
    TTL_EXCEEDED = "ttl_exceeded"
    FRAGMENTATION_NEEDED = "fragmentation_needed"
    LINK_DETACHED = "link_detached"
    OUTPUT_FULL = "output_full"
    OUTPUT_ERROR = "output_error"
    SOURCE_ROUTE = "source_route"
    HANDOVER_FULL = "handover_full"
    READ_FAILED = "read_failed"
    LINK_LOCAL = "link_local"


REASONS: tuple[Reason, ...] = tuple(Reason)
# Those that drop counters and records can have: LINK_LOCAL is counted in Counters.ignored.
DROP_REASONS: tuple[Reason, ...] = tuple(one for one in Reason if one not in (Reason.NONE, Reason.LINK_LOCAL))


class Verdict(StrEnum):
    """What became of a packet: dropped; forwarded; or dropped and answered to its sender (RST or ICMP error)."""

    DROP = "drop"
    FORWARD = "forward"
    REPLY = "reply"


class FlowState(StrEnum):
    """OPENING to RESET are TCP's (RFC 7857 section 2); ACTIVE is every UDP and ICMP flow's."""

    OPENING = "opening"
    ESTABLISHED = "established"
    CLOSING = "closing"
    RESET = "reset"
    ACTIVE = "active"


class Timers(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Idle times in seconds after which a flow ends; 0.001 to 1,000,000.

    The defaults are RFC 5382 REQ-5 (TCP), RFC 4787 REQ-5 (UDP) and RFC 5508 REQ-2 (ICMP); DNS is UDP to port 53.
    Raises InvalidValue.
    """

    tcp_established: float = 7440.0
    tcp_transitory: float = 240.0
    tcp_closing: float = 240.0
    udp: float = 300.0
    dns: float = 30.0
    icmp: float = 60.0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0.001 <= value <= LONGEST_TIMER:
                raise InvalidValue(
                    f"timer {name} is {value!r}",
                    resource=f"timer {name}",
                    limit=f"0.001 to {LONGEST_TIMER:.0f} seconds",
                    remedy="give a number of seconds",
                )


class Rule(msgspec.Struct, frozen=True):
    """One egress rule of a security group: what may be connected to. `Rule.parse("tcp/443 198.19.0.0/24")`.

    ports is an inclusive range of destination ports (TCP and UDP only; None: all); icmp_type is 0-255 (ICMP only;
    None: all). An environment's ICMP errors about packets of its flows need no rule. Raises InvalidValue.
    """

    protocol: RuleProtocol
    cidr: IPv4Network = ANYWHERE
    ports: tuple[int, int] | None = None
    icmp_type: int | None = None

    def __post_init__(self) -> None:
        if problem := _problem(self.protocol, self.cidr, self.ports, self.icmp_type):
            raise _bad_rule(str(self.protocol), problem)

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Reads `tcp[/port[-port]] | udp[/port[-port]] | icmp[/type] | all`, then optionally a blank and a CIDR."""
        match = _RULE.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise _bad_rule(str(text), _unreadable(str(text)))
        protocol: Any = match[1]
        low, high, cidr = match.group(2, 3, 4)
        if high is not None and protocol == "icmp":
            raise _bad_rule(text, "ICMP types have no range")
        try:
            network = IPv4Network(cidr) if cidr else ANYWHERE
        except ValueError as error:
            raise _bad_rule(text, "IPv6 is not translated" if ":" in cidr else str(error)) from None
        icmp_type = int(low) if low is not None and protocol == "icmp" else None
        ports = None if low is None or protocol == "icmp" else (int(low), int(low if high is None else high))
        if problem := _problem(protocol, network, ports, icmp_type):
            raise _bad_rule(text, problem)
        return cls(protocol, network, ports, icmp_type)

    @classmethod
    def declared(cls, text: str) -> Rule:
        """As parse(), for whoever declares a rule: one that can never let anything out is refused, which parse() reads,
        since it may have been stored before. Raises InvalidValue.
        """
        rule = cls.parse(text)
        if rule.icmp_type not in (None, ECHO):
            raise _bad_rule(
                text,
                f"it can never let anything out: of ICMP only echo (icmp/{ECHO}) is translated; its replies, and "
                "errors about packets of a flow, need no rule",
            )
        if any(rule.cidr.subnet_of(network) for network in NO_HOSTS):
            meant = f"; anywhere is {ANYWHERE}, or no CIDR" if rule.cidr.network_address == ANYWHERE[0] else ""
            problem = f"it can never let anything out: {rule.cidr} is no network of hosts that can be reached"
            raise _bad_rule(text, problem + meant)
        return rule

    def __str__(self) -> str:
        """The shortest text that parse() reads back as this rule."""
        words: str = self.protocol
        if self.icmp_type is not None:
            words += f"/{self.icmp_type}"
        if self.ports is not None:
            low, high = self.ports
            words += f"/{low}" if low == high else f"/{low}-{high}"
        return words if self.cidr == ANYWHERE else f"{words} {self.cidr}"


_RULE_FORM = "it is not PROTOCOL[/PORT[-PORT]] [CIDR]"
_RULE = re.compile(r"(tcp|udp|icmp|all)(?:/(\d{1,5})(?:-(\d{1,5}))?)?(?:\s+(\S+))?", re.ASCII)


class SecurityGroup(msgspec.Struct, frozen=True):
    """Named egress rules. A packet passes when any rule of any group of its ENI matches; no rule, no packet."""

    name: str
    rules: tuple[Rule, ...] = ()

    @classmethod
    def parse(cls, name: str, rules: Iterable[str]) -> SecurityGroup:
        """`SecurityGroup.parse("web", ["tcp/443", "udp/53 198.19.0.2/32"])`. Raises InvalidValue."""
        if isinstance(rules, str):
            raise _bad_rule(rules, "one string where a list of rules is expected")
        return cls(name, tuple(Rule.parse(text) for text in rules))


class Flow(msgspec.Struct, frozen=True, kw_only=True):
    """One connection, or UDP or ICMP exchange. Out is environment -> VPC. ICMP: ports are the echo id, remote_port 0.

    A name is "" when its link has been removed meanwhile; id never stands for two flows.
    """

    id: int
    tunnel: str
    tunnel_number: int
    eni: str
    eni_number: int
    protocol: Protocol
    state: FlowState
    inside: IPv4Address
    inside_port: int
    outside: IPv4Address
    outside_port: int
    remote: IPv4Address
    remote_port: int
    packets_out: int
    bytes_out: int
    packets_in: int
    bytes_in: int
    started: int
    last_seen: int
    expires: int


class Drop(msgspec.Struct, frozen=True, kw_only=True):
    """One dropped packet. Addresses and ports as the packet had them; ICMP: source_port is the type.

    number counts all drops of an engine from 1: a gap means that records were overwritten before they were read.
    """

    number: int
    time: int
    link: str
    link_number: int
    reason: Reason
    protocol: int
    source: IPv4Address
    source_port: int
    destination: IPv4Address
    destination_port: int
    length: int


class Counters(msgspec.Struct, frozen=True, kw_only=True):
    """Counters of one link, or sums. In is what arrived from the link, out what left by it; flows are those alive now.

    drops holds every reason that was counted at least once: on the link that the packet came from; output_full and
    output_error on the one that it was for. ignored: packets for the link only (Reason.LINK_LOCAL), which are no drops.
    gone: the device behind the link (behind one of them) is no more. read_error: the errno's name ("EFAULT") while
    reading from it fails, "" when it works. mended: how often the header or offloads of its device, which others had
    changed, were set again.
    """

    packets_in: int = 0
    bytes_in: int = 0
    packets_out: int = 0
    bytes_out: int = 0
    flows_created: int = 0
    flows_ended: int = 0
    flows: int = 0
    refusals_sent: int = 0
    ignored: int = 0
    gone: bool = False
    read_error: str = ""
    mended: int = 0
    drops: dict[str, int] = {}

    def __add__(self, other: Counters) -> Counters:
        drops = dict(self.drops)
        for reason, count in other.drops.items():
            drops[reason] = drops.get(reason, 0) + count
        sums = {name: getattr(self, name) + getattr(other, name) for name in _COUNTS}
        failing = self.read_error or other.read_error
        return Counters(gone=self.gone or other.gone, read_error=failing, drops=drops, **sums)


_COUNTS = tuple(name for name in Counters.__struct_fields__ if name not in ("gone", "read_error", "drops"))


class WorkerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One worker: as in Status. handed_over: packets that it received and another worker has the flow of; taken_over:
    those that others received for it.
    """

    flows: int
    loops: int
    batches: int
    packets: int
    writes: int
    handed_over: int
    taken_over: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The engine as a whole, and each worker. flows_high: flow numbers that have been used; dense_destinations: short
    of ports;

    loops: turns of the workers' loops, of which `batches` brought packets; packets: reads from descriptors; no_buffers:
    receives that ended for want of a buffer; unreadable: reads that failed; failing: queues of links whose reads fail
    now; mended: as in Counters, over all links; io: the I/O engine in use, "none" when not running.
    """

    running: bool
    io: IoInUse
    flows: int
    flows_high: int
    mappings: int
    dense_destinations: int
    loops: int
    batches: int
    packets: int
    writes: int
    no_buffers: int
    unreadable: int = 0
    failing: int = 0
    mended: int = 0
    workers: tuple[WorkerStatus, ...] = ()


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """The engine's tables: bytes in all regions, of these on huge pages, and per flow of the capacity."""

    bytes: int
    huge_bytes: int
    bytes_per_flow: int
    regions: int


def to_json(value: Any) -> bytes:
    """A value of this module, or a list or dict of them, as JSON; addresses and rules' networks are strings."""
    return msgspec.json.encode(value, enc_hook=to_text)


def to_text(value: object) -> str:
    """msgspec's enc_hook for addresses and networks."""
    if isinstance(value, (IPv4Address, IPv4Network)):
        return str(value)
    raise NotImplementedError(f"a value of {type(value).__name__} has no JSON form")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_range(value: object) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and all(_is_int(one) for one in value)


def _problem(protocol: object, cidr: object, ports: Any, icmp_type: Any) -> str:
    """What is wrong with the fields of a rule, or ""."""
    if protocol not in get_args(RuleProtocol):
        return f"protocol {protocol!r} is not one of tcp, udp, icmp, all"
    if not isinstance(cidr, IPv4Network):
        return f"{cidr!r} is not an IPv4Network"
    if ports is not None and protocol not in ("tcp", "udp"):
        return f"protocol {protocol} has no ports"
    if ports is not None and not (_is_range(ports) and 0 <= ports[0] <= ports[1] <= 65535):
        return f"ports {ports!r} are not two numbers in order from 0 to 65535"
    if icmp_type is not None and protocol != "icmp":
        return f"protocol {protocol} has no ICMP type"
    if icmp_type is not None and not (_is_int(icmp_type) and 0 <= icmp_type <= 255):
        return f"ICMP type {icmp_type!r} is not a number from 0 to 255"
    return ""


def _unreadable(text: str) -> str:
    """Why a text is no rule at all."""
    name = re.match(r"\s*([a-z][a-z-]*)", text, re.ASCII)
    if name and name[1] not in get_args(RuleProtocol):
        return f"{name[1]} is not translated, only tcp, udp and icmp are"
    return _RULE_FORM


def _bad_rule(rule: str, problem: str) -> InvalidValue:
    return InvalidValue(
        f"security-group rule {rule!r}: {problem}",
        resource="security-group rule",
        remedy="write for instance tcp/443, tcp/8000-8100 198.19.0.0/24, udp/53, icmp, icmp/8 or all",
    )
