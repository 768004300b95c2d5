"""What `make test-kernels` decides by itself: which packages, which modules, what the records of a guest mean."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from tests.kernels import guest, measured, packages, report, selection
from tests.kernels.guest import Record, parse
from tests.kernels.image import archive, in_order
from tests.kernels.packages import NoKernels, Source, own_sources, parse_sources, parts, pick
from tests.kernels.report import Report

ROOT = Path(__file__).parents[2]
DEB822 = """\
# a comment
Types: deb
URIs: http://archive.example/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/a.gpg

Types: deb deb-src
URIs: http://archive.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
URIs: http://other.example/debian
Suites: stable
Enabled: no
"""
ONE_LINE = """\
deb [arch=amd64 signed-by=/usr/share/keyrings/b.gpg] http://archive.example/debian bookworm main contrib
# deb http://off.example/debian bookworm main
deb-src http://archive.example/debian bookworm main
deb http://archive.example/debian-security bookworm-security main
"""
MADISON = """\
linux-image-amd64 | 7.3.4-1~bpo13+1 | http://a.example/debian trixie-backports/main amd64 Packages
linux-image-amd64 | 6.12.95-1~bpo12+1 | http://a.example/debian bookworm-backports/main amd64 Packages
linux-image-amd64 |  6.1.192-3 | http://a.example/debian-security bookworm-security/main amd64 Packages
linux-image-amd64 |  6.1.176-1 | http://a.example/debian bookworm/main amd64 Packages
"""
DEPENDENCIES = """\
kernel/fs/9p/9p.ko.xz: kernel/fs/netfs/netfs.ko.xz kernel/net/9p/9pnet.ko.xz
kernel/net/9p/9pnet_virtio.ko.xz: kernel/net/9p/9pnet.ko.xz
kernel/net/9p/9pnet.ko.xz:
kernel/fs/netfs/netfs.ko.xz:
kernel/fs/overlayfs/overlay.ko.xz:
"""


def test_sources_of_either_form() -> None:
    one, two = parse_sources(DEB822)
    assert one == Source("http://archive.example/debian", ("bookworm", "bookworm-updates"), "/usr/share/keyrings/a.gpg")
    assert (two.uri, two.suites, two.signed_by) == (
        "http://archive.example/debian-security", ("bookworm-security",), ""
    )  # fmt: skip
    one, two = parse_sources(ONE_LINE)
    assert one == Source("http://archive.example/debian", ("bookworm",), "/usr/share/keyrings/b.gpg")
    assert two == Source("http://archive.example/debian-security", ("bookworm-security",))


def test_each_suite_comes_from_the_archive_that_the_machine_has() -> None:
    lines = own_sources(parse_sources(DEB822), ["bookworm", "bookworm-security", "trixie-backports"])
    assert lines == [
        "deb [signed-by=/usr/share/keyrings/a.gpg] http://archive.example/debian bookworm main",
        f"deb [signed-by={packages.KEYS}] http://archive.example/debian-security bookworm-security main",
        "deb [signed-by=/usr/share/keyrings/a.gpg] http://archive.example/debian trixie-backports main",
    ]
    plain_only = [one for one in parse_sources(DEB822) if "security" not in one.uri]
    assert len(own_sources(plain_only, ["bookworm", "bookworm-security"])) == 1
    with pytest.raises(NoKernels, match="no archive of Debian"):
        own_sources([Source("http://archive.example/apt", ("cloud-sdk-bookworm",))], ["bookworm"])


def test_the_newest_version_of_a_group_of_suites() -> None:
    assert pick(MADISON, ("bookworm-security", "bookworm")) == "6.1.192-3"
    assert pick(MADISON, ("bookworm",)) == "6.1.176-1"
    assert pick(MADISON, ("bookworm-backports",)) == "6.12.95-1~bpo12+1"
    assert pick(MADISON, ("bookworm-updates",)) == ""
    assert pick("", ("bookworm",)) == ""


def test_a_kernel_may_be_in_several_packages() -> None:
    assert parts("Package: x\nDepends: linux-image-6.1.0-57-amd64 (= 6.1.192-3)\n") == [
        "linux-image-6.1.0-57-amd64=6.1.192-3"
    ]
    show = (
        "Depends: dracut | initramfs-tools (>= 0.120+deb8u2) | linux-initramfs-tool, "
        "linux-binary-7.3.4+deb13-amd64 (= 7.3.4-1~bpo13+1), linux-modules-7.3.4+deb13-amd64 (= 7.3.4-1~bpo13+1)\n"
    )
    assert parts(show) == [
        "linux-binary-7.3.4+deb13-amd64=7.3.4-1~bpo13+1",
        "linux-modules-7.3.4+deb13-amd64=7.3.4-1~bpo13+1",
    ]
    assert parts("Depends: kmod, linux-base (>= 4.3~)\n") == []


def test_modules_come_after_what_they_need() -> None:
    found = in_order(DEPENDENCIES, ["virtio_pci", "9pnet_virtio", "9p", "overlay"])  # virtio_pci is built in
    assert sorted(found) == sorted(line.partition(":")[0] for line in DEPENDENCIES.splitlines())
    for line in DEPENDENCIES.splitlines():
        path, _, needs = line.partition(":")
        assert all(found.index(one) < found.index(path) for one in needs.split())


def test_the_archive_is_one_that_others_read() -> None:
    """Python's tar cannot read cpio: the layout is looked at by hand, as the kernel's initramfs.c does."""
    data = archive([("bin", 0o40755, b""), ("bin/tool", 0o100755, b"12345"), ("init", 0o100755, b"#!/bin/sh\n")])
    found, at = [], 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = data[at + 110 : at + 110 + fields[11] - 1].decode()
        start = (at + 110 + fields[11] + 3) // 4 * 4
        content = data[start : start + fields[6]]
        at = (start + fields[6] + 3) // 4 * 4
        if name == "TRAILER!!!":
            break
        found.append((name, fields[1], content))
    assert found == [("bin", 0o40755, b""), ("bin/tool", 0o100755, b"12345"), ("init", 0o100755, b"#!/bin/sh\n")]
    assert at == len(data)


def test_what_is_no_record_is_none() -> None:
    record = Record("test", "x", "", False, 1.5, "why")
    assert parse(msgspec.json.encode(record) + b"\r\n") == record
    for line in (b"", b"\r\n", b"[    1.0] a kernel's line\n", b'{"kind": 5}', b'"kind"', b"\xff\xfe"):
        assert parse(line) is None


SAYS = """printf '%s\\n' '{"kind":"fact","name":"pid","value":"'$$'"}'; """


async def follow(script: str, seconds: float) -> tuple[str, list[Record]]:
    told: list[Record] = []
    return await guest.follow(["sh", "-c", SAYS + script], told.append, seconds, Path("its.log")), told


async def test_a_guest_is_followed_to_its_end() -> None:
    problem, told = await follow("""echo noise; echo '{"kind":"end","value":"0"}'""", 30)
    assert (problem, [one.kind for one in told]) == ("", ["fact", "end"])
    problem, _ = await follow("echo no such machine >&2; exit 1", 30)
    assert problem == "no such machine; see its.log"
    problem, _ = await follow("", 30)
    assert problem == "it ended before its tests did; see its.log"


async def test_a_guest_that_does_not_end_is_ended() -> None:
    problem, told = await follow("exec sleep 600", 3)
    assert problem == "not finished within 3 s; see its.log"
    assert not runs(told[0].value)


async def test_an_interrupted_run_leaves_no_guest() -> None:
    told: list[Record] = []
    begun = asyncio.Event()

    def tell(record: Record) -> None:
        told.append(record)
        begun.set()

    words = ["sh", "-c", f"{SAYS} exec sleep 600"]
    following = asyncio.create_task(guest.follow(words, tell, 600, Path("its.log")))
    await asyncio.wait_for(begun.wait(), 30)
    assert runs(told[0].value)
    following.cancel()
    with pytest.raises(asyncio.CancelledError):
        await following
    assert not runs(told[0].value)


def runs(pid: str) -> bool:
    return Path("/proc", pid).exists()


def full(name: str = "6.1 bookworm", **facts: str) -> Report:
    """Everything passed."""
    made = Report(name)
    for fact, value in {"release": "6.1.0-57-amd64", **facts}.items():
        made.take(Record("fact", fact, value))
    for tests in selection.ITEMS.values():
        for test in tests:
            made.take(Record("test", f"{selection.SYSTEM}{test}", seconds=2.0))
    made.take(Record("end", value="0"))
    return made


def test_a_run_is_good_when_everything_ran_and_passed() -> None:
    assert full().good
    assert report.failures([full()]) == []
    for spoil in ("problem", "status"):
        made = full()
        setattr(made, spoil, "1")
        assert not made.good
        assert report.failures([made])[0].startswith("6.1 bookworm: ")
    made = full()
    made.tests = [one for one in made.tests if "test_tcp" not in one.name]
    assert (made.cell("TCP"), made.good) == ("NOT RUN", False)
    assert "6.1 bookworm: TCP: no test ran" in report.failures([made])
    made = full()
    made.take(Record("test", f"{selection.SYSTEM}test_forwarding.py::test_tcp", "", False, 1.0, "one\ntwo"))
    assert (made.cell("TCP"), made.cell("UDP"), made.good) == ("FAILED 1 of 2", "ok 2 s", False)
    assert report.failures([made]) == ["6.1 bookworm: failed: tests/system/test_forwarding.py::test_tcp"]
    assert report.failed("x", made.tests[-1]).splitlines()[1:] == ["    one", "    two"]


def test_the_table_has_a_column_for_each_kernel() -> None:
    other = full("7.3 x")
    other.tests.clear()
    lines = report.table([full(), other]).splitlines()
    assert lines[0].split() == ["6.1", "bookworm", "7.3", "x"]
    assert re.fullmatch(r"TCP +ok 2 s +NOT RUN", next(line for line in lines if line.startswith("TCP")))
    assert len(lines) == 3 + len(selection.ITEMS)


def test_parameters_belong_to_their_test() -> None:
    made = Report("x")
    made.take(Record("test", f"{selection.SYSTEM}test_forwarding.py::test_udp[both]"))
    made.take(Record("test", f"{selection.SYSTEM}test_namespaces.py::TestWatch::test_a_deleted_name"))
    made.take(Record("test", f"{selection.SYSTEM}test_forwarding.py::test_tcp_other"))
    assert [len(made.of(item)) for item in ("UDP", "namespaces", "TCP")] == [1, 1, 0]


def test_the_selection_names_tests_that_are_there() -> None:
    tests = [f"{selection.SYSTEM}{one}" for tests in selection.ITEMS.values() for one in tests]
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:schemathesis", *tests]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_document_says_what_was_measured() -> None:
    document = next(path for parent in Path(__file__).parents if (path := parent / "docs/service.md").exists())
    known = json.loads((Path(measured.__file__).parent / "measured.json").read_text(encoding="utf-8"))
    assert measured.document(known) in document.read_text(encoding="utf-8"), (
        f"docs/service.md should have this table:\n{measured.document(known)}"
    )


def test_what_differs_from_the_document_is_said() -> None:
    known = {"6.1": {"packet I/O": "epoll", "huge pages": "yes"}}
    same = full(**{"packet I/O": "epoll", "huge pages": "yes"})
    assert measured.differences(known, [same]) == []
    (line,) = measured.differences(known, [full(**{"packet I/O": "io_uring", "huge pages": "yes"})])
    assert line == "6.1 bookworm: packet I/O is io_uring, docs/service.md says epoll"
    other = full("6.12 x", release="6.12.95+deb12-amd64")
    assert measured.differences(known, [other]) == []
    assert measured.unknown(known, [same, other]) == ["6.12"]
