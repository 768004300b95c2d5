"""Per-device sysctls that are changed while an ENI needs them: what each was, and how many ENIs need it.

A process that may be killed keeps a journal: there stands what a setting was before it was changed, so that its
successor can set it back. The journal belongs below /run: a reboot undoes the settings too.
A file below /proc/sys/net shows the namespace of the thread that opens it: hence the key beside each path.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyperplane.errors import DeviceError, HyperplaneError, PermissionMissing
from hyperplane.linux.namespaces import Key

Setting = tuple[Key, str]


@dataclass(slots=True)
class _Held:
    count: int
    value: str
    original: str


class Settings:
    """All methods but journal() are for a thread that is in the namespace of the key. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[Setting, _Held] = {}
        self._inherited: dict[Setting, str] = {}
        self._journal: Path | None = None

    def journal(self, path: Path) -> None:
        """Keeps a journal there from now on, and reads what a predecessor left. One that cannot be read is empty."""
        with self._lock:
            self._journal = path
            with suppress(OSError, ValueError, TypeError):
                rows = json.loads(path.read_text(encoding="ascii"))
                self._inherited = {((int(dev), int(ino)), str(name)): str(was) for dev, ino, name, was in rows}

    def hold(self, key: Key, path: str, value: str) -> None:
        """Sets it, until as many release(). Raises DeviceError, PermissionMissing.

        One that is held but has another value begins anew: somebody has set it, or the namespace is a new one with the
        key of one that went away without a release().
        """
        with self._lock:
            was = read(path)
            held = self._held.get((key, path))
            if held is None or was != held.value:
                held = self._held[key, path] = _Held(0, value, self._inherited.pop((key, path), was))
            if was != value:
                self._write_journal()
                try:
                    write(path, value)
                except BaseException:
                    if not held.count:
                        del self._held[key, path]
                        self._write_journal()
                    raise
            held.count += 1

    def release(self, key: Key, path: str, *, restore: bool) -> None:
        """Sets it back with the last one, if restore and nobody has set it since."""
        with self._lock:
            held = self._held.get((key, path))
            if held is None:
                return
            held.count -= 1
            if held.count:
                return
            del self._held[key, path]
            if restore and held.original != held.value:
                with suppress(OSError, HyperplaneError):  # the device is gone
                    if read(path) == held.value:
                        write(path, held.original)
            self._write_journal()

    def release_inherited(self, key: Key, path: str, *, restore: bool) -> None:
        """The same for what a predecessor held and nobody here holds."""
        with self._lock:
            original = self._inherited.pop((key, path), None)
            if original is not None:
                if restore:
                    with suppress(OSError, HyperplaneError):
                        write(path, original)
                self._write_journal()

    def forget_inherited(self) -> None:
        """Drops what a predecessor left and nobody has taken over: its namespace is gone."""
        with self._lock:
            if self._inherited:
                self._inherited.clear()
                self._write_journal()

    def _write_journal(self) -> None:
        if self._journal is None:
            return
        rows = [[*key, path, held.original] for (key, path), held in self._held.items() if held.original != held.value]
        rows += [[*key, path, original] for (key, path), original in self._inherited.items()]
        new = self._journal.with_suffix(".new")
        with suppress(OSError):  # without it only the setting back after a crash is lost
            new.write_text(json.dumps(rows), encoding="ascii")
            os.replace(new, self._journal)


SETTINGS: Final = Settings()


def read(path: str) -> str:
    """Raises DeviceError, PermissionMissing."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError as error:
        raise _refused(path, error) from None


def write(path: str, value: str) -> None:
    """Raises DeviceError, PermissionMissing."""
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(value)
    except OSError as error:
        raise _refused(path, error) from None


def _refused(path: str, error: OSError) -> HyperplaneError:
    name = path.removeprefix("/proc/sys/")
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        remedy = f"mount /proc/sys writable, or set {name} beforehand"
        return PermissionMissing(f"setting {name} may not be changed", resource=name, remedy=remedy)
    return DeviceError(f"setting {name}: {error.strerror}", resource=name)
