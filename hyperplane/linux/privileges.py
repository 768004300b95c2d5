"""Gives up every privilege for good: user, groups, capabilities and the way back (credentials(7), capabilities(7))."""

from __future__ import annotations

import ctypes
import os
import pwd
import resource
from contextlib import suppress
from typing import Final

from hyperplane.errors import InvalidValue, PermissionMissing
from hyperplane.linux.namespaces import LIBC

# linux/prctl.h, linux/capability.h
PR_CAPBSET_READ, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 23, 24, 38
MOST_CAPABILITIES: Final = 64
CAPABILITY_VERSION_3: Final = 0x20080522


def drop_privileges(user: str) -> None:
    """Root becomes user, with no group but that user's own; who is not root stays who it is. No capability is left, and
    none can be got again, also not by exec of a set-user-ID program.

    Concerns the calling thread: call it before others are started. Raises InvalidValue for an unknown user,
    PermissionMissing.
    """
    try:
        if os.geteuid() == 0:
            found = _find(user)
            _empty_bounding_set()
            os.setgroups([])
            os.setresgid(found.pw_gid, found.pw_gid, found.pw_gid)
            os.setresuid(found.pw_uid, found.pw_uid, found.pw_uid)
        _check(LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _no_capabilities()
    except OSError as error:
        what = f"privileges cannot be given up: {error.strerror}"
        remedy = "run as root with CAP_SETUID, CAP_SETGID and CAP_SETPCAP, or as another user than root"
        raise PermissionMissing(what, resource=f"user {user}", remedy=remedy) from None


def lift_memory_limit() -> None:
    """Locked memory (of io_uring) without a limit, where that is allowed: see setrlimit(2), RLIMIT_MEMLOCK."""
    for limit in (resource.RLIM_INFINITY, resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]):
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (limit, limit))
            return


def _find(user: str) -> pwd.struct_passwd:
    try:
        found = pwd.getpwnam(user)
    except (KeyError, ValueError):
        remedy = "give one that `getent passwd` shows"
        raise InvalidValue(f"no user {user!r}", resource="user", remedy=remedy) from None
    if found.pw_uid == 0:
        raise InvalidValue(f"user {user} is root", resource="user", remedy="give a user without privileges")
    return found


def _empty_bounding_set() -> None:
    for capability in range(MOST_CAPABILITIES):
        if LIBC.prctl(PR_CAPBSET_READ, capability, 0, 0, 0) == 1:
            _check(LIBC.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0))


def _no_capabilities() -> None:
    """capset(2) with empty sets; ambient capabilities go with the permitted ones."""
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    _check(LIBC.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())))


def _check(result: int) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
