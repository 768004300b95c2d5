"""What others change of ENIs and environments' devices is put right, for `Attachments`; linux.upkeep says when."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from hyperplane.attachment.attachment import Attachment, OpenEni
from hyperplane.errors import HyperplaneError, NamespaceNotFound
from hyperplane.linux.namespaces import NamespaceThreads, open_namespace
from hyperplane.linux.repair import DeviceLost, Difference, Report, check_place, compare, put_right


class Observer:
    """Is told what happens to ENIs and environments without anybody's asking; what does nothing here may be
    overridden. link: the name of the ENI or tunnel. Called in the event loop."""

    def put_right(self, link: str, difference: Difference) -> None:
        """Somebody else had changed that."""

    def troubled(self, link: str, troubles: Sequence[str]) -> None:
        """What is wrong now and cannot be put right; none when all is right again."""


class Keeping:
    """See linux.upkeep.Keeper. lost(token, reason): its device or namespace is gone."""

    def __init__(self, threads: NamespaceThreads, observer: Observer, lost: Callable[[Any, str], None]) -> None:
        self._threads = threads
        self._observer = observer
        self._lost = lost

    async def look(self, token: Any, *, thorough: bool) -> Report:
        work = self._look_at_eni if isinstance(token, OpenEni) else self._look_at_environment
        try:
            report = await asyncio.wrap_future(self._threads.submit(work, token, thorough))
        except DeviceLost as lost:
            self._lost(token, f"device {_device(token)} was {lost.message}")
            return Report()
        except NamespaceNotFound:  # the watch of namespaces tells
            return Report()
        for difference in report.differences:
            self._observer.put_right(_name(token), difference)
        return report

    async def sweep(self, tokens: list[Any]) -> list[Any]:
        attachments: list[Attachment] = tokens
        return await asyncio.wrap_future(self._threads.submit(lambda: [one for one in attachments if self._wrong(one)]))

    def troubled(self, token: Any, troubles: Sequence[str]) -> None:
        self._observer.troubled(_name(token), troubles)

    def disputed(self, token: Any, what: str, pause: float) -> None:
        text = f"somebody else changes {what} again and again; it is put right every {pause:.0f} s"
        self._observer.troubled(_name(token), [text])

    # In threads

    def _look_at_eni(self, opened: OpenEni, thorough: bool) -> Report:
        device = opened.device
        with open_namespace(device.namespace.path or device.namespace.name) as namespace:
            if namespace.key != device.namespace.key:
                raise NamespaceNotFound(f"namespace {namespace.name} is another one", resource=namespace.name)
            with self._threads.inside(namespace.fd):
                return device.put_right(thorough=thorough)

    def _look_at_environment(self, attachment: Attachment, thorough: bool) -> Report:
        made = attachment._made
        if made.shape is None or made.namespace is None:
            return Report()
        with open_namespace(made.namespace.path or made.namespace.name) as namespace:
            check_place(made.fd, made.namespace.key)
            with self._threads.inside(namespace.fd):
                return Report(tuple(put_right(made.fd, made.shape)))

    def _wrong(self, attachment: Attachment) -> bool:
        made = attachment._made
        if made.shape is None or made.namespace is None or attachment._end is not None:
            return False
        try:
            with open_namespace(made.namespace.path or made.namespace.name) as namespace:
                check_place(made.fd, made.namespace.key)
                with self._threads.inside(namespace.fd):
                    return bool(compare(made.fd, made.shape).differences)
        except DeviceLost:
            return True
        except (HyperplaneError, OSError):  # it is going just now
            return False


def _name(token: OpenEni | Attachment) -> str:
    return token.eni.name if isinstance(token, OpenEni) else token.tunnel.name


def _device(token: OpenEni | Attachment) -> str:
    return token.device.device if isinstance(token, OpenEni) else token.device
