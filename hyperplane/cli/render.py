"""What people read: words, tables, and what the verb `nat` prints (TextOutput). lines.py is the same for programs."""

from __future__ import annotations

import select
import socket
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from hyperplane.model import ANYWHERE, Counters, Drop, Flow, Rule

if TYPE_CHECKING:
    from hyperplane.cli.live import Screen
    from hyperplane.linux.repair import Difference

PROTOCOLS = {socket.IPPROTO_ICMP: "icmp", socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}
STATE_STYLES = {"established": "green", "active": "green", "reset": "red", "opening": "yellow", "closing": "dim"}
MOST_ROWS = 1000  # of a table for people; JSON has all
MOST_ATTACHED = 25
MOST_DROPS = 20
CLOCK_STEP = 0.1  # seconds
PIPE_WIDTH = 200  # columns when nobody's terminal says how wide it is: nothing is cut


@dataclass(frozen=True, slots=True)
class Attached:
    """One environment that was attached; seconds: what that took."""

    environment: str
    namespace: str
    device: str
    inside_address: IPv4Address
    seconds: float


@dataclass(frozen=True, slots=True)
class Ready:
    """What runs once set-up is done. rules is empty when none was given: everything is allowed."""

    vpc: str
    eni: str
    eni_addresses: tuple[IPv4Address, ...]
    rules: tuple[Rule, ...]
    io: str
    max_flows: int
    mtu: int
    pid: int
    attached: tuple[Attached, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The engine at one moment. now: CLOCK_BOOTTIME ms. drops: records since the last snapshot. counters: those of the
    ENI (out: towards the VPC), but drops and refusals of all links."""

    now: int
    flows: Sequence[Flow]
    drops: Sequence[Drop]
    counters: Counters


@dataclass(frozen=True, slots=True)
class Changes:
    """What is different from the snapshot before."""

    started: Sequence[Flow]
    ended: Sequence[Flow]
    snapshot: Snapshot


class Output(Protocol):
    """What the verb `nat` tells."""

    def ready(self, ready: Ready) -> None: ...
    def detached(self, environment: str, reason: str, left: int) -> None: ...
    def put_right(self, link: str, difference: Difference) -> None: ...
    def troubled(self, link: str, troubles: Sequence[str]) -> None: ...
    def snapshot(self, snapshot: Snapshot) -> None: ...
    def changes(self, changes: Changes) -> None: ...
    def ending(self, reason: str, counters: Counters) -> None: ...
    def close(self) -> None: ...


def console(*, color: bool) -> Console:
    """Standard output for people: as wide as their terminal, or wide enough for everything."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(no_color=not color or None, width=width, highlight=False, emoji=False)


def reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more; a write would say so too, but may be far off."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))


# Words


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.1f} ms"


