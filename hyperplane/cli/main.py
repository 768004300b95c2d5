"""The entry of `hyperplane-nat`: what comes before and after a command. Errors become one line and an exit code.

0: it did what it was asked, or was ended by a signal while it worked as asked. 128 + N: signal N ended it before it was
ready. The others are in failures.py.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
from typing import NoReturn

from hyperplane.cli import signals

PROGRAM = "hyperplane-nat"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a file says that takes no more


def main() -> NoReturn:
    """The console script. All else is imported once signals are taken care of."""
    signals.catch()
    _open_streams()
    # Shows flows once `nat` runs; until then it must not end the program, which is what it does by default.
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        status = _run(sys.argv[1:])
    except signals.Interrupted as interrupted:
        text = f"ended by {interrupted.name} before it was done; everything it had made is removed again"
        status = say(text, 128 + interrupted.number)
    except BrokenPipeError:
        # Whoever read the output is gone. Python would flush it once more at its end, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    finally:
        signals.ignore()  # Python would set them back to the default, with which the exit code is lost
    if "asyncio" not in sys.modules:
        # No thread, loop or device is left. What Python does at its end takes as long as a request.
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def _run(arguments: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal without UTF-8 shows "?" for an arrow

    import click

    from hyperplane.cli.commands import group
    from hyperplane.cli.failures import DocumentError, exit_code
    from hyperplane.errors import HyperplaneError

    try:
        status = int(group.main(arguments, prog_name=PROGRAM, standalone_mode=False) or 0)
        sys.stdout.flush()
        return status
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        return say(_usage(error.format_message(), context.command_path if context else PROGRAM), error.exit_code)
    except DocumentError as error:
        print(error, file=sys.stderr, flush=True)
        return exit_code(error)
    except HyperplaneError as error:
        return say(str(error), exit_code(error))
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno not in FULL or error.filename:
            return _unexpected(error)
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end
        return say(f"standard output cannot be written: {error.strerror}", 1)
    except Exception as error:
        return _unexpected(error)


def _unexpected(error: Exception) -> int:
    """Of an error that is the program's own. Raises it where its place is asked for."""
    if os.environ.get("HYPERPLANE_DEBUG"):
        raise error
    text = f"{type(error).__name__}: {error}"
    return say(f"unexpected {text}; HYPERPLANE_DEBUG=1 shows where: please report it with that", 1)


def _open_streams() -> None:
    """What was closed leads nowhere: else the first file or socket that is opened would have its number."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - until the end


def say(text: str, status: int) -> int:
    """One line on standard error."""
    print(f"{PROGRAM}: {' '.join(text.split())}", file=sys.stderr, flush=True)
    return status


def _usage(problem: str, command: str) -> str:
    problem = " ".join(problem.split()).rstrip(".")
    if "unexpected extra argument" in problem:
        problem += ": repeat an option for each value, and put a value with a blank into quotes"
    return f"{problem}; see {command} --help"
