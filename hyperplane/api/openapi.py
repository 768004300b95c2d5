"""The OpenAPI 3.1 document, made from the table of routes and the structs that the API reads and writes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from hyperplane import __version__
from hyperplane.api.routes import BASE, JSON, ROUTES, VERSION, VERSION_HEADER, Parameter, Route
from hyperplane.api.schemas import REF, components
from hyperplane.errors import HyperplaneError, InvalidValue
from hyperplane.resources import Problem

_INTRODUCTION: Final = f"""\
The daemon's API, on the stream socket `api.sock` in its run directory; there is no authentication but the socket's
permissions. Every answer that is an error has a `Problem` as its body; its `error` says what to do by name.
Creations are idempotent: repeating one, by name and content or by `client_token`, answers 200 with what is there.
A client may say which version of the protocol it speaks ({VERSION_HEADER}: {VERSION}); another one is refused.\
"""


def document() -> bytes:
    """The document as JSON."""
    used = {kind: None for route in ROUTES for kind in (route.body, route.answer) if kind is not None}
    schemas = components([*used, Problem])
    for route in ROUTES:
        if route.paged:
            schemas[_page_name(route.answer)] = _page(route.answer)
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(BASE + route.path, {})[route.method.lower()] = _operation(route)
    tags = dict.fromkeys(route.tag for route in ROUTES)
    whole = {
        "openapi": "3.1.0",
        "info": {"title": "hyperplane-nat", "version": __version__, "description": _INTRODUCTION},
        "tags": [{"name": tag} for tag in tags],
        "paths": paths,
        "components": {"schemas": schemas},
    }
    return msgspec.json.encode(whole)


def _operation(route: Route) -> dict[str, Any]:
    made: dict[str, Any] = {"operationId": route.name, "summary": route.summary, "tags": [route.tag]}
    parameters = [*_of_path(route.path), *map(_of_query, route.query)]
    if parameters:
        made["parameters"] = parameters
    if route.body is not None:
        made["requestBody"] = {"required": not route.body_optional, "content": _json(_ref(route.body.__name__))}
    made["responses"] = _responses(route)
    return made


def _responses(route: Route) -> dict[str, Any]:
    success = _success(route)
    made: dict[str, Any] = {str(route.status): {**success, "description": "Done."}}
    if route.created:
        made["201"]["description"] = "Created."
        made["200"] = {**success, "description": "An equal one existed: this one."}
    for status in route.also:
        made[str(status)] = {**success, "description": "Something does not work."}
    for status, classes in _by_status([InvalidValue, *route.raises]).items():
        if str(status) not in made:
            text = " ".join(f"{kind.__name__}: {_first_line(kind)}" for kind in classes)
            made[str(status)] = {"description": text, "content": _json(_ref("Problem"))}
    made["default"] = {"description": "Any other error.", "content": _json(_ref("Problem"))}
    return made


def _success(route: Route) -> dict[str, Any]:
    if route.answer is not None:
        return {"content": _json(_ref(_page_name(route.answer) if route.paged else route.answer.__name__))}
    if route.media != JSON:
        return {"content": {route.media: {"schema": {"type": "string"}}}}
    return {"content": _json({"type": "object"})} if route.status == 200 else {}


def _by_status(classes: Iterable[type[HyperplaneError]]) -> Mapping[int, list[type[HyperplaneError]]]:
    made: dict[int, list[type[HyperplaneError]]] = {}
    for kind in dict.fromkeys(classes):
        made.setdefault(kind.status, []).append(kind)
    return dict(sorted(made.items()))


def _first_line(kind: type) -> str:
    return (kind.__doc__ or "").partition("\n")[0]


def _of_path(path: str) -> list[dict[str, Any]]:
    described = {
        "ref": ("An id, or a name within the account.", {"type": "string", "minLength": 1}),
        "id": ("The flow's id.", {"type": "integer", "minimum": 0}),
    }
    return [
        {"name": name, "in": "path", "required": True, "description": described[name][0], "schema": described[name][1]}
        for name in re.findall(r"\{(\w+)\}", path)
    ]


def _of_query(parameter: Parameter) -> dict[str, Any]:
    return {"name": parameter.name, "in": "query", "description": parameter.description, "schema": parameter.schema}


def _page_name(item: type) -> str:
    return f"{item.__name__}Page"


def _page(item: type) -> dict[str, Any]:
    return {
        "title": _page_name(item),
        "description": "One page of a list.",
        "type": "object",
        "properties": {
            "items": {"type": "array", "items": _ref(item.__name__)},
            "next_token": {"type": "string", "default": "", "description": "Empty on the last page."},
        },
        "required": ["items", "next_token"],
    }


def _ref(name: str) -> dict[str, str]:
    return {"$ref": REF.format(name=name)}


def _json(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {JSON: {"schema": schema}}
