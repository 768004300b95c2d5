"""Network namespaces: find one by name, path, process or descriptor, and run code in it in a thread made for that.

A thread's namespace is its own (setns(2)), so code runs in a namespace by running in a thread that went there. A thread
that stays in a namespace keeps it alive, as does a descriptor: both are given up as soon as the work is done.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import resource
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, ParamSpec, Self, TypeVar

from msgspec import Struct

from hyperplane.errors import DeviceError, InvalidValue, NamespaceNotFound, PermissionMissing

P = ParamSpec("P")
T = TypeVar("T")

NETNS_RUN_DIR: Final = "/run/netns"  # ip-netns(8)
MOST_DESCRIPTORS: Final = 32_768  # that a process gets room for beforehand: 8 bytes each
CLONE_NEWNET: Final = 0x40000000  # linux/sched.h
NS_GET_USERNS, NS_GET_NSTYPE, NS_GET_OWNER_UID = 0xB701, 0xB703, 0xB704  # linux/nsfs.h, ioctl_ns(2)
HARMLESS: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # not blocking: a path may be a FIFO's
MOST_LINKS: Final = 40  # symbolic links in one path: path_resolution(7)
PROCESS_PATH: Final = re.compile(r"/proc/(\d+)(?:/|$)")
GONE: Final = (errno.ENOENT, errno.ESRCH, errno.ENOTDIR, errno.ELOOP)  # any other error says nothing about a path

LIBC: Final = ctypes.CDLL(None, use_errno=True)  # Python has os.setns from 3.12 on

Key = tuple[int, int]


class Namespace(Struct, frozen=True):
    """An open network namespace. A context manager: leaving it closes the descriptor.

    name: for people. key: device and inode of its nsfs file, the same for two descriptors of one namespace and for no
    other one while it lives. path: the file that names it, "" when it has none that can go away; pid: the process it
    was found through, 0 for none. loose: the path may come to name something else without any event: it leads through a
    process or a symbolic link. fd: -1 once closed().
    """

    name: str
    fd: int
    key: Key
    path: str = ""
    pid: int = 0
    loose: bool = False

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)

    def closed(self) -> Namespace:
        """The same without its descriptor, to be kept for long."""
        return Namespace(self.name, -1, self.key, self.path, self.pid, self.loose)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def open_namespace(spec: str | int | Path) -> Namespace:
    """Opens a network namespace; the caller closes it.

    spec: a name as `ip netns` shows it; a path (a Path, or text with a slash); "pid:N" or the number N for that of
    process N; "fd:N" for a descriptor, which stays the caller's. Raises InvalidValue, NamespaceNotFound,
    PermissionMissing.
    """
    if isinstance(spec, bool) or not isinstance(spec, (str, int, Path)):
        raise InvalidValue(f"namespace is {spec!r}", resource="namespace", remedy="give a name, a path or a pid")
    text = f"pid:{spec}" if isinstance(spec, int) else str(spec)
    if text.startswith(("pid:", "fd:")) and isinstance(spec, (str, int)):
        kind, _, digits = text.partition(":")
        if not digits.isdecimal() or len(digits) > 9 or (kind == "pid" and not int(digits)):
            remedy = f"give {kind}:NUMBER"
            raise InvalidValue(f"namespace {text!r} has no valid number", resource="namespace", remedy=remedy)
        return _of_process(int(digits)) if kind == "pid" else _of_descriptor(int(digits))
    if not text or "\0" in text or text in (".", ".."):
        remedy = "`ip netns list` shows the names"
        raise InvalidValue(f"namespace name is {text!r}", resource="namespace", remedy=remedy)
    if "/" in text or isinstance(spec, Path):
        return _of_path(_absolute(text), text)
    return _of_path(f"{NETNS_RUN_DIR}/{text}", text)


def key_of(fd: int) -> Key:
    """What tells the namespace that fd is open on from others."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def owner_of(fd: int) -> int:
    """The user who owns the user namespace of the namespace that fd is open on. Raises OSError.

    In a network namespace this user may do everything (user_namespaces(7)); of those that root made it is 0.
    """
    user_namespace = fcntl.ioctl(fd, NS_GET_USERNS)
    try:
        return int(struct.unpack("=I", fcntl.ioctl(user_namespace, NS_GET_OWNER_UID, bytes(4)))[0])
    finally:
        os.close(user_namespace)


