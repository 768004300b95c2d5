"""The initramfs of a guest: busybox, the modules that its root file system needs, and init.sh.

The format is the kernel's (Documentation/driver-api/early-userspace/buffer-format.rst), "newc".
"""

from __future__ import annotations

import gzip
import lzma
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

# What an initramfs of this project is for: the machine's root over 9p, and an overlay in memory upon it.
NEEDED: Final = ("virtio_pci", "9pnet_virtio", "9p", "overlay")
DIRECTORIES: Final = ("bin", "modules", "proc", "sys", "dev", "lower", "upper", "root")


def build(modules: Path, busybox: Path, words: Mapping[str, str]) -> bytes:
    """modules: of one release, with modules.dep. words: what init.sh is told, as files of these names in /."""
    entries: list[tuple[str, int, bytes]] = [(name, stat.S_IFDIR | 0o755, b"") for name in DIRECTORIES]
    entries.append(("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes()))
    entries.append(("init", stat.S_IFREG | 0o755, (Path(__file__).parent / "init.sh").read_bytes()))
    order = in_order((modules / "modules.dep").read_text(encoding="ascii"), NEEDED)
    names = []
    for path in order:
        data = (modules / path).read_bytes()
        if path.endswith(".xz"):
            data = lzma.decompress(data)
        names.append(f"/modules/{Path(path).name.removesuffix('.xz')}")
        entries.append((names[-1][1:], stat.S_IFREG | 0o644, data))
    given = {**words, "order": "\n".join(names)}
    entries += [(name, stat.S_IFREG | 0o644, f"{text}\n".encode()) for name, text in given.items()]
    return gzip.compress(archive(entries), compresslevel=1)


def in_order(dependencies: str, wanted: Iterable[str]) -> list[str]:
    """The modules' files, each after those that it needs. One that is built in has no file: depmod(8), modules.dep."""
    needs = {path: words.split() for path, _, words in (line.partition(":") for line in dependencies.splitlines())}
    files = {Path(path).name.partition(".ko")[0]: path for path in needs}
    found: list[str] = []

    def add(path: str) -> None:
        for one in reversed(needs[path]):
            add(one)
        if path not in found:
            found.append(path)

    for name in wanted:
        if name in files:
            add(files[name])
    return found


def archive(entries: Iterable[tuple[str, int, bytes]]) -> bytes:
    """(path, mode, content) as a cpio archive."""
    data = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], start=1):
        # inode, mode, uid, gid, links, mtime, size, device (2), special device (2), length of the name, checksum
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        data += b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        data += bytes(-len(data) % 4)
        data += content
        data += bytes(-len(data) % 4)
    return bytes(data)
