"""The demo's own daemon: an instance like any other, with its sockets and its database in a temporary directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

from hyperplane.cli.demo_lab import DEADLINE, Lab, wait_until
from hyperplane.client import SyncClient
from hyperplane.errors import DaemonUnavailable, HyperplaneError

INSTANCE: Final = "demo"
# Seconds after which its engine ends when the daemon is no more: an engine is made to outlive its daemon.
PATIENCE: Final = 1


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "hyperplane.cli", *words, "--instance", INSTANCE]


def start_daemon(lab: Lab) -> str:
    """Starts it and waits until it serves; returns its socket's path. It ends with the lab."""
    directory = lab.directory("root")
    places = {"HYPERPLANE_RUN_DIR": str(directory), "HYPERPLANE_STATE_DIR": str(directory)}
    environment = os.environ | places
    log = directory / "daemon.log"
    with log.open("w") as file:
        process = lab.start(
            "",
            command("daemon", "--max-flows", "4096", "--max-links", "64", "--engine-patience", str(PATIENCE)),
            env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
        )  # fmt: skip
    lab.finally_do(_stop, environment)
    socket = str(directory / INSTANCE / "api.sock")
    if not wait_until(lambda: _answers(socket), process):
        said = log.read_text().strip().rpartition("\n")[2]
        raise HyperplaneError(f"the demo's daemon did not start: {said}", resource="daemon")
    return socket


def _stop(environment: dict[str, str]) -> None:
    """Daemon and engine."""
    subprocess.run(
        command("stop", "--engine"), env=environment, timeout=DEADLINE, check=False, capture_output=True,
        process_group=0,
    )  # fmt: skip


def _answers(socket: str) -> bool:
    if not Path(socket).exists():
        return False
    try:
        with SyncClient(path=socket) as client:
            client.health()
    except DaemonUnavailable:
        return False
    return True
