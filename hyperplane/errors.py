"""Errors that a user can act on: what failed, which resource, which limit, what to do. `str()` of each is one line."""

from __future__ import annotations

from typing import ClassVar


class HyperplaneError(Exception):
    """The base of every error that this package raises on purpose.

    message: what failed. resource: on what (a name, an address, a device). limit: which limit was met, with its value.
    remedy: what to do, in the imperative. field: of the request or document that is to blame, such as `subnet[1].cidr`.
    All but message may be empty; whatever of the first four the message does not say already is put around it by
    `str()`. Over HTTP the class's name is the `error`, and `status` the response's.
    """

    status: ClassVar[int] = 500

    def __init__(self, message: str, *, resource: str = "", limit: str = "", remedy: str = "", field: str = "") -> None:
        super().__init__(message)
        self.message = _line(message)
        self.resource = _line(resource)
        self.limit = _line(limit)
        self.remedy = _line(remedy)
        self.field = _line(field)

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

    status = 400


class EngineError(HyperplaneError):
    """The engine refused: a limit that was fixed at its start, or it is closed."""

    status = 503


class NamespaceNotFound(HyperplaneError):
    """No network namespace by that name, path, pid or descriptor, or it is none."""

    status = 400


class DeviceError(HyperplaneError):
    """The kernel refused something about a device, an address or a route."""


class DeviceExists(DeviceError):
    """A device, a route or a namespace of that name is there already."""

    status = 409


class NotATunnel(DeviceError):
    """A descriptor that is no TUN with a virtio_net_hdr."""

    status = 400


class AddressInUse(HyperplaneError):
    """The address belongs to something else already; the message says to what."""

    status = 409


class PermissionMissing(HyperplaneError):
    """The process lacks a privilege or a device node; the remedy says which."""


# Of the control plane. Names are those of the AWS APIs where there is one.


class ResourceNotFound(HyperplaneError):
    """No resource by that id or name in the account."""

    status = 404


class ResourceConflict(HyperplaneError):
    """A resource of that name exists with other content, or it is in a state that does not allow this."""

    status = 409


class DependencyViolation(HyperplaneError):
    """It is in use; the message names who holds it."""

    status = 409


class IdempotentParameterMismatch(HyperplaneError):
    """The client_token was used before for a request with other content."""

    status = 409


class InvalidVpc(HyperplaneError):
    """A reference to a VPC that does not exist, or whose namespace cannot be used."""

    status = 400


class InvalidSubnet(HyperplaneError):
    """A reference to a subnet that does not exist or is of another VPC, or a range that overlaps another."""

    status = 400


class InvalidSecurityGroup(HyperplaneError):
    """A reference to a security group that does not exist or is of another VPC, or a rule that cannot be read."""

    status = 400


class SubnetOutOfIPAddresses(HyperplaneError):
    """No address of the subnet is left for an ENI."""

    status = 409


class EniNotReady(HyperplaneError):
    """The function's ENI could not be made, or not in time."""

    status = 503


class FunctionNotActive(HyperplaneError):
    """Environments cannot be started for a function in its state; the message says why."""

    status = 409


class AccessDenied(HyperplaneError):
    """The caller may not do this, as the user that it is."""

    status = 403


class TooManyRequests(HyperplaneError):
    """A bounded queue of the daemon is full: try again later."""

    status = 429


class StoreError(HyperplaneError):
    """The database could not be read or written."""


class DaemonUnavailable(HyperplaneError):
    """Nobody listens on the daemon's socket, or the caller may not connect to it."""

    status = 503


class AlreadyRunning(HyperplaneError):
    """Another process holds the instance."""


class ProtocolMismatch(HyperplaneError):
    """Daemon and engine, or client and daemon, speak different versions of their protocol."""


def _line(text: str) -> str:
    return " ".join(str(text).split())
