"""Writes a Document as TOML, which `apply` reads back as the same Document. Fields with their defaults are left out."""

from __future__ import annotations

import json
import re
from typing import Any, Final

import msgspec

from hyperplane.codec import to_text
from hyperplane.resources import DEFAULT_ACCOUNT, Document

WIDTH: Final = 100  # columns, from which on a list has a line for each element
_BARE: Final = re.compile(r"[A-Za-z0-9_-]+")


def write(document: Document) -> str:
    """One table for each resource, in the order in which they need each other."""
    parts = [] if document.account == DEFAULT_ACCOUNT else [f"account = {_value(document.account)}\n"]
    for kind in Document.__struct_fields__[1:]:
        parts += [_table(kind, resource, document.account) for resource in getattr(document, kind)]
    return "\n".join(parts)


def _table(kind: str, resource: msgspec.Struct, account: str) -> str:
    lines = [f"[[{kind}]]"]
    for name, value in _changed(resource).items():
        if name != "account" or value != account:
            lines.append(_line(name, value))
    return "\n".join(lines) + "\n"


def _changed(struct: msgspec.Struct) -> dict[str, Any]:
    """The fields that have not their default, as what JSON has. account is a default by its document."""
    found: dict[str, Any] = {}
    for field in msgspec.structs.fields(struct):
        value = getattr(struct, field.name)
        if value is None or (not field.required and value == field.default and field.name != "account"):
            continue
        nested = isinstance(value, msgspec.Struct)
        found[field.name] = _changed(value) if nested else msgspec.to_builtins(value, enc_hook=to_text)
    return found


def _line(name: str, value: Any) -> str:
    line = f"{name} = {_value(value)}"
    if isinstance(value, tuple) and value and len(line) > WIDTH:
        return "\n".join((f"{name} = [", *(f"  {_value(element)}," for element in value), "]"))
    return line


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # A TOML basic string has JSON's escapes, and refuses DEL besides.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, dict):
        return f"{{ {', '.join(f'{_key(name)} = {_value(element)}' for name, element in value.items())} }}"
    return repr(value)


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _value(name)
