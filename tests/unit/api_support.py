"""The API without a daemon: its service is the real control plane, and all that it wants done succeeds at once."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from random import Random
from typing import Any

from aiohttp import web

from hyperplane import __version__
from hyperplane.api import make_app, serve
from hyperplane.api.service import (
    DeclaredKind,
    EniMeasures,
    FlowQuery,
    Measures,
    Peer,
)
from hyperplane.control import Attach, Control, Detach, MakeEni, RemoveEni
from hyperplane.errors import HyperplaneError, ResourceNotFound
from hyperplane.model import Counters, Drop, Flow, FlowState, Memory, Reason, Status
from hyperplane.resources import (
    ApplyRequest,
    Change,
    DaemonStatus,
    Document,
    EngineProcess,
    Environment,
    EnvironmentSpec,
    FunctionSpec,
    Health,
    Kind,
    Plan,
    Resource,
    SecurityGroupSpec,
    SubnetSpec,
    Timings,
    VpcSpec,
)

VPC = VpcSpec(name="customer", namespace="customer")
SUBNET = SubnetSpec(name="front", vpc="customer", cidr=IPv4Network("198.19.0.0/24"))
GROUP = SecurityGroupSpec(name="web", vpc="customer", rules=("tcp/443",))
FUNCTION = FunctionSpec(name="thumbnails", subnets=("front",), security_groups=("web",))
ENVIRONMENT = EnvironmentSpec(function="thumbnails", name="one")
DOCUMENT = Document(vpc=(VPC,), subnet=(SUBNET,), security_group=(GROUP,), function=(FUNCTION,))
TIMINGS = Timings(total=0.0009, kernel=0.0003, engine=0.0001, wait=0.0001, daemon=0.0004)
COUNTERS = Counters(packets_in=5, bytes_in=500, packets_out=4, bytes_out=400, flows_created=3, drops={"no_flow": 2})
STATUS = Status(
    running=True, io="epoll", flows=3, flows_high=3, mappings=1, dense_destinations=0, loops=9, batches=8, packets=9,
    writes=9, no_buffers=0,
)  # fmt: skip
ENGINE = EngineProcess(
    pid=7, version=__version__, generation=2, restarts=1, status=STATUS,
    memory=Memory(bytes=4096, huge_bytes=0, bytes_per_flow=160, regions=1),
)  # fmt: skip


def flow(number: int, tunnel: str = "env-1", **changes: Any) -> Flow:
    fields: dict[str, Any] = {
        "id": 7 << 32 | number, "tunnel": tunnel, "tunnel_number": 1, "eni": "eni-1", "eni_number": 0,
        "protocol": "tcp", "state": FlowState.ESTABLISHED, "inside": IPv4Address("198.18.0.2"), "inside_port": 40_000,
        "outside": IPv4Address("198.19.0.5"), "outside_port": 1024 + number, "remote": IPv4Address("198.19.0.80"),
        "remote_port": 443, "packets_out": 1, "bytes_out": 60, "packets_in": 1, "bytes_in": 60, "started": 1,
        "last_seen": 2, "expires": 3,
    }  # fmt: skip
    return Flow(**{**fields, **changes})


def drop(number: int, link: str = "env-1", reason: Reason = Reason.NO_FLOW) -> Drop:
    return Drop(
        number=number, time=1, link=link, link_number=1, reason=reason, protocol=6, source=IPv4Address("198.19.0.80"),
        source_port=443, destination=IPv4Address("198.19.0.5"), destination_port=1024, length=60,
    )  # fmt: skip


class FakeService:
    """Implements ServiceProtocol. error: what every method raises instead, when it is set. peers: who started
    environments."""

    def __init__(self) -> None:
        self.control = Control(Random(1))
        self.error: Exception | None = None
        self.peers: list[Peer] = []
        self.all_flows: list[Flow] = []
        self.all_drops: list[Drop] = []
        self.queries: list[FlowQuery] = []
        self.well = True
        self._clock = time.time()

    async def create(self, kind: DeclaredKind, spec: Any, peer: Peer) -> tuple[Resource, bool]:
        create = self._method("create", kind)
        before = {one.id for one in self.control.list(kind)}
        made: Resource = create(spec, self._now())
        self._act()
        return self.control.get(kind, made.id, made.account), made.id not in before

    async def get(self, kind: Kind, ref: str, account: str) -> Resource:
        self._check()
        found: Resource = self.control.get(kind, ref, account)
        return found

    async def select(self, kind: Kind, account: str | None, filters: Mapping[str, str]) -> Sequence[Resource]:
        self._check()
        return self.control.list(kind, account, **filters)

    async def update(self, kind: DeclaredKind, ref: str, spec: Any, peer: Peer) -> Resource:
        made: Resource = self._method("update", kind)(ref, spec, self._now())
        self._act()
        return self.control.get(kind, made.id, made.account)  # type: ignore[no-any-return]

    async def delete(self, kind: DeclaredKind, ref: str, account: str) -> None:
        self._method("delete", kind)(ref, account, self._now())
        self._act()

    async def start_environment(self, spec: EnvironmentSpec, peer: Peer) -> tuple[Environment, bool]:
        self._check()
        self.peers.append(peer)
        before = {one.id for one in self.control.list("environment")}
        made = self.control.start_environment(spec, self._now())
        self._act()
        return self.control.get("environment", made.id, made.account), made.id not in before

    async def end_environment(self, ref: str, account: str, drain: float) -> Environment:
        self._check()
        made = self.control.end_environment(ref, account, drain, self._now())
        self._act(drain=drain)
        return self.control.get("environment", made.id, account)  # type: ignore[no-any-return]

    async def apply(self, request: ApplyRequest, peer: Peer) -> Plan:
        self._check()
        if request.dry_run:
            return self.control.plan(request.document, request.prune, self._now())
        plan = self.control.apply(request.document, request.prune, self._now())
        self._act()
        return plan

    async def export(self, account: str) -> Document:
        self._check()
        return self.control.export(account)

    async def reconcile(self) -> Plan:
        self._check()
        return Plan(changes=(Change(action="create", kind="eni", name="eni-1"),), applied=True)

    async def flows(self, query: FlowQuery, after: int, limit: int) -> Sequence[Flow]:
        self._check()
        self.queries.append(query)
        return [one for one in self.all_flows if one.id & 0xFFFFFFFF > after][:limit]

    async def flow(self, flow_id: int) -> Flow:
        self._check()
        for one in self.all_flows:
            if one.id == flow_id:
                return one
        raise ResourceNotFound(f"no flow {flow_id}", resource=str(flow_id))

    async def drops(self, after: int) -> Sequence[Drop]:
        self._check()
        return [one for one in self.all_drops if one.number > after]

    async def health(self) -> Health:
        self._check()
        if self.well:
            return Health(status="ok", version=__version__, instance="test")
        return Health(status="degraded", version=__version__, instance="test", reasons=("no engine runs",))

    async def status(self) -> DaemonStatus:
        self._check()
        return DaemonStatus(
            instance="test", version=__version__, pid=1, started=1.0, engine=ENGINE, traffic=COUNTERS,
            resources={"vpc": {"": 1}, "function": {"Active": 1}}, notices=("all is well",),
        )  # fmt: skip

    async def measures(self) -> Measures:
        self._check()
        enis = [EniMeasures(eni="eni-1", account="default", counters=COUNTERS, flows=3)]
        return Measures(
            traffic=COUNTERS, flows=3, max_flows=100, restarts=1, engine_running=True, enis=enis, pool=2,
            resources={"vpc": {"": 1}, "security-group": {"": 2}, "function": {"Active": 1, "Pending": 0}},
        )  # fmt: skip

    def _method(self, verb: str, kind: Kind) -> Any:
        self._check()
        return getattr(self.control, f"{verb}_{kind.replace('-', '_')}")

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def _now(self) -> float:
        self._clock += 0.001
        return self._clock

    def _act(self, drain: float = 0.0) -> None:
        """What the daemon would do: all of it succeeds, and a drain goes on."""
        control, now = self.control, self._now()
        while actions := control.take().actions:
            for action in actions:
                match action:
                    case MakeEni():
                        control.eni_made(action.eni.id, now)
                    case RemoveEni():
                        control.eni_removed(action.eni.id, now)
                    case Attach():
                        control.environment_attached(action.environment.id, now, timings=TIMINGS)
                    case Detach() if not drain:
                        control.environment_ended(action.environment.id, "ended on request", now)


def error_classes() -> list[type[HyperplaneError]]:
    """All of hyperplane.errors."""
    found = [HyperplaneError]
    for kind in found:
        found += kind.__subclasses__()
    return [kind for kind in found if kind.__module__ == HyperplaneError.__module__]


class Server:
    """The API over a FakeService on a Unix socket, in a thread of its own."""

    def __init__(self, path: Path, service: FakeService) -> None:
        self.path = path
        self.service = service

    def ask(
        self, method: str, target: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, http.client.HTTPMessage, Any]:
        """One request; body: JSON-able, or bytes as they are. Returns status, headers and what the JSON holds."""
        connection = UnixConnection(self.path)
        try:
            data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
            connection.request(method, target, data, dict(headers or {}))
            answer = connection.getresponse()
            content = answer.read()
            is_json = answer.headers.get("Content-Type") == "application/json"
            return answer.status, answer.headers, json.loads(content) if is_json else content
        finally:
            connection.close()


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self.path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self.path))


@contextmanager
def running(path: Path) -> Iterator[Server]:
    service = FakeService()
    with _in_thread(lambda: serve(make_app(service), path)):
        yield Server(path, service)


@contextmanager
def running_on_tcp() -> Iterator[str]:
    """The same application on 127.0.0.1, for tools that cannot ask a Unix socket; gives its base URL."""
    listener = socket.create_server(("127.0.0.1", 0))

    async def start() -> web.AppRunner:
        runner = web.AppRunner(make_app(FakeService()), access_log=None)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        return runner

    with _in_thread(start):
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def _in_thread(start: Callable[[], Coroutine[Any, Any, web.AppRunner]]) -> Iterator[None]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        runner = asyncio.run_coroutine_threadsafe(start(), loop).result(20)
        try:
            yield
        finally:
            asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
