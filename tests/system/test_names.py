"""Names of namespaces that stay true: every way in which a name can come to stand for nothing, or for another one."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hyperplane.errors import NamespaceNotFound
from hyperplane.linux.namespaces import Namespace, open_namespace, process_on, what_became
from hyperplane.linux.processes import ProcessWatch, started
from hyperplane.linux.watch import NamespaceWatch

from .support import Namespaces, descriptors, eventually, wait_until

Seen = list[tuple[object, str]]

# Holds a namespace as descriptor 9, in a thread of its own, and as its own; a line on its standard input ends one.
HOLDER = """
import ctypes, os, sys, threading
path, = sys.argv[1:]
os.dup2(os.open(path, os.O_RDONLY), 9)
leave = threading.Event()
def stay():
    print(threading.get_native_id(), flush=True)
    leave.wait()
thread = threading.Thread(target=stay, daemon=True)
unshare = ctypes.CDLL(None).unshare
thread.start()
for line in sys.stdin:
    match line.strip():
        case "close":
            os.close(9)
        case "other":
            assert not unshare(0x40000000)
            os.dup2(os.open("/proc/self/ns/net", os.O_RDONLY), 9)
        case "leave":
            leave.set()
            thread.join()
        case "unshare":
            assert not unshare(0x40000000)
        case "chdir":
            os.chdir("/")
    print("done", flush=True)
