"""The process that `run` starts a command in: network and mount namespaces of its own, with or without root.

The child waits twice: `told` says that its namespaces are there (or why not), `asked` gives it the text of its
resolv.conf once the environment is attached. It stays in the terminal's foreground process group, so Ctrl-C, Ctrl-Z and
`fg` do what they do for any command, and the kernel kills it when its parent is killed. Without root it has a user
namespace besides, where the user keeps their own uid: a file that they make is theirs.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Final, NoReturn

from hyperplane.errors import PermissionMissing

LIBC: Final = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x00020000, 0x10000000, 0x40000000  # linux/sched.h
MS_BIND, MS_REC, MS_PRIVATE = 0x1000, 0x4000, 0x40000  # linux/mount.h
MNT_DETACH: Final = 2
PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # linux/sockios.h, linux/if.h
SYS_ADMIN: Final = 21  # linux/capability.h
# env(1)'s: it failed itself, the command cannot be executed, the command is not there.
FAILED, NOT_EXECUTABLE, NOT_FOUND = 125, 126, 127
GO: Final = b"go\n"
RESOLV_CONF: Final = "/etc/resolv.conf"
# Whoever asks these instead of resolv.conf's servers asks in the host's network.
HOST_RESOLVERS: Final = ("/run/systemd/resolve/io.systemd.Resolve", "/run/nscd/socket")
SCRATCH: Final = "/proc"  # hidden for a moment by the file system that resolv.conf is written to
# Ctrl-C and Ctrl-\ reach the whole foreground group: what the terminal sent is not sent on.
TERMINAL: Final = (signal.SIGINT, signal.SIGQUIT)
FORWARDED: Final = (*TERMINAL, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class Sandbox:
    """A child in its namespaces. Raises PermissionMissing when they may not be made. Not for programs with threads."""

    def __init__(self, command: Sequence[str]) -> None:
        told, tell = os.pipe()
        ask, self._asked = os.pipe()
        self._told = told
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, the status would be lost
        parent = os.getpid()
        self.pid = os.fork()
        if not self.pid:
            os.close(told)
            os.close(self._asked)  # else its own end would keep it waiting for ever
            _child(command, parent, tell, ask)
        os.close(tell)
        os.close(ask)
        self._ended = False

    def wait_ready(self) -> None:
        """Until the child is in its namespaces. Raises PermissionMissing."""
        with open(self._told, encoding="utf-8", closefd=False) as told:
            said = told.read()
        if said != "ready":
            reason = said or "the process that should hold it was ended"
            remedy = "run as root, or allow unprivileged user namespaces: `hyperplane-nat doctor` says how"
            raise PermissionMissing(f"a fresh network namespace may not be made: {reason}", remedy=remedy)

    def go(self, resolv_conf: str) -> None:
        """Lets the child execute its command. From here on the signals in FORWARDED are for it."""
        signal.pthread_sigmask(signal.SIG_BLOCK, (*FORWARDED, signal.SIGCHLD))
        with suppress(BrokenPipeError):  # it has been killed: wait() tells
            os.write(self._asked, GO + resolv_conf.encode())
        self._close()

    def wait(self) -> int:
        """Waits for the command and sends signals on to it; returns its status, 128 + N for signal N."""
        try:
            while True:
                received = signal.sigwaitinfo((*FORWARDED, signal.SIGCHLD))
                if received.si_signo == signal.SIGCHLD:
                    pid, status = os.waitpid(self.pid, os.WNOHANG)
                    if pid:
                        self._ended = True
                        code = os.waitstatus_to_exitcode(status)
                        return code if code >= 0 else 128 - code
                elif received.si_signo not in TERMINAL or received.si_code <= 0:
                    os.kill(self.pid, received.si_signo)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, (*FORWARDED, signal.SIGCHLD))

    def end(self) -> None:
        """Kills the child if it is still there."""
        self._close()
        if self._told >= 0:
            os.close(self._told)
            self._told = -1
        if not self._ended:
            self._ended = True
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)

    def _close(self) -> None:
        if self._asked >= 0:
            os.close(self._asked)
            self._asked = -1


def isolate() -> None:
    """Takes the calling process, which has one thread, into namespaces of its own. Raises OSError."""
    uid, gid = os.geteuid(), os.getegid()
    flags = CLONE_NEWNET | CLONE_NEWNS
    if privileged():
        _call("unshare", flags)
        pings = "0 2147483647"
    else:
        _call("unshare", flags | CLONE_NEWUSER)
        _write("/proc/self/setgroups", "deny")  # user_namespaces(7): else gid_map may not be written
        _write("/proc/self/uid_map", f"{uid} {uid} 1")
        _write("/proc/self/gid_map", f"{gid} {gid} 1")
        pings = f"{gid} {gid}"
    _call("mount", b"none", b"/", None, MS_REC | MS_PRIVATE, None)
    _raise_loopback()
    with suppress(OSError):  # ping without a raw socket: good to have
        _write("/proc/sys/net/ipv4/ping_group_range", pings)


def privileged() -> bool:
    """Whether namespaces may be made without a user namespace."""
    with open("/proc/self/status", encoding="ascii") as status:
        effective = next(line.split()[1] for line in status if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> SYS_ADMIN & 1)


def _child(command: Sequence[str], parent: int, tell: int, ask: int) -> NoReturn:
    status = FAILED
    try:
        # What Python and main.py have set would stay set in the command.
        for number in (*FORWARDED, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        said = "ready"
        try:
            isolate()
        except OSError as error:
            said = error.strerror or str(error)
        # Only now: what changes credentials sets it back.
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        os.write(tell, said.encode())
        os.close(tell)
        asked = _read(ask)
        if said == "ready" and asked.startswith(GO) and os.getppid() == parent:
            _set_resolvers(asked.removeprefix(GO))
            status = _execute(command)
    finally:
        os._exit(status)


def _execute(command: Sequence[str]) -> int:
    """Does not return when all is well."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (*FORWARDED, signal.SIGCHLD))
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
        print(f"hyperplane-nat: {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        return NOT_FOUND if missing else NOT_EXECUTABLE


def _set_resolvers(text: bytes) -> None:
    """Puts a resolv.conf over the host's, in this mount namespace only; no file is left anywhere afterwards."""
    try:
        _call("mount", b"hyperplane-nat", os.fsencode(SCRATCH), b"tmpfs", 0, b"size=64k,mode=755")
        try:
            source = f"{SCRATCH}/resolv.conf"
            with open(source, "wb") as file:
                file.write(text)
            os.chmod(source, 0o644)
            _bind(source, RESOLV_CONF)
        finally:
            _call("umount2", os.fsencode(SCRATCH), MNT_DETACH)
        for path in HOST_RESOLVERS:
            if os.path.exists(path):
                _bind(os.devnull, path)
    except OSError as error:
        print(f"hyperplane-nat: {RESOLV_CONF} stays the host's: {error.strerror}", file=sys.stderr, flush=True)


def _bind(source: str, target: str) -> None:
    _call("mount", os.fsencode(source), os.fsencode(target), None, MS_BIND, None)


def _raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        request = struct.pack("16sH14x", b"lo", 0)
        _, flags = struct.unpack_from("16sH", fcntl.ioctl(any_socket, SIOCGIFFLAGS, request))
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))


def _read(fd: int) -> bytes:
    with open(fd, "rb") as file:
        return file.read()


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(text)


def _call(name: str, *arguments: object) -> None:
    if getattr(LIBC, name)(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
