"""Logs go to standard error: one line of JSON for each event, or for people at a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Final

import structlog

from hyperplane.daemon.options import LogFormat
from hyperplane.errors import InvalidValue

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


def configure(log_format: LogFormat, level: str) -> None:
    """Raises InvalidValue."""
    if level not in LEVELS:
        raise InvalidValue(f"log level is {level!r}", resource="log level", limit=f"one of {', '.join(LEVELS)}")
    console = log_format == "console" or (log_format == "auto" and sys.stderr.isatty())
    last: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if console
        else [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.StackInfoRenderer(),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