def path_of(name: str) -> str:
    """The file that stands for a namespace that open_namespace() takes by this text; "" for a descriptor."""
    if name.startswith("pid:"):
        return process_path(int(name[4:]))
    if name.startswith("fd:"):
        return ""
    return _absolute(name) if "/" in name else f"{NETNS_RUN_DIR}/{name}"


def _absolute(path: str) -> str:
    return "/" + os.path.abspath(path).lstrip("/")  # which leaves two slashes in front as they are


def _of_process(pid: int) -> Namespace:
    name, path = f"pid:{pid}", process_path(pid)
    return _checked(_open(path, name), name, path=path, pid=pid, loose=True)


def _of_descriptor(fd: int) -> Namespace:
    name = f"fd:{fd}"
    try:
        copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError as error:
        remedy = "give an open descriptor"
        raise NamespaceNotFound(f"{name}: {error.strerror}", resource=name, remedy=remedy) from None
    return _checked(copy, name)


def _of_path(path: str, name: str) -> Namespace:
    directory = os.path.dirname(path)
    if directory == NETNS_RUN_DIR or not process_on(directory):
        with suppress(OSError):  # a symbolic link, or whatever else _open() has words for
            return _checked(os.open(path, HARMLESS | os.O_NOFOLLOW), name, path=path)
    return _checked(_open(path, name), name, path=path, pid=process_on(path), loose=True)


def process_path(pid: int) -> str:
    """The file that stands for the network namespace of a process."""
    return f"/proc/{pid}/ns/net"


def process_on(path: str) -> int:
    """The first process that an absolute path leads through, also by symbolic links as made for containers; 0 for none.

    What follows `/proc/PID` is not resolved: its links lead to where their text does not (proc_pid_fd(5), _root, _cwd).
    """
    for _ in range(MOST_LINKS):
        if match := PROCESS_PATH.match(path):
            return int(match[1])
        place = 0
        while place >= 0:
            place = path.find("/", place + 1)
            link = path if place < 0 else path[:place]
            with suppress(OSError):
                rest = "" if place < 0 else path[place:]
                path = os.path.normpath(os.path.join(os.path.dirname(link), os.readlink(link)) + rest)
                break
        else:
            return 0
    return 0


def _open(path: str, name: str) -> int:
    try:
        return os.open(path, HARMLESS)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            remedy = "run as root or with CAP_SYS_ADMIN and CAP_SYS_PTRACE"
            message = f"namespace {name} may not be opened"
            raise PermissionMissing(message, resource=name, remedy=remedy) from None
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise descriptors_exhausted(f"namespace {name}") from None
        if error.errno in (errno.ENOENT, errno.ESRCH, errno.ENOTDIR, errno.ENAMETOOLONG):
            if path.startswith("/proc/"):
                message, remedy = f"no process for namespace {name}", "give the pid of a running process"
            else:
                message = f"no network namespace {name}"
                remedy = "`ip netns list` shows those there are; `ip netns add NAME` makes one"
            raise NamespaceNotFound(message, resource=name, remedy=remedy) from None
        raise NamespaceNotFound(f"namespace {name}: {error.strerror}", resource=name) from None


def _checked(fd: int, name: str, *, path: str = "", pid: int = 0, loose: bool = False) -> Namespace:
    try:
        kind = fcntl.ioctl(fd, NS_GET_NSTYPE)
    except OSError:
        kind = 0
    if kind != CLONE_NEWNET:
        os.close(fd)
        what = "another kind of namespace" if kind else "no namespace (perhaps a file left over after its removal)"
        remedy = "`ip netns list` shows network namespaces"
        raise NamespaceNotFound(f"{name} is {what}", resource=name, remedy=remedy)
    return Namespace(name, fd, key_of(fd), path, pid, loose)


def descriptors_exhausted(what: str) -> DeviceError:
    """The error for EMFILE and ENFILE."""
    limit = f"{resource.getrlimit(resource.RLIMIT_NOFILE)[0]} open files of this process"
    remedy = "raise the hard limit (ulimit -Hn, LimitNOFILE=)"
    return DeviceError(f"{what}: no descriptor left", resource=what, limit=limit, remedy=remedy)


