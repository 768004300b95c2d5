"""Processes: noticed when they end (pidfd_open(2)), and told from later ones that have their numbers."""

from __future__ import annotations

import asyncio
import errno
import os
import select
from collections.abc import Callable, Hashable, Sequence
from contextlib import suppress
from typing import Final

from hyperplane.linux.namespaces import descriptors_exhausted

Token = Hashable
Process = tuple[int, int]  # its number, and when it began

STATE, STARTTIME = 0, 19  # fields of /proc/PID/stat after the command's name (proc_pid_stat(5))
OVER: Final = ("Z", "X")  # zombie, dead


def process_alive(pidfd: int) -> bool:
    """Whether the process of a pidfd has not ended: it is readable from then on."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    return not poll.poll(0)


def started(pid: int) -> int:
    """When process pid began, in clock ticks since the host's boot; 0 when there is none. With its number it stands for
    that process alone."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()  # the name may hold anything
    except OSError:
        return 0
    return 0 if len(fields) <= STARTTIME or fields[STATE] in OVER else int(fields[STARTTIME])


def process(pid: int) -> Process | None:
    """What stands for process pid, however often its number is given away; None when it has ended."""
    began = started(pid) if pid > 0 else 0
    return (pid, began) if began else None


def same_process(known: Sequence[int]) -> bool:
    """Whether a process that is known by process() lives. known: also as it comes out of JSON."""
    pid, began = known
    return began > 0 and started(pid) == began


class ProcessWatch:
    """Watches processes for tokens, by one descriptor for each process; belongs to the event loop's thread.

    ended(token, pid) is called once for a token whose process ended, which is not watched any more then.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ended: Callable[[Token, int], None]) -> None:
        self._loop = loop
        self._ended = ended
        self._processes: dict[int, tuple[int, set[Token]]] = {}  # pid -> pidfd, tokens
        self._pids: dict[Token, int] = {}

    def __contains__(self, token: Token) -> bool:
        return token in self._pids

    def add(self, token: Token, pid: int) -> None:
        """pid may be a thread's: then its process is watched. Raises ProcessLookupError when it has ended,
        DeviceError."""
        if pid not in self._processes:
            pidfd = _open(pid)
            self._processes[pid] = pidfd, set()
            self._loop.add_reader(pidfd, self._readable, pid)
        pidfd, tokens = self._processes[pid]
        tokens.add(token)
        self._pids[token] = pid
        if not process_alive(pidfd):
            self.remove(token)
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

    def remove(self, token: Token) -> None:
        """Does nothing for a token that is not watched."""
        pid = self._pids.pop(token, 0)
        if not pid:
            return
        pidfd, tokens = self._processes[pid]
        tokens.discard(token)
        if not tokens:
            del self._processes[pid]
            self._loop.remove_reader(pidfd)
            os.close(pidfd)

    def close(self) -> None:
        for token in tuple(self._pids):
            self.remove(token)

    def _readable(self, pid: int) -> None:
        for token in tuple(self._processes[pid][1]):
            self.remove(token)
            self._ended(token, pid)


def _open(pid: int) -> int:
    try:
        try:
            return os.pidfd_open(pid)
        except OSError as error:
            # Of a thread that does not lead its process the kernel gives none: EINVAL, and ENOENT from Linux 6.9 on.
            leader = _leader(pid) if error.errno in (errno.EINVAL, errno.ENOENT) else 0
            if not leader:
                raise
            return os.pidfd_open(leader)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise descriptors_exhausted(f"process {pid}") from None
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH)) from None


def _leader(thread: int) -> int:
    """The process that a thread belongs to; 0 when it has ended."""
    with suppress(OSError), open(f"/proc/{thread}/status", encoding="ascii", errors="replace") as file:
        return next((int(line.split()[1]) for line in file if line.startswith("Tgid:")), 0)
    return 0
