"""Both clients against the API on a Unix socket: every route, every error, and daemons that are not there."""

from __future__ import annotations

import asyncio
import inspect
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hyperplane
from hyperplane import errors
from hyperplane.api import answers, routes
from hyperplane.api.routes import ROUTES
from hyperplane.client import Client, SyncClient, failures, filters, socket_path
from hyperplane.daemon.places import Places
from hyperplane.model import FlowState, Reason
from hyperplane.resources import (
    ApplyRequest,
    Document,
    EnvironmentSpec,
    EnvironmentState,
    FunctionState,
    Page,
    VpcSpec,
)
from tests.unit.api_support import (
    DOCUMENT,
    ENVIRONMENT,
    FUNCTION,
    GROUP,
    SUBNET,
    VPC,
    Server,
    drop,
    error_classes,
    flow,
    running,
)


class Blocking:
    """Calls SyncClient."""

    kind: Any = SyncClient

    def __init__(self, path: Path, **options: Any) -> None:
        self.client: Any = SyncClient(path=path, **options)

    def __call__(self, name: str, /, *arguments: Any, **named: Any) -> Any:
        return getattr(self.client, name)(*arguments, **named)

    def close(self) -> None:
        self.client.close()


class Asynchronous:
    """Calls Client and waits for it."""

    kind: Any = Client

    def __init__(self, path: Path, **options: Any) -> None:
        self.runner = asyncio.Runner()
        self.client: Any = Client(path=path, **options)

    def __call__(self, name: str, /, *arguments: Any, **named: Any) -> Any:
        return self.runner.run(self._call(name, *arguments, **named))

    async def _call(self, name: str, /, *arguments: Any, **named: Any) -> Any:
        result = getattr(self.client, name)(*arguments, **named)
        return [one async for one in result] if inspect.isasyncgen(result) else await result

    def close(self) -> None:
        self.runner.run(self.client.close())
        self.runner.close()


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path / "api.sock") as server:
        yield server


@pytest.fixture(params=[Blocking, Asynchronous])
def call(request: pytest.FixtureRequest, api: Server) -> Iterator[Any]:
    caller = request.param(api.path)
    yield caller
    caller.close()


# The clients cover the API


@pytest.mark.parametrize("client", [Client, SyncClient])
def test_every_route_has_a_method_with_a_docstring(client: Any) -> None:
    for route in ROUTES:
        method = getattr(client, route.name)
        assert method.__doc__, route.name
        if route.paged:
            assert getattr(client, route.name.removeprefix("list_")).__doc__


def test_both_clients_have_the_same_methods() -> None:
    names = {name for name, _ in inspect.getmembers(Client, inspect.isfunction) if not name.startswith("_")}
    assert names == {n for n, _ in inspect.getmembers(SyncClient, inspect.isfunction) if not n.startswith("_")}
    for name in names:
        ours, theirs = inspect.signature(getattr(Client, name)), inspect.signature(getattr(SyncClient, name))
        assert list(ours.parameters.values()) == list(theirs.parameters.values()), name
    assert names - {"close", "send_descriptor"} == {route.name for route in ROUTES} | {
        route.name.removeprefix("list_") for route in ROUTES if route.paged
    }


def test_filters_are_those_of_the_routes() -> None:
    for route in ROUTES:
        if route.paged:
            kind = getattr(filters, f"{route.answer.__name__}Filters")
            assert set(kind.__annotations__) == {one.name for one in route.query} - {"limit", "next_token"}


def test_what_the_client_repeats_of_the_daemon_is_equal() -> None:
    assert (failures.VERSION, failures.VERSION_HEADER) == (routes.VERSION, routes.VERSION_HEADER)
    assert socket_path("blue") == Places("blue").api


def test_the_package_offers_the_clients() -> None:
    assert (hyperplane.Client, hyperplane.SyncClient) == (Client, SyncClient)
    assert hyperplane.VpcSpec is VpcSpec


# Every route


