"""What stands behind the `?` of a request: read strictly, by the schemas that the OpenAPI document shows."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import web

from hyperplane.api.routes import Parameter, Schema
from hyperplane.errors import InvalidValue

_INTEGER: Final = re.compile(r"[0-9]{1,20}", re.ASCII)
_NUMBER: Final = re.compile(r"[0-9]{1,20}(\.[0-9]{1,20})?", re.ASCII)
_NOTHING: Final[Mapping[str, Any]] = {}


def read(request: web.Request, known: Mapping[str, Parameter]) -> Mapping[str, Any]:
    """The parameters that were given: integers and numbers as such, the rest as text. Raises InvalidValue."""
    if not request.rel_url.raw_query_string:
        return _NOTHING
    values: dict[str, Any] = {}
    for name, text in request.query.items():
        parameter = known.get(name)
        if parameter is None:
            raise InvalidValue(f"unknown query parameter {name}", resource=name, remedy=_allowed(known), field=name)
        if name in values:
            raise InvalidValue(f"{name} is given twice", resource=name, remedy="give it once", field=name)
        values[name] = _value(name, text, parameter.schema)
    return values


def _value(name: str, text: str, schema: Schema) -> Any:
    kind = schema["type"]
    if kind == "integer":
        return _bounded(name, text, int(text) if _INTEGER.fullmatch(text) else math.nan, schema)
    if kind == "number":
        return _bounded(name, text, float(text) if _NUMBER.fullmatch(text) else math.nan, schema)
    choices = schema.get("enum")
    if choices is not None and text not in choices:
        limit = f"one of {', '.join(choices)}"
        raise InvalidValue(f"{name} is {text!r}", resource=name, limit=limit, field=name)
    if not text:
        raise InvalidValue(f"{name} is empty", resource=name, remedy="give a value or leave it out", field=name)
    return text


def _bounded(name: str, text: str, number: float, schema: Schema) -> float:
    low, high = schema["minimum"], schema.get("maximum", 2**63 - 1)
    if not low <= number <= high:
        message = f"{name} is {text!r}"
        limit = f"{'a whole' if schema['type'] == 'integer' else 'a'} number from {low} to {high}"
        raise InvalidValue(message, resource=name, limit=limit, field=name)
    return number


def _allowed(known: Mapping[str, Parameter]) -> str:
    return f"allowed here: {', '.join(known)}" if known else "none is allowed here"
