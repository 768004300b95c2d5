"""Pages of lists. A token holds where the page before ended, so pages stay right while things come and go."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import msgspec

from hyperplane.errors import InvalidValue
from hyperplane.resources import Page, Resource


def of_resources(items: Sequence[Resource], limit: int, token: str) -> Page:
    """items: sorted by (created, id). Raises InvalidValue for a token that was not given here."""
    start = bisect_right(items, _read(token, tuple[float, str]), key=_place) if token else 0
    shown = tuple(items[start : start + limit])
    more = start + limit < len(items)
    return Page(items=shown, next_token=_write(_place(shown[-1])) if more else "")


def place(token: str, start: int) -> int:
    """Where a list that goes by numbers begins. Raises InvalidValue."""
    return int(_read(token, int)) if token else start


def of_numbers(items: Sequence[Any], limit: int, key: Any) -> Page:
    """items: one more than limit, if there are. key: an item's number."""
    shown = tuple(items[:limit])
    return Page(items=shown, next_token=_write(key(shown[-1])) if len(items) > limit else "")


def _place(item: Resource) -> tuple[float, str]:
    return item.created, item.id


def _write(value: object) -> str:
    return urlsafe_b64encode(msgspec.json.encode(value)).rstrip(b"=").decode()


def _read(token: str, kind: Any) -> Any:
    try:
        data = urlsafe_b64decode(token + "=" * (-len(token) % 4))
        return msgspec.json.decode(data, type=kind)
    except (ValueError, msgspec.MsgspecError):
        remedy = "give the next_token of the page before, or none"
        raise InvalidValue(
            f"next_token {token!r} is not one", resource="next_token", remedy=remedy, field="next_token"
        ) from None
