"""What programs read: one JSON object per line on standard output, each with "time" and "event".

Event and field names are listed in docs/cli.md; they stay, and so do their meanings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from hyperplane.cli.render import Attached, Changes, Ready, Snapshot
from hyperplane.cli.words import PROTOCOLS, wall_time
from hyperplane.model import Counters, Drop, Flow

if TYPE_CHECKING:
    from hyperplane.linux.repair import Difference


class JsonOutput:
    """Of the verb `nat`. Everything is written at once."""

    def ready(self, ready: Ready) -> None:
        for one in ready.attached:
            self._write("attached", attached_fields(one))
        fields = {
            "vpc": ready.vpc,
            "eni": ready.eni,
            "eni_addresses": [str(address) for address in ready.eni_addresses],
            "allow": [str(rule) for rule in ready.rules] or ["all"],
            "io": ready.io,
            "max_flows": ready.max_flows,
            "mtu": ready.mtu,
            "environments": len(ready.attached),
            "pid": ready.pid,
        }
        self._write("ready", fields)

    def put_right(self, link: str, difference: Difference) -> None:
        self._write("put_right", {"link": link, **difference._asdict()})

    def troubled(self, link: str, troubles: Sequence[str]) -> None:
        self._write("troubled", {"link": link, "troubles": list(troubles)})

    def detached(self, environment: str, reason: str, left: int) -> None:
        self._write("detached", {"environment": environment, "reason": reason, "environments": left})

    def snapshot(self, snapshot: Snapshot) -> None:
        for flow in snapshot.flows:
            self._write("flow", flow_fields(flow, snapshot.now))
        self._drops(snapshot)
        self._write("counters", counters_fields(snapshot))

    def changes(self, changes: Changes) -> None:
        snapshot = changes.snapshot
        for flow in changes.started:
            self._write("flow_started", flow_fields(flow, snapshot.now))
        for flow in changes.ended:
            self._write("flow_ended", flow_fields(flow, snapshot.now))
        self._drops(snapshot)
        self._write("counters", counters_fields(snapshot))

    def ending(self, reason: str, counters: Counters) -> None:
        self._write("ended", {"reason": reason, "flows_created": counters.flows_created, "drops": counters.drops})

    def close(self) -> None:
        pass

    def _drops(self, snapshot: Snapshot) -> None:
        for drop in snapshot.drops:
            self._write("drop", drop_fields(drop, snapshot.now))

    @staticmethod
    def _write(event: str, fields: Mapping[str, Any]) -> None:
        write_json(event, fields)


def write_json(event: str, fields: Mapping[str, Any]) -> None:
    """One line on standard output, with the present time unless fields have one."""
    line = msgspec.json.encode({"time": iso(datetime.now(UTC)), "event": event, **fields})
    print(line.decode(), flush=True)


def iso(moment: datetime) -> str:
    """RFC 3339, milliseconds, UTC."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z"


def attached_fields(one: Attached) -> dict[str, Any]:
    return {
        "environment": one.environment,
        "namespace": one.namespace,
        "device": one.device,
        "inside_address": str(one.inside_address),
        "seconds": round(one.seconds, 6),
    }


def flow_fields(flow: Flow, now: int) -> dict[str, Any]:
    return {
        "id": flow.id,
        "environment": flow.tunnel,
        "eni": flow.eni,
        "protocol": flow.protocol,
        "state": flow.state,
        "inside": str(flow.inside),
        "inside_port": flow.inside_port,
        "outside": str(flow.outside),
        "outside_port": flow.outside_port,
        "remote": str(flow.remote),
        "remote_port": flow.remote_port,
        "packets_out": flow.packets_out,
        "bytes_out": flow.bytes_out,
        "packets_in": flow.packets_in,
        "bytes_in": flow.bytes_in,
        "started": iso(wall_time(flow.started, now)),
        "last_seen": iso(wall_time(flow.last_seen, now)),
        "expires": iso(wall_time(flow.expires, now)),
    }


def drop_fields(drop: Drop, now: int) -> dict[str, Any]:
    return {
        "time": iso(wall_time(drop.time, now)),
        "number": drop.number,
        "reason": drop.reason,
        "link": drop.link,
        "protocol": PROTOCOLS.get(drop.protocol, str(drop.protocol)),
        "source": str(drop.source),
        "source_port": drop.source_port,
        "destination": str(drop.destination),
        "destination_port": drop.destination_port,
        "length": drop.length,
    }


def counters_fields(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "flows": len(snapshot.flows),
        "flows_created": snapshot.counters.flows_created,
        "packets_out": snapshot.counters.packets_out,
        "bytes_out": snapshot.counters.bytes_out,
        "packets_in": snapshot.counters.packets_in,
        "bytes_in": snapshot.counters.bytes_in,
        "refusals_sent": snapshot.counters.refusals_sent,
        "drops": snapshot.counters.drops,
    }
