"""Errors as the daemon raised them, and those of a daemon that cannot be reached."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Final

import msgspec

from hyperplane import errors
from hyperplane.errors import DaemonUnavailable, HyperplaneError, ProtocolMismatch
from hyperplane.resources import Problem

VERSION_HEADER: Final = "Hyperplane-Protocol"
VERSION: Final = "1"
GROUP: Final = "hyperplane-nat"
# Nobody is there, or not any more.
_ABSENT: Final = (errno.ENOENT, errno.ECONNREFUSED, errno.ENOTDIR)
_FORBIDDEN: Final = (errno.EACCES, errno.EPERM)
_CLASSES: Final = {
    name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, HyperplaneError)
}


def raised(status: int, body: bytes) -> HyperplaneError:
    """The error that an answer holds, as the class of its name; HyperplaneError when there is none of that name."""
    try:
        problem = msgspec.json.decode(body, type=Problem)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return HyperplaneError(f"the daemon answered with status {status} and no Problem")
    kind = _CLASSES.get(problem.error, HyperplaneError)
    return kind(
        problem.message,
        resource=problem.resource,
        limit=problem.limit,
        remedy=problem.remedy,
        field=problem.field,
    )


def check_version(theirs: str | None) -> None:
    """theirs: the answer's version header. Raises ProtocolMismatch."""
    if theirs != VERSION:
        raise ProtocolMismatch(
            f"client and daemon speak different versions: {VERSION} and {theirs or 'none'}",
            resource=VERSION_HEADER,
            limit=f"version {VERSION}",
            remedy="update whichever is older, then restart the daemon: traffic goes on",
        )


def unavailable(path: Path, error: OSError | None) -> DaemonUnavailable:
    """For a socket that cannot be connected to, or (error None) a connection that ended in the middle."""
    instance = path.parent.name
    if error is not None and error.errno in _FORBIDDEN:
        remedy = f"join the group that may use it (usermod -aG {GROUP} USER, then log in again), or run as root"
        return DaemonUnavailable("the daemon's socket may not be used by this user", resource=str(path), remedy=remedy)
    start = f"start it: hyperplane-nat daemon --instance {instance}"
    if error is not None and error.errno in _ABSENT:
        return DaemonUnavailable("no daemon listens", resource=str(path), remedy=start)
    if error is not None:
        return DaemonUnavailable(f"the daemon cannot be reached: {error}", resource=str(path), remedy=start)
    message = "the daemon ended before it had answered"
    return DaemonUnavailable(message, resource=str(path), remedy=f"{start}; then look whether the request was done")


def silent(path: Path, seconds: float) -> DaemonUnavailable:
    message = f"the daemon has not answered within {seconds:g} s"
    return DaemonUnavailable(message, resource=str(path), remedy="look into its log, or allow more time")
