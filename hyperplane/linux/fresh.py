"""Fresh namespaces: made by us, under a name that `ip netns` shows, and deleted by us.

A name is a file below /run/netns on which the namespace is mounted (ip-netns(8)). Like `ip netns add` this makes that
directory a shared mount first, so that the name is seen, and its deletion, in every mount namespace.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from hyperplane.errors import DeviceError, DeviceExists, PermissionMissing
from hyperplane.linux import netlink
from hyperplane.linux.namespaces import LIBC, NETNS_RUN_DIR, Namespace, NamespaceThreads, key_of

# sys/mount.h
MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 0x100000
MNT_DETACH: Final = 2
LAST_GROUP: Final = 2**31 - 1  # GID_T_MAX of net/ping.h

_prepared = threading.Lock()


@contextmanager
def fresh_namespace(name: str, threads: NamespaceThreads) -> Iterator[Namespace]:
    """Makes a namespace with device lo up; within the block the calling thread, one of threads, is in it.

    It stays after the block unless that raises. name: not taken yet. What is yielded has no descriptor. Raises
    DeviceError, PermissionMissing.
    """
    path = f"{NETNS_RUN_DIR}/{name}"
    _prepare_directory()
    with threads.apart():
        try:
            os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
        except OSError as error:
            raise _refused(name, error.errno or 0) from None
        try:
            _mount("/proc/thread-self/ns/net", path, MS_BIND, name)
            netlink.bring_up("lo")
            _allow_pings()
            fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            try:
                key = key_of(fd)
            finally:
                os.close(fd)
            yield Namespace(name, -1, key, path)
        except BaseException:
            delete_namespace(name)
            raise


def delete_namespace(name: str) -> bool:
    """Deletes a name; the namespace ends when nobody is in it any more. False when there was no such name.

    Raises DeviceError, PermissionMissing.
    """
    path = f"{NETNS_RUN_DIR}/{name}"
    if LIBC.umount2(os.fsencode(path), MNT_DETACH):
        number = ctypes.get_errno()
        if number not in (errno.EINVAL, errno.ENOENT):  # not mounted: left half made
            raise _refused(name, number)
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _refused(name, error.errno or 0) from None
    return True


def names_like(pattern: re.Pattern[str]) -> list[str]:
    """The names of namespaces that match as a whole, sorted."""
    with suppress(FileNotFoundError):
        return sorted(name for name in os.listdir(NETNS_RUN_DIR) if pattern.fullmatch(name))
    return []


def _allow_pings() -> None:
    """Any group may ping without privileges, as in the namespaces of `run`. Not where /proc/sys is read-only."""
    with suppress(OSError), open("/proc/sys/net/ipv4/ping_group_range", "w", encoding="ascii") as file:
        file.write(f"0 {LAST_GROUP}")


def _prepare_directory() -> None:
    with _prepared:
        directory = os.fsencode(NETNS_RUN_DIR)
        with suppress(OSError):  # it is there, mostly
            os.mkdir(NETNS_RUN_DIR)
            os.chmod(NETNS_RUN_DIR, 0o755)  # as ip-netns(8) makes it, whatever the umask is
        if not LIBC.mount(b"", directory, b"none", MS_SHARED | MS_REC, None):
            return
        if ctypes.get_errno() == errno.EINVAL:  # no mount yet
            _mount(NETNS_RUN_DIR, NETNS_RUN_DIR, MS_BIND | MS_REC, NETNS_RUN_DIR)
        _mount("", NETNS_RUN_DIR, MS_SHARED | MS_REC, NETNS_RUN_DIR)


def _mount(source: str, target: str, flags: int, what: str) -> None:
    if LIBC.mount(os.fsencode(source), os.fsencode(target), b"none", flags, None):
        raise _refused(what, ctypes.get_errno())


def _refused(name: str, number: int) -> DeviceError | PermissionMissing:
    what = f"namespace {name}"
    if number in (errno.EPERM, errno.EACCES, errno.EROFS):
        remedy = f"run as root or with CAP_SYS_ADMIN, with {NETNS_RUN_DIR} writable"
        return PermissionMissing(f"{what} may not be made or deleted", resource=what, remedy=remedy)
    if number == errno.EEXIST:
        return DeviceExists(f"{what} exists already", resource=what, remedy="give another name")
    limit = "fs.mount-max, or disk space below /run" if number in (errno.ENOSPC, errno.ENOMEM) else ""
    return DeviceError(f"{what}: {os.strerror(number)}", resource=what, limit=limit)
