"""`hyperplane-nat nat`: environments attached to one ENI, in the foreground until a signal or until nothing is left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Final, Literal

from msgspec.structs import replace

from hyperplane.attachment import Attachment, Attachments, Observer
from hyperplane.cli import loop, signals
from hyperplane.cli.render import Attached, Changes, Output, Ready, Snapshot, reader_is_gone
from hyperplane.dataplane import Eni, now
from hyperplane.errors import EngineError, HyperplaneError, InvalidValue
from hyperplane.linux.namespaces import open_namespace
from hyperplane.linux.repair import Difference
from hyperplane.model import Counters, Flow, Io, Rule, SecurityGroup, Timers

EVERYTHING: Final = Rule("all")
PERIOD: Final = 1.0  # seconds between two looks at the engine

# What wakes the session: somebody asks, it is time to look, or something ended with a reason.
Show = Literal["show"]
Ended = tuple[Attachment | None, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What the user asked for. environments: (namespace, name)."""

    vpc: str
    eni_addresses: tuple[str, ...]
    environments: tuple[tuple[str, str], ...]
    rules: tuple[Rule, ...] = ()
    inside_address: str
    routes: tuple[str, ...]
    mtu: int
    device: str
    eni_device: str
    max_flows: int
    workers: int
    pin: str
    io: Io
    spin: int
    timers: Timers
    watch: bool


def run(plan: Plan, output: Output) -> int:
    """Returns the exit code. Raises HyperplaneError, Interrupted (before it was ready)."""
    _check(plan)
    session = Session(plan, output)
    try:
        loop.run(session.run)
    except signals.Interrupted:
        if not session.is_ready:
            raise
    finally:
        output.close()
    return 0


def _check(plan: Plan) -> None:
    """What can be seen before anything is made."""
    for what, place in (("namespace", 0), ("name", 1)):
        seen: set[str] = set()
        for environment in plan.environments:
            if environment[place] in seen:
                remedy = "name each environment once" if place == 0 else "give names: --environment NAMESPACE=NAME"
                message = f"two environments have the {what} {environment[place]}"
                raise InvalidValue(message, resource=environment[place], remedy=remedy)
            seen.add(environment[place])
    ours = os.stat("/proc/self/ns/net")
    for namespace, _ in plan.environments:
        with open_namespace(namespace) as found:
            if found.key == (ours.st_dev, ours.st_ino):
                message = f"environment {namespace} is this program's own namespace, whose routes it would take over"
                raise InvalidValue(message, resource=namespace, remedy="give a network namespace apart from it")


class _Told(Observer):
    def __init__(self, output: Output) -> None:
        self._output = output

    def put_right(self, link: str, difference: Difference) -> None:
        self._output.put_right(link, difference)

    def troubled(self, link: str, troubles: Sequence[str]) -> None:
        self._output.troubled(link, troubles)


