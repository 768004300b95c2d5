"""Every error over the socket: its status and body, and what becomes of requests that are none."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from hyperplane.api import handlers
from hyperplane.api.app import MOST_BODY
from hyperplane.api.routes import ROUTES
from hyperplane.errors import HyperplaneError
from tests.unit.api_support import Server, error_classes, running

NAMES = [route.name for route in ROUTES if route.name != "openapi"]  # which asks nobody
BODIES: dict[str, Any] = {
    "create_vpc": {"name": "a", "namespace": "n"},
    "create_subnet": {"name": "a", "vpc": "v", "cidr": "198.19.0.0/24"},
    "create_security_group": {"name": "a", "vpc": "v"},
    "create_function": {"name": "a", "subnets": ["s"], "security_groups": ["g"]},
    "start_environment": {"function": "f"},
    "apply": {"document": {}},
}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path / "api.sock") as server:
        yield server


def ask(api: Server, name: str) -> tuple[int, Any]:
    """A request that fits the route."""
    route = next(one for one in ROUTES if one.name == name)
    path = route.path.replace("{ref}", "x").replace("{id}", "1")
    body = BODIES.get(name.replace("update_", "create_"))
    status, headers, answer = api.ask(route.method, f"/v1{path}", body)
    assert headers["Hyperplane-Protocol"] == "1"
    return status, answer


@pytest.mark.parametrize("kind", error_classes(), ids=lambda kind: kind.__name__)
def test_every_error_keeps_its_name_status_and_fields(api: Server, kind: type[HyperplaneError]) -> None:
    fields = {"message": "it failed", "resource": "x", "limit": "9", "remedy": "do this", "field": "subnet[1].cidr"}
    api.service.error = kind(**fields)
    status, problem = ask(api, "start_environment")
    assert (status, problem) == (kind.status, {"error": kind.__name__, **fields})


@pytest.mark.parametrize("name", NAMES)
def test_every_route_answers_errors_as_problems(api: Server, name: str) -> None:
    api.service.error = HyperplaneError("it failed")
    status, problem = ask(api, name)
    assert (status, problem["error"], problem["message"]) == (500, "HyperplaneError", "it failed")


@pytest.mark.parametrize("name", NAMES)
def test_an_unforeseen_exception_is_logged_and_not_told(api: Server, name: str) -> None:
    api.service.error = RuntimeError("a secret")
    with structlog.testing.capture_logs() as logs:
        status, problem = ask(api, name)
    assert (status, problem["error"]) == (500, "InternalError")
    assert "secret" not in json.dumps(problem)
    (log,) = logs
    assert problem["resource"] == log["id"]
    assert log["id"] in problem["message"]
    assert log["exc_info"]


# Bodies


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"", ""),
        (b"{", ""),
        (b"null", ""),
        (b"[" * 100_000, ""),
        (b'{"name":"\xff","namespace":"n"}', ""),
        (b'{"name":"\\ud800","namespace":"n"}', ""),
        ({"name": "a"}, ""),
        ({"name": "a", "namespace": "n", "colour": "red"}, ""),
        ({"name": 5, "namespace": "n"}, "name"),
        ({"name": "a", "namespace": "n", "mtu": "1500"}, "mtu"),
        ({"name": "a", "namespace": "n", "mtu": 1500.5}, "mtu"),
        ({"name": "a", "namespace": "n", "mtu": True}, "mtu"),
        ({"name": "a", "namespace": "n", "mtu": 10**30}, "mtu"),
        ({"name": "a", "namespace": "n", "dns": ["198.19.0.256"]}, "dns[0]"),
        ({"name": "a", "namespace": "n", "dns": [5]}, "dns[0]"),
        ({"name": "a", "namespace": "n", "timers": {"udp": -1}}, "timers"),
        ({"name": "a", "namespace": "n", "timers": {"udp": "x"}}, "timers.udp"),
        ({"name": "a", "namespace": "n", "udp_mapping": "none"}, "udp_mapping"),
        ({"name": "", "namespace": "n"}, "name"),
        ({"name": "a\x00", "namespace": "n"}, "name"),
    ],
)
def test_what_is_no_request_is_refused_by_field(api: Server, body: Any, field: str) -> None:
    status, _, problem = api.ask("POST", "/v1/vpcs", body)
    assert (status, problem["error"], problem["field"]) == (400, "InvalidValue", field)
    assert api.ask("GET", "/v1/vpcs")[2]["items"] == []


def test_a_place_in_a_document_is_named(api: Server) -> None:
    document = {"subnet": [{"name": "a", "vpc": "v", "cidr": "198.19.0.0/24"}, {"name": "b", "vpc": "v", "cidr": "x"}]}
    status, _, problem = api.ask("POST", "/v1/apply", {"document": document})
    assert (status, problem["field"]) == (400, "document.subnet[1].cidr")


def test_a_body_that_is_too_large_is_refused(api: Server) -> None:
    status, _, problem = api.ask("POST", "/v1/vpcs", b" " * (MOST_BODY + 1))
    assert (status, problem["error"], problem["resource"]) == (413, "InvalidValue", "body")


def test_a_body_that_would_be_too_large_is_not_waited_for(api: Server) -> None:
    answer = raw(api, b"POST /v1/vpcs HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n{" % (MOST_BODY + 1))
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_not_waited_for(api: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers, "BODY_PATIENCE", 0.05)
    answer = raw(api, b"POST /v1/vpcs HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"InvalidValue"' in answer


# Paths and methods


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v2/vpcs", "/v1/vpcs/", "/v1/vpcs/a/b", "/v1/nothing", "/v1//vpcs"]
)
def test_an_unknown_path_is_not_found(api: Server, path: str) -> None:
    status, _, problem = api.ask("GET", path)
    assert (status, problem["error"]) == (404, "ResourceNotFound")
    assert "/v1/openapi.json" in problem["remedy"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PATCH", "/v1/vpcs", "GET, POST"),
        ("DELETE", "/v1/vpcs", "GET, POST"),
        ("POST", "/v1/vpcs/a", "DELETE, GET, PUT"),
        ("POST", "/v1/enis", "GET"),
        ("PUT", "/v1/environments/a", "DELETE, GET"),
        ("GET", "/v1/apply", "POST"),
    ],
)
def test_a_wrong_method_is_told_the_right_ones(api: Server, method: str, path: str, allowed: str) -> None:
    status, headers, problem = api.ask(method, path)
    assert (status, headers["Allow"]) == (405, allowed)
    assert (problem["error"], problem["limit"]) == ("InvalidValue", allowed)


@pytest.mark.parametrize("ref", ["%FF", "%00", "..", "%2e%2e", "a%2Fb", "%F0%9F%90%98", "x" * 7000])
def test_a_strange_reference_is_only_not_found(api: Server, ref: str) -> None:
    status, _, problem = api.ask("GET", f"/v1/vpcs/{ref}")
    assert (status, problem["error"]) == (404, "ResourceNotFound")


def test_another_version_of_the_protocol_is_refused(api: Server) -> None:
    status, _, problem = api.ask("GET", "/v1/vpcs", headers={"Hyperplane-Protocol": "2"})
    assert (status, problem["error"]) == (400, "ProtocolMismatch")
    assert "hyperplane-nat" in problem["remedy"]
    assert api.ask("GET", "/v1/vpcs", headers={"Hyperplane-Protocol": "1"})[0] == 200


def test_what_is_no_http_gets_an_answer_and_harms_nobody(api: Server) -> None:
    assert raw(api, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.0 400 ")
    assert (
        raw(api, b"POST /v1/vpcs HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n").count(b" 400 ") == 1
    )
    assert api.ask("GET", "/v1/vpcs")[0] == 200


def raw(api: Server, data: bytes) -> bytes:
    """Sends bytes; what comes back until the end of the answer or the connection."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(api.path))
        sock.sendall(data)
        return sock.recv(65_536)
