"""Tells when something was mounted or unmounted in the mount namespace of this process.

/proc/self/mountinfo reports that as an exceptional condition (proc_pid_mountinfo(5)); it is always readable, so that
asyncio, which waits for readable files, is given an epoll(7) descriptor around it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
from collections.abc import Callable

from hyperplane.errors import DeviceError
from hyperplane.linux.namespaces import descriptors_exhausted

MOUNTS = "/proc/self/mountinfo"


class MountWatch:
    """changed() is called at the first change after listen(), and not again until the next listen().

    What has changed between the two is not told: listen(), then look. (An epoll descriptor that is added to another one
    loses what it had to say: the kernel asks it once to add it, and once more to report it.)
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, changed: Callable[[], None]) -> None:
        self._loop = loop
        self._changed = changed
        self._mounts = -1
        self._epoll: select.epoll | None = None
        self._listening = False

    def listen(self) -> None:
        """Does nothing when it does already. Raises DeviceError."""
        if self._epoll is None:
            self._open()
        if not self._listening and self._epoll:
            self._loop.add_reader(self._epoll.fileno(), self._ready)
            self._listening = True

    def close(self) -> None:
        if self._epoll:
            self._pause()
            self._epoll.close()
            os.close(self._mounts)
            self._epoll = None

    def _open(self) -> None:
        try:
            self._mounts = os.open(MOUNTS, os.O_RDONLY | os.O_CLOEXEC)
            try:
                epoll = select.epoll()
                epoll.register(self._mounts, select.EPOLLPRI)
            except OSError:
                os.close(self._mounts)
                raise
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                raise descriptors_exhausted("the watch of mounts") from None
            message = f"mounts cannot be watched: {error.strerror}"
            raise DeviceError(message, resource=MOUNTS, remedy="mount /proc") from None
        self._epoll = epoll

    def _pause(self) -> None:
        if self._listening and self._epoll:
            self._loop.remove_reader(self._epoll.fileno())
            self._listening = False

    def _ready(self) -> None:
        self._pause()
        self._changed()
