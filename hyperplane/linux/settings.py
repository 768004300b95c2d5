"""Per-device sysctls that are changed while an ENI needs them: what each was, and which ENIs need it.

Others change them too: the kernel sets `forwarding` of every device when somebody writes net.ipv4.ip_forward, and
anybody may write one directly. What somebody else has written meanwhile is what it is set back to at the end.

A process that may be killed keeps a journal: there stands what a setting was before it was changed, so that its
successor can set it back. The journal belongs below /run: a reboot undoes the settings too.
A file below /proc/sys/net shows the namespace of the thread that opens it: hence the key beside each path.
"""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Hashable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from hyperplane.errors import DeviceError, HyperplaneError, PermissionMissing
from hyperplane.linux.namespaces import Key

SYSCTLS: Final = "/proc/sys/"
IPV4: Final = "/proc/sys/net/ipv4"


class Setting(NamedTuple):
    """A sysctl's file and the value that is needed. governor: the file of the one whose writing sets this one too
    (devinet_sysctl_forward() in net/ipv4/devinet.c), "" for none."""

    path: str
    value: str
    governor: str = ""

    @property
    def name(self) -> str:
        """As sysctl(8) names it."""
        return sysctl_name(self.path)


def forwarding(device: str) -> Setting:
    return Setting(f"{IPV4}/conf/{device}/forwarding", "1", f"{IPV4}/ip_forward")


def proxy_delay(device: str) -> Setting:
    return Setting(f"{IPV4}/neigh/{device}/proxy_delay", "0")


@dataclass(slots=True)
class _Held:
    """original: what it is set back to. governor: the governor's value when original was noted."""

    original: str
    governor: str = ""
    holders: set[Hashable] = field(default_factory=set)


_Place = tuple[Key, str]  # a namespace and a path


class Settings:
    """All methods but journal() and forget() are for a thread that is in the namespace of the key. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: dict[_Place, _Held] = {}
        self._inherited: dict[_Place, _Held] = {}
        self._journal: Path | None = None

    def journal(self, path: Path) -> None:
        """Keeps a journal there from now on, and reads what a predecessor left. One that cannot be read is empty."""
        with self._lock:
            self._journal = path
            with suppress(OSError, ValueError, TypeError):
                rows: list[list[Any]] = json.loads(path.read_text(encoding="ascii"))
                self._inherited = {
                    ((int(dev), int(ino)), str(name)): _Held(str(was), str(governor[0]) if governor else "")
                    for dev, ino, name, was, *governor in rows
                }

    def hold(self, key: Key, setting: Setting, holder: Hashable) -> str | None:
        """Sets it until every holder has released it; for a holder that has it already, sets it again if need be.

        Returns what it was where it had to be set, None where it was right; then nothing is written, so that /proc/sys
        may be read-only. Raises DeviceError, PermissionMissing.
        """
        place = (key, setting.path)
        with self._lock:
            was, governor = read(setting.path), _governor(setting)
            held = self._held.get(place)
            if held is None:
                held = self._inherited.pop(place, None) or _Held(was, governor)
                new = True
            else:
                new = False
                if was != setting.value and holder not in held.holders:
                    # Perhaps a new namespace with the key of one that went away. Holders that live hold it again soon.
                    held.holders.clear()
            _follow(held, was, governor, setting)
            if was == setting.value:
                held.holders.add(holder)
                self._held[place] = held
                if new:
                    self._write_journal()
                return None
            self._held[place] = held
            self._write_journal()
            try:
                write(setting.path, setting.value)
            except BaseException:
                if not held.holders:
                    del self._held[place]
                    self._write_journal()
                raise
            held.holders.add(holder)
            return was

    def release(self, key: Key, setting: Setting, holder: Hashable, *, restore: bool) -> None:
        """Sets it back with the last holder's, if restore, to what it was, or to what others wanted since."""
        place = (key, setting.path)
        with self._lock:
            held = self._held.get(place)
            if held is None or holder not in held.holders:
                return
            held.holders.discard(holder)
            if held.holders:
                return
            del self._held[place]
            if restore:
                _restore(held, setting)
            self._write_journal()

    def release_inherited(self, key: Key, setting: Setting, *, restore: bool) -> None:
        """The same for what a predecessor held and nobody here holds."""
        with self._lock:
            held = self._inherited.pop((key, setting.path), None)
            if held is not None:
                if restore:
                    _restore(held, setting)
                self._write_journal()

    def rename(self, key: Key, old: Setting, new: Setting, holder: Hashable, renamed: Hashable) -> None:
        """For a device that has another name, which takes its settings along: holder's is renamed's from now on."""
        with self._lock:
            if (moved := self._held.pop((key, old.path), None)) is not None:
                self._held[key, new.path] = moved
            held = self._held.get((key, new.path))
            if held is not None and holder in held.holders:
                held.holders.discard(holder)
                held.holders.add(renamed)
            self._write_journal()

    def forget(self, holder: Hashable) -> None:
        """What it held is gone with its namespace or device: nothing is set back."""
        with self._lock:
            for place, held in tuple(self._held.items()):
                held.holders.discard(holder)
                if not held.holders:
                    del self._held[place]
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
        every = [*self._held.items(), *self._inherited.items()]
        rows = [[*key, path, held.original, held.governor] for (key, path), held in every]
        new = self._journal.with_suffix(".new")
        with suppress(OSError):  # without it only the setting back after a crash is lost
            new.write_text(json.dumps(rows), encoding="ascii")
            os.replace(new, self._journal)


SETTINGS: Final = Settings()


def _follow(held: _Held, was: str, governor: str, setting: Setting) -> None:
    """Others' latest wish is what it is set back to: they wrote the setting itself, or its governor."""
    if was != setting.value:
        held.original, held.governor = was, governor
    elif governor and held.governor != governor:
        # The value is the needed one by now, perhaps because the governor set it. What the governor was before is not
        # known from a journal of an older version: then what was noted counts.
        held.original, held.governor = governor if held.governor else held.original, governor


def _restore(held: _Held, setting: Setting) -> None:
    with suppress(OSError, HyperplaneError):  # the device is gone
        if read(setting.path) != setting.value:
            return  # somebody has set it since
        _follow(held, setting.value, _governor(setting), setting)
        if held.original != setting.value:
            write(setting.path, held.original)


def _governor(setting: Setting) -> str:
    if setting.governor:
        with suppress(HyperplaneError):
            return read(setting.governor)
    return ""


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


def sysctl_name(path: str) -> str:
    """net.ipv4.conf.eth0.forwarding for its file. A dot of a device's name is a slash there, as sysctl(8) has it."""
    return path.removeprefix(SYSCTLS).translate(str.maketrans("/.", "./"))


def _refused(path: str, error: OSError) -> HyperplaneError:
    name = sysctl_name(path)
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        remedy = f"mount /proc/sys writable, or set {name} beforehand"
        return PermissionMissing(f"setting {name} may not be changed", resource=name, remedy=remedy)
    return DeviceError(f"setting {name}: {error.strerror}", resource=name)
