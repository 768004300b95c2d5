"""What the verb `nat` prints for people (TextOutput). lines.py is the same for programs."""

from __future__ import annotations

import select
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import TYPE_CHECKING, Protocol

from hyperplane.cli.tables import drop_table, flow_table
from hyperplane.cli.terminal import Part, Printer, Styled, Table
from hyperplane.cli.words import drops_text, flow_text, many, milliseconds, packet_text, rules_text, volume, wall_time
from hyperplane.model import Counters, Drop, Flow, Rule

if TYPE_CHECKING:
    from hyperplane.cli.live import Screen
    from hyperplane.linux.repair import Difference

MOST_ROWS = 1000  # of a table for people; JSON has all
MOST_ATTACHED = 25
MOST_DROPS = 20


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


def reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more; a write would say so too, but may be far off."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLNVAL) for _, event in poll.poll(0))


def attached_table(attached: Sequence[Attached]) -> Table:
    rows: list[list[Part]] = [
        [
            Styled(one.environment, "cyan"),
            one.namespace,
            one.device,
            str(one.inside_address),
            milliseconds(one.seconds),
        ]
        for one in attached[:MOST_ATTACHED]
    ]
    return Table(("environment", "namespace", "device", "inside address", "attached in"), rows, right=("attached in",))


class TextOutput:
    """For people. `changes()` keeps a table up to date at the bottom of a terminal, and writes lines elsewhere."""

    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._screen: Screen | None = None
        self._ready: Ready | None = None
        self._recent: list[Drop] = []

    def ready(self, ready: Ready) -> None:
        self._ready = ready
        addresses = ", ".join(map(str, ready.eni_addresses))
        say = self._printer.line
        say(
            Styled(f"ENI {ready.eni}", "bold"),
            f" with {addresses} in VPC namespace {ready.vpc}; I/O by {ready.io}, ",
            f"up to {ready.max_flows:,} flows, MTU {ready.mtu}",
        )
        say(f"allowed out: {rules_text(ready.rules) or 'everything, since no --allow is given'}; in: nothing")
        say()
        self._printer.table(attached_table(ready.attached))
        if (more := len(ready.attached) - MOST_ATTACHED) > 0:
            times = sorted(one.seconds for one in ready.attached)
            median, slowest = milliseconds(times[len(times) // 2]), milliseconds(times[-1])
            say(f" ... and {more:,} more; of all: median {median}, slowest {slowest}")
        say()
        say(Styled("ready", "bold green"), f": Ctrl-C ends; `kill -USR1 {ready.pid}` shows flows and drops")

    def detached(self, environment: str, reason: str, left: int) -> None:
        text = f": {reason}; {many(left, 'environment')} left"
        self._printer.line(Styled(f"{environment} detached", "yellow"), text)

    def put_right(self, link: str, difference: Difference) -> None:
        what, found, wanted = difference
        self._printer.line(Styled(link, "yellow"), f": {what} was {found}; put right ({wanted})")

    def troubled(self, link: str, troubles: Sequence[str]) -> None:
        for text in troubles or ("all is right again",):
            self._printer.line(Styled(link, "yellow"), f": {text}")

    def snapshot(self, snapshot: Snapshot) -> None:
        self._recent = [*self._recent, *snapshot.drops][-MOST_DROPS:]
        drops = drops_text(snapshot.counters.drops)
        counts = f"  {many(len(snapshot.flows), 'flow')}; dropped packets: {drops}"
        self._printer.line()
        self._printer.line(Styled(self._now(snapshot), "bold"), counts)
        if snapshot.flows:
            self._printer.table(flow_table(snapshot.flows, snapshot.now, MOST_ROWS))
        if (more := len(snapshot.flows) - MOST_ROWS) > 0:
            self._printer.line(f" ... and {more:,} more; --json lists all")
        if self._recent:
            self._printer.table(drop_table(self._recent, snapshot.now))

    def changes(self, changes: Changes) -> None:
        snapshot = changes.snapshot
        if self._printer.redraws and self._ready:
            if self._screen is None:
                from hyperplane.cli.live import Screen

                self._screen = Screen(self._printer)
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
        self._printer.line()
        self._printer.line(f"ended: {reason}; {made} in all, dropped packets: {drops_text(counters.drops)}")

    def close(self) -> None:
        if self._screen:
            self._screen.close()
            self._screen = None

    def _line(self, snapshot: Snapshot, word: str, link: str, text: str) -> None:
        self._printer.line(f"{self._now(snapshot)}  {word:<5}  {link or '?'}  {text}")

    @staticmethod
    def _now(snapshot: Snapshot) -> str:
        return f"{wall_time(snapshot.now, snapshot.now).astimezone():%H:%M:%S}"
