"""The application: one handler per route of the table. No middlewares: they would cost every request.

A request that fits no route ends in the last resource, which tells an unknown path from a wrong method.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from hyperplane.api import queries
from hyperplane.api.answers import LOG, failure, mismatch, refusal
from hyperplane.api.handlers import Handler, Handlers
from hyperplane.api.openapi import document
from hyperplane.api.routes import BASE, ROUTES, VERSION, VERSION_HEADER, Route
from hyperplane.api.service import ServiceProtocol
from hyperplane.errors import HyperplaneError, InvalidValue, ResourceNotFound

MOST_BODY: Final = 8 << 20  # bytes: a document of some 20,000 functions


def make_app(service: ServiceProtocol) -> web.Application:
    """The API over that service. Nothing in it needs a Unix socket; serve() has one."""
    app = web.Application(client_max_size=MOST_BODY)
    handlers = Handlers(service, document())
    for route in ROUTES:
        app.router.add_route(route.method, BASE + route.path, _entry(route, getattr(handlers, route.action)))
    app.router.add_route("*", "/{path:.*}", _unknown)
    return app


def _entry(route: Route, action: Handler) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    known = {parameter.name: parameter for parameter in route.query}

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            version = request.headers.get(VERSION_HEADER, VERSION)
            if version != VERSION:
                return mismatch(version)
            return await action(route, request, queries.read(request, known))
        except HyperplaneError as error:
            if error.status >= 500:
                LOG.warning("request refused", route=route.name, error=type(error).__name__, message=str(error))
            return refusal(error)
        except web.HTTPRequestEntityTooLarge:
            limit = f"{MOST_BODY} bytes"
            return refusal(InvalidValue("the body is too large", resource="body", limit=limit), 413)
        except web.HTTPRequestTimeout:
            return refusal(InvalidValue("the body did not come", resource="body", remedy="send it at once"), 408)
        except (web.RequestPayloadError, ConnectionError) as error:
            return refusal(InvalidValue(f"the body could not be read: {error}", resource="body"), 400)
        except Exception:
            return failure(request)

    return handle


async def _unknown(request: web.Request) -> web.StreamResponse:
    methods = sorted({route.method for route in ROUTES if _fits(route.path, request.path)})
    if not methods:
        message = f"there is no {request.path}"
        remedy = f"GET {BASE}/openapi.json names all paths"
        return refusal(ResourceNotFound(message, resource=request.path, remedy=remedy))
    allowed = ", ".join(methods)
    error = InvalidValue(f"{request.method} does not fit {request.path}", resource=request.method, limit=allowed)
    response = refusal(error, 405)
    response.headers["Allow"] = allowed
    return response


def _fits(pattern: str, path: str) -> bool:
    wanted, given = (BASE + pattern).split("/"), path.split("/")
    return len(wanted) == len(given) and all(
        one == other or (one.startswith("{") and other) for one, other in zip(wanted, given, strict=True)
    )
