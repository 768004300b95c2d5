"""Where an instance keeps its sockets, its lock and its database."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyperplane.client.places import RUN_DIR, RUN_DIR_VARIABLE, check_instance
from hyperplane.errors import InvalidValue

STATE_DIR: Final = "/var/lib/hyperplane-nat"
STATE_DIR_VARIABLE: Final = "HYPERPLANE_STATE_DIR"
LONGEST_SOCKET_PATH: Final = 107  # struct sockaddr_un, unix(7)


@dataclass(frozen=True, slots=True)
class Places:
    """The files of one instance. Directories None: those of the environment variables, or else the system's.

    Raises InvalidValue.
    """

    instance: str = "default"
    run_dir: Path | None = None
    state_dir: Path | None = None

    def __post_init__(self) -> None:
        check_instance(self.instance)
        if len(os.fsencode(self.descriptors)) > LONGEST_SOCKET_PATH:
            limit = f"{LONGEST_SOCKET_PATH} bytes in a socket's path"
            remedy = f"give a shorter directory ({RUN_DIR_VARIABLE})"
            raise InvalidValue(f"path too long: {self.descriptors}", resource="run dir", limit=limit, remedy=remedy)

    @property
    def run(self) -> Path:
        base = self.run_dir or Path(os.environ.get(RUN_DIR_VARIABLE) or RUN_DIR)
        return base.absolute() / self.instance

    @property
    def state(self) -> Path:
        base = self.state_dir or Path(os.environ.get(STATE_DIR_VARIABLE) or STATE_DIR)
        return base.absolute() / self.instance

    @property
    def engine(self) -> Path:
        """The engine's seqpacket socket."""
        return self.run / "engine.sock"

    @property
    def engine_log(self) -> Path:
        return self.run / "engine.log"

    @property
    def api(self) -> Path:
        """The HTTP API's stream socket."""
        return self.run / "api.sock"

    @property
    def descriptors(self) -> Path:
        """The seqpacket socket that takes TUN descriptors."""
        return self.run / "descriptors.sock"

    @property
    def lock(self) -> Path:
        return self.run / "daemon.lock"

    @property
    def state_lock(self) -> Path:
        """Two daemons with different run directories may have the same state directory."""
        return self.state / "state.lock"

    @property
    def settings(self) -> Path:
        """What kernel settings were before the daemon changed them: gone after a reboot, as the settings are."""
        return self.run / "settings.json"

    @property
    def database(self) -> Path:
        return self.state / "state.db"

    @property
    def mark(self) -> str:
        """Six hexadecimal digits by which two instances on one host tell their namespaces apart."""
        return hashlib.blake2s(os.fsencode(self.state), digest_size=3).hexdigest()