class Session:
    """One run. is_ready: set-up is done, so a signal is the expected end."""

    def __init__(self, plan: Plan, output: Output) -> None:
        self.is_ready = False
        self._plan = plan
        self._output = output
        self._events: asyncio.Queue[Show | Ended] = asyncio.Queue()
        self._flows: dict[int, Flow] = {}  # of the last snapshot, by id
        self._drops_seen = 0
        self._attached: set[Attachment] = set()
        self._reasons: dict[Attachment, str] = {}  # why we detached it
        self._counted: dict[Attachment, Counters] = {}  # when last looked at
        self._retired = Counters()  # of environments that are gone

    async def run(self) -> None:
        plan = self._plan
        size = max(len(plan.environments) + 1, 64)
        async with Attachments(
            max_flows=plan.max_flows,
            max_links=size,
            io=plan.io,
            workers=plan.workers,
            pin=plan.pin,
            spin=plan.spin,
            observer=_Told(self._output),
        ) as attachments:
            self._attachments = attachments
            self._eni = await self._open_eni()
            attached = [await self._attach(namespace, name) for namespace, name in plan.environments]
            self._show_on_signal(asyncio.get_running_loop())
            try:
                self._output.ready(self._describe(attached))
                self.is_ready = True
                reason = await self._serve()
                self._output.ending(reason, self._look_at_counters())
            except asyncio.CancelledError:
                self._output.ending("interrupted", self._look_at_counters())
                raise
            finally:
                signal.signal(signal.SIGUSR1, signal.SIG_IGN)

    # Set-up

    async def _open_eni(self) -> Eni:
        plan = self._plan
        eni = await self._attachments.open_eni(
            vpc=plan.vpc,
            addresses=plan.eni_addresses,
            name=plan.eni_device,
            device=plan.eni_device,
            security_groups=[SecurityGroup("allow", plan.rules or (EVERYTHING,))],
            mtu=plan.mtu,
            timers=plan.timers,
        )
        ended = self._attachments.eni_ended(eni)
        ended.add_done_callback(partial(self._note_end, None))
        return eni

    async def _attach(self, namespace: str, name: str) -> Attached:
        plan = self._plan
        attachment = await self._attachments.attach(
            self._eni,
            namespace=namespace,
            name=name,
            address=plan.inside_address,
            device=plan.device,
            mtu=plan.mtu,
            routes=plan.routes,
        )
        self._attached.add(attachment)
        attachment.ended.add_done_callback(partial(self._note_end, attachment))
        tunnel = attachment.tunnel
        return Attached(tunnel.name, attachment.namespace, attachment.device, tunnel.address, attachment.seconds)

    def _show_on_signal(self, loop: asyncio.AbstractEventLoop) -> None:
        # A plain handler, for the reason that signals.catch() gives.
        def show(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._events.put_nowait, "show")

        signal.signal(signal.SIGUSR1, show)

    def _note_end(self, attachment: Attachment | None, ended: asyncio.Future[str]) -> None:
        if not ended.cancelled():
            reason = self._reasons.pop(attachment, "") if attachment else ""
            self._events.put_nowait((attachment, reason or ended.result()))

    def _describe(self, attached: list[Attached]) -> Ready:
        plan = self._plan
        return Ready(
            vpc=plan.vpc,
            eni=self._eni.name,
            eni_addresses=self._eni.addresses,
            rules=plan.rules,
            io=self._attachments.engine.status().io,
            max_flows=plan.max_flows,
            mtu=plan.mtu,
            pid=os.getpid(),
            attached=tuple(attached),
        )

    # While it runs

    async def _serve(self) -> str:
        """Returns why it ends by itself. Raises EngineError when the VPC is gone."""
        while True:
            event: Show | Ended | None = None
            with suppress(TimeoutError):
                async with asyncio.timeout(PERIOD):
                    event = await self._events.get()
            if event is None:
                if reader_is_gone():
                    raise BrokenPipeError
                await self._look_at_devices()
                if self._plan.watch:
                    self._output.changes(await self._changes())
            elif event == "show":
                self._output.snapshot(await self._snapshot())
            else:
                attachment, reason = event
                if attachment is None:
                    raise EngineError(f"ENI {self._eni.name} is gone: {reason}", remedy="start again")
                self._retired += self._counted.pop(attachment, Counters())
                self._attached.discard(attachment)
                self._output.detached(attachment.tunnel.name, reason, len(self._attached))
                if not self._attached and self._eni_stays():
                    return "no environment is left"

    async def _look_at_devices(self) -> None:
        """Detaches environments whose device was deleted, though their namespace may still be there."""
        engine = self._attachments.engine
        for attachment in tuple(self._attached):
            with suppress(InvalidValue):  # it is ending just now
                self._counted[attachment] = counters = engine.counters(attachment.tunnel)
                if counters.gone:
                    self._reasons[attachment] = f"device {attachment.device} was deleted"
                    await self._attachments.detach(attachment)
        if self._eni_stays() and engine.counters(self._eni).gone:
            raise EngineError(
                f"ENI {self._eni.name} is gone: device {self._eni.name} was deleted", remedy="start again"
            )

    def _eni_stays(self) -> bool:
        """False when it is about to end: its environments end before it, and the reason is told with it."""
        try:
            self._attachments.eni_ended(self._eni)
        except InvalidValue:
            return False
        return True

    async def _snapshot(self) -> Snapshot:
        engine = self._attachments.engine
        flows = await asyncio.to_thread(engine.flows)  # many take their time: the loop stays free
        drops = engine.drops(after=self._drops_seen)
        if drops:
            self._drops_seen = drops[-1].number
        return Snapshot(now(), flows, drops, self._look_at_counters())

    async def _changes(self) -> Changes:
        snapshot = await self._snapshot()
        present = {flow.id: flow for flow in snapshot.flows}
        started = [flow for number, flow in present.items() if number not in self._flows]
        ended = [flow for number, flow in self._flows.items() if number not in present]
        self._flows = present
        return Changes(started, ended, snapshot)

    def _look_at_counters(self) -> Counters:
        """The ENI's, with the drops and refusals of all links that there are and were (as last looked at)."""
        engine = self._attachments.engine
        total = engine.counters() + self._retired
        try:
            eni = engine.counters(self._eni)
        except HyperplaneError:  # it has just left the engine
            return total
        return replace(eni, drops=total.drops, refusals_sent=total.refusals_sent)
