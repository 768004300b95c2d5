"""Tells when a namespace goes away underneath: its name is deleted, or the process it was found through ends.

A TUN descriptor keeps its namespace alive, and nothing happens on it when everybody else has left: writes succeed and
poll() stays quiet. So the name is watched by inotify(7), one descriptor for all names, and a process by a pidfd, one
for each.
A name that is unmounted but not deleted sends no event.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import struct
from collections.abc import Callable, Hashable
from contextlib import suppress
from typing import Final

from hyperplane.errors import DeviceError, NamespaceNotFound
from hyperplane.linux.namespaces import LIBC, Namespace, descriptors_exhausted, namespace_exists, process_alive

# sys/inotify.h
IN_NONBLOCK, IN_CLOEXEC = 0o4000, 0o2000000
IN_MOVED_FROM, IN_MOVED_TO, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF = 0x40, 0x80, 0x200, 0x400, 0x800
IN_Q_OVERFLOW: Final = 0x4000
IN_ONLYDIR: Final = 0x1000000
EVENTS: Final = IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR
EVENT: Final = struct.Struct("iIII")  # struct inotify_event: watch, mask, cookie, length of the name that follows

Token = Hashable


class NamespaceWatch:
    """Watches namespaces for tokens; belongs to the event loop's thread.

    gone(token, reason) is called once for a token whose namespace went away, which is not watched any more then.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, gone: Callable[[Token, str], None]) -> None:
        self._loop = loop
        self._gone = gone
        self._inotify = -1
        self._directories: dict[str, int] = {}  # its watch
        self._paths: dict[str, dict[str, set[Token]]] = {}  # directory -> name -> tokens
        self._processes: dict[int, tuple[int, set[Token]]] = {}  # pid -> pidfd, tokens
        self._namespaces: dict[Token, Namespace] = {}

    def add(self, token: Token, namespace: Namespace) -> None:
        """Watches namespace (which may be closed). Raises NamespaceNotFound when it has gone already, DeviceError."""
        self._namespaces[token] = namespace
        try:
            if namespace.pid:
                self._add_process(token, namespace)
            if namespace.path:
                self._add_path(token, namespace)
        except BaseException:
            self.remove(token)
            raise

    def remove(self, token: Token) -> None:
        """Does nothing for a token that is not watched."""
        namespace = self._namespaces.pop(token, None)
        if namespace is None:
            return
        if namespace.pid in self._processes:
            pidfd, tokens = self._processes[namespace.pid]
            tokens.discard(token)
            if not tokens:
                del self._processes[namespace.pid]
                self._loop.remove_reader(pidfd)
                os.close(pidfd)
        directory, name = os.path.split(namespace.path)
        names = self._paths.get(directory, {})
        if token in names.get(name, ()):
            names[name].discard(token)
            if not names[name]:
                del names[name]
            if not names:
                del self._paths[directory]
                watch = self._directories.pop(directory)
                # Two paths to one directory share a watch.
                if watch not in self._directories.values():
                    LIBC.inotify_rm_watch(self._inotify, watch)

    def close(self) -> None:
        for token in tuple(self._namespaces):
            self.remove(token)
        if self._inotify >= 0:
            self._loop.remove_reader(self._inotify)
            os.close(self._inotify)
            self._inotify = -1

    def _add_path(self, token: Token, namespace: Namespace) -> None:
        directory, name = os.path.split(namespace.path)
        if directory not in self._directories:
            self._directories[directory] = self._watch_directory(directory)
            self._paths[directory] = {}
        self._paths[directory].setdefault(name, set()).add(token)
        # Between its opening and the watch it may have been deleted, and another one made by that name.
        if not namespace_exists(namespace):
            raise NamespaceNotFound(f"namespace {namespace.name} was deleted just now", resource=namespace.name)

    def _watch_directory(self, directory: str) -> int:
        if self._inotify < 0:
            self._inotify = LIBC.inotify_init1(IN_NONBLOCK | IN_CLOEXEC)
            if self._inotify < 0:
                raise _inotify_error(ctypes.get_errno())
            self._loop.add_reader(self._inotify, self._read_events)
        watch: int = LIBC.inotify_add_watch(self._inotify, os.fsencode(directory), EVENTS)
        if watch < 0:
            raise _inotify_error(ctypes.get_errno())
        return watch

    def _add_process(self, token: Token, namespace: Namespace) -> None:
        pid = namespace.pid
        if pid not in self._processes:
            try:
                pidfd = os.pidfd_open(pid)
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    raise descriptors_exhausted(f"process {pid}") from None
                raise NamespaceNotFound(f"process {pid} ended just now", resource=namespace.name) from None
            self._processes[pid] = pidfd, set()
            self._loop.add_reader(pidfd, self._process_ended, pid)
        pidfd, tokens = self._processes[pid]
        tokens.add(token)
        # The number may have gone to another process since the namespace was opened.
        with suppress(OSError):
            status = os.stat(f"/proc/{pid}/ns/net")
            if (status.st_dev, status.st_ino) == namespace.key and process_alive(pidfd):
                return
        raise NamespaceNotFound(f"process {pid} ended just now", resource=namespace.name)

    def _process_ended(self, pid: int) -> None:
        for token in tuple(self._processes[pid][1]):
            self._report(token, f"process {pid} ended")

    def _read_events(self) -> None:
        try:
            data = os.read(self._inotify, 65536)
        except BlockingIOError:
            return
        place = 0
        while place < len(data):
            watch, mask, _, length = EVENT.unpack_from(data, place)
            place += EVENT.size
            name = os.fsdecode(data[place : place + length].rstrip(b"\0"))
            place += length
            for directory, number in tuple(self._directories.items()):
                if mask & IN_Q_OVERFLOW or (number == watch and not name):
                    for one in tuple(self._paths.get(directory, ())):
                        self._check(directory, one)
                elif number == watch:
                    self._check(directory, name)

    def _check(self, directory: str, name: str) -> None:
        """Reports the tokens of a name that does not stand for their namespace any more."""
        for token in tuple(self._paths.get(directory, {}).get(name, ())):
            namespace = self._namespaces[token]
            if not namespace_exists(namespace):
                self._report(token, f"namespace {namespace.name} was deleted")

    def _report(self, token: Token, reason: str) -> None:
        self.remove(token)
        self._gone(token, reason)


def _inotify_error(number: int) -> DeviceError:
    if number in (errno.EMFILE, errno.ENFILE, errno.ENOSPC):
        limit = "fs.inotify.max_user_instances and max_user_watches, or open files"
        return DeviceError("no inotify watch left for namespaces", resource="inotify", limit=limit, remedy="raise them")
    return DeviceError(f"namespaces cannot be watched: {os.strerror(number)}", resource="inotify")
