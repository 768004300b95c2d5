"""The OpenAPI document is valid, tells of every route, and what it says is what the API does (schemathesis)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from hyperplane.api.openapi import document
from hyperplane.api.routes import BASE, ROUTES
from tests.unit.api_support import running_on_tcp

DOCUMENT: dict[str, Any] = json.loads(document())
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    negative_data_rejection,
    unsupported_method,
]
schema = schemathesis.openapi.from_dict(DOCUMENT)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_on_tcp() as base:
        yield base


def test_the_document_is_valid() -> None:
    schema.validate()
    assert DOCUMENT["openapi"] == "3.1.0"


def test_the_document_holds_every_route_and_no_other() -> None:
    operations = {
        (method.upper(), path): operation
        for path, methods in DOCUMENT["paths"].items()
        for method, operation in methods.items()
    }
    assert set(operations) == {(route.method, BASE + route.path) for route in ROUTES}
    names = [operation["operationId"] for operation in operations.values()]
    assert len(set(names)) == len(names)


def test_every_reference_leads_somewhere() -> None:
    words = json.dumps(DOCUMENT)
    for name in {part.partition('"')[0] for part in words.split("#/components/schemas/")[1:]}:
        assert name in DOCUMENT["components"]["schemas"], name


def test_defaults_are_those_of_the_requests() -> None:
    fields = DOCUMENT["components"]["schemas"]["FunctionSpec"]["properties"]
    assert fields["routes"]["default"] == ["0.0.0.0/0"]
    assert fields["inside_address"]["default"] is None
    assert DOCUMENT["components"]["schemas"]["VpcSpec"]["properties"]["timers"]["default"]["udp"] == 300.0


@schema.parametrize()
@settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_api_is_as_the_document_says(case: Any, url: str) -> None:
    case.call_and_validate(base_url=url, checks=CHECKS, timeout=20)
