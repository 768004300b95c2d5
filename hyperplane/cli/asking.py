"""What commands ask the daemon by kind of resource, and what they say when it knows no such resource."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from hyperplane.cli.kinds import BY_NAME, Noun
from hyperplane.errors import HyperplaneError, ResourceNotFound

if TYPE_CHECKING:
    from hyperplane.client import SyncClient

PAGE: Final = 1000  # of a list: the API's most


def method(client: SyncClient, verb: str, noun: str) -> Any:
    """The client's method, such as `create_security_group` or `list_vpcs`."""
    return getattr(client, f"{verb}_{noun.replace('-', '_')}{'s' if verb == 'list' else ''}")


def every(client: SyncClient, noun: str, **filters: Any) -> Iterator[Any]:
    """All items of all pages."""
    token = ""
    while True:
        page = method(client, "list", noun)(limit=PAGE, next_token=token, **filters)
        yield from page.items
        token = page.next_token
        if not token:
            return


def get(client: SyncClient, noun: str, ref: str, account: str) -> Any:
    """Raises ResourceNotFound, which suggests names that are nearly the same."""
    try:
        return method(client, "get", noun)(ref, account=account)
    except ResourceNotFound as error:
        raise suggested(client, noun, ref, account, error) from None


def suggested(client: SyncClient, noun: str, ref: str, account: str, error: ResourceNotFound) -> ResourceNotFound:
    """The same error; its remedy names what may have been meant."""
    from difflib import get_close_matches

    described = BY_NAME[noun]
    names: list[str] = []
    with suppress(HyperplaneError):
        names = [one.name for one in method(client, "list", noun)(account=account, limit=PAGE).items]
    if close := get_close_matches(ref, names, 1):
        message = f"no {described.word} {ref}; did you mean {close[0]}?"
        return ResourceNotFound(message, resource=ref)
    return ResourceNotFound(error.message, resource=error.resource, remedy=error.remedy or see(described))


def see(noun: Noun) -> str:
    return f"`hyperplane-nat {noun.name} list` shows {noun.plural}"


class Names:
    """Names for ids, asked for once for each kind of which one is needed."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client
        self._known: dict[str, dict[str, str]] = {}

    def of(self, noun: str, ref: str) -> str:
        if noun not in self._known:
            self._known[noun] = {one.id: one.name for one in every(self._client, noun)}
        return self._known[noun].get(ref, ref)
