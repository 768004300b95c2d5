"""Tells when a namespace goes away underneath: its name does not stand for it any more, or its process ends.

A TUN descriptor keeps its namespace alive, and nothing happens on it when everybody else has left: writes succeed and
poll() stays quiet. So what names it is watched:

| | by |
|---|---|
| a process | a pidfd, one for each |
| a file that is deleted or renamed | inotify(7), one descriptor for all directories |
| a file that is unmounted, whether it is deleted or not | a look at every name after mounts have changed |
| what sends no event: paths that lead through a process or a symbolic link | a look every second |
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import struct
from collections.abc import Callable, Iterable
from typing import Final

from hyperplane.errors import DeviceError, NamespaceNotFound
from hyperplane.linux.mounts import MountWatch
from hyperplane.linux.namespaces import LIBC, Namespace, what_became
from hyperplane.linux.processes import ProcessWatch, Token
from hyperplane.linux.rounds import Rounds

# sys/inotify.h
IN_NONBLOCK, IN_CLOEXEC = 0o4000, 0o2000000
IN_MOVED_FROM, IN_MOVED_TO, IN_DELETE, IN_DELETE_SELF, IN_MOVE_SELF = 0x40, 0x80, 0x200, 0x400, 0x800
IN_Q_OVERFLOW: Final = 0x4000
IN_ONLYDIR: Final = 0x1000000
EVENTS: Final = IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE | IN_DELETE_SELF | IN_MOVE_SELF | IN_ONLYDIR
EVENT: Final = struct.Struct("iIII")  # struct inotify_event: watch, mask, cookie, length of the name that follows

AFTER_MOUNTS: Final = 0.25  # seconds from a change of mounts to the look at names: one for many changes
EVERY: Final = 1.0  # seconds between looks at loose names


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
        self._namespaces: dict[Token, Namespace] = {}
        self._loose: dict[Token, bool] = {}  # whether the look before this one found another namespace, or none
        self._processes = ProcessWatch(loop, self._process_ended)
        self._after_mounts = Rounds(loop, self._listen_again, self._look, AFTER_MOUNTS)
        self._mounts = MountWatch(loop, self._after_mounts.ask)
        self._looks = Rounds(loop, self._next_looks, self._look_twice, EVERY)

    def add(self, token: Token, namespace: Namespace) -> None:
        """Watches namespace (which may be closed). Raises NamespaceNotFound when it has gone already, DeviceError."""
        self._namespaces[token] = namespace
        try:
            if namespace.pid:
                self._add_process(token, namespace.pid)
            if namespace.path:
                self._add_path(token, namespace)
        except BaseException:
            self.remove(token)
            raise

    def add_process(self, token: Token, pid: int) -> None:
        """Watches a process that stands for something without a name. Raises NamespaceNotFound, DeviceError."""
        self.add(token, Namespace(f"pid:{pid}", -1, (0, 0), pid=pid))

    def remove(self, token: Token) -> None:
        """Does nothing for a token that is not watched."""
        namespace = self._namespaces.pop(token, None)
        if namespace is None:
            return
        self._loose.pop(token, None)
        self._processes.remove(token)
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
        self._mounts.close()
        self._after_mounts.close()
        self._looks.close()

    def _add_path(self, token: Token, namespace: Namespace) -> None:
        directory, name = os.path.split(namespace.path)
        if not directory.startswith("/proc/"):  # which sends no inotify events, and has no mounts
            if directory not in self._directories:
                self._directories[directory] = self._watch_directory(directory)
                self._paths[directory] = {}
            self._paths[directory].setdefault(name, set()).add(token)
            self._mounts.listen()
        if namespace.loose:
            self._loose[token] = False
            self._looks.ask()
        # Between its opening and the watch it may have gone, and another one come by that name.
        if became := what_became(namespace):
            raise NamespaceNotFound(f"{became} just now", resource=namespace.name)

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

    def _add_process(self, token: Token, pid: int) -> None:
        try:
            self._processes.add(token, pid)
        except ProcessLookupError:
            raise NamespaceNotFound(f"process {pid} ended just now", resource=f"pid:{pid}") from None

    def _process_ended(self, token: Token, pid: int) -> None:
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
            self._look(token)

    def _listen_again(self) -> Iterable[Token]:
        self._mounts.listen()
        every = (token for names in self._paths.values() for tokens in names.values() for token in tokens)
        return [token for token in every if token not in self._loose]

    def _look(self, token: Token) -> None:
        if (namespace := self._namespaces.get(token)) and (became := what_became(namespace)):
            self._report(token, became)

    def _next_looks(self) -> Iterable[Token]:
        if self._loose:
            self._looks.ask()
        return self._loose

    def _look_twice(self, token: Token) -> None:
        """A process may be in another namespace for a moment: it counts when the next look finds the same."""
        namespace = self._namespaces.get(token)
        if namespace is None:
            return
        became = what_became(namespace)
        if became and self._loose[token]:
            self._report(token, became)
        else:
            self._loose[token] = bool(became)

    def _report(self, token: Token, reason: str) -> None:
        self.remove(token)
        self._gone(token, reason)


def _inotify_error(number: int) -> DeviceError:
    if number in (errno.EMFILE, errno.ENFILE, errno.ENOSPC):
        limit = "fs.inotify.max_user_instances and max_user_watches, or open files"
        return DeviceError("no inotify watch left for namespaces", resource="inotify", limit=limit, remedy="raise them")
    return DeviceError(f"namespaces cannot be watched: {os.strerror(number)}", resource="inotify")
