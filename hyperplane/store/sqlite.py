"""The store in one SQLite file, with a write-ahead log.

A record is a row: kind, id, the resource and its internals as JSON. A commit survives a crash of the process in any
case. It survives a crash of the host when it has changed anything but environments: these are gone after a crash of the
host anyhow, and waiting for the disk would take longer than all the rest of an attach (`PRAGMA synchronous`: NORMAL for
them, FULL otherwise).
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import msgspec

from hyperplane.codec import from_text, to_text
from hyperplane.errors import StoreError
from hyperplane.resources import Eni, Environment, Function, Kind, Resource, SecurityGroup, Subnet, Vpc
from hyperplane.store.references import dangling
from hyperplane.store.store import Change, Record

SCHEMA: Final = 1  # PRAGMA user_version
TABLES: Final = (
    "CREATE TABLE record (kind TEXT NOT NULL, id TEXT NOT NULL, resource TEXT NOT NULL, internals TEXT NOT NULL, "
    "PRIMARY KEY (kind, id)) WITHOUT ROWID",
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
)
TYPES: Final[dict[Kind, type[Resource]]] = {
    "vpc": Vpc,
    "subnet": Subnet,
    "security-group": SecurityGroup,
    "function": Function,
    "eni": Eni,
    "environment": Environment,
}
CORRUPT: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
BUSY_SECONDS: Final = 5.0  # somebody else reads or backs up the file

_encode: Final = msgspec.json.Encoder(enc_hook=to_text).encode
_decoders: Final = {kind: msgspec.json.Decoder(type_, dec_hook=from_text) for kind, type_ in TYPES.items()}
_internals: Final = msgspec.json.Decoder(dict[str, Any])


class _Corrupt(Exception):
    """The file is there and is no database, or not ours, or damaged."""


class SqliteStore:
    """hyperplane.store.Store in the file `path`, which is made if need be; its directory must be there.

    A file that is damaged is renamed to PATH.corrupt-TIME with its log, and an empty one takes its place: see notices.
    Raises StoreError for one of a newer version, and for whatever the system refuses.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._lock = threading.Lock()
        self._notices: list[str] = []
        self._begun = False
        self._synchronous = ""
        self._meta: dict[str, str] = {}
        try:
            try:
                self._open()
            except _Corrupt as error:
                self._set_aside(str(error))
                self._open()
        except (OSError, sqlite3.Error, _Corrupt) as error:
            raise self._error(error) from None

    @property
    def notices(self) -> tuple[str, ...]:
        return tuple(self._notices)

    @property
    def begun(self) -> bool:
        return self._begun

    @property
    def meta(self) -> Mapping[str, str]:
        return MappingProxyType(self._meta)

    def set_meta(self, key: str, value: str) -> None:
        with self._lock:
            self._transaction([("INSERT OR REPLACE INTO meta VALUES (?, ?)", [(key, value)])], "FULL")
            self._meta[key] = value

    def load(self) -> list[Record]:
        with self._lock:
            try:
                return self._records()
            except (sqlite3.Error, _Corrupt) as error:
                raise self._error(error) from None

    def commit(self, changes: Iterable[Change]) -> None:
        put, delete, synchronous = [], [], "NORMAL"
        for change in changes:
            if change.kind != "environment":
                synchronous = "FULL"
            if change.resource is None:
                delete.append((change.kind, change.id))
            else:
                resource, internals = _encode(change.resource).decode(), _encode(change.internals).decode()
                put.append((change.kind, change.id, resource, internals))
        statements: list[tuple[str, list[Any]]] = []
        if put:
            statements.append(("INSERT OR REPLACE INTO record VALUES (?, ?, ?, ?)", put))
        if delete:
            statements.append(("DELETE FROM record WHERE kind = ? AND id = ?", delete))
        if statements:
            with self._lock:
                self._transaction(statements, synchronous)

    def close(self) -> None:
        with self._lock:
            self._database.close()

    def _transaction(self, statements: list[tuple[str, list[Any]]], synchronous: str) -> None:
        execute, database = self._database.execute, self._database
        try:
            if synchronous != self._synchronous:  # it cannot be set within a transaction
                execute(f"PRAGMA synchronous = {synchronous}")
                self._synchronous = synchronous
            if len(statements) == 1 and len(statements[0][1]) == 1:
                execute(statements[0][0], statements[0][1][0])  # is a transaction of its own
                return
            execute("BEGIN IMMEDIATE")
            for statement, rows in statements:
                database.executemany(statement, rows)
            execute("COMMIT")
        except sqlite3.Error as error:
            if not isinstance(error, sqlite3.ProgrammingError) and database.in_transaction:
                database.rollback()
            raise self._error(error) from None

    def _open(self) -> None:
        """Raises _Corrupt, StoreError, OSError, sqlite3.Error."""
        with suppress(FileExistsError):
            # Not by SQLite, for the mode. An existing file must not even be opened: closing it would end the locks that
            # another connection of this process has on it (sqlite.org/howtocorrupt.html, 2.2).
            os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        self._database = sqlite3.connect(
            self._path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._prepare()
        except BaseException as error:
            self._database.close()
            if isinstance(error, sqlite3.DatabaseError) and _primary(error) in CORRUPT:
                raise _Corrupt(str(error)) from None
            raise

    def _prepare(self) -> None:
        execute = self._database.execute
        version = execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise StoreError(
                f"{self._path} was written by a newer version of hyperplane-nat (schema {version})",
                resource=str(self._path),
                limit=f"schema {SCHEMA}",
                remedy="upgrade hyperplane-nat, or move the file away to begin anew",
            )
        found = execute("PRAGMA integrity_check(1)").fetchone()[0]
        if found != "ok":
            raise _Corrupt(found)
        if version == 0 and execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            raise _Corrupt("it is a database of another program")
        if execute("PRAGMA journal_mode = WAL").fetchone()[0] != "wal":
            raise StoreError(
                f"{self._path} cannot have a write-ahead log",
                resource=str(self._path),
                remedy="put the state directory on a local file system",
            )
        self._synchronous = ""
        if version == 0:
            self._create()
            self._begun = True
        self._records()  # whether they can be read is to be known before anything is decided by them
        self._meta = {"schema": str(SCHEMA), **dict(execute("SELECT key, value FROM meta").fetchall())}

    def _create(self) -> None:
        execute = self._database.execute
        execute("PRAGMA synchronous = FULL")
        execute("BEGIN IMMEDIATE")
        for statement in TABLES:
            execute(statement)
        execute(f"PRAGMA user_version = {SCHEMA}")
        execute("COMMIT")

    def _records(self) -> list[Record]:
        try:
            rows = self._database.execute("SELECT kind, id, resource, internals FROM record")
            found = [
                Record(kind, id_, _decoders[kind].decode(resource), _internals.decode(internals))
                for kind, id_, resource, internals in rows
            ]
        except (msgspec.MsgspecError, KeyError) as error:
            raise _Corrupt(f"a record cannot be read: {error}") from None
        if problem := dangling([record.resource for record in found]):
            raise _Corrupt(problem)
        return found

    def _set_aside(self, problem: str) -> None:
        """With its log: without it, it might be older than it needs to be."""
        aside = f"{self._path}.corrupt-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        if os.path.exists(aside):
            aside += f"-{time.time_ns()}"
        for end in ("", "-wal", "-shm"):
            if os.path.exists(f"{self._path}{end}"):
                os.rename(f"{self._path}{end}", f"{aside}{end}")
        self._notices.append(f"{self._path} is damaged ({problem}): kept as {aside}, begun anew")

    def _error(self, error: BaseException) -> StoreError:
        path = str(self._path)
        if isinstance(error, FileNotFoundError):
            remedy = f"create the directory {self._path.parent}"
            return StoreError(f"{path}: its directory does not exist", resource=path, remedy=remedy)
        if isinstance(error, PermissionError):
            remedy = "run as the user whom the state directory belongs to"
            return StoreError(f"{path} may not be opened", resource=path, remedy=remedy)
        code = _primary(error) if isinstance(error, sqlite3.Error) else 0
        remedy = {
            sqlite3.SQLITE_FULL: "make room on the file system",
            sqlite3.SQLITE_BUSY: "end the program that has the file locked",
            sqlite3.SQLITE_READONLY: "make the state directory writable",
            sqlite3.SQLITE_CANTOPEN: "see that it is a file in a directory that may be written to",
            sqlite3.SQLITE_CORRUPT: "restart the daemon: it keeps the damaged file and begins anew",
        }.get(code, "")
        text = error.strerror if isinstance(error, OSError) else str(error)
        return StoreError(f"{path}: {text}", resource=path, remedy=remedy)


def _primary(error: sqlite3.Error) -> int:
    """The result code without its extension (sqlite.org/rescode.html)."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
