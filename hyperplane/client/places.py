"""Where an instance's sockets are, and what it may be called: hyperplane.daemon.places has the daemon's other files."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from hyperplane.errors import InvalidValue

RUN_DIR: Final = "/run/hyperplane-nat"
RUN_DIR_VARIABLE: Final = "HYPERPLANE_RUN_DIR"
INSTANCE: Final = "default"
INSTANCE_VARIABLE: Final = "HYPERPLANE_INSTANCE"
INSTANCE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")


def socket_path(instance: str | None = None) -> Path:
    """Of the API. instance None: the environment variable's, or else the default. Raises InvalidValue."""
    return _run_dir() / instance_name(instance) / "api.sock"


def descriptors_path(api: str | Path) -> Path:
    """Of the socket that takes descriptors: it stands beside the API's."""
    return Path(api).parent / "descriptors.sock"


def instance_name(given: str | None = None) -> str:
    """given, or that of the environment variable, or else the default; an empty variable counts as none. Raises
    InvalidValue for what is no name of an instance."""
    if given is not None:
        return check_instance(given)
    variable = os.environ.get(INSTANCE_VARIABLE)
    return check_instance(variable, INSTANCE_VARIABLE) if variable else INSTANCE


def check_instance(name: str, what: str = "instance name") -> str:
    """The name again. what: where it comes from. Raises InvalidValue."""
    if not INSTANCE_NAME.fullmatch(name):
        limit = "1 to 64 letters, digits, and _ . - but these two not in front"
        raise InvalidValue(f"{what} is {name!r}", resource=name, limit=limit, field="instance")
    return name


def _run_dir() -> Path:
    return Path(os.environ.get(RUN_DIR_VARIABLE) or RUN_DIR).absolute()
