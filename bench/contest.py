"""Who is measured with whom: ours and its rivals stand ready all the time, and each load runs over one after the other,
so that whatever else the machine does meanwhile meets all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from bench.lab import Lab
from bench.rivals import Rival

T = TypeVar("T")


def in_turns(rounds: int, ours: Callable[[], T], theirs: Callable[[], T]) -> tuple[list[T], list[T]]:
    """What both returned; who begins changes from round to round."""
    values: tuple[list[T], list[T]] = ([], [])
    for turn in range(rounds):
        for place in (0, 1) if turn % 2 else (1, 0):
            values[place].append((ours, theirs)[place]())
    return values


@dataclass(frozen=True)
class Pairs(Generic[T]):
    """What a load returned over us and over a rival right before or after."""

    rival: Rival
    ours: list[T]
    theirs: list[T]


@dataclass(frozen=True)
class Contest:
    """how: what figures' names say about ours besides, "" when it runs as it does by default."""

    lab: Lab
    ours: Rival
    rivals: Sequence[Rival]
    rounds: int
    how: str = ""

    def run(self, load: Callable[[Lab, Rival], T], *, times: int = 1) -> list[Pairs[T]]:
        """times: as many rounds for each, where turns are short.

        Rivals go in twos with ours between them, and in the next round the other way round: every rival is a
        neighbour of ours, as often before it as after it."""
        results: dict[str, Pairs[T]] = {rival.name: Pairs(rival, [], []) for rival in self.rivals}
        for turn in range(self.rounds * times):
            for two in self._twos():
                order = [*two[:1], self.ours, *two[1:]]
                values = {one.name: load(self.lab, one) for one in (order if turn % 2 == 0 else reversed(order))}
                for rival in two:
                    results[rival.name].ours.append(values[self.ours.name])
                    results[rival.name].theirs.append(values[rival.name])
        return list(results.values())

    def _twos(self) -> Iterator[Sequence[Rival]]:
        for first in range(0, len(self.rivals), 2):
            yield self.rivals[first : first + 2]
