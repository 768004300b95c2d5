"""Errors that a user can act on: what failed, which resource, which limit, what to do. `str()` of each is one line."""

from __future__ import annotations


class HyperplaneError(Exception):
    """The base of every error that this package raises on purpose.

    message: what failed. resource: on what (a name, an address, a device). limit: which limit was met, with its value.
    remedy: what to do, in the imperative. All but message may be empty; whatever the message does not say already is
    put around it by `str()`.
    """

    def __init__(self, message: str, *, resource: str = "", limit: str = "", remedy: str = "") -> None:
        super().__init__(message)
        self.message = _line(message)
        self.resource = _line(resource)
        self.limit = _line(limit)
        self.remedy = _line(remedy)

    def __str__(self) -> str:
        text = self.message
        if self.resource and self.resource not in text:
            text = f"{self.resource}: {text}"
        if self.limit and self.limit not in text:
            text += f" (limit: {self.limit})"
        if self.remedy and self.remedy not in text:
            text += f"; {self.remedy}"
        return text


class InvalidValue(HyperplaneError, ValueError):
    """A value that cannot be right, wherever it is used; nothing was done."""


class EngineError(HyperplaneError):
    """The engine refused: a limit that was fixed at its start, or it is closed."""


class NamespaceNotFound(HyperplaneError):
    """No network namespace by that name, path, pid or descriptor, or it is none."""


class DeviceError(HyperplaneError):
    """The kernel refused something about a device, an address or a route."""


class NotATunnel(DeviceError):
    """A descriptor that is no TUN with a virtio_net_hdr."""


class AddressInUse(HyperplaneError):
    """The address belongs to something else already; the message says to what."""


class PermissionMissing(HyperplaneError):
    """The process lacks a privilege or a device node; the remedy says which."""


def _line(text: str) -> str:
    return " ".join(str(text).split())
