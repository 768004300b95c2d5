"""Who sent the descriptors that environments came by, and whether they still run.

The end of a sender ends nothing: a command that hands in a device and exits is one as well, and whoever is in the
namespace goes on. It is shown, for whoever cleans up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress

import structlog

from hyperplane.daemon.ledger import Ledger
from hyperplane.errors import DeviceError
from hyperplane.linux.processes import ProcessWatch, Token, same_process
from hyperplane.resources import Sender

log = structlog.get_logger()


class Senders:
    """Belongs to the event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ledger: Ledger) -> None:
        self._ledger = ledger
        self._watch = ProcessWatch(loop, self._ended)

    def watch(self, environment: str, sender: Sequence[int] | None) -> Sender:
        """sender: as processes.process() gives it, also out of JSON. Whether it runs; "" for None."""
        self.forget(environment)
        if not sender:
            return ""
        with suppress(ProcessLookupError):
            try:
                self._watch.add(environment, sender[0])
            except DeviceError as error:  # no descriptor left
                log.warning("environment cannot be watched", environment=environment, error=str(error))
            if same_process(sender):
                return "running"
            self.forget(environment)
        return "gone"

    def watch_again(self, environment: str) -> None:
        """For one that is attached."""
        sender = self._ledger.control.internals(environment).get("sender")
        if sender:
            self._tell(environment, self.watch(environment, sender))

    def forget(self, environment: str) -> None:
        """Does nothing for one whose sender is not watched."""
        self._watch.remove(environment)

    def close(self) -> None:
        self._watch.close()

    def _ended(self, token: Token, pid: int) -> None:
        log.info("the sender of a descriptor has ended", environment=token, pid=pid)
        self._tell(str(token), "gone")

    def _tell(self, environment: str, sender: Sender) -> None:
        control = self._ledger.control
        current = control.find("environment", environment, None)
        if current is not None and current.sender != sender:
            self._ledger.event(lambda now: control.environment_sender(environment, sender, now))
