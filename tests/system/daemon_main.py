"""A daemon that ends by SIGKILL where the test says: `python -m tests.system.daemon_main OPTIONS [POINT]`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from hyperplane.daemon.main import run
from hyperplane.daemon.options import DaemonOptions
from hyperplane.daemon.points import NO_POINTS, CommitPoints


def killing_at(wanted: str) -> CommitPoints:
    def point(name: str) -> None:
        if name == wanted:
            os.kill(os.getpid(), signal.SIGKILL)

    return point


def main() -> None:
    given: dict[str, Any] = json.loads(sys.argv[1])
    options = DaemonOptions(run_dir=Path(given.pop("run_dir")), state_dir=Path(given.pop("state_dir")), **given)
    sys.exit(run(options, killing_at(sys.argv[2]) if len(sys.argv) > 2 else NO_POINTS))


if __name__ == "__main__":
    main()