leave.set()
"""


class Holder:
    """A process in a namespace that lets go of it in parts."""

    def __init__(self, namespaces: Namespaces, name: str, **options: Any) -> None:
        command = [sys.executable, "-c", HOLDER, f"/run/netns/{name}"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = namespaces.start_in(name, command, **pipes, **options)
        assert self.process.stdout
        self.thread = int(self.process.stdout.readline())
        self.pid = self.process.pid

    def tell(self, word: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"


def watching() -> int:
    """Descriptors of this process that something is watched by."""
    links = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # of the listing itself
            links.append(os.readlink(f"/proc/self/fd/{number}"))
    return sum(link.startswith("anon_inode:") or link.endswith("mountinfo") for link in links)


def umount(path: str | Path, *options: str) -> None:
    subprocess.run(["umount", *options, path], check=True)


def mount(what: str | Path, path: Path) -> None:
    subprocess.run(["mount", "--bind", what, path], check=True)


@pytest.fixture
async def seen() -> Seen:
    return []


@pytest.fixture
async def watch(seen: Seen) -> Any:
    made = NamespaceWatch(asyncio.get_running_loop(), lambda token, reason: seen.append((token, reason)))
    before = watching()
    yield made
    made.close()
    assert watching() == before


@pytest.fixture
def mounted(netns_factory: Namespaces, tmp_path: Path) -> Iterator[Path]:
    """A namespace of no name, mounted on a file as container runtimes do it."""
    name = netns_factory("box")
    path = tmp_path / "netns"
    path.touch()
    mount(f"/run/netns/{name}", path)
    yield path
    subprocess.run(["umount", "--quiet", path], check=False)


def watched(watch: NamespaceWatch, spec: str | Path, token: str = "") -> None:
    with open_namespace(spec) as found:
        watch.add(token or str(spec), found.closed())


class TestDescriptorsOfProcesses:
    @pytest.mark.parametrize("word", ["close", "other"])
    async def test_one_that_its_process_lets_go_of(
        self, word: str, netns_factory: Namespaces, watch: NamespaceWatch, seen: Seen
    ) -> None:
        """The process lives on: no event tells that."""
        holder, stays = (Holder(netns_factory, netns_factory("box")) for _ in range(2))
        watched(watch, f"/proc/{holder.pid}/fd/9")
        watched(watch, f"/proc/{stays.pid}/fd/9")
        holder.tell(word)
        await eventually(lambda: seen)
        assert [token for token, _ in seen] == [f"/proc/{holder.pid}/fd/9"]
        assert seen[0][1] == f"namespace /proc/{holder.pid}/fd/9 is " + (
            "not there any more" if word == "close" else "another one now"
        )

    async def test_the_process_ends(self, netns_factory: Namespaces, watch: NamespaceWatch, seen: Seen) -> None:
        holder = Holder(netns_factory, netns_factory("box"))
        before = descriptors()
        for way in (f"/proc/{holder.pid}/fd/9", f"/proc/{holder.pid}/task/{holder.thread}/ns/net"):
            watched(watch, way)
        assert descriptors() == before + 1
        holder.process.kill()
        await eventually(lambda: len(seen) == 2)
        assert {reason for _, reason in seen} == {f"process {holder.pid} ended"}

    async def test_by_symbolic_links(
        self, netns_factory: Namespaces, watch: NamespaceWatch, seen: Seen, tmp_path: Path
    ) -> None:
        """A link to a link, and a link to the directory."""
        holder = Holder(netns_factory, netns_factory("box"))
        (tmp_path / "one").symlink_to(f"/proc/{holder.pid}/fd/9")
        (tmp_path / "two").symlink_to("one")
        (tmp_path / "directory").symlink_to(f"/proc/{holder.pid}/fd")
        ways = [tmp_path / "two", tmp_path / "directory" / "9"]
        for way in ways:
            with open_namespace(way) as found:
                assert (found.pid, found.loose) == (holder.pid, True)
            watched(watch, way)
        holder.tell("close")
        await eventually(lambda: len(seen) == 2)
        assert {token for token, _ in seen} == {str(way) for way in ways}


class TestProcesses:
    async def test_a_thread_that_ends_while_its_process_lives(
        self, netns_factory: Namespaces, watch: NamespaceWatch, seen: Seen
    ) -> None:
        """By its place among the process's, and by its number alone, which /proc has too though it does not list it."""
        holder = Holder(netns_factory, netns_factory("box"))
        ways = [
            f"/proc/{holder.pid}/task/{holder.thread}/ns/net", f"/proc/{holder.thread}/ns/net", f"pid:{holder.thread}"
        ]  # fmt: skip
        for way in ways:
            watched(watch, way)
        watched(watch, f"pid:{holder.pid}")
        holder.tell("leave")
        await eventually(lambda: len(seen) == 3)
        assert {token for token, _ in seen} == set(ways)

    async def test_one_that_goes_to_another_namespace(
        self, netns_factory: Namespaces, watch: NamespaceWatch, seen: Seen
    ) -> None:
        holder = Holder(netns_factory, netns_factory("box"))
        watched(watch, f"pid:{holder.pid}")
        holder.tell("unshare")
        await eventually(lambda: seen)
        assert seen == [(f"pid:{holder.pid}", f"process {holder.pid} went to another namespace")]

    async def test_its_working_directory(
        self, mounted: Path, netns_factory: Namespaces, watch: NamespaceWatch, seen: Seen
    ) -> None:
        """The text of that link leads nowhere else, and the process may change it."""
        holder = Holder(netns_factory, netns_factory("box"), cwd=mounted.parent)
        watched(watch, f"/proc/{holder.pid}/cwd/{mounted.name}")
        holder.tell("chdir")
        await eventually(lambda: seen)
        assert seen[0][1] == f"namespace /proc/{holder.pid}/cwd/{mounted.name} is not there any more"

    @pytest.mark.parametrize("end", ["umount", "process"])
    async def test_a_name_in_another_mount_namespace(
        self, end: str, mounted: Path, watch: NamespaceWatch, seen: Seen, tmp_path: Path
    ) -> None:
        """Which is unmounted there and not here."""
        script = f"umount {mounted} && exec sleep 60" if end == "umount" else "exec sleep 60"
        command = ["unshare", "--mount", "sh", "-c", f"echo ready; read line; {script}"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen(command, text=True, **pipes) as process:  # noqa: ASYNC220
            assert process.stdin
            assert process.stdout
            try:
                assert process.stdout.readline() == "ready\n"
                watched(watch, f"/proc/{process.pid}/root{mounted}")
                watched(watch, mounted)
                process.stdin.write("\n")
                process.stdin.flush()
                if end == "process":
                    process.kill()
                await eventually(lambda: seen)
            finally:
                process.kill()
        assert [token for token, _ in seen] == [f"/proc/{process.pid}/root{mounted}"]

    def test_two_slashes_in_front(self) -> None:
        """os.path.abspath() leaves them, as POSIX has it; for Linux they are one."""
        with open_namespace(f"//proc/{os.getpid()}//ns/net") as found:
            assert (found.path, found.pid) == (f"/proc/{os.getpid()}/ns/net", os.getpid())

    def test_the_first_on_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "root").symlink_to("/proc/1/root")
        (tmp_path / "self").symlink_to("/proc/self")
        (tmp_path / "round").symlink_to("round")
        ways = {
            "/proc/17/fd/3": 17, "/proc/17": 17, "/proc/17/root/proc/18/ns/net": 17, "/proc/net/dev": os.getpid(),
            "/run/netns/box": 0, "/": 0, f"{tmp_path}/root/run/netns/box": 1, f"{tmp_path}/self/ns/net": os.getpid(),
            f"{tmp_path}/round": 0, f"{tmp_path}/none/x": 0, f"{tmp_path}/../{tmp_path.name}/root/x": 1,
        }  # fmt: skip
        assert {way: process_on(way) for way in ways} == ways

    def test_when_it_began(self, tmp_path: Path) -> None:
        """The same for the same process only, also when its name looks like more fields; 0 for a zombie."""
        program = shutil.copy("/usr/bin/sleep", tmp_path / ") R 1 1")
        with subprocess.Popen([program, "60"]) as process:
            wait_until(lambda: Path(f"/proc/{process.pid}/comm").read_text() == ") R 1 1\n")
            began = started(process.pid)
            assert 0 < started(os.getpid()) <= began == started(process.pid)
            process.kill()
            wait_until(lambda: started(process.pid) == 0)
        assert started(process.pid) == started(1 << 22) == 0

    async def test_processes_that_end_are_told_once(self) -> None:
        seen: list[tuple[object, int]] = []
        watch = ProcessWatch(asyncio.get_running_loop(), lambda token, pid: seen.append((token, pid)))
        before = descriptors()
        with subprocess.Popen(["sleep", "60"]) as process:  # noqa: ASYNC220
            for token in ("a", "b", "c"):
                watch.add(token, process.pid)
            watch.remove("c")
            assert descriptors() == before + 1
            process.kill()
            await eventually(lambda: len(seen) == 2)
            assert set(seen) == {("a", process.pid), ("b", process.pid)}
            with pytest.raises(ProcessLookupError):  # a zombie
                watch.add("d", process.pid)
        with pytest.raises(ProcessLookupError):
            watch.add("d", process.pid)
        assert descriptors() == before
        watch.close()


