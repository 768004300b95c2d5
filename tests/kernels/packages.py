"""Kernels from Debian's packages, by an apt configuration of its own: nothing of the system is changed.

The archive is the one that this machine's own sources name, with their keys. What is unpacked stays for a day.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

IMAGE: Final = "linux-image-amd64"
BUSYBOX: Final = "busybox-static"
FRESH: Final = 86_400.0  # seconds for which what is unpacked is not looked for again
KEYS: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


class NoKernels(Exception):
    """Why there are none, and what to do, in one line."""


@dataclass(frozen=True)
class Origin:
    """Where a kernel comes from: one of these suites has it. needed: without it there is nothing to test."""

    name: str
    suites: tuple[str, ...]
    needed: bool = False


ORIGINS: Final = (
    Origin("bookworm", ("bookworm-security", "bookworm-updates", "bookworm"), needed=True),
    Origin("bookworm-backports", ("bookworm-backports",)),
    Origin("trixie-backports", ("trixie-backports",)),
)


class Kernel(msgspec.Struct, frozen=True):
    """One that is unpacked. release: as uname says it. modules: the directory that is /lib/modules to it."""

    origin: str
    version: str
    release: str
    image: str
    modules: str


class Kernels(msgspec.Struct, frozen=True):
    """All of them, and the names of origins that have none."""

    kernels: tuple[Kernel, ...]
    missing: tuple[str, ...]
    busybox: str


@dataclass(frozen=True)
class Source:
    """Of the machine: an archive's address, its suites, and what it is signed by ("" for apt's own keys)."""

    uri: str
    suites: tuple[str, ...]
    signed_by: str = ""


def parse_sources(text: str) -> list[Source]:
    """Binary packages' sources in a file of /etc/apt, of either form: sources.list(5)."""
    if re.search(r"^URIs:", text, re.MULTILINE | re.IGNORECASE):
        return [found for block in re.split(r"\n\s*\n", text) for found in _deb822(block)]
    found = []
    for line in text.splitlines():
        if match := re.match(r"\s*deb\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)", line):
            signed = re.search(r"signed-by=(\S+)", match[1] or "")
            found.append(Source(match[2], (match[3],), signed[1] if signed else ""))
    return found


def _deb822(block: str) -> list[Source]:
    lines = [line for line in block.splitlines() if not line.startswith("#")]
    fields = {key.strip().lower(): value.split() for key, _, value in (line.partition(":") for line in lines)}
    if "deb" not in fields.get("types", ()) or fields.get("enabled") == ["no"]:
        return []
    signed = " ".join(fields.get("signed-by", ()))
    suites = tuple(fields.get("suites", ()))
    return [Source(uri, suites, signed if signed.startswith("/") else "") for uri in fields.get("uris", ())]


def own_sources(sources: Iterable[Source], wanted: Iterable[str]) -> list[str]:
    """Lines for the wanted suites, from the archives that the machine's sources name. Raises NoKernels.

    Those of a security suite come from its archive, all others from that of the machine's plain suite.
    """
    plain: Source | None = None
    security: Source | None = None
    for source in sources:
        if any(suite.endswith("-security") for suite in source.suites):
            security = security or source
        elif any(re.fullmatch(r"[a-z]+", suite) for suite in source.suites) and "debian" in source.uri:
            plain = plain or source
    if not plain:
        raise NoKernels("no archive of Debian is among the sources of /etc/apt: add one, as deb822 in sources.list(5)")
    lines = []
    for suite in wanted:
        if archive := security if suite.endswith("-security") else plain:
            lines.append(f"deb [signed-by={archive.signed_by or KEYS}] {archive.uri} {suite} main")
    return lines


def pick(madison: str, suites: Sequence[str]) -> str:
    """The newest version that one of the suites has, "" when none has: `apt-cache madison` names the newest first."""
    for line in madison.splitlines():
        _, version, where = (part.strip() for part in line.split("|"))
        if where.split()[1].partition("/")[0] in suites:
            return version
    return ""


def parts(show: str) -> list[str]:
    """What a kernel's package depends on of its own version, as `name=version`: `apt-cache show NAME=VERSION`."""
    (depends,) = re.findall(r"^Depends: (.*)$", show, re.MULTILINE)[:1] or [""]
    pattern = r"\b(linux-(?:image|binary|modules|base)-\S+) \(= (\S+)\)"
    return [f"{name}={version}" for name, version in re.findall(pattern, depends)]


