"""The calls of the API as data: what is sent, and how the answer is read. Both clients only carry them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Generic, TypeVar, cast
from urllib.parse import quote, urlencode

import msgspec

from hyperplane.client.answers import Listed
from hyperplane.client.failures import VERSION, VERSION_HEADER, check_version, raised
from hyperplane.codec import from_text, to_json
from hyperplane.errors import HyperplaneError, InvalidValue
from hyperplane.resources import ApplyRequest, Document, Health

BASE: Final = "/v1"
MOST: Final = 1000  # items on a page
HEADERS: Final = {VERSION_HEADER: VERSION, "Accept": "application/json"}
WITH_BODY: Final = {**HEADERS, "Content-Type": "application/json"}
T = TypeVar("T")


class Call(msgspec.Struct, Generic[T], frozen=True):
    """One request. target: path and query. answer: what the body holds: a struct, None for nothing, bytes as it is.

    accepted: statuses of success beside those below 400.
    """

    method: str
    target: str
    answer: Any
    body: bytes | None = None
    accepted: tuple[int, ...] = ()
    headers: Mapping[str, str] = msgspec.field(default_factory=lambda: HEADERS)

    def read(self, status: int, version: str | None, body: bytes) -> T:
        """Raises what the daemon raised, or ProtocolMismatch."""
        if status >= 400 and status not in self.accepted:
            error = raised(status, body)
            if type(error) is HyperplaneError:  # nothing that this version knows
                check_version(version)
            raise error
        check_version(version)
        if self.answer is None:
            return cast(T, None)
        if self.answer is bytes:
            return cast(T, body)
        try:
            return cast(T, msgspec.json.decode(body, type=self.answer, dec_hook=from_text))
        except msgspec.MsgspecError as error:
            raise HyperplaneError(f"the daemon's answer cannot be read: {error}", resource=self.target) from None


def get(path: str, answer: type[T], **query: Any) -> Call[T]:
    return Call("GET", _target(path, query), answer)


def text(path: str) -> Call[bytes]:
    return Call("GET", _target(path, {}), bytes)


def page(path: str, item: type[T], filters: Mapping[str, Any], limit: int | None, token: str) -> Call[Listed[T]]:
    query = {**filters, "limit": limit, "next_token": token}
    return Call("GET", _target(path, query), Listed[item])  # type: ignore[valid-type]


def post(path: str, answer: type[T], body: Any = None) -> Call[T]:
    return Call("POST", _target(path, {}), answer, *_content(body))


def put(path: str, answer: type[T], body: Any) -> Call[T]:
    return Call("PUT", _target(path, {}), answer, *_content(body))


def delete(path: str, answer: type[T] | None, **query: Any) -> Call[T]:
    return Call("DELETE", _target(path, query), answer)


def one(collection: str, ref: str | int) -> str:
    """The path of one member. A reference may hold anything: it stays one part of the path. Raises InvalidValue."""
    if ref == "":
        raise InvalidValue("the reference is empty", resource=collection, remedy="give an id or a name", field="ref")
    return f"{collection}/{quote(str(ref), safe='')}"


def application(document: Document | ApplyRequest, *, dry_run: bool, prune: bool) -> ApplyRequest:
    if isinstance(document, ApplyRequest):
        return document
    return ApplyRequest(document=document, dry_run=dry_run, prune=prune)


def _content(body: Any) -> tuple[bytes | None, tuple[int, ...], Mapping[str, str]]:
    return (None, (), HEADERS) if body is None else (to_json(body), (), WITH_BODY)


def _target(path: str, query: dict[str, Any]) -> str:
    given = {name: value for name, value in query.items() if value is not None and value != ""}
    return f"{BASE}{path}?{urlencode(given)}" if given else f"{BASE}{path}"


HEALTH: Final[Call[Health]] = Call("GET", f"{BASE}/healthz", Health, accepted=(503,))
