"""Logs: every line is one event, whoever says it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from aiohttp.http_exceptions import LineTooLong

from hyperplane.daemon.logs import configure
from hyperplane.errors import InvalidValue


@pytest.fixture(autouse=True)
def undone() -> Iterator[None]:
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    yield
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def events(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "info")
    log = structlog.get_logger()
    log.debug("nobody wants to know")
    log.info("ready", pid=7)
    (event,) = events(capsys)
    assert (event["event"], event["level"], event["pid"]) == ("ready", "info", 7)
    with pytest.raises(InvalidValue, match="log level"):
        configure("json", "loud")


def test_libraries_speak_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "info")
    server = logging.getLogger("aiohttp.server")
    try:
        raise LineTooLong(b"a" * 10_000, 8190)
    except LineTooLong:
        server.exception("Error handling request from %s", "somebody")
    try:
        raise OSError("no descriptor left")
    except OSError:
        server.exception("Unhandled exception")
    logging.getLogger("asyncio").warning("slow: %d ms", 300)
    logging.getLogger("asyncio").info("nobody wants to know")
    garbage, failed, warned = events(capsys)
    assert (garbage["event"], garbage["level"]) == ("what was sent is no HTTP", "info")
    assert "8190" in garbage["error"]
    assert len(garbage["error"]) <= 200
    assert (failed["library"], failed["message"]) == ("aiohttp.server", "Unhandled exception")
    assert failed["exception"][0]["exc_type"] == "OSError"
    assert (warned["event"], warned["message"]) == ("a library warned", "slow: 300 ms")


def test_a_task_that_failed_unseen_is_one_event(capsys: pytest.CaptureFixture[str]) -> None:
    configure("json", "info")
    loop = asyncio.new_event_loop()
    loop.call_exception_handler({"message": "nobody waited for it", "exception": ValueError("why")})
    loop.close()
    (event,) = events(capsys)
    assert event["message"] == "nobody waited for it"
    assert event["exception"][0]["exc_value"] == "why"