def prepare(directory: Path) -> Kernels:
    """All kernels, unpacked below directory; asks the archive when what is there is older than a day, or not there.

    Raises NoKernels.
    """
    index = directory / "kernels.json"
    known = msgspec.json.decode(index.read_bytes(), type=Kernels) if index.exists() else None
    if known and time.time() - index.stat().st_mtime < FRESH:
        return known
    archive = Archive(directory / "apt")
    try:
        archive.update()
        found = _prepare(archive, directory)
    except NoKernels as problem:
        if not known:
            raise
        print(f"kernels: {problem}; those of an earlier day are used")
        return known
    index.write_bytes(msgspec.json.encode(found))
    return found


def _prepare(archive: Archive, directory: Path) -> Kernels:
    madison = archive.ask("madison", IMAGE)
    kernels, missing = [], []
    for origin in ORIGINS:
        if version := pick(madison, origin.suites):
            kernels.append(_unpacked(archive, origin, version, directory))
        elif origin.needed:
            raise NoKernels(f"{', '.join(origin.suites)} has no {IMAGE}; apt-get update says why: {archive.said}")
        else:
            missing.append(origin.name)
    busybox = directory / "busybox"
    if not busybox.exists():
        archive.unpack([BUSYBOX], busybox)
    (program,) = list(busybox.glob("bin/busybox")) or list(busybox.glob("usr/bin/busybox"))
    return Kernels(tuple(kernels), tuple(missing), str(program))


def _unpacked(archive: Archive, origin: Origin, version: str, directory: Path) -> Kernel:
    place = directory / origin.name
    stamp = place / "version"
    if not stamp.exists() or stamp.read_text() != version:
        print(f"kernels: unpacking {origin.name}'s {version}", flush=True)
        shutil.rmtree(place, ignore_errors=True)
        named = parts(archive.ask("show", f"{IMAGE}={version}"))
        image = next(one for one in named if one.startswith("linux-image-"))
        archive.unpack([image, *parts(archive.ask("show", image))], place)
        if not (place / "lib").exists():
            (place / "lib").symlink_to("usr/lib")
        (modules,) = (place / "lib/modules").iterdir()
        subprocess.run(["depmod", "-b", place, modules.name], check=True)
        stamp.write_text(version)
    (modules,) = (place / "lib/modules").iterdir()
    images = [*place.glob("boot/vmlinuz-*"), *modules.glob("vmlinuz")]
    return Kernel(origin.name, version, modules.name, str(images[0]), str(modules.parent))


class Archive:
    """apt with sources, lists and a cache below one directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.said = ""
        self._options = [
            f"-oDir::Etc::sourcelist={directory}/sources.list", "-oDir::Etc::sourceparts=/dev/null",
            f"-oDir::State={directory}/state", f"-oDir::Cache={directory}/cache", "-oAPT::Sandbox::User=root",
        ]  # fmt: skip

    def update(self) -> None:
        """Lists of all suites that the archive has; that it lacks one is no failure here. Raises NoKernels."""
        for part in ("state/lists/partial", "cache/archives/partial"):
            (self._directory / part).mkdir(parents=True, exist_ok=True)
        paths = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
        sources = [one for path in paths if path.is_file() for one in parse_sources(path.read_text(encoding="utf-8"))]
        lines = own_sources(sources, [suite for origin in ORIGINS for suite in origin.suites])
        (self._directory / "sources.list").write_text("".join(f"{line}\n" for line in lines))
        done = self._run("apt-get", "-qq", "update")
        self.said = " ".join(done.stderr.split())[-300:] or "nothing"

    def ask(self, *words: str) -> str:
        return self._run("apt-cache", *words).stdout

    def unpack(self, packages: Sequence[str], place: Path) -> None:
        """Raises NoKernels."""
        debs = self._directory / "debs"
        shutil.rmtree(debs, ignore_errors=True)
        debs.mkdir()
        done = self._run("apt-get", "-qq", "download", *packages, cwd=debs)
        if done.returncode:
            raise NoKernels(f"{' '.join(packages)} cannot be had: {' '.join(done.stderr.split())[-300:]}")
        place.mkdir(parents=True, exist_ok=True)
        for deb in debs.iterdir():
            subprocess.run(["dpkg-deb", "-x", deb, place], check=True)
        shutil.rmtree(debs)

    def _run(self, program: str, *words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run([program, *self._options, *words], capture_output=True, text=True, check=False, cwd=cwd)