class TestMounts:
    @pytest.mark.parametrize("lazy", [False, True])
    async def test_unmounted_and_not_deleted(
        self, lazy: bool, mounted: Path, watch: NamespaceWatch, seen: Seen, netns_factory: Namespaces
    ) -> None:
        """No event of inotify tells that; another name of the same namespace is left alone."""
        other = netns_factory("other")
        watched(watch, mounted)
        watched(watch, other)
        umount(mounted, *(["--lazy"] if lazy else []))
        await eventually(lambda: seen)
        assert seen == [(str(mounted), f"namespace {mounted} was unmounted")]

    async def test_a_name_of_ip_netns(
        self, netns_factory: Namespaces, watch: NamespaceWatch, seen: Seen, tmp_path: Path
    ) -> None:
        """Unmounted by hand, also seen by a symbolic link and as /var/run, whose process is none."""
        name = netns_factory("box")
        (tmp_path / "link").symlink_to(f"/run/netns/{name}")
        for way in (name, f"/run/netns/{name}", f"/var/run/netns/{name}", tmp_path / "link"):
            watched(watch, way)
        umount(f"/run/netns/{name}")
        await eventually(lambda: len(seen) == 4)
        assert all(reason.endswith(" was unmounted") for _, reason in seen)

    async def test_mounted_over(self, mounted: Path, watch: NamespaceWatch, seen: Seen, tmp_path: Path) -> None:
        """By something else, then taken away again: the name is not watched any more then."""
        (tmp_path / "file").touch()
        watched(watch, mounted)
        mount(tmp_path / "file", mounted)
        try:
            await eventually(lambda: seen)
        finally:
            umount(mounted)
        assert seen == [(str(mounted), f"namespace {mounted} was unmounted")]

    async def test_one_look_for_many_changes(
        self, mounted: Path, watch: NamespaceWatch, seen: Seen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whoever mounts much does not keep the watch busy; and the change that comes last is seen as well."""
        looks: list[Namespace] = []

        def look(found: Namespace) -> str:
            looks.append(found)
            return what_became(found)

        monkeypatch.setattr("hyperplane.linux.watch.what_became", look)
        watched(watch, mounted)
        (tmp_path / "file").touch()
        for _ in range(50):
            await asyncio.to_thread(mount, tmp_path / "file", tmp_path / "file")
            await asyncio.to_thread(umount, tmp_path / "file")
        changes = 100
        await asyncio.to_thread(umount, mounted)
        await eventually(lambda: seen)
        assert 2 <= len(looks) < changes / 2

    async def test_gone_before_it_is_watched(self, mounted: Path, watch: NamespaceWatch) -> None:
        with open_namespace(mounted) as found:
            umount(mounted, "--lazy")  # else our own descriptor keeps it mounted
            with pytest.raises(NamespaceNotFound, match="was unmounted just now"):
                watch.add("late", found)

    async def test_what_cannot_be_told_is_no_end(self, mounted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with open_namespace(mounted) as found:
            for number in (13, 12, 24, 5):  # EACCES, ENOMEM, EMFILE, EIO

                def refused(path: object, number: int = number) -> None:
                    raise OSError(number, os.strerror(number))

                with monkeypatch.context() as patch:
                    patch.setattr(os, "stat", refused)
                    assert what_became(found) == ""
            assert what_became(found) == ""
