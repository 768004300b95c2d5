"""Which namespaces a caller of the API may start environments in, and which may be a VPC's.

Root may give any. A member of the daemon's group may give those in which it could make devices itself: the network
namespace belongs to a user namespace that its user owns (user_namespaces(7)), as `unshare --user --net` makes them, by
name or as `pid:N` of a process of its own user. So nobody gets the daemon to set routes in the host's namespace or in
another user's. A path is not opened for it: that alone could have effects. Fresh namespaces and descriptors are
anybody's.

A VPC of such a member is a namespace with a name (ip-netns(8)): somebody with privileges has named it. Paths and
processes would lead into the host's own namespace, where the ENI's device and routes would be made.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from posixpath import normpath
from typing import Final

from hyperplane.api.service import Peer
from hyperplane.errors import AccessDenied, InvalidValue, NamespaceNotFound
from hyperplane.linux.namespaces import Namespace, owner_of

# What proc(5) shows to each process of itself, and the links to it in /dev.
OWN_VIEW: Final = re.compile(r"/?(/proc/(?:thread-)?self|/dev/(?:fd|stdin|stdout|stderr))(?:/|$)")
PROCESS: Final = re.compile(r"(?:pid:|/proc/)(\d{1,9})(?:/ns/net)?")


def check_target(target: str, peer: Peer) -> Callable[[Namespace], None] | None:
    """What can be said before the namespace is opened; what is returned checks the open one (None: all is well).

    Raises AccessDenied, InvalidValue, NamespaceNotFound.
    """
    if target.startswith("fd:"):
        remedy = "send the descriptor of a TUN over descriptors.sock, or give pid:N"
        raise InvalidValue("fd:N is a descriptor of the daemon", resource=target, remedy=remedy, field="namespace")
    _check_self(target, "namespace")
    if peer.uid == 0:
        return None
    match = PROCESS.fullmatch(target)
    if match is None and "/" in target:
        remedy = "give pid:N, a name, or let the daemon make a fresh one"
        raise AccessDenied("only root may give paths", resource=target, remedy=remedy, field="namespace")
    process = int(match[1]) if match else 0
    if process:
        _check_process(process, peer)

    def check(namespace: Namespace) -> None:
        try:
            owner = owner_of(namespace.fd)
        except OSError:
            owner = -1
        if peer.uid < 0 or owner != peer.uid:
            message = f"namespace {namespace.name} is not of user {peer.uid}"
            remedy = "give one in a user namespace of that user (unshare --user --net), or ask as root"
            raise AccessDenied(message, resource=namespace.name, remedy=remedy, field="namespace")
        if process:
            _check_process(process, peer)  # the number may have gone to another one meanwhile

    return check


def check_vpc(target: str, peer: Peer, *, field: str = "namespace") -> None:
    """Raises AccessDenied, InvalidValue."""
    if target.startswith("fd:"):
        raise InvalidValue("fd:N is a descriptor of the daemon", resource=target, remedy="give a name", field=field)
    _check_self(target, field)
    if peer.uid != 0 and ("/" in target or target.startswith("pid:")):
        message = f"only root may give {target} as a VPC's namespace"
        remedy = "give one by its name (`ip netns list` shows them), or ask as root"
        raise AccessDenied(message, resource=target, remedy=remedy, field=field)


def _check_self(target: str, field: str) -> None:
    if match := OWN_VIEW.match(normpath(target)):
        remedy = "give the number of your own process: pid:N, or /proc/N/..."
        raise InvalidValue(f"{match[1]} is the daemon's own", resource=target, remedy=remedy, field=field)


def _check_process(process: int, peer: Peer) -> None:
    name = f"pid:{process}"
    try:
        with open(f"/proc/{process}/status", encoding="ascii", errors="replace") as file:
            line = next((line for line in file if line.startswith("Uid:")), "")
    except OSError:
        remedy = "give the pid of a running process"
        raise NamespaceNotFound(f"no process {process}", resource=name, remedy=remedy, field="namespace") from None
    if any(int(uid) != peer.uid for uid in line.split()[1:]) or not line:
        message = f"process {process} is not of user {peer.uid}"
        remedy = "give a process of your own, or ask as root"
        raise AccessDenied(message, resource=name, remedy=remedy, field="namespace")
