from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hyperplane.client import Client, SyncClient, socket_path
from hyperplane.daemon.places import Places
from hyperplane.errors import InvalidValue


def test_the_system_s_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HYPERPLANE_RUN_DIR", raising=False)
    monkeypatch.delenv("HYPERPLANE_STATE_DIR", raising=False)
    places = Places()
    assert places.api == Path("/run/hyperplane-nat/default/api.sock")
    assert places.engine == Path("/run/hyperplane-nat/default/engine.sock")
    assert places.database == Path("/var/lib/hyperplane-nat/default/state.db")


def test_variables_and_arguments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYPERPLANE_RUN_DIR", str(tmp_path / "r"))
    monkeypatch.setenv("HYPERPLANE_STATE_DIR", str(tmp_path / "s"))
    assert Places("one").lock == tmp_path / "r/one/daemon.lock"
    assert Places("one").state == tmp_path / "s/one"
    assert Places("one", Path("/x"), Path("/y")).descriptors == Path("/x/one/descriptors.sock")


def test_the_client_looks_in_the_same_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYPERPLANE_RUN_DIR", str(tmp_path))
    assert str(socket_path("one")) == str(Places("one").api)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "-x", "x" * 65, "a b", "a\n"])
def test_an_instance_s_name_is_a_directory_s(name: str) -> None:
    with pytest.raises(InvalidValue):
        Places(name)


def test_a_socket_s_path_is_short(tmp_path: Path) -> None:
    with pytest.raises(InvalidValue, match="path too long"):
        Places("one", tmp_path / ("x" * 100))


def test_marks_tell_instances_apart(tmp_path: Path) -> None:
    marks = {Places(name, state_dir=base).mark for name in ("a", "b") for base in (tmp_path, tmp_path / "x")}
    assert len(marks) == 4
    assert all(len(mark) == 6 for mark in marks)


# The clients


def test_the_socket_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HYPERPLANE_RUN_DIR", str(tmp_path))
    assert SyncClient("blue").path == Client("blue").path == tmp_path / "blue" / "api.sock"
    monkeypatch.delenv("HYPERPLANE_INSTANCE", raising=False)
    assert SyncClient().path == Client().path == tmp_path / "default" / "api.sock"
    monkeypatch.setenv("HYPERPLANE_INSTANCE", "green")
    assert SyncClient().path == Client().path == socket_path() == tmp_path / "green" / "api.sock"
    assert SyncClient("blue").path == tmp_path / "blue" / "api.sock"
    assert Client(path="/x/y.sock").path == Path("/x/y.sock")
    monkeypatch.setenv("HYPERPLANE_INSTANCE", "")
    assert Client().path == tmp_path / "default" / "api.sock"


@pytest.mark.parametrize("kind", [SyncClient, Client])
@pytest.mark.parametrize("name", ["../green", "", "a/b", "."])
def test_what_cannot_be_an_instance_s_name_is_refused(kind: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidValue, match="instance name is"):
        kind(name)
    if name:
        monkeypatch.setenv("HYPERPLANE_INSTANCE", name)
        with pytest.raises(InvalidValue, match="HYPERPLANE_INSTANCE is"):
            kind()
