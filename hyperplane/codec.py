"""Values of the model and of the resources as JSON, and back: one reading of it for API, TOML documents and store."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import msgspec

from hyperplane.errors import HyperplaneError, InvalidValue
from hyperplane.model import to_json, to_text

__all__ = ["convert", "from_json", "from_text", "invalid", "to_json", "to_text"]


def from_text(kind: type, value: object) -> Any:
    """msgspec's dec_hook for addresses and networks. Raises ValueError, which msgspec reports with the field's path."""
    if kind in (IPv4Address, IPv4Network):
        if not isinstance(value, str):
            raise ValueError(f"Expected an IPv4 {'address' if kind is IPv4Address else 'network'} as text")
        return kind(value)
    raise NotImplementedError(f"a value of {kind.__name__} has no JSON form")


def from_json(data: bytes | str, kind: type) -> Any:
    """Decodes JSON strictly. Raises InvalidValue whose .resource is the field's path, such as `subnet[1].cidr`."""
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=from_text)
    except msgspec.MsgspecError as error:
        raise invalid(error) from None
    except UnicodeDecodeError:
        raise InvalidValue("the JSON is not UTF-8", resource="body", remedy="send it as UTF-8") from None


def convert(data: Any, kind: type) -> Any:
    """As from_json(), from what tomllib or json gave."""
    try:
        return msgspec.convert(data, type=kind, dec_hook=from_text)
    except msgspec.MsgspecError as error:
        raise invalid(error) from None


def invalid(error: msgspec.MsgspecError) -> HyperplaneError:
    """msgspec's "Expected `int`, got `str` - at `$.subnet[1].mtu`" as InvalidValue with the path as its field."""
    text, _, path = str(error).partition(" - at `$")
    if not path:
        return InvalidValue(text, resource="body", remedy="send the JSON object that /v1/openapi.json describes")
    field = path.rstrip("`").lstrip(".")
    return InvalidValue(f"{field}: {text}", resource=field, field=field)
