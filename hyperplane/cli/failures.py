"""Exit codes, and which error has which. docs/cli.md lists them: they stay."""

from __future__ import annotations

from typing import Final

from hyperplane.errors import (
    DaemonUnavailable,
    DependencyViolation,
    FunctionNotActive,
    HyperplaneError,
    IdempotentParameterMismatch,
    InvalidSecurityGroup,
    InvalidSubnet,
    InvalidValue,
    InvalidVpc,
    ResourceConflict,
    ResourceNotFound,
)

FAILED: Final = 1
INVALID: Final = 2  # wrong usage too: click's own
UNAVAILABLE: Final = 3
NOT_FOUND: Final = 4
CONFLICT: Final = 5
CODES: Final[tuple[tuple[type[HyperplaneError], int], ...]] = (
    (DaemonUnavailable, UNAVAILABLE),
    (ResourceNotFound, NOT_FOUND),
    (ResourceConflict, CONFLICT),
    (DependencyViolation, CONFLICT),
    (IdempotentParameterMismatch, CONFLICT),
    (FunctionNotActive, CONFLICT),
    (InvalidValue, INVALID),
    (InvalidVpc, INVALID),
    (InvalidSubnet, INVALID),
    (InvalidSecurityGroup, INVALID),
)


class DocumentError(HyperplaneError):
    """An error in a file: `FILE:LINE: message`, as editors read it. cause: what it is without the place."""

    def __init__(self, text: str, cause: HyperplaneError | None = None) -> None:
        super().__init__(text)
        self.cause = cause or InvalidValue(text)


class RunFailed(HyperplaneError):
    """`run` itself failed; code: 125, or what a signal gives."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code


def exit_code(error: HyperplaneError) -> int:
    if isinstance(error, RunFailed):
        return error.code
    if isinstance(error, DocumentError):
        error = error.cause
    return next((code for kind, code in CODES if isinstance(error, kind)), FAILED)
