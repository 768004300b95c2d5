"""Hands a descriptor to the daemon (SCM_RIGHTS, unix(7)): one packet there, one back."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

import msgspec

from hyperplane.client.failures import raised, silent, unavailable
from hyperplane.client.places import descriptors_path
from hyperplane.errors import InvalidValue

REQUEST: Final = b"{}"
LONGEST_ANSWER: Final = 65_536


class _Taken(msgspec.Struct, frozen=True):
    descriptor: str


def send(api: Path, fd: int, timeout: float) -> str:
    """Returns the word by which EnvironmentSpec.descriptor names it. api: the path of the API's socket."""
    path = descriptors_path(api)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(timeout)
        try:
            sock.connect(str(path))
        except OSError as error:
            raise unavailable(path, error) from None
        try:
            socket.send_fds(sock, [REQUEST], [fd])
            answer = sock.recv(LONGEST_ANSWER)
        except TimeoutError:
            raise silent(path, timeout) from None
        except ConnectionError:
            raise unavailable(path, None) from None
        except OSError as error:
            remedy = "give the number of an open TUN"
            raise InvalidValue(f"descriptor {fd}: {error.strerror}", resource="descriptor", remedy=remedy) from None
    if not answer:
        raise unavailable(path, None)
    try:
        return msgspec.json.decode(answer, type=_Taken).descriptor
    except msgspec.MsgspecError:
        raise raised(0, answer) from None
