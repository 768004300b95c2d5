"""What lists can be narrowed down by; None is as good as left out. References are ids or names."""

from __future__ import annotations

from typing import TypedDict

from hyperplane.model import FlowState, Protocol, Reason
from hyperplane.resources import EniState, EnvironmentState, FunctionState, Sender


class _Filters(TypedDict, total=False):
    account: str | None


class VpcFilters(_Filters, total=False):
    name: str | None
    namespace: str | None


class SubnetFilters(_Filters, total=False):
    name: str | None
    vpc: str | None


class SecurityGroupFilters(_Filters, total=False):
    name: str | None
    vpc: str | None


class FunctionFilters(_Filters, total=False):
    name: str | None
    state: FunctionState | None
    vpc: str | None
    subnet: str | None
    security_group: str | None
    eni: str | None


class EniFilters(_Filters, total=False):
    name: str | None
    state: EniState | None
    vpc: str | None
    subnet: str | None
    security_group: str | None
    function: str | None


class EnvironmentFilters(_Filters, total=False):
    name: str | None
    state: EnvironmentState | None
    function: str | None
    eni: str | None
    namespace: str | None
    sender: Sender | None


class FlowFilters(_Filters, total=False):
    """remote: an address or a network."""

    environment: str | None
    function: str | None
    eni: str | None
    protocol: Protocol | None
    state: FlowState | None
    remote: str | None


class DropFilters(_Filters, total=False):
    """after: the number of a drop, below those that are wanted. account: of environment and eni."""

    after: int | None
    environment: str | None
    eni: str | None
    reason: Reason | None
