"""Logs go to standard error: one line of JSON for each event, or for people at a terminal."""

from __future__ import annotations

import logging
import sys
from typing import Final

import structlog
from aiohttp.http_exceptions import HttpProcessingError

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
    logging.basicConfig(handlers=[_Libraries()], level=logging.WARNING, force=True)


class _Libraries(logging.Handler):
    """What libraries say by Python's own logging goes the same way, so that each line of the log is one event."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger()
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):  # the client's fault, and told to it
            log.info("what was sent is no HTTP", error=" ".join(str(error).split())[:200])
        elif record.levelno >= logging.ERROR:
            log.error("a library failed", library=record.name, message=record.getMessage(), exc_info=error)
        else:
            log.warning("a library warned", library=record.name, message=record.getMessage())