def test_every_method(call: Any, api: Server) -> None:
    specs: dict[str, Any] = {"vpc": VPC, "subnet": SUBNET, "security_group": GROUP, "function": FUNCTION}
    for kind, spec in specs.items():
        made = call(f"create_{kind}", spec)
        assert call(f"create_{kind}", spec).id == made.id
        assert call(f"get_{kind}", made.id) == call(f"get_{kind}", spec.name, account="default") == made
        assert call(f"update_{kind}", made.id, spec) == made
        page = call(f"list_{kind}s", name=spec.name)
        assert issubclass(type(page), Page)
        assert (page.items, list(page), len(page), page.next_token) == ((made,), [made], 1, "")
        assert call(f"{kind}s") == [made]
        assert call(f"{kind}s", account="blue") == []
    assert call("functions", state=FunctionState.ACTIVE, vpc="customer", eni=None) == [made]
    one = call("start_environment", ENVIRONMENT)
    assert one.state is EnvironmentState.ATTACHED
    assert one.timings.total == 0.0009
    assert call("get_environment", "one") == one
    assert call("environments", function="thumbnails") == list(call("list_environments", eni=one.eni)) == [one]
    (eni,) = call("enis")
    assert call("get_eni", eni.id) == eni == call("list_enis", state=eni.state).items[0]
    assert call("end_environment", "one", drain=5.25).state is EnvironmentState.DETACHING
    assert call("end_environment", one.id).state is EnvironmentState.ENDED
    document = call("export")
    assert [spec.name for spec in document.function] == ["thumbnails"]
    assert call("apply", document, prune=True).changes == ()
    assert len(call("apply", Document(), prune=True, dry_run=True).changes) == 4
    for kind, spec in reversed(specs.items()):
        assert call(f"delete_{kind}", spec.name) is None
    assert len(call("apply", ApplyRequest(document=DOCUMENT)).changes) == 4
    assert call("reconcile").changes[0].name == "eni-1"
    assert call("health").status == "ok"
    api.service.well = False
    assert call("health").reasons == ("no engine runs",)
    assert call("status").engine.restarts == 1
    assert "hyperplane_packets_total" in call("metrics")
    assert call("openapi")["openapi"] == "3.1.0"


def test_flows_and_drops(call: Any, api: Server) -> None:
    api.service.all_flows = [flow(number) for number in range(3)]
    api.service.all_drops = [drop(number) for number in (1, 2)]
    assert call("flows", protocol="tcp", state=FlowState.ESTABLISHED, remote="198.19.0.80") == api.service.all_flows
    assert call("get_flow", api.service.all_flows[1].id) == api.service.all_flows[1]
    page = call("list_flows", limit=2)
    assert call("list_flows", limit=2, next_token=page.next_token).items == tuple(api.service.all_flows[2:])
    assert call("drops", reason=Reason.NO_FLOW) == list(call("list_drops")) == api.service.all_drops
    assert call("drops", after=1) == api.service.all_drops[1:]


