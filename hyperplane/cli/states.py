"""What `status` does: daemon and engine at one look."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from typing import Any

from hyperplane.cli.kinds import BY_NAME
from hyperplane.cli.options import Caller
from hyperplane.cli.resource_verbs import print_json
from hyperplane.cli.terminal import Part, Styled
from hyperplane.cli.words import drops_text, duration, many, volume
from hyperplane.errors import DaemonUnavailable, PermissionMissing
from hyperplane.resources import Problem


def show(caller: Caller) -> int:
    """0; 1 when no daemon answers, which is an answer too."""
    try:
        with caller.client() as client:
            status = client.status()
    except DaemonUnavailable as error:
        if caller.as_json:
            parts = {"message": error.message, "resource": error.resource, "remedy": error.remedy}
            print_json(Problem(error="DaemonUnavailable", **parts))
        else:
            print(f"daemon  {error.message}; {error.remedy}")
            print(f"engine  {_engine_alone(caller.instance)}")
        return 1
    if caller.as_json:
        print_json(status)
    else:
        caller.printer().pairs(_lines(status))
    return 0


def _lines(status: Any) -> list[tuple[str, Part]]:
    up = duration(time.time() - status.started)
    lines: list[tuple[str, Part]] = [
        ("daemon", f"{status.version}, instance {status.instance}, pid {status.pid}, up {up}"),
        ("engine", _engine(status.engine) if status.engine else Styled("does not run", "red")),
    ]
    workers = status.engine.status.workers if status.engine else ()
    if len(workers) > 1:
        lines += [(f"worker {number}", _worker(worker)) for number, worker in enumerate(workers)]
    lines.append(("resources", ", ".join(_counted(status.resources)) or "none"))
    traffic = status.traffic
    out, back = volume(traffic.bytes_out), volume(traffic.bytes_in)
    lines.append(("traffic", f"out {out}, in {back}; dropped packets: {drops_text(traffic.drops)}"))
    if status.pool:
        lines.append(("pool", f"{many(status.pool, 'fresh environment')} ready"))
    return lines + [("notice", Styled(notice, "yellow")) for notice in status.notices]


def _engine(engine: Any) -> str:
    now = engine.status
    size = volume(engine.memory.bytes)
    return (
        f"{engine.version}, pid {engine.pid}, {many(now.flows, 'flow')}, I/O by {now.io}, memory {size}, "
        f"{many(engine.restarts, 'restart')}"
    )


def _worker(worker: Any) -> str:
    read = f"{many(worker.flows, 'flow')}, {worker.packets:,} packets read in {worker.batches:,} batches"
    return f"{read}, {worker.handed_over:,} handed over" if worker.handed_over else read


def _counted(resources: Mapping[str, Mapping[str, int]]) -> list[str]:
    """As in `2 functions (2 Active)`."""
    words = []
    for kind, states in resources.items():
        if total := sum(states.values()):
            named = ", ".join(f"{count:,} {state}" for state, count in states.items() if state and count)
            words.append(many(total, BY_NAME[kind].word) + (f" ({named})" if named else ""))
    return words


def _engine_alone(instance: str) -> str:
    """Whether an engine goes on without its daemon; asked only when no daemon uses its socket."""
    from hyperplane.cli.stopping import owner
    from hyperplane.daemon.places import Places

    if os.geteuid():
        return "unknown: root sees it"
    try:
        pid = owner(Places(instance).engine, socket.SOCK_SEQPACKET)
    except PermissionMissing as error:
        return str(error)
    return f"pid {pid} goes on: connections stay" if pid else "does not run"
