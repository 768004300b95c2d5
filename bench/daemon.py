"""A daemon of the benchmark's own: its socket and database are in a temporary directory, its engine ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, Self

from hyperplane.client import SyncClient
from hyperplane.errors import DaemonUnavailable

INSTANCE: Final = "bench"
PATIENCE: Final = 20.0  # seconds to become ready
TO_END: Final = 120.0  # seconds; the kernel takes its time to remove thousands of devices


class Daemon:
    """A context manager: it is ready within, and gone with its engine afterwards."""

    def __init__(self, *options: str) -> None:
        self._options = options
        self._directory = tempfile.TemporaryDirectory(prefix="hpbench-")
        self._environment = os.environ | {
            "HYPERPLANE_RUN_DIR": self._directory.name,
            "HYPERPLANE_STATE_DIR": self._directory.name,
        }
        self.socket = Path(self._directory.name, INSTANCE, "api.sock")

    def __enter__(self) -> Self:
        with open(Path(self._directory.name, "daemon.log"), "w") as log:
            self._process = subprocess.Popen(
                self._command("daemon", *self._options), env=self._environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip
        end = time.monotonic() + PATIENCE
        while not self._answers():
            said = Path(self._directory.name, "daemon.log").read_text()[-2000:]
            assert self._process.poll() is None, f"the daemon ended with {self._process.returncode}: {said}"
            assert time.monotonic() < end, f"the daemon is not ready after {PATIENCE} s: {said}"
            time.sleep(0.02)
        return self

    def __exit__(self, *error: object) -> None:
        subprocess.run(
            self._command("stop", "--engine", "--timeout", f"{TO_END:.0f}"), env=self._environment, timeout=2 * TO_END,
            check=False, capture_output=True,
        )  # fmt: skip
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._directory.cleanup()

    @staticmethod
    def _command(verb: str, *options: str) -> list[str]:
        return [sys.executable, "-m", "hyperplane.cli", verb, "--instance", INSTANCE, *options]

    def _answers(self) -> bool:
        try:
            with SyncClient(path=str(self.socket)) as client:
                client.health()
        except DaemonUnavailable:
            return False
        return True