def duration(seconds: float) -> str:
    """As in `0.4 s`, `2 h 4 min`."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def volume(size: float) -> str:
    """Bytes, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def many(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def rules_text(rules: Iterable[Rule]) -> str:
    return ", ".join(f"{rule} (anywhere)" if rule.cidr == ANYWHERE else str(rule) for rule in rules)


def endpoint(address: IPv4Address, port: int) -> str:
    return f"{address}:{port}"


def flow_text(flow: Flow) -> str:
    """`tcp 198.18.0.2:40000 → 198.19.0.5:13293 → 198.19.0.10:8000`: inside, outside, remote."""
    ends = ((flow.inside, flow.inside_port), (flow.outside, flow.outside_port), (flow.remote, flow.remote_port))
    return f"{flow.protocol} {' → '.join(endpoint(address, port) for address, port in ends)}"


def packet_text(drop: Drop) -> str:
    """`tcp 198.18.0.2:40000 → 198.19.0.10:25`."""
    protocol = PROTOCOLS.get(drop.protocol, f"protocol {drop.protocol}")
    if protocol == "icmp":
        return f"icmp type {drop.source_port} {drop.source} → {drop.destination}"
    if protocol not in ("tcp", "udp"):
        return f"{protocol} {drop.source} → {drop.destination}"
    source = endpoint(drop.source, drop.source_port)
    return f"{protocol} {source} → {endpoint(drop.destination, drop.destination_port)}"


def drops_text(drops: Mapping[str, int]) -> str:
    """`3 (security_group 2, no_flow 1)`, most first."""
    total = sum(drops.values())
    if not total:
        return "0"
    each = ", ".join(
        f"{reason} {count:,}" for reason, count in sorted(drops.items(), key=lambda one: (-one[1], one[0]))
    )
    return f"{total:,} ({each})"


def boot_time() -> int:
    """CLOCK_BOOTTIME in milliseconds, the clock of flows and drops: dataplane.now(), without loading the engine."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


_boot = 0.0  # seconds since the epoch when CLOCK_BOOTTIME was 0


def wall_time(boot: int, now: int) -> datetime:
    """CLOCK_BOOTTIME ms as a time of day; now: that clock at present.

    The same for the same time whenever it is asked for, until somebody sets the clock.
    """
    global _boot
    present = time.time() - now / 1000
    if abs(present - _boot) > CLOCK_STEP:
        _boot = present
    return datetime.fromtimestamp(_boot + boot / 1000, UTC)


# Tables


def plain_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Columns without lines; those named in right hold numbers."""
    table = Table(box=None, pad_edge=True, header_style="bold", show_edge=False)
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", no_wrap=True)
    return table


def flow_table(flows: Sequence[Flow], now: int, most: int, width: int) -> Table:
    """Flows with the environment that each belongs to; the last columns are left out where width does not do."""
    columns = ("environment", "", "inside", "outside (ENI)", "remote", "state", "out", "in", "idle")
    rows: list[tuple[str, ...]] = [
        (
            flow.tunnel or "?",
            flow.protocol,
            endpoint(flow.inside, flow.inside_port),
            endpoint(flow.outside, flow.outside_port),
            str(flow.remote) if flow.protocol == "icmp" else endpoint(flow.remote, flow.remote_port),
            flow.state,
            volume(flow.bytes_out),
            volume(flow.bytes_in),
            duration((now - flow.last_seen) / 1000),
        )
        for flow in flows[:most]
    ]
    needed = [2 + max(map(len, column)) for column in zip(columns, *rows, strict=True)]
    shown = next((count for count in (9, 6) if sum(needed[:count]) <= width), 5)
    table = plain_table(*columns[:shown], right=columns[6:])
    for name, *cells, state, out, back, idle in rows:
        colored = Text(state, STATE_STYLES.get(state, ""))
        styled: tuple[str | Text, ...] = (Text(name, "cyan"), *cells, colored, out, back, idle)
        table.add_row(*styled[:shown])
    return table


def drop_table(drops: Sequence[Drop], now: int) -> Table:
    table = plain_table("time", "dropped because", "from", "packet")
    for drop in drops:
        moment = wall_time(drop.time, now).astimezone()
        table.add_row(f"{moment:%H:%M:%S}", Text(drop.reason, "red"), drop.link or "?", packet_text(drop))
    return table


def attached_table(attached: Sequence[Attached]) -> Table:
    table = plain_table("environment", "namespace", "device", "inside address", "attached in", right=("attached in",))
    for one in attached[:MOST_ATTACHED]:
        name = Text(one.environment, "cyan")
        table.add_row(name, one.namespace, one.device, str(one.inside_address), milliseconds(one.seconds))
    return table


class TextOutput:
    """For people. `changes()` keeps a table up to date at the bottom of a terminal, and writes lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._screen: Screen | None = None
        self._ready: Ready | None = None
        self._recent: list[Drop] = []

    def ready(self, ready: Ready) -> None:
        self._ready = ready
        addresses = ", ".join(map(str, ready.eni_addresses))
        self._print(
            f"[bold]ENI {ready.eni}[/] with {addresses} in VPC namespace {escape(ready.vpc)}; I/O by {ready.io}, "
            f"up to {ready.max_flows:,} flows, MTU {ready.mtu}"
        )
        allowed = rules_text(ready.rules) or "everything, since no --allow is given"
        self._print(f"allowed out: {allowed}; in: nothing\n")
        self._print(attached_table(ready.attached))
        if (more := len(ready.attached) - MOST_ATTACHED) > 0:
            times = sorted(one.seconds for one in ready.attached)
            median, slowest = milliseconds(times[len(times) // 2]), milliseconds(times[-1])
            self._print(f" ... and {more:,} more; of all: median {median}, slowest {slowest}")
        self._print(f"\n[bold green]ready[/]: Ctrl-C ends; `kill -USR1 {ready.pid}` shows flows and drops")

    def detached(self, environment: str, reason: str, left: int) -> None:
        self._print(f"[yellow]{escape(environment)} detached[/]: {escape(reason)}; {many(left, 'environment')} left")

    def put_right(self, link: str, difference: Difference) -> None:
        what, found, wanted = difference
        self._print(f"[yellow]{escape(link)}[/]: {escape(what)} was {escape(found)}; put right ({escape(wanted)})")

    def troubled(self, link: str, troubles: Sequence[str]) -> None:
        for text in troubles or ("all is right again",):
            self._print(f"[yellow]{escape(link)}[/]: {escape(text)}")

    def snapshot(self, snapshot: Snapshot) -> None:
        self._recent = [*self._recent, *snapshot.drops][-MOST_DROPS:]
        drops = drops_text(snapshot.counters.drops)
        self._print(f"\n[bold]{self._now(snapshot)}[/]  {many(len(snapshot.flows), 'flow')}; dropped packets: {drops}")
        if snapshot.flows:
            self._print(flow_table(snapshot.flows, snapshot.now, MOST_ROWS, self._console.width))
        if (more := len(snapshot.flows) - MOST_ROWS) > 0:
            self._print(f" ... and {more:,} more; --json lists all")
        if self._recent:
            self._print(drop_table(self._recent, snapshot.now))

    def changes(self, changes: Changes) -> None:
        snapshot = changes.snapshot
        if self._console.is_terminal and self._ready:
            if self._screen is None:
                from hyperplane.cli.live import Screen

                self._screen = Screen(self._console)
            self._screen.show(self._ready, snapshot)
            return
        for word, flows in (("flow", changes.started), ("ended", changes.ended)):
            for flow in flows:
                carried = f"  out {volume(flow.bytes_out)}, in {volume(flow.bytes_in)}" if word == "ended" else ""
                self._line(snapshot, word, flow.tunnel, flow_text(flow) + carried)
        for drop in snapshot.drops:
            self._line(snapshot, "drop", drop.link, f"{packet_text(drop)}  {drop.reason}")

    def ending(self, reason: str, counters: Counters) -> None:
        self.close()
        made = many(counters.flows_created, "flow")
        self._print(f"\nended: {reason}; {made} in all, dropped packets: {drops_text(counters.drops)}")

    def close(self) -> None:
        if self._screen:
            self._screen.close()
            self._screen = None

    def _line(self, snapshot: Snapshot, word: str, link: str, text: str) -> None:
        self._print(Text(f"{self._now(snapshot)}  {word:<5}  {link or '?'}  {text}"))

    def _print(self, what: Any) -> None:
        self._console.print(what, soft_wrap=isinstance(what, (str, Text)))
        self._console.file.flush()

    @staticmethod
    def _now(snapshot: Snapshot) -> str:
        return f"{wall_time(snapshot.now, snapshot.now).astimezone():%H:%M:%S}"
