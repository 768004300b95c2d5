"""`stop`: finds daemon and engine by their sockets, asks them to end and waits until they have."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from pathlib import Path

from hyperplane.daemon.places import Places
from hyperplane.errors import HyperplaneError, PermissionMissing
from hyperplane.linux.sockets import peer_credentials


def run(places: Places, *, engine: bool, timeout: float) -> int:
    """timeout: seconds for both together. Raises PermissionMissing, HyperplaneError."""
    end = time.monotonic() + timeout
    wanted = [("daemon", places.api, socket.SOCK_STREAM)]
    if engine:
        wanted.append(("engine", places.engine, socket.SOCK_SEQPACKET))
    for what, path, kind in wanted:
        pid = owner(path, kind)
        if pid:
            _end(what, pid, end)
        print(f"{what} {pid} has ended" if pid else f"no {what} of instance {places.instance} runs")
    return 0


def owner(path: Path, kind: socket.SocketKind) -> int:
    """The process that listens on a Unix socket, 0 when none does. Raises PermissionMissing."""
    with socket.socket(socket.AF_UNIX, kind) as asking:
        try:
            asking.connect(str(path))
        except PermissionError:
            remedy = "run as root"
            raise PermissionMissing(f"{path} may not be opened", resource=str(path), remedy=remedy) from None
        except OSError:
            return 0
        return peer_credentials(asking).pid


def _end(what: str, pid: int, end: float) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        poll = select.poll()
        poll.register(process, select.POLLIN)
        if not poll.poll(max(end - time.monotonic(), 0) * 1000):
            remedy = f"look at its log; kill -9 {pid} ends it at once"
            raise HyperplaneError(f"{what} {pid} has not ended in time", resource=what, remedy=remedy)
    except PermissionError:
        raise PermissionMissing(f"{what} {pid} is another user's", resource=what, remedy="run as root") from None
    except ProcessLookupError:
        return
    finally:
        os.close(process)
