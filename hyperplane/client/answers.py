"""What the daemon tells about itself, and pages of lists: the client's copies of what the API answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from hyperplane.resources import Page

T = TypeVar("T")


class Listed(Page, Generic[T], frozen=True, kw_only=True):
    """A page whose items are of one class; iterating it gives them."""

    items: tuple[T, ...]

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)
