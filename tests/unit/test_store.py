"""The store: what is committed is there, whole, whatever happens to the process or the file."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from hyperplane.control import Delete, Put
from hyperplane.errors import StoreError
from hyperplane.model import Timers
from hyperplane.resources import Environment, EnvironmentState, Subnet, Timings, Vpc
from hyperplane.store import SqliteStore

VPC = Vpc(
    id="vpc-1",
    account="default",
    name="v",
    created=1.5,
    namespace="box",
    dns=(IPv4Address("198.19.0.53"),),
    timers=Timers(udp=60.0),
)
SUBNET = Subnet(
    id="subnet-1",
    account="default",
    name="a",
    created=2.0,
    vpc="vpc-1",
    cidr=IPv4Network("198.19.0.0/24"),
    gateway=IPv4Address("198.19.0.1"),
    reserved=(IPv4Network("198.19.0.8/29"),),
)


def environment(number: int) -> Environment:
    return Environment(
        id=f"env-{number}",
        account="default",
        name=f"e{number}",
        created=float(number),
        function="function-1",
        eni="eni-1",
        namespace="",
        device="eth0",
        inside_address=IPv4Address("198.18.0.2"),
        mtu=1500,
        state=EnvironmentState.ENDED,
        timings=Timings(total=5.0, kernel=1.0, engine=1.0, wait=1.0, daemon=2.0),
    )


def put(resource: Any, **internals: Any) -> Put:
    kind: Any = {"Vpc": "vpc", "Subnet": "subnet", "Environment": "environment"}[type(resource).__name__]
    return Put(kind, resource.id, resource, internals)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.db"


def test_what_was_committed_is_loaded_by_the_next_one(path: Path) -> None:
    store = SqliteStore(path)
    store.commit([put(VPC), put(SUBNET, taken={"198.19.0.5": 3.0}), put(environment(1), daemon={"key": [1, 2]})])
    store.commit([put(environment(2)), Delete("environment", "env-1")])
    store.close()
    again = SqliteStore(path)
    found = {one.id: (one.kind, one.resource, one.internals) for one in again.load()}
    assert found == {
        "vpc-1": ("vpc", VPC, {}),
        "subnet-1": ("subnet", SUBNET, {"taken": {"198.19.0.5": 3.0}}),
        "env-2": ("environment", environment(2), {}),
    }
    assert again.notices == ()
    again.close()


def test_only_its_owner_may_read_it(path: Path) -> None:
    store = SqliteStore(path)
    store.commit([put(VPC)])
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
    store.close()


def test_meta(path: Path) -> None:
    store = SqliteStore(path)
    assert dict(store.meta) == {"schema": "1"}
    store.set_meta("boot_id", "one")
    store.set_meta("boot_id", "two")
    assert store.meta["boot_id"] == "two"
    store.close()
    again = SqliteStore(path)
    assert again.meta["boot_id"] == "two"
    again.close()


def test_an_empty_file_is_a_new_store(path: Path) -> None:
    path.touch()
    store = SqliteStore(path)
    assert store.load() == []
    assert store.notices == ()
    assert store.begun
    store.close()
    again = SqliteStore(path)
    assert not again.begun
    again.close()


def test_a_directory_in_the_way_is_said(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StoreError, match="see that it is a file"):
        SqliteStore(path)


def test_a_missing_directory_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="create the directory"):
        SqliteStore(tmp_path / "none" / "state.db")


def test_a_newer_version_is_left_alone(path: Path) -> None:
    SqliteStore(path).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version = 2")
    database.commit()
    database.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="upgrade hyperplane-nat") as caught:
        SqliteStore(path)
    assert caught.value.limit == "schema 1"
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir() if "corrupt" in one.name] == []


def damaged_header(path: Path) -> None:
    path.write_bytes(b"no database at all " * 100)


def damaged_pages(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)


def cut_short(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(5000)


def unreadable_record(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("UPDATE record SET resource = '{' WHERE kind = 'vpc'")
    database.commit()
    database.close()


def lost_record(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("DELETE FROM record WHERE kind = 'vpc'")
    database.commit()
    database.close()


def another_program(path: Path) -> None:
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE bookmarks (url)")
    database.commit()
    database.close()


@pytest.mark.parametrize(
    "damage", [damaged_header, damaged_pages, cut_short, unreadable_record, lost_record, another_program]
)
def test_a_damaged_file_is_kept_aside(path: Path, damage: Any) -> None:
    store = SqliteStore(path)
    store.commit([put(VPC), put(SUBNET), *(put(environment(number)) for number in range(200))])
    store.close()
    damage(path)
    content = path.read_bytes()
    store = SqliteStore(path)
    (notice,) = store.notices
    aside = [
        one for one in path.parent.iterdir() if ".corrupt-" in one.name and not one.name.endswith(("-wal", "-shm"))
    ]
    assert len(aside) == 1
    assert str(aside[0]) in notice
    assert aside[0].read_bytes() == content
    assert store.load() == []
    store.commit([put(VPC)])
    store.close()
    again = SqliteStore(path)
    assert again.notices == ()
    assert [one.resource for one in again.load()] == [VPC]
    again.close()


def test_a_commit_that_fails_keeps_nothing_of_it(path: Path) -> None:
    store = SqliteStore(path)
    store.commit([put(VPC)])
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute(
        "CREATE TRIGGER refuse BEFORE INSERT ON record WHEN NEW.id = 'env-2' BEGIN SELECT RAISE(ABORT, 'no'); END"
    )
    writer.close()
    with pytest.raises(StoreError, match="no"):
        store.commit([put(environment(1)), put(environment(2)), Delete("vpc", "vpc-1")])
    assert [one.id for one in store.load()] == ["vpc-1"]
    store.commit([put(environment(3))])
    assert len(store.load()) == 2
    store.close()


def test_a_closed_store_says_so(path: Path) -> None:
    store = SqliteStore(path)
    store.close()
    with pytest.raises(StoreError):
        store.commit([put(VPC)])
    with pytest.raises(StoreError):
        store.load()


def test_only_changes_of_other_kinds_than_environments_wait_for_the_disk(path: Path) -> None:
    store = SqliteStore(path)
    statements: list[str] = []
    store._database.set_trace_callback(statements.append)

    def modes() -> list[str]:
        found = [one.split()[-1] for one in statements if one.startswith("PRAGMA synchronous")]
        statements.clear()
        return found

    store.commit([put(VPC)])
    assert modes() == ["FULL"]
    store.commit([put(environment(1))])
    assert modes() == ["NORMAL"]
    store.commit([put(environment(2)), Delete("environment", "env-1")])
    assert modes() == []
    store.commit([put(environment(3)), put(SUBNET)])
    assert modes() == ["FULL"]
    store.close()


def test_somebody_may_read_meanwhile(path: Path) -> None:
    """A reader neither waits for the writer nor sees half a transaction, nor does the writer wait for it."""
    store = SqliteStore(path)
    store.commit([put(VPC)])
    reader = sqlite3.connect(f"file:{path}?mode=ro", uri=True, isolation_level=None)
    reader.execute("BEGIN")
    count = "SELECT count(*) FROM record"
    assert reader.execute(count).fetchone() == (1,)
    store.commit([put(environment(1)), put(environment(2))])
    assert reader.execute(count).fetchone() == (1,)
    reader.execute("COMMIT")
    assert reader.execute(count).fetchone() == (3,)
    reader.close()
    store.close()


WRITER = """
import sys
sys.path.insert(0, {here!r})
from hyperplane.store import SqliteStore
from test_store import environment, put
store = SqliteStore({path!r})
for number in range(1, 1_000_000):
    store.commit([put(environment(2 * number)), put(environment(2 * number + 1))])
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_what_it_had_committed(path: Path) -> None:
    """kill -9 at any moment: every commit that had returned is there, and no half of one."""
    code = WRITER.format(here=str(Path(__file__).parent), path=str(path))
    for wanted in (1, 40):
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        confirmed = 0
        for line in child.stdout:
            confirmed = int(line)
            if confirmed >= wanted:
                break
        os.kill(child.pid, signal.SIGKILL)
        confirmed = max([confirmed, *(int(line) for line in child.stdout if line.endswith("\n"))])
        child.wait()
        child.stdout.close()
        store = SqliteStore(path)
        assert store.notices == ()
        found = {one.id for one in store.load()}
        store.commit([Delete("environment", id_) for id_ in found])
        store.close()
        pairs = len(found) // 2
        assert pairs >= confirmed
        assert found == {f"env-{number}" for number in range(2, 2 * pairs + 2)}
