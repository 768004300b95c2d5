"""Every route through a real Unix socket: what it answers, what it refuses, how lists are cut into pages."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hyperplane.api.routes import ROUTES
from hyperplane.api.service import Peer
from hyperplane.codec import to_json
from hyperplane.model import FlowState, Reason
from tests.unit.api_support import (
    DOCUMENT,
    ENVIRONMENT,
    FUNCTION,
    GROUP,
    SUBNET,
    VPC,
    Server,
    drop,
    flow,
    running,
)

DECLARED: list[tuple[str, Any]] = [
    ("vpcs", VPC),
    ("subnets", SUBNET),
    ("security-groups", GROUP),
    ("functions", FUNCTION),
]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Server]:
    with running(tmp_path / "api.sock") as server:
        yield server


@pytest.fixture
def full(api: Server) -> Server:
    """With a VPC, a subnet, a security group, a function and an environment."""
    for path, spec in DECLARED:
        status, _, _ = api.ask("POST", f"/v1/{path}", to_json(spec))
        assert status == 201
    assert api.ask("POST", "/v1/environments", to_json(ENVIRONMENT))[0] == 201
    return api


def vpcs(api: Server, count: int) -> None:
    for i in range(count):
        assert api.ask("POST", "/v1/vpcs", {"name": f"v{i:03}", "namespace": f"n{i}"})[0] == 201


# Declared resources


def test_declared_resources_are_created_found_changed_and_deleted(full: Server) -> None:
    for path, spec in DECLARED:
        status, _, again = full.ask("POST", f"/v1/{path}", to_json(spec))
        assert (status, again["name"]) == (200, spec.name)
        assert again["id"].startswith({"security-groups": "sg-"}.get(path, path[:-1] + "-"))
        for ref in (again["id"], spec.name):
            assert full.ask("GET", f"/v1/{path}/{ref}")[::2] == (200, again)
        assert full.ask("GET", f"/v1/{path}")[::2] == (200, {"items": [again], "next_token": ""})
        assert full.ask("PUT", f"/v1/{path}/{spec.name}", to_json(spec))[::2] == (200, again)


def test_what_is_in_use_is_not_deleted_and_what_is_not_is_gone(full: Server) -> None:
    for path, spec in DECLARED:
        status, _, problem = full.ask("DELETE", f"/v1/{path}/{spec.name}")
        assert (status, problem["error"]) == (409, "DependencyViolation")
    assert full.ask("DELETE", "/v1/environments/one")[0] == 200
    for path, spec in reversed(DECLARED):
        status, headers, body = full.ask("DELETE", f"/v1/{path}/{spec.name}")
        assert (status, body, headers["Hyperplane-Protocol"]) == (204, b"", "1")
        assert full.ask("GET", f"/v1/{path}/{spec.name}")[0] == 404


def test_a_client_token_gives_the_same_resource_once(api: Server) -> None:
    spec = {"name": "a", "namespace": "n", "client_token": "t1"}
    first, second = (api.ask("POST", "/v1/vpcs", spec) for _ in range(2))
    assert (first[0], second[0], first[2]) == (201, 200, second[2])
    status, _, problem = api.ask("POST", "/v1/vpcs", {**spec, "name": "b"})
    assert (status, problem["error"]) == (409, "IdempotentParameterMismatch")


def test_a_name_taken_with_other_content_is_a_conflict(api: Server) -> None:
    api.ask("POST", "/v1/vpcs", {"name": "a", "namespace": "n"})
    status, _, problem = api.ask("POST", "/v1/vpcs", {"name": "a", "namespace": "other"})
    assert (status, problem["error"]) == (409, "ResourceConflict")


def test_accounts_are_apart(full: Server) -> None:
    assert full.ask("POST", "/v1/vpcs", {"name": "a", "namespace": "n", "account": "blue"})[0] == 201
    assert full.ask("GET", "/v1/vpcs/a")[0] == 404
    assert full.ask("GET", "/v1/vpcs/a?account=blue")[0] == 200
    assert [one["name"] for one in full.ask("GET", "/v1/vpcs?account=blue")[2]["items"]] == ["a"]
    assert len(full.ask("GET", "/v1/vpcs")[2]["items"]) == 2


# ENIs and environments


def test_enis_are_shown(full: Server) -> None:
    status, _, page = full.ask("GET", "/v1/enis")
    assert status == 200
    (eni,) = page["items"]
    assert (eni["state"], eni["environments"]) == ("in-use", 1)
    assert full.ask("GET", f"/v1/enis/{eni['id']}")[2] == eni
    assert full.ask("GET", "/v1/enis?state=in-use&subnet=front&account=default")[2]["items"] == [eni]
    assert full.ask("GET", "/v1/enis?state=pending")[2]["items"] == []


def test_an_environment_is_started_and_ended(full: Server) -> None:
    status, _, one = full.ask("GET", "/v1/environments/one")
    assert (status, one["state"], one["inside_address"]) == (200, "attached", "198.18.0.2")
    assert one["timings"]["daemon"] == 0.0004
    assert full.service.peers == [Peer(os.getuid(), os.getgid(), os.getpid())]
    status, _, ended = full.ask("DELETE", f"/v1/environments/{one['id']}")
    assert (status, ended["state"], ended["reason"]) == (200, "ended", "ended on request")
    assert full.ask("DELETE", f"/v1/environments/{one['id']}")[::2] == (200, ended)


@pytest.mark.parametrize(
    ("target", "body"), [("?drain=2.5", None), ("", {"drain": 2.5}), ("?account=default&drain=9", {})]
)
def test_an_environment_drains(full: Server, target: str, body: Any) -> None:
    status, _, ended = full.ask("DELETE", f"/v1/environments/one{target}", body)
    assert (status, ended["state"]) == (200, "detaching")


@pytest.mark.parametrize("drain", ["-1", "nan", "inf", "x", "", "1e3", "86401", "0x1"])
def test_a_drain_that_is_none_is_refused(full: Server, drain: str) -> None:
    status, _, problem = full.ask("DELETE", f"/v1/environments/one?drain={drain}")
    assert (status, problem["error"], problem["field"]) == (400, "InvalidValue", "drain")


@pytest.mark.parametrize("drain", [-1, 1e300, "1", None])
def test_a_body_with_a_drain_that_is_none_is_refused(full: Server, drain: Any) -> None:
    status, _, problem = full.ask("DELETE", "/v1/environments/one", {"drain": drain})
    assert (status, problem["error"], problem["field"]) == (400, "InvalidValue", "drain")


# Lists


def test_pages_hold_everything_once_while_things_come_and_go(api: Server) -> None:
    vpcs(api, 7)
    seen, token = [], ""
    while True:
        status, _, page = api.ask("GET", f"/v1/vpcs?limit=3&next_token={token}" if token else "/v1/vpcs?limit=3")
        assert status == 200
        seen += [one["name"] for one in page["items"]]
        token = page["next_token"]
        if not token:
            break
        assert len(page["items"]) == 3
        api.ask("DELETE", f"/v1/vpcs/{seen[-1]}")  # what the token points at
    assert seen == [f"v{i:03}" for i in range(7)]


def test_a_page_has_100_items_unless_told(api: Server) -> None:
    vpcs(api, 101)
    page = api.ask("GET", "/v1/vpcs")[2]
    assert len(page["items"]) == 100
    assert len(api.ask("GET", "/v1/vpcs?limit=1000")[2]["items"]) == 101
    assert len(api.ask("GET", f"/v1/vpcs?next_token={page['next_token']}")[2]["items"]) == 1


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=ten", "limit"),
        ("limit=-1", "limit"),
        ("limit=%D9%A1", "limit"),  # a digit of another script
        ("next_token=x", "next_token"),
        ("next_token=%FF", "next_token"),
        ("next_token=bnVsbA", "next_token"),
        ("next_token=", "next_token"),
        ("colour=red", "colour"),
        ("state=Active", "state"),  # VPCs have none
        ("name=a&name=b", "name"),
        ("name=", "name"),
        ("account=", "account"),
        ("", ""),
    ],
)
def test_what_a_list_does_not_take_is_refused(api: Server, query: str, field: str) -> None:
    status, _, problem = api.ask("GET", f"/v1/vpcs?{query}")
    if query:
        assert (status, problem["error"], problem["field"]) == (400, "InvalidValue", field)
        assert problem["limit"] or problem["remedy"]
    else:
        assert status == 200


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_no_route_takes_an_unknown_parameter(api: Server, route: Any) -> None:
    path = route.path.replace("{ref}", "x").replace("{id}", "1")
    status, _, problem = api.ask(route.method, f"/v1{path}?colour=red", b"{}")
    assert (status, problem["field"]) == (400, "colour")


def test_lists_are_filtered(full: Server) -> None:
    full.ask("POST", "/v1/functions", {"name": "other", "subnets": ["front"], "security_groups": ["web"]})

    def names(target: str) -> list[str]:
        status, _, page = full.ask("GET", f"/v1/{target}")
        assert status == 200
        return [one["name"] for one in page["items"]]

    assert names("functions?name=other") == ["other"]
    assert names("functions?state=Active&vpc=customer&subnet=front&security_group=web") == ["thumbnails", "other"]
    assert names("functions?state=Failed") == []
    assert names("subnets?vpc=customer") == ["front"]
    assert names("environments?function=thumbnails&state=attached") == ["one"]
    assert names("environments?function=other&account=default") == []
    status, _, problem = full.ask("GET", "/v1/functions?state=active")
    assert (status, problem["field"]) == (400, "state")
    assert "Pending, Active" in problem["limit"]


# Documents


def test_a_document_is_applied_exported_and_applied_again(api: Server) -> None:
    request = {"document": json.loads(to_json(DOCUMENT))}
    status, _, plan = api.ask("POST", "/v1/apply", {**request, "dry_run": True})
    assert (status, plan["applied"], len(plan["changes"])) == (200, False, 4)
    assert api.ask("GET", "/v1/vpcs")[2]["items"] == []
    assert api.ask("POST", "/v1/apply", request)[2] == {**plan, "applied": True}
    status, _, exported = api.ask("GET", "/v1/export")
    assert (status, exported["function"][0]["name"]) == (200, "thumbnails")
    assert api.ask("POST", "/v1/apply", {"document": exported, "prune": True})[2]["changes"] == []
    assert len(api.ask("POST", "/v1/apply", {"document": {}, "prune": True})[2]["changes"]) == 4
    assert api.ask("GET", "/v1/export?account=blue")[2]["account"] == "blue"


def test_an_apply_that_fails_leaves_what_was_there(full: Server) -> None:
    before = full.ask("GET", "/v1/export")[2]
    document = {**before, "subnet": [*before["subnet"], {"name": "b", "vpc": "customer", "cidr": "198.19.0.128/25"}]}
    status, _, problem = full.ask("POST", "/v1/apply", {"document": document})
    assert (status, problem["error"]) == (400, "InvalidSubnet")
    assert "subnet[1]" in problem["field"]
    assert full.ask("GET", "/v1/export")[2] == before


# Traffic


def test_flows_are_listed_and_asked_for(full: Server) -> None:
    full.service.all_flows = [flow(number) for number in range(5)]
    first = full.ask("GET", "/v1/flows?limit=2")[2]
    assert [one["outside_port"] for one in first["items"]] == [1024, 1025]
    second = full.ask("GET", f"/v1/flows?limit=3&next_token={first['next_token']}")[2]
    assert [one["outside_port"] for one in second["items"]] == [1026, 1027, 1028]
    assert second["next_token"] == ""
    one = second["items"][0]
    assert full.ask("GET", f"/v1/flows/{one['id']}")[2] == one
    assert full.ask("GET", "/v1/flows/5")[0] == 404
    assert full.ask("GET", "/v1/flows/five")[2]["field"] == "id"


def test_flow_filters_reach_the_service(full: Server) -> None:
    query = "account=default&environment=one&function=f&eni=e&protocol=udp&state=active&remote=198.19.0.0/24"
    assert full.ask("GET", f"/v1/flows?{query}")[0] == 200
    (wanted,) = full.service.queries
    assert (wanted.account, wanted.environment, wanted.function, wanted.eni) == ("default", "one", "f", "e")
    assert (wanted.protocol, wanted.state, str(wanted.remote)) == ("udp", FlowState.ACTIVE, "198.19.0.0/24")
    for bad in ("protocol=sctp", "state=Active", "remote=198.19.0.1/24", "remote=x"):
        status, _, problem = full.ask("GET", f"/v1/flows?{bad}")
        assert (status, problem["field"]) == (400, bad.partition("=")[0])


def test_drops_are_listed_and_filtered(full: Server) -> None:
    one, eni = (full.ask("GET", f"/v1/{kind}")[2]["items"][0]["id"] for kind in ("environments", "enis"))
    drops = [drop(1, one), drop(2, eni), drop(3, one, Reason.SECURITY_GROUP), drop(4, "gone")]
    full.service.all_drops = drops

    def numbers(query: str) -> list[int]:
        status, _, page = full.ask("GET", f"/v1/drops?{query}")
        assert status == 200
        return [item["number"] for item in page["items"]]

    assert numbers("") == [1, 2, 3, 4]
    assert numbers("after=2") == [3, 4]
    assert numbers("environment=one") == [1, 3]
    assert numbers(f"eni={eni}") == [2]
    assert numbers(f"eni={eni}&environment=one") == []
    assert numbers("reason=security_group") == [3]
    page = full.ask("GET", "/v1/drops?environment=one&limit=1")[2]
    assert numbers(f"environment=one&limit=1&next_token={page['next_token']}") == [3]
    assert full.ask("GET", "/v1/drops?environment=two")[0] == 404


# The daemon


def test_the_daemon_tells_about_itself(api: Server) -> None:
    assert api.ask("GET", "/v1/healthz")[::2] == (200, {**api.ask("GET", "/v1/healthz")[2], "status": "ok"})
    api.service.well = False
    status, _, health = api.ask("GET", "/v1/healthz")
    assert (status, health["status"], health["reasons"]) == (503, "degraded", ["no engine runs"])
    status, headers, daemon = api.ask("GET", "/v1/status")
    assert (status, daemon["engine"]["restarts"], daemon["resources"]["function"]) == (200, 1, {"Active": 1})
    assert headers["Server"].startswith("hyperplane-nat/")
    status, _, plan = api.ask("POST", "/v1/reconcile")
    assert (status, plan["changes"][0]["name"]) == (200, "eni-1")
