"""Answers: values as JSON, and every error as a Problem."""

from __future__ import annotations

import secrets
from typing import Any, Final

import structlog
from aiohttp import web

from hyperplane import __version__
from hyperplane.api.routes import JSON, VERSION, VERSION_HEADER
from hyperplane.codec import to_json
from hyperplane.errors import HyperplaneError, ProtocolMismatch
from hyperplane.resources import Problem

LOG: Final = structlog.get_logger("hyperplane.api")
PLAIN_HEADERS: Final = {VERSION_HEADER: VERSION, "Server": f"hyperplane-nat/{__version__}"}
HEADERS: Final = {**PLAIN_HEADERS, "Content-Type": JSON}


def answer(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=to_json(value), status=status, headers=HEADERS)


def text(body: bytes, content_type: str) -> web.Response:
    return web.Response(body=body, headers={**HEADERS, "Content-Type": content_type})


def nothing() -> web.Response:
    return web.Response(status=204, headers=PLAIN_HEADERS)


def refusal(error: HyperplaneError, status: int = 0) -> web.Response:
    """status: instead of the error's own."""
    problem = Problem(
        error=type(error).__name__,
        message=printable(error.message),
        resource=printable(error.resource),
        limit=printable(error.limit),
        remedy=printable(error.remedy),
        field=printable(error.field),
    )
    return answer(problem, status or error.status)


def failure(request: web.Request) -> web.Response:
    """For an exception that nobody foresaw: the log has it, the answer only where to find it there."""
    number = secrets.token_hex(6)
    LOG.exception("request failed", id=number, method=request.method, path=printable(request.path))
    problem = Problem(
        error="InternalError",
        message=f"the daemon failed; nothing more is known here. Its log has the details under {number}",
        resource=number,
        remedy=f"look for {number} in the daemon's log",
    )
    return answer(problem, 500)


def mismatch(theirs: str) -> web.Response:
    error = ProtocolMismatch(
        f"client and daemon speak different versions: {theirs} and {VERSION}",
        resource=VERSION_HEADER,
        limit=f"version {VERSION}",
        remedy=f"use the client of hyperplane-nat {__version__}",
    )
    return refusal(error, 400)


def printable(words: str) -> str:
    """Without what UTF-8 cannot hold: a path may have brought it."""
    return words.encode("utf-8", "replace").decode()
