"""A full state of links as messages: each as large as a message can be, the last one says that it is all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from msgspec.structs import replace

from hyperplane.errors import InvalidValue
from hyperplane.ipc import messages
from hyperplane.ipc.messages import Applied, LinkResult, LinkSpec

Item = tuple[LinkSpec, Sequence[int]]  # and its descriptors
Send = Callable[[tuple[LinkSpec, ...], Sequence[int], bool], Applied]  # links, descriptors, whether that is all


ROOM: Final = messages.MOST_BYTES - 1024  # bytes of one message for its links


def send_state(items: Sequence[Item], send: Send) -> dict[str, LinkResult]:
    """In as many messages as it takes; results by id, of links that could not be removed too."""
    results: dict[str, LinkResult] = {}
    parts = list(_parts(items))
    for number, part in enumerate(parts, 1):
        fds = [fd for spec, fds in part if spec.has_fd for fd in fds]
        applied = send(tuple(spec for spec, _ in part), fds, number == len(parts))
        results.update((result.id, result) for result in applied.results)
    return results


def _parts(items: Sequence[Item]) -> Iterator[list[Item]]:
    """At least one, perhaps empty."""
    part: list[Item] = []
    room, places = ROOM, messages.MOST_DESCRIPTORS
    for spec, fds in items:
        size = len(messages.encode(spec))
        if size > room or len(fds) > places or len(part) == messages.MOST_DESCRIPTORS:
            yield part
            part, room, places = [], ROOM, messages.MOST_DESCRIPTORS
        part.append((spec, fds))
        room -= size
        places -= len(fds)
    yield part


def bare(spec: LinkSpec) -> LinkSpec:
    """Without what belongs to one message. Raises InvalidValue for one that fits none."""
    size = len(messages.encode(spec))
    if size > messages.LINK_BYTES:
        limit = f"{messages.LINK_BYTES} bytes"
        remedy = "join rules"
        raise InvalidValue(f"{spec.kind} {spec.name[:80]} is too long to be sent", limit=limit, remedy=remedy)
    return replace(spec, number=None, has_fd=False)


def number_of(applied: Applied) -> int:
    """The number of the last item; raises the first error."""
    for result in applied.results:
        if result.error:
            raise messages.exception(result.error)
    return applied.results[-1].number
