"""Daemons that cannot start: one line that says what to do, exit code 1, and nothing left behind."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest

from hyperplane.errors import ProtocolMismatch
from hyperplane.ipc.messages import Refused, encode, problem

from .daemons import TestDaemon


@pytest.fixture
def daemon() -> Iterator[TestDaemon]:
    with TestDaemon() as made:
        yield made


def left(daemon: TestDaemon) -> list[str]:
    return sorted(one.name for one in daemon.directory.iterdir() if one.name != "daemon.log")


def test_it_is_ready_in_a_second_and_ends_in_order(daemon: TestDaemon) -> None:
    seconds = daemon.start()
    assert daemon.places.api.stat().st_mode & 0o777 == 0o660
    assert daemon.places.descriptors.stat().st_mode & 0o777 == 0o660
    assert daemon.places.engine.stat().st_mode & 0o777 == 0o600
    assert daemon.places.database.stat().st_mode & 0o077 == 0
    daemon.end()
    assert not daemon.places.api.exists()
    assert not daemon.places.descriptors.exists()
    assert daemon.engine_pid()
    again = daemon.start()
    assert min(seconds, again) < 5  # the log's own times say what it took without Python's start


def test_one_daemon_of_an_instance(daemon: TestDaemon) -> None:
    daemon.start()
    first = daemon.process
    assert first
    line = daemon.refused()
    assert line.startswith(f"hyperplane-nat: a daemon of instance default runs already (pid {first.pid}); ")
    assert "--instance" in line
    assert first.poll() is None
    daemon.process = first


def test_one_daemon_of_a_state_directory(daemon: TestDaemon) -> None:
    """With a run directory of its own, it would do what the first one has done once more, by the same records."""
    daemon.start()
    first = daemon.process
    assert first
    line = daemon.refused(run_dir=str(daemon.directory / "other"))
    problem = f"a daemon with another run directory has {daemon.places.state} (pid {first.pid})"
    assert line.startswith(f"hyperplane-nat: {problem}; ")
    assert "--instance" in line
    assert first.poll() is None
    assert left(daemon) == ["run", "state"]
    daemon.process = first


@pytest.mark.parametrize("word", ["run_dir", "state_dir"])
def test_directories_that_cannot_be_made(daemon: TestDaemon, word: str) -> None:
    (daemon.directory / "file").touch()
    place: dict[str, Any] = {word: str(daemon.directory / "file" / "x")}
    line = daemon.refused(**place)
    assert "cannot be made: Not a directory" in line
    assert left(daemon) == ["file"]


def test_a_database_of_a_newer_version(daemon: TestDaemon) -> None:
    daemon.places.state.mkdir(parents=True)
    with sqlite3.connect(daemon.places.database) as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    line = daemon.refused()
    assert "newer version" in line
    assert "upgrade" in line
    assert left(daemon) == ["state"]
    assert not daemon.engine_pid()


def test_a_group_that_is_not_there(daemon: TestDaemon) -> None:
    assert "groupadd" in daemon.refused(2, group="hpt-no-group")
    assert left(daemon) == []


@pytest.mark.parametrize("name", ["api", "descriptors"])
def test_something_in_the_socket_s_place(daemon: TestDaemon, name: str) -> None:
    (daemon.places.run / f"{name}.sock" / "x").mkdir(parents=True)
    assert str(daemon.places.run / f"{name}.sock") in daemon.refused(2 if name == "api" else 1)
    assert not daemon.engine_pid()  # the one that had been started for it
    assert not daemon.places.state.exists()


@pytest.mark.parametrize("capability", ["net_admin", "sys_admin"])
def test_without_a_capability(daemon: TestDaemon, capability: str) -> None:
    line = daemon.refused(prefix=("setpriv", f"--bounding-set=-{capability}", f"--inh-caps=-{capability}"))
    assert f"lacks CAP_{capability.upper()}" in line
    assert left(daemon) == []


def test_without_the_device_node(daemon: TestDaemon) -> None:
    line = daemon.refused(prefix=("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "sh"))
    assert "/dev/net/tun is not there" in line
    assert "modprobe tun" in line
    assert left(daemon) == []


def test_an_engine_of_another_version(daemon: TestDaemon) -> None:
    daemon.places.run.mkdir(parents=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(daemon.places.engine))
        listener.listen(1)
        process = daemon.spawn()
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            error = ProtocolMismatch("the engine speaks version 7", remedy="restart the engine")
            connection.send(encode(Refused(problem=problem(error))))
            assert process.wait(20) == 1
    daemon.process = None
    assert "the engine speaks version 7" in daemon.log
    assert daemon.log.count("hyperplane-nat: ") == 1
    assert not daemon.places.api.exists()


def test_systemd_is_told(daemon: TestDaemon, monkeypatch: pytest.MonkeyPatch) -> None:
    path = daemon.directory / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        daemon.start()
        assert listener.recv(100) == b"READY=1"
        assert [listener.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
        daemon.end()
        while (word := listener.recv(100)) == b"WATCHDOG=1":
            pass
        assert word == b"STOPPING=1"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it(daemon: TestDaemon, number: signal.Signals) -> None:
    daemon.start()
    assert daemon.process
    daemon.process.send_signal(number)
    assert daemon.process.wait(20) == 0
    daemon.process = None
    assert os.path.exists(f"/proc/{daemon.engine_pid()}")
