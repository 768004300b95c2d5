"""What `status` does: daemon and engine at one look."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hyperplane.cli.kinds import BY_NAME
from hyperplane.cli.options import Caller
from hyperplane.cli.render import drops_text, duration, many, volume
from hyperplane.cli.resource_verbs import print_json
from hyperplane.errors import DaemonUnavailable, PermissionMissing
from hyperplane.resources import Problem

if TYPE_CHECKING:
    from rich.table import Table


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
        caller.console().print(_table(status), soft_wrap=False)
    return 0


def _table(status: Any) -> Table:
    import time

    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    up = duration(time.time() - status.started)
    table.add_row("daemon", f"{status.version}, instance {status.instance}, pid {status.pid}, up {up}")
    table.add_row("engine", _engine(status.engine) if status.engine else Text("does not run", "red"))
    for number, worker in enumerate(status.engine.status.workers if status.engine else ()):
        if len(status.engine.status.workers) > 1:
            table.add_row(f"worker {number}", _worker(worker))
    table.add_row("resources", ", ".join(_counted(status.resources)) or "none")
    traffic = status.traffic
    out, back = volume(traffic.bytes_out), volume(traffic.bytes_in)
    table.add_row("traffic", f"out {out}, in {back}; dropped packets: {drops_text(traffic.drops)}")
    if status.pool:
        table.add_row("pool", f"{many(status.pool, 'fresh environment')} ready")
    for notice in status.notices:
        table.add_row("notice", Text(notice, "yellow"))
    return table


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
