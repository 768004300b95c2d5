"""Serving the application on its Unix socket, to root and to one group."""

from __future__ import annotations

import grp
import os
import socket
import stat
from pathlib import Path
from typing import Final

from aiohttp import web

from hyperplane.errors import AlreadyRunning, InvalidValue, PermissionMissing
from hyperplane.linux.sockets import OWNER_AND_GROUP, bind

BACKLOG: Final = 1024
SHUTDOWN_PATIENCE: Final = 5.0  # seconds for requests that are being answered
KEEPALIVE: Final = 300.0  # seconds that an idle connection stays


async def serve(app: web.Application, path: str | Path, group: str | int | None = None) -> web.AppRunner:
    """Serves until `await runner.cleanup()`, which lets running requests end and removes the socket.

    group: who may connect besides the owner, a name or gid; None: the process's own. A socket that nobody listens on is
    replaced. Raises AlreadyRunning, InvalidValue (path, group), PermissionMissing.
    """
    listener, inode = listen(Path(path), group)

    async def remove(_: web.Application) -> None:
        _remove(Path(path), inode)

    try:
        app.on_shutdown.append(remove)
        runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=SHUTDOWN_PATIENCE, keepalive_timeout=KEEPALIVE, lingering_time=1.0
        )
        await runner.setup()
        await web.SockSite(runner, listener, backlog=BACKLOG).start()
    except BaseException:
        listener.close()
        _remove(Path(path), inode)
        raise
    return runner


def listen(path: Path, group: str | int | None) -> tuple[socket.socket, int]:
    """A bound socket of mode 0660 and its inode number."""
    gid = _gid(group)
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        bind(listener, path, OWNER_AND_GROUP)
        if gid is not None:
            os.chown(path, -1, gid)
        return listener, path.stat().st_ino
    except OSError as error:
        listener.close()
        if isinstance(error, FileNotFoundError):
            remedy = f"create it: mkdir -p {path.parent}"
            raise InvalidValue("the socket's directory does not exist", resource=str(path), remedy=remedy) from None
        if isinstance(error, PermissionError):
            path.unlink(missing_ok=True) if path.is_socket() else None
            remedy = f"run as root, or as a member of the group who may write to {path.parent}"
            message = f"the socket may not be made: {error.strerror}"
            raise PermissionMissing(message, resource=str(path), remedy=remedy) from None
        raise InvalidValue(f"the socket cannot be made: {error}", resource=str(path)) from None


def _gid(group: str | int | None) -> int | None:
    if group is None or isinstance(group, int):
        return group
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        remedy = f"create it: groupadd --system {group}"
        raise InvalidValue(f"there is no group {group}", resource="group", remedy=remedy) from None


def _clear(path: Path) -> None:
    """Removes a socket that a dead process left."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise InvalidValue(f"the socket cannot be made: {error.strerror}", resource=str(path)) from None
    if not stat.S_ISSOCK(mode):
        raise InvalidValue("a file that is no socket is in the way", resource=str(path), remedy=f"remove {path}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass  # a full backlog, or not ours to ask
    raise AlreadyRunning("somebody listens on the socket", resource=str(path), remedy="stop the other daemon first")


def _remove(path: Path, inode: int) -> None:
    """Unless it is another's by now."""
    try:
        if path.lstat().st_ino == inode:
            path.unlink()
    except FileNotFoundError:
        pass
