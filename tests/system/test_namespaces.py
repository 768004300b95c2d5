"""Finding namespaces, working in them, and noticing when they go away."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hyperplane.errors import (
    InvalidValue,
    NamespaceNotFound,
)
from hyperplane.linux.namespaces import MOST_DESCRIPTORS, NamespaceThreads, key_of, open_namespace
from hyperplane.linux.watch import NamespaceWatch

from .support import Namespaces, descriptors, eventually, ip, wait_until


class TestNamespaces:
    def test_every_way_to_name_one_finds_the_same(self, netns_factory: Namespaces, tmp_path: Path) -> None:
        name = netns_factory("box")
        sleeper = netns_factory.start_in(name, ["sleep", "60"])
        here = os.stat("/proc/self/ns/net").st_ino
        wait_until(lambda: os.stat(f"/proc/{sleeper.pid}/ns/net").st_ino != here)
        link = tmp_path / "link"
        link.symlink_to(f"/proc/{sleeper.pid}/ns/net")
        descriptor = os.open(f"/run/netns/{name}", os.O_RDONLY)
        try:
            path = f"/run/netns/{name}"
            ways: list[str | int | Path] = [
                name,
                path,
                Path(path),
                sleeper.pid,
                f"pid:{sleeper.pid}",
                f"fd:{descriptor}",
                link,
            ]
            for way in [*ways, f"/proc/{sleeper.pid}/ns/net"]:
                with open_namespace(way) as found:
                    assert found.key == key_of(descriptor), way
                    process = str(sleeper.pid) in str(way) or way == link
                    assert found.pid == (sleeper.pid if process else 0), way
        finally:
            os.close(descriptor)

    @pytest.mark.parametrize(
        "spec", ["", ".", "..", "a\0b", "pid:", "pid:x", "pid:0", "fd:-1", "pid:12345678901", True, 1.5, None]
    )
    def test_what_cannot_be_a_namespace(self, spec: Any) -> None:
        with pytest.raises(InvalidValue):
            open_namespace(spec)

    @pytest.mark.parametrize(
        "spec", ["hpt-no-such", "/run/netns/hpt-no-such", "/etc/hostname/x", 4194304, "fd:999999", "x" * 300]
    )
    def test_what_is_not_there(self, spec: str | int) -> None:
        with pytest.raises(NamespaceNotFound) as caught:
            open_namespace(spec)
        assert caught.value.remedy
        assert "\n" not in str(caught.value)

    def test_what_is_something_else(self, tmp_path: Path) -> None:
        before = descriptors()
        (tmp_path / "left-over").touch()
        os.mkfifo(tmp_path / "fifo")
        for path in (tmp_path / "left-over", tmp_path / "fifo", tmp_path, Path("/dev/null"), Path("/proc/self/ns/uts")):
            with pytest.raises(NamespaceNotFound, match="namespace"):
                open_namespace(path)
        assert descriptors() == before

    def test_a_thread_comes_back_and_nobody_else_moves(
        self, netns_factory: Namespaces, threads: NamespaceThreads
    ) -> None:
        name = netns_factory("box")
        home = os.stat("/proc/self/ns/net").st_ino

        def where() -> int:
            return os.stat("/proc/thread-self/ns/net").st_ino

        def visit(fail: bool) -> int:
            with open_namespace(name) as namespace, threads.inside(namespace.fd):
                assert where() == namespace.key[1]
                assert os.stat("/proc/self/ns/net").st_ino == home
                if fail:
                    raise KeyError
            return where()

        assert threads.submit(visit, False).result() == home
        with pytest.raises(KeyError):
            threads.submit(visit, True).result()
        assert {threads.submit(where).result() for _ in range(8)} == {home}

    def test_only_its_threads_enter(self, threads: NamespaceThreads) -> None:
        with open_namespace("/proc/self/ns/net") as here, pytest.raises(RuntimeError), threads.inside(here.fd):
            pass


class TestWatch:
    @pytest.fixture
    async def seen(self) -> list[tuple[object, str]]:
        return []

    @pytest.fixture
    async def watch(self, seen: list[tuple[object, str]]) -> Any:
        made = NamespaceWatch(asyncio.get_running_loop(), lambda token, reason: seen.append((token, reason)))
        before = descriptors()
        yield made
        made.close()
        assert descriptors() <= before

    async def test_a_deleted_name(
        self, netns_factory: Namespaces, watch: NamespaceWatch, seen: list[tuple[object, str]]
    ) -> None:
        """Each token is told once, others are left alone, and three descriptors serve all names."""
        names = [netns_factory("box") for _ in range(3)]
        before = descriptors()
        for name in names:
            with open_namespace(name) as found:
                watch.add(name, found.closed())
                watch.add((name, "again"), found.closed())
        assert descriptors() == before + 3  # inotify, mountinfo and epoll around it
        netns_factory.delete(names[0])
        await eventually(lambda: len(seen) == 2)
        reason = f"namespace {names[0]} was deleted"
        assert sorted(seen, key=str) == sorted([(names[0], reason), ((names[0], "again"), reason)], key=str)
        watch.remove(names[1])
        netns_factory.delete(names[1])
        await eventually(lambda: len(seen) == 3)
        assert seen[2][0] == (names[1], "again")

    async def test_the_name_of_another_one_now(
        self, netns_factory: Namespaces, watch: NamespaceWatch, seen: list[tuple[object, str]]
    ) -> None:
        """Deleted and made again: the old one's token is told, the new one's is not."""
        name = netns_factory("box")
        with open_namespace(name) as old:
            watch.add("old", old)
            ip("netns", "del", name)
            with pytest.raises(NamespaceNotFound, match="deleted just now"):
                watch.add("late", old)
            ip("netns", "add", name)
            with open_namespace(name) as new:
                watch.add("new", new)
                await eventually(lambda: seen)
                assert seen == [("old", f"namespace {name} was deleted")]
                ip("netns", "del", name)
                ip("netns", "add", name)
                await eventually(lambda: len(seen) == 2)
        assert seen[1][0] == "new"

    async def test_a_directory_of_its_own(
        self, netns_factory: Namespaces, watch: NamespaceWatch, seen: list[tuple[object, str]], tmp_path: Path
    ) -> None:
        """As container runtimes keep them; also a symbolic link, which is watched with the process behind it."""
        name = netns_factory("box")
        sleeper = netns_factory.start_in(name, ["sleep", "60"])
        here = os.stat("/proc/self/ns/net").st_ino
        wait_until(lambda: os.stat(f"/proc/{sleeper.pid}/ns/net").st_ino != here)
        for label in ("one", "two"):
            (tmp_path / label).symlink_to(f"/proc/{sleeper.pid}/ns/net")
            with open_namespace(tmp_path / label) as found:
                watch.add(label, found.closed())
        (tmp_path / "one").unlink()
        await eventually(lambda: seen)
        assert seen == [("one", f"namespace {tmp_path / 'one'} was deleted")]
        sleeper.kill()
        await eventually(lambda: len(seen) == 2)
        assert seen[1] == ("two", f"process {sleeper.pid} ended")

    async def test_a_process_that_ends(
        self, netns_factory: Namespaces, watch: NamespaceWatch, seen: list[tuple[object, str]]
    ) -> None:
        name = netns_factory("box")
        sleeper = netns_factory.start_in(name, ["sleep", "60"])
        here = os.stat("/proc/self/ns/net").st_ino
        wait_until(lambda: os.stat(f"/proc/{sleeper.pid}/ns/net").st_ino != here)
        with open_namespace(sleeper.pid) as found:
            known = found.closed()
        before = descriptors()
        watch.add("a", known)
        watch.add("b", known)
        assert descriptors() == before + 1
        sleeper.kill()
        await eventually(lambda: len(seen) == 2)
        assert {reason for _, reason in seen} == {f"process {sleeper.pid} ended"}
        assert descriptors() == before
        sleeper.wait()
        with pytest.raises(NamespaceNotFound, match="ended just now"):
            watch.add("c", known)

    async def test_more_events_than_the_kernel_keeps(
        self, netns_factory: Namespaces, watch: NamespaceWatch, seen: list[tuple[object, str]]
    ) -> None:
        """IN_Q_OVERFLOW: events were lost, so every name is looked at."""
        name = netns_factory("box")
        with open_namespace(name) as found:
            watch.add("box", found.closed())
        overflow(Path("/run/netns"), f"{name}-noise")
        netns_factory.delete(name)
        await eventually(lambda: seen)
        assert seen == [("box", f"namespace {name} was deleted")]


def overflow(directory: Path, name: str) -> None:
    """Makes more inotify events in a directory than are kept for somebody who does not read them."""
    room = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    for _ in range(room // 2 + 1):
        (directory / name).touch()
        (directory / name).rename(directory / f"{name}2")
        (directory / f"{name}2").unlink()


def test_room_for_descriptors_beforehand() -> None:
    """The table that would grow, and make an attach wait, has its size from the beginning."""
    code = """
from pathlib import Path
from hyperplane.linux.namespaces import raise_descriptor_limit
limit = raise_descriptor_limit()
print(limit, *[line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if "FDSize" in line])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    limit, size = map(int, done.stdout.split())
    assert size >= min(limit, MOST_DESCRIPTORS)
