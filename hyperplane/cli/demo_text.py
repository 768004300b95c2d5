"""How the demo is told: to people, on one screen (TextTeller), or to programs (JsonTeller)."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from hyperplane.cli.lines import attached_fields, flow_fields, write_json
from hyperplane.cli.render import Attached
from hyperplane.cli.tables import flow_table
from hyperplane.cli.terminal import Part, Printer, Styled, Table
from hyperplane.cli.words import duration, milliseconds, packet_text
from hyperplane.model import Drop, Flow

MOST_FLOWS = 12
MOST_DRAWN = 4
INDENT = 2  # columns; a table has one of its own


@dataclass(frozen=True, slots=True)
class Met:
    """Who takes part. servers: besides the HTTP server; missing: why one is left out."""

    environments: Sequence[str]
    inside_address: str
    eni_address: str
    subnet: str
    server_address: str
    servers: Sequence[str]
    missing: Sequence[str]


@dataclass(frozen=True, slots=True)
class Fetched:
    """One environment's HTTP request. seen: the client's address and port as the server saw them."""

    environment: str
    inside: str
    inside_port: int
    status: str
    seen: str


@dataclass(frozen=True, slots=True)
class Spoken:
    """A question to a server, and its answer."""

    server: str
    environment: str
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class Attempt:
    """A connection that did not come about, with the record of its first dropped packet."""

    origin: str
    address: str
    port: int
    outcome: str
    seconds: float
    drop: Drop


class TextTeller:
    def __init__(self, printer: Printer) -> None:
        self._printer = printer
        self._say = printer.line
        self._step = 0

    def working(self, text: str) -> AbstractContextManager[object]:
        """While something takes its time: shown on a terminal, and gone afterwards."""
        if not self._printer.redraws:
            return nullcontext()
        from rich.console import Console

        return Console().status(f"{text} ...")

    def begin(self, met: Met) -> None:
        self._say(Styled(f"{len(met.environments)} execution environments, one shared interface, one VPC", "bold"))
        self._say()
        names = (
            met.environments if len(met.environments) <= MOST_DRAWN else (*met.environments[: MOST_DRAWN - 1], "...")
        )
        middle, last = (len(names) - 1) // 2, len(names) - 1
        for row, name in enumerate(names):
            joint = "┐" if row == 0 else "┘" if row == last else "┼" if row == middle else "┤"
            address = "" if name == "..." else met.inside_address
            joint = "┬" if row == middle == 0 else joint
            line: list[Part] = ["   ", Styled(f"{name:<6}", "cyan"), f"  {address:<10} ─{joint}"]
            if row == middle:
                program, eni = Styled("hyperplane-nat", "bold"), Styled(met.eni_address, "yellow")
                line += ["─ ", program, " ─ ENI ", eni, f" ─ VPC {met.subnet}"]
            if row == middle + 1:
                line.append(f"{'':<18}{met.server_address}: {', '.join(('HTTP', *met.servers))}")
            self._say(*line)
        for missing in met.missing:
            self._say("   ", Styled(f"{missing}, so it is left out", "dim"))

    def attached(self, attached: Sequence[Attached], veth: Sequence[float], *, without_nft: str) -> None:
        self._heading("Every environment gets a tunnel to the ENI, all with one and the same address")
        usual = "by veth, ip and nft" if not without_nft else "by veth and ip"
        titles = ("environment", "address", "by tunnel", *((usual, "") if veth else ()))
        rows: list[list[Part]] = []
        for number, one in enumerate(attached):
            cells: list[Part] = [
                Styled(one.environment, "cyan"),
                str(one.inside_address),
                Styled(milliseconds(one.seconds), "green"),
            ]
            if veth:
                cells += [milliseconds(veth[number]), Styled(f"{veth[number] / one.seconds:.0f} times", "dim")]
            rows.append(cells)
        self._printer.table(Table(titles, rows, right=("by tunnel", usual)), indent=INDENT)
        if without_nft:
            self._say("   ", Styled(f"{without_nft}, so its rule is not part of the comparison", "dim"))

    def fetched(self, url: str, fetched: Sequence[Fetched]) -> None:
        self._heading(f"All fetch {url} at the same time; the server sees the ENI only")
        for one in fetched:
            self._say(
                "   ",
                Styled(one.environment, "cyan"),
                f"  from {one.inside}:{one.inside_port}  ",
                Styled(one.status, "green"),
                '  server: "you are ',
                Styled(one.seen, "bold yellow"),
                '"',
            )

    def spoken(self, spoken: Spoken) -> None:
        answer = f"  {spoken.server}: {spoken.question}  →  {spoken.answer}"
        self._say("   ", Styled(spoken.environment, "cyan"), answer)

    def flows(self, flows: Sequence[Flow], now: int) -> None:
        self._heading("The NAT knows whose each flow is")
        ordered = sorted(flows, key=lambda flow: (flow.tunnel_number, flow.id))
        self._printer.table(flow_table(ordered, now, MOST_FLOWS), indent=INDENT)
        if (more := len(flows) - MOST_FLOWS) > 0:
            self._say(f"   ... and {more} more")

    def tried_in(self, attempt: Attempt, environment: str) -> None:
        self._heading(f"Nobody connects in, not even to the very port that {environment} is using")
        self._attempt(attempt, f" within {attempt.seconds:.1f} s")

    def tried_out(self, attempt: Attempt, allowed: Sequence[str], silent: float) -> None:
        self._heading("Only what the security group allows goes out, and a refusal is told at once")
        took = Styled(milliseconds(attempt.seconds), "green")
        self._attempt(attempt, " after ", took, f"; without an answer it would take {silent:.0f} s")

    def done(self, seconds: float) -> None:
        self._say()
        self._say(f"Everything is removed again; {duration(seconds)} in all. ", Styled("Go on:", "bold"))
        commands = _next()
        width = max(len(command) for command, _ in commands)
        for command, why in commands:
            self._say("   ", Styled(f"{command:<{width}}", "bold"), f"   {why}")

    def _attempt(self, attempt: Attempt, *how: Part) -> None:
        where = f"   {attempt.origin} → {attempt.address}:{attempt.port}: "
        self._say(where, Styled(attempt.outcome, "red"), *how)
        self._say(f"   dropped: {packet_text(attempt.drop)}, reason ", Styled(attempt.drop.reason, "bold red"))

    def _heading(self, text: str) -> None:
        self._step += 1
        self._say()
        self._say(Styled(f"{self._step}. {text}", "bold"))


def _next() -> list[tuple[str, str]]:
    """What to type next, from where the user is."""
    program = "hyperplane-nat" if shutil.which("hyperplane-nat") else os.path.relpath(sys.argv[0])
    commands = [(f"{program} nat --help", "the same between your namespaces")]
    if os.path.exists("README.md") and os.path.exists("Makefile"):
        commands += [
            ("less README.md", "a tour of five minutes; the Python API"),
            ("make test", "the proof, with more servers than these"),
        ]
    return commands


class JsonTeller:
    """One JSON object per line; docs/cli.md lists them."""

    def working(self, text: str) -> AbstractContextManager[object]:
        return nullcontext()

    def begin(self, met: Met) -> None:
        fields = {
            "environments": list(met.environments),
            "inside_address": met.inside_address,
            "eni_address": met.eni_address,
            "server_address": met.server_address,
            "servers": ["HTTP", *met.servers],
            "missing": list(met.missing),
        }
        write_json("begin", fields)

    def attached(self, attached: Sequence[Attached], veth: Sequence[float], *, without_nft: str) -> None:
        for number, one in enumerate(attached):
            seconds = round(veth[number], 6) if veth else None
            more = {"veth_seconds": seconds, "veth_has_nft": bool(veth) and not without_nft}
            write_json("attached", attached_fields(one) | more)

    def fetched(self, url: str, fetched: Sequence[Fetched]) -> None:
        for one in fetched:
            fields = {
                "environment": one.environment,
                "url": url,
                "inside": one.inside,
                "inside_port": one.inside_port,
                "status": one.status,
                "seen": one.seen,
            }
            write_json("fetched", fields)

    def spoken(self, spoken: Spoken) -> None:
        fields = {
            "server": spoken.server,
            "environment": spoken.environment,
            "question": spoken.question,
            "answer": spoken.answer,
        }
        write_json("asked", fields)

    def flows(self, flows: Sequence[Flow], now: int) -> None:
        for flow in flows:
            write_json("flow", flow_fields(flow, now))

    def tried_in(self, attempt: Attempt, environment: str) -> None:
        self._attempt("tried_in", attempt, {"environment": environment})

    def tried_out(self, attempt: Attempt, allowed: Sequence[str], silent: float) -> None:
        self._attempt("tried_out", attempt, {"allow": list(allowed), "silent_seconds": silent})

    def done(self, seconds: float) -> None:
        write_json("done", {"seconds": round(seconds, 3)})

    def _attempt(self, event: str, attempt: Attempt, more: dict[str, object]) -> None:
        fields = {
            "origin": attempt.origin,
            "address": attempt.address,
            "port": attempt.port,
            "outcome": attempt.outcome,
            "seconds": round(attempt.seconds, 6),
            "reason": attempt.drop.reason,
        }
        write_json(event, fields | more)