def test_all_pages_are_gone_through(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hyperplane.client.calls.MOST", 2)
    for i in range(5):
        call("create_vpc", VpcSpec(name=f"v{i}", namespace=f"n{i}"))
    assert [vpc.name for vpc in call("vpcs")] == [f"v{i}" for i in range(5)]


@pytest.mark.parametrize("ref", ["a/b", "..", "é", "a?b=c", "a#b", "%2F", " "])
def test_any_reference_reaches_the_daemon_as_it_is(call: Any, ref: str) -> None:
    with pytest.raises(errors.ResourceNotFound) as caught:
        call("get_vpc", ref)
    assert ref.strip() in str(caught.value)


def test_an_empty_reference_is_refused(call: Any) -> None:
    with pytest.raises(errors.InvalidValue, match="reference is empty"):
        call("delete_vpc", "")


# Errors


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
def test_errors_are_raised_as_the_daemon_raised_them(call: Any, api: Server, kind: Any) -> None:
    api.service.error = kind("it failed", resource="x", limit="9", remedy="do this", field="name")
    with pytest.raises(kind) as caught:
        call("status")
    error = caught.value
    assert type(error) is kind
    told = (error.message, error.resource, error.limit, error.remedy, error.field)
    assert told == ("it failed", "x", "9", "do this", "name")


def test_an_internal_error_names_its_place_in_the_log(call: Any, api: Server) -> None:
    api.service.error = RuntimeError("a secret")
    with pytest.raises(errors.HyperplaneError, match="log has the details") as caught:
        call("status")
    assert type(caught.value) is errors.HyperplaneError


def test_an_unknown_filter_is_an_error(call: Any) -> None:
    with pytest.raises(errors.InvalidValue, match="colour"):
        call("list_vpcs", colour="red")


@pytest.mark.parametrize("caller", [Blocking, Asynchronous])
def test_a_daemon_that_is_not_there(caller: Any, tmp_path: Path) -> None:
    call = caller(tmp_path / "blue" / "api.sock")
    with pytest.raises(errors.DaemonUnavailable, match="hyperplane-nat daemon --instance blue"):
        call("health")
    with pytest.raises(errors.DaemonUnavailable, match="--instance blue"):
        call("send_descriptor", 0)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    call.close()
    call = caller(tmp_path / "dead.sock")
    with pytest.raises(errors.DaemonUnavailable, match="no daemon listens"):
        call("health")
    call.close()


@pytest.mark.parametrize("caller", [Blocking, Asynchronous])
def test_a_user_who_may_not(caller: Any, api: Server, tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(0o755)
    call = caller(api.path)
    os.chown(api.path, 0, 65_533)
    os.seteuid(65_534)
    try:
        with pytest.raises(errors.DaemonUnavailable, match="join the group"):
            call("health")
    finally:
        os.seteuid(0)
        call.close()


def test_a_client_of_another_version_is_told(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for headers in (answers.HEADERS, answers.PLAIN_HEADERS):
        monkeypatch.setitem(headers, "Hyperplane-Protocol", "2")
    with pytest.raises(errors.ProtocolMismatch, match="1 and 2"):
        call("health")


@pytest.mark.parametrize("caller", [Blocking, Asynchronous])
@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2",
        b"HTTP/1.1 200 OK\r\nno header\r\n\r\n",
        b"HTTP/1.1 200 " + b"OK" * 65_536, b"",
    ],
)  # fmt: skip
def test_something_else_on_the_socket(caller: Any, answer: bytes, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            for _ in range(2 if caller is Asynchronous and not answer else 1):  # aiohttp asks again
                connection, _ = listener.accept()
                with connection:
                    connection.recv(65_536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        call = caller(path, timeout=5)
        with pytest.raises((errors.ProtocolMismatch, errors.DaemonUnavailable)):
            call("export")
        call.close()
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(5)


@pytest.mark.parametrize("caller", [Blocking, Asynchronous])
def test_a_daemon_that_hangs_is_given_up(caller: Any, tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        call = caller(path, timeout=0.05)
        with pytest.raises(errors.DaemonUnavailable, match=r"0\.05 s"):
            call("health")
        call.close()


def test_a_daemon_that_was_restarted_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "api.sock"
    with SyncClient(path=path) as client:
        for _ in range(2):
            with running(path):
                assert client.create_vpc(VPC).name == "customer"


def test_threads_share_a_client(api: Server) -> None:
    names = [f"v{i}" for i in range(40)]
    with SyncClient(path=api.path) as client:

        def create(some: list[str]) -> None:
            for name in some:
                client.create_vpc(VpcSpec(name=name, namespace=name))

        threads = [threading.Thread(target=create, args=(names[i::4],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert {vpc.name for vpc in client.vpcs()} == set(names)


# Descriptors


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.bind(str(tmp_path / "descriptors.sock"))
        sock.listen()
        yield sock


def _answering(listener: socket.socket, answer: bytes, got: list[os.stat_result]) -> threading.Thread:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            _, fds, _, _ = socket.recv_fds(connection, 4096, 2)
            got.extend(os.fstat(fd) for fd in fds)
            for fd in fds:
                os.close(fd)
            if answer:
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


def test_a_descriptor_is_sent(call: Any, listener: socket.socket) -> None:
    got: list[os.stat_result] = []
    thread = _answering(listener, b'{"descriptor":"d-1"}', got)
    reader, writer = os.pipe()
    assert call("send_descriptor", reader) == "d-1"
    thread.join(20)
    assert [one.st_ino for one in got] == [os.fstat(reader).st_ino]  # and ours is open still
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [(b'{"error":"NotATunnel","message":"it is a pipe"}', errors.NotATunnel), (b"", errors.DaemonUnavailable)],
)
def test_a_descriptor_is_refused(call: Any, listener: socket.socket, answer: bytes, kind: Any) -> None:
    thread = _answering(listener, answer, [])
    with pytest.raises(kind):
        call("send_descriptor", 0)
    thread.join(20)


def test_what_is_no_descriptor_is_not_sent(call: Any, listener: socket.socket) -> None:
    with pytest.raises(errors.InvalidValue, match="open TUN"):
        call("send_descriptor", 1 << 20)


def test_environments_are_started_by_descriptor(call: Any) -> None:
    call("apply", DOCUMENT)
    one = call("start_environment", EnvironmentSpec(function="thumbnails", descriptor="d-1"))
    assert (one.namespace, one.fresh) == ("", False)
