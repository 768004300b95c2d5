"""What each route does: reads the request, calls the service, forms the answer. Errors are app.py's to answer."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from ipaddress import IPv4Network
from typing import Any, Final

from aiohttp import web

from hyperplane.api import pages
from hyperplane.api.answers import answer, nothing, text
from hyperplane.api.metrics import Metrics
from hyperplane.api.routes import LIMIT, MOST_DRAIN, PROMETHEUS, Route
from hyperplane.api.service import FlowQuery, Peer, ServiceProtocol
from hyperplane.codec import from_json
from hyperplane.errors import InvalidValue
from hyperplane.linux.sockets import peer_credentials
from hyperplane.model import Drop, Flow, FlowState
from hyperplane.resources import DEFAULT_ACCOUNT, EndEnvironment

BODY_PATIENCE: Final = 30.0  # seconds until a body has come
_NUMBER: Final = re.compile(r"[0-9]{1,20}", re.ASCII)
Query = Mapping[str, Any]
Handler = Callable[[Route, web.Request, Query], Awaitable[web.Response]]


class Handlers:
    """One method per action of the table of routes."""

    def __init__(self, service: ServiceProtocol, document: bytes) -> None:
        """document: what /openapi.json answers."""
        self._service = service
        self._document = document
        self._metrics = Metrics()

    # Resources

    async def create(self, route: Route, request: web.Request, query: Query) -> web.Response:
        spec = await body(request, route.body)
        resource, created = await self._service.create(route.kind, spec, peer(request))  # type: ignore[arg-type]
        return answer(resource, 201 if created else 200)

    async def get(self, route: Route, request: web.Request, query: Query) -> web.Response:
        assert route.kind
        return answer(await self._service.get(route.kind, request.match_info["ref"], _account(query)))

    async def select(self, route: Route, request: web.Request, query: Query) -> web.Response:
        assert route.kind
        filters = {name: value for name, value in query.items() if name not in ("account", "limit", "next_token")}
        items = await self._service.select(route.kind, query.get("account"), filters)
        return answer(pages.of_resources(items, query.get("limit", LIMIT), query.get("next_token", "")))

    async def update(self, route: Route, request: web.Request, query: Query) -> web.Response:
        spec = await body(request, route.body)
        ref = request.match_info["ref"]
        return answer(await self._service.update(route.kind, ref, spec, peer(request)))  # type: ignore[arg-type]

    async def delete(self, route: Route, request: web.Request, query: Query) -> web.Response:
        await self._service.delete(route.kind, request.match_info["ref"], _account(query))  # type: ignore[arg-type]
        return nothing()

    # Environments

    async def start_environment(self, route: Route, request: web.Request, query: Query) -> web.Response:
        environment, created = await self._service.start_environment(await body(request, route.body), peer(request))
        if created and environment.timings:
            self._metrics.attached(environment.timings)
        return answer(environment, 201 if created else 200)

    async def end_environment(self, route: Route, request: web.Request, query: Query) -> web.Response:
        sent = await body(request, route.body) if request.can_read_body else EndEnvironment()
        drain = query.get("drain", sent.drain)
        if not 0 <= drain <= MOST_DRAIN:
            limit = f"0 to {MOST_DRAIN} seconds"
            raise InvalidValue(f"drain is {drain:g}", resource="drain", limit=limit, field="drain")
        ended = await self._service.end_environment(request.match_info["ref"], _account(query), drain)
        return answer(ended)

    # Documents

    async def apply(self, route: Route, request: web.Request, query: Query) -> web.Response:
        return answer(await self._service.apply(await body(request, route.body), peer(request)))

    async def export(self, route: Route, request: web.Request, query: Query) -> web.Response:
        return answer(await self._service.export(_account(query)))

    # Traffic

    async def flows(self, route: Route, request: web.Request, query: Query) -> web.Response:
        limit = query.get("limit", LIMIT)
        after = pages.place(query.get("next_token", ""), -1)
        state = query.get("state")
        wanted = FlowQuery(
            account=query.get("account", ""),
            environment=query.get("environment", ""),
            function=query.get("function", ""),
            eni=query.get("eni", ""),
            protocol=query.get("protocol"),
            state=FlowState(state) if state else None,
            remote=_network(query["remote"]) if "remote" in query else None,
        )
        return answer(pages.of_numbers(await self._service.flows(wanted, after, limit + 1), limit, _flow_number))

    async def flow(self, route: Route, request: web.Request, query: Query) -> web.Response:
        given = request.match_info["id"]
        if not _NUMBER.fullmatch(given):
            raise InvalidValue(f"flow id is {given!r}", resource="id", limit="a whole number", field="id")
        return answer(await self._service.flow(int(given)))

    async def drops(self, route: Route, request: web.Request, query: Query) -> web.Response:
        limit = query.get("limit", LIMIT)
        links = None
        for kind in ("environment", "eni"):
            if kind in query:
                found = (await self._service.get(kind, query[kind], _account(query))).id
                links = {found} if links is None else links & {found}
        reason = query.get("reason")
        drops = await self._service.drops(pages.place(query.get("next_token", ""), query.get("after", 0)))
        wanted = [
            drop
            for drop in drops
            if (links is None or drop.link in links) and (reason is None or drop.reason == reason)
        ]
        return answer(pages.of_numbers(wanted[: limit + 1], limit, _drop_number))

    # The daemon

    async def reconcile(self, route: Route, request: web.Request, query: Query) -> web.Response:
        return answer(await self._service.reconcile())

    async def health(self, route: Route, request: web.Request, query: Query) -> web.Response:
        health = await self._service.health()
        return answer(health, 200 if health.status == "ok" else 503)

    async def status(self, route: Route, request: web.Request, query: Query) -> web.Response:
        return answer(await self._service.status())

    async def metrics(self, route: Route, request: web.Request, query: Query) -> web.Response:
        return text(self._metrics.exposition(await self._service.measures()), PROMETHEUS)

    async def openapi(self, route: Route, request: web.Request, query: Query) -> web.Response:
        return text(self._document, "application/json")


async def body(request: web.Request, kind: Any) -> Any:
    """The body as that struct. Raises InvalidValue; aiohttp's exceptions for one that does not come or is too large."""
    size, most = request.content_length or 0, request.client_max_size
    if size > most:  # it need not come for that
        raise web.HTTPRequestEntityTooLarge(most, size)
    complete = request.content.is_eof()  # then nothing has to be waited for, and no timer made
    try:
        async with nullcontext() if complete else asyncio.timeout(BODY_PATIENCE):
            data = await request.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout from None
    return from_json(data, kind)


def peer(request: web.Request) -> Peer:
    transport = request.transport
    sock = transport.get_extra_info("socket") if transport else None
    if sock is None or sock.family != socket.AF_UNIX:
        return Peer()
    found = peer_credentials(sock)
    return Peer(found.uid, found.gid, found.pid)


def _account(query: Query) -> str:
    return str(query.get("account", DEFAULT_ACCOUNT))


def _network(words: str) -> IPv4Network:
    try:
        return IPv4Network(words)
    except ValueError as error:
        remedy = "give for instance 198.19.0.80 or 198.19.0.0/24"
        raise InvalidValue(f"remote: {error}", resource="remote", remedy=remedy, field="remote") from None


def _flow_number(flow: Flow) -> int:
    return flow.id & 0xFFFFFFFF


def _drop_number(drop: Drop) -> int:
    return drop.number
