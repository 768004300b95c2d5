"""/etc/netns/NAME/resolv.conf: what a command under `ip netns exec NAME` finds as its /etc/resolv.conf (ip-netns(8)).

Only files that begin with our words are replaced and removed: others are the user's.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Final

NETNS_ETC_DIR: Final = "/etc/netns"
OURS: Final = "# by hyperplane-nat: the resolvers (dns) of the VPC"


def write_resolvers(name: str, dns: Iterable[IPv4Address]) -> None:
    """Makes the file of a named namespace, or brings it up to date; without resolvers it is removed. Raises OSError."""
    lines = [OURS, *(f"nameserver {address}" for address in dns)]
    if len(lines) == 1:
        return remove_resolvers(name)
    text = "\n".join(lines) + "\n"
    path = _path(name)
    present = _read(path)
    if present == text or not (present is None or present.startswith(OURS)):
        return None
    for directory in (NETNS_ETC_DIR, os.path.dirname(path)):
        with suppress(FileExistsError):
            os.mkdir(directory)
            os.chmod(directory, 0o755)  # whatever the umask is: the command's user reads it
    with open(f"{path}.new", "w", encoding="ascii") as file:
        file.write(text)
        os.fchmod(file.fileno(), 0o644)
    os.replace(f"{path}.new", path)
    return None


def remove_resolvers(name: str) -> None:
    """Nothing where there is none, or another's. Raises OSError."""
    path = _path(name)
    present = _read(path)
    if present is not None and not present.startswith(OURS):
        return
    with suppress(FileNotFoundError):
        os.unlink(path)
    with suppress(OSError):  # not there, or something else is in it
        os.rmdir(os.path.dirname(path))


def names_with_resolvers(pattern: re.Pattern[str]) -> list[str]:
    """The names with a directory in /etc/netns that match as a whole."""
    with suppress(OSError):
        return [name for name in os.listdir(NETNS_ETC_DIR) if pattern.fullmatch(name)]
    return []


def _path(name: str) -> str:
    return f"{NETNS_ETC_DIR}/{name}/resolv.conf"


def _read(path: str) -> str | None:
    with suppress(FileNotFoundError), open(path, encoding="utf-8", errors="replace") as file:
        return file.read()
    return None
