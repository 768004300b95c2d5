"""JSON schemas of the structs that the API reads and writes, by msgspec.

msgspec writes defaults into them, and knows no JSON form of an address that is one. So it is shown twins: the same
structs, whose defaults that it cannot write come from a factory. They are put in afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from inspect import cleandoc
from ipaddress import IPv4Address, IPv4Network
from operator import or_
from types import UnionType
from typing import Any, Final, get_args, get_origin

import msgspec

from hyperplane.codec import to_text

REF: Final = "#/components/schemas/{name}"
_OCTET: Final = r"(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_ADDRESS: Final = rf"{_OCTET}(\.{_OCTET}){{3}}"
_SCALARS: Final[dict[type, dict[str, Any]]] = {
    IPv4Address: {"type": "string", "format": "ipv4", "pattern": f"^{_ADDRESS}$", "examples": ["198.19.0.2"]},
    IPv4Network: {"type": "string", "pattern": f"^{_ADDRESS}(/(3[0-2]|[12]?[0-9]))?$", "examples": ["198.19.0.0/24"]},
}
Twins = dict[type, type]


def components(structs: Iterable[type]) -> dict[str, Any]:
    """Schemas of these and of all structs and enumerations in them, by name."""
    twins: Twins = {}
    shown = [_twin(kind, twins) for kind in structs]
    _, made = msgspec.json.schema_components(shown, schema_hook=_SCALARS.__getitem__, ref_template=REF)
    for kind in twins:
        for field in msgspec.structs.fields(kind):
            if field.default is not msgspec.NODEFAULT:
                properties = made[kind.__name__]["properties"]
                properties[field.encode_name]["default"] = msgspec.to_builtins(field.default, enc_hook=to_text)
    return made


def _twin(kind: Any, twins: Twins) -> Any:
    """The same type with twins of the structs in it."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        if kind not in twins:
            twins[kind] = _struct_twin(kind, twins)
        return twins[kind]
    origin, parts = get_origin(kind), [_twin(part, twins) for part in get_args(kind)]
    if origin is UnionType:
        return reduce(or_, parts)
    return origin[tuple(parts)] if origin in (tuple, dict) else kind


def _struct_twin(kind: type[msgspec.Struct], twins: Twins) -> type:
    fields = []
    for field in msgspec.structs.fields(kind):
        if field.required:
            fields.append((field.name, _twin(field.type, twins)))
        else:
            fields.append((field.name, _twin(field.type, twins), msgspec.field(default_factory=_later)))  # type: ignore[arg-type]
    config = kind.__struct_config__
    return msgspec.defstruct(
        kind.__name__,
        fields,
        namespace={"__doc__": cleandoc(kind.__doc__ or "")},
        kw_only=True,
        forbid_unknown_fields=config.forbid_unknown_fields,
    )


def _later() -> Any:
    """A default that is not msgspec's to write."""