def raise_descriptor_limit() -> int:
    """Raises the soft limit of open files to the hard one: every tunnel keeps a descriptor. Returns the limit.

    The table of descriptors is made as large at once, up to MOST_DESCRIPTORS: each time the kernel doubles that of a
    process with threads, whoever opens the file that does not fit waits for a grace period of RCU, 10 ms and more
    (expand_files() in fs/file.c).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with suppress(OSError), open(os.devnull, "rb") as any_file:  # without memory for it, it grows as it must
        os.close(fcntl.fcntl(any_file, fcntl.F_DUPFD_CLOEXEC, min(hard, MOST_DESCRIPTORS) - 1))
    return hard


class NamespaceThreads:
    """A few threads that go into namespaces to work there; jobs wait their turn in the order in which they came.

    More than a few would only queue in the kernel: devices are made and routes set under one lock (RTNL). One
    descriptor is kept, that of the namespace in which the object was made (home): the threads return there.
    """

    def __init__(self, workers: int = 4) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self.home: Final = key_of(self._home)
        self._local = threading.local()
        self._pool = ThreadPoolExecutor(workers, "namespace", initializer=self._enlist)

    def submit(self, job: Callable[P, T], *arguments: P.args, **named: P.kwargs) -> Future[T]:
        """Runs job in one of the threads; it goes into a namespace itself, by `inside()`."""
        return self._pool.submit(job, *arguments, **named)

    @contextmanager
    def inside(self, fd: int) -> Iterator[None]:
        """Within it the calling thread, one of these, is in the namespace that fd is open on."""
        self._check_ours()
        _setns(fd)
        try:
            yield
        finally:
            _setns(self._home)

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Within it the calling thread, one of these, is in a network namespace of its own, which ends with the block
        unless something else holds it. Raises PermissionMissing, DeviceError."""
        self._check_ours()
        if LIBC.unshare(CLONE_NEWNET):
            number = ctypes.get_errno()
            if number in (errno.EPERM, errno.EACCES):
                remedy = "run as root or with CAP_SYS_ADMIN"
                raise PermissionMissing("a network namespace may not be made", resource="namespace", remedy=remedy)
            limit = "user.max_net_namespaces, or memory"
            message = f"a network namespace cannot be made: {os.strerror(number)}"
            raise DeviceError(message, resource="namespace", limit=limit)
        try:
            yield
        finally:
            _setns(self._home)

    @property
    def home_fd(self) -> int:
        """Open until close()."""
        return self._home

    def close(self) -> None:
        """Waits for the jobs that were submitted, then ends the threads. May be called twice."""
        self._pool.shutdown()
        home, self._home = self._home, -1
        if home >= 0:
            os.close(home)

    def _enlist(self) -> None:
        self._local.ours = True

    def _check_ours(self) -> None:
        if not getattr(self._local, "ours", False):
            raise RuntimeError("a namespace is entered in a thread of NamespaceThreads only")


def _setns(fd: int) -> None:
    if LIBC.setns(fd, CLONE_NEWNET):
        raise entry_refused(ctypes.get_errno())


def entry_refused(number: int) -> PermissionMissing:
    """Why a namespace could not be entered, by its errno."""
    remedy = "run as root or with CAP_SYS_ADMIN in the namespace's user namespace"
    message = f"a network namespace may not be entered: {os.strerror(number)}"
    return PermissionMissing(message, resource="namespace", remedy=remedy)


def what_became(namespace: Namespace) -> str:
    """What became of the name of a namespace, in words; "" while it stands for it, or when that cannot be told."""
    try:
        status = os.stat(namespace.path)
    except OSError as error:
        if error.errno not in GONE:
            return ""
        found = None
    else:
        found = (status.st_dev, status.st_ino)
        if found == namespace.key:
            return ""
    if namespace.path == process_path(namespace.pid):
        return f"process {namespace.pid} {'went to another namespace' if found else 'ended'}"
    what = f"namespace {namespace.name}"
    if namespace.pid and found:
        return f"{what} is another one now" if found[0] == namespace.key[0] else f"{what} is something else now"
    if found and found[0] != namespace.key[0]:  # the plain file on which it was mounted
        return f"{what} was unmounted"
    return f"{what} is not there any more" if namespace.path.startswith("/proc/") else f"{what} was deleted"
