"""Between C's structs and the values of hyperplane.model, and from C's errors to exceptions. No decisions."""

from __future__ import annotations

import errno
from collections.abc import Iterable
from ipaddress import IPv4Address
from typing import Any, NoReturn

from hyperplane._native import ffi, lib
from hyperplane.errors import DeviceError, EngineError, HyperplaneError, NotATunnel, PermissionMissing
from hyperplane.model import (
    Counters,
    Drop,
    Flow,
    FlowState,
    Memory,
    Protocol,
    Reason,
    Rule,
    Status,
    Timers,
    Verdict,
    WorkerStatus,
)

IPPROTO: dict[str, int] = {"all": 0, "icmp": 1, "tcp": 6, "udp": 17}
PROTOCOLS: dict[int, Protocol] = {1: "icmp", 6: "tcp", 17: "udp"}
UDP_MAPPINGS = {
    "endpoint-independent": lib.HP_UDP_ENDPOINT_INDEPENDENT,
    "endpoint-dependent": lib.HP_UDP_ENDPOINT_DEPENDENT,
}
IO = {"auto": lib.HP_IO_AUTO, "io_uring": lib.HP_IO_URING, "epoll": lib.HP_IO_EPOLL}
STATES = tuple(FlowState)
REASONS = tuple(Reason)
VERDICTS = {lib.HP_DROP: Verdict.DROP, lib.HP_FORWARD: Verdict.FORWARD, lib.HP_REPLY: Verdict.REPLY}
COUNTS = tuple(name for name in Counters.__struct_fields__ if name not in ("ignored", "gone", "read_error", "drops"))
# Linux gives both names to one number, and says the latter.
ERRNO_NAMES = {**errno.errorcode, errno.EOPNOTSUPP: "EOPNOTSUPP"}
# What hp_link_tun_check() gives for a descriptor that is not what it should be.
NO_TUNNEL = (errno.ENOTTY, errno.EINVAL, errno.EBADF, errno.EBADFD, errno.EACCES)


class Names:
    """Who a link number stood for at some time: the engine gives numbers out again when their links are gone."""

    def __init__(self) -> None:
        self._held: dict[int, list[tuple[int, str]]] = {}

    def note(self, number: int, since: int, name: str) -> None:
        """From `since` (ms) on; the holder before is remembered too, for drop records that are read late."""
        held = self._held.get(number, [])
        if held[-1:] != [(since, name)]:
            self._held[number] = [*held[-1:], (since, name)]

    def at(self, number: int, time: int) -> str:
        """The name then, "" when it is forgotten."""
        return next((name for since, name in reversed(self._held.get(number, [])) if since <= time), "")


def fail(error: Any, resource: str, *, device: bool = False) -> NoReturn:
    """Raises what C put into an hp_error; device: the call was about a file descriptor."""
    text = ffi.string(error.text).decode(errors="replace")
    kind: type[HyperplaneError] = EngineError
    if device and error.code in NO_TUNNEL:
        kind = NotATunnel
    elif error.code in (errno.EPERM, errno.EACCES):
        kind = PermissionMissing
    elif device and error.code not in (errno.ENOSPC, errno.ENOENT, 0):  # those are the engine's own limits
        kind = DeviceError
    raise kind(text, resource=resource)


def rule_table(rules: Iterable[Rule]) -> tuple[Any, int]:
    """hp_rule[], compiled: networks as number and mask, every range explicit."""
    given = tuple(rules)
    table = ffi.new("hp_rule[]", max(len(given), 1))
    for entry, rule in zip(table, given, strict=False):
        entry.network = int(rule.cidr.network_address)
        entry.mask = int(rule.cidr.netmask)
        entry.protocol = IPPROTO[rule.protocol]
        entry.port_low, entry.port_high = rule.ports or (0, 65535)
        if rule.protocol == "icmp":
            entry.port_low, entry.port_high = (0, 255) if rule.icmp_type is None else (rule.icmp_type, rule.icmp_type)
    return table, len(given)


def set_timers(target: Any, timers: Timers) -> None:
    for field in timers.__struct_fields__:
        setattr(target, field, round(getattr(timers, field) * 1000))


def flow(info: Any, names: Names) -> Flow:
    return Flow(
        id=info.id,
        tunnel=names.at(info.tunnel, info.started),
        tunnel_number=info.tunnel,
        eni=names.at(info.eni, info.started),
        eni_number=info.eni,
        protocol=PROTOCOLS[info.protocol],
        state=STATES[info.state],
        inside=IPv4Address(info.inside),
        inside_port=info.inside_port,
        outside=IPv4Address(info.outside),
        outside_port=info.outside_port,
        remote=IPv4Address(info.remote),
        remote_port=info.remote_port,
        packets_out=info.packets_out,
        bytes_out=info.bytes_out,
        packets_in=info.packets_in,
        bytes_in=info.bytes_in,
        started=info.started,
        last_seen=info.last_seen,
        expires=info.expires,
    )


def drop(record: Any, names: Names) -> Drop:
    return Drop(
        number=record.number,
        time=record.time,
        link=names.at(record.link, record.time),
        link_number=record.link,
        reason=REASONS[record.reason],
        protocol=record.protocol,
        source=IPv4Address(record.source),
        source_port=record.source_port,
        destination=IPv4Address(record.destination),
        destination_port=record.destination_port,
        length=record.length,
    )


def counters(block: Any) -> Counters:
    drops = {str(reason): block.drops[number] for number, reason in enumerate(REASONS) if block.drops[number]}
    ignored = drops.pop(Reason.LINK_LOCAL, 0)
    failing = ERRNO_NAMES.get(block.read_error, str(block.read_error)) if block.read_error else ""
    counts = {name: getattr(block, name) for name in COUNTS}
    return Counters(ignored=ignored, gone=bool(block.gone), read_error=failing, drops=drops, **counts)


def status(block: Any) -> Status:
    fields = {name: getattr(block, name) for name in Status.__struct_fields__}
    workers = [block.worker[number] for number in range(block.workers)]
    names = WorkerStatus.__struct_fields__
    fields["workers"] = tuple(WorkerStatus(**{name: getattr(one, name) for name in names}) for one in workers)
    fields["running"] = bool(block.running)
    fields["io"] = {lib.HP_IO_URING: "io_uring", lib.HP_IO_EPOLL: "epoll"}.get(block.io, "none")
    return Status(**fields)


def memory(block: Any) -> Memory:
    return Memory(**{name: getattr(block, name) for name in Memory.__struct_fields__})
