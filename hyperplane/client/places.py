"""Where an instance's sockets are: the client's half of hyperplane.daemon.places."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

RUN_DIR: Final = "/run/hyperplane-nat"
RUN_DIR_VARIABLE: Final = "HYPERPLANE_RUN_DIR"


def socket_path(instance: str = "default") -> Path:
    """Of the API."""
    return _run_dir() / instance / "api.sock"


def descriptors_path(api: str | Path) -> Path:
    """Of the socket that takes descriptors: it stands beside the API's."""
    return Path(api).parent / "descriptors.sock"


def _run_dir() -> Path:
    return Path(os.environ.get(RUN_DIR_VARIABLE) or RUN_DIR).absolute()
