"""The asynchronous client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

import aiohttp
from yarl import URL

from hyperplane.client import calls, passing
from hyperplane.client.answers import Listed
from hyperplane.client.failures import VERSION_HEADER, silent, unavailable
from hyperplane.client.filters import (
    DropFilters,
    EniFilters,
    EnvironmentFilters,
    FlowFilters,
    FunctionFilters,
    SecurityGroupFilters,
    SubnetFilters,
    VpcFilters,
)
from hyperplane.client.places import socket_path
from hyperplane.model import Drop, Flow
from hyperplane.resources import (
    DEFAULT_ACCOUNT,
    ApplyRequest,
    DaemonStatus,
    Document,
    Eni,
    Environment,
    EnvironmentSpec,
    Function,
    FunctionSpec,
    Health,
    Plan,
    SecurityGroup,
    SecurityGroupSpec,
    Subnet,
    SubnetSpec,
    Vpc,
    VpcSpec,
)

CONNECTIONS: Final = 64  # at the same time; further calls wait for one
T = TypeVar("T")


class Client:
    """Speaks to the daemon of an instance: one method per route of its API.

    instance: the daemon's name, HYPERPLANE_INSTANCE's or `default` unless given (InvalidValue for what is no name);
    path: of its API's socket, instead. timeout: seconds for one call. A context manager of one event loop; connections
    are kept and shared. Every method raises, besides what it says itself, InvalidValue for what cannot be right,
    DaemonUnavailable when nobody answers, and ProtocolMismatch when daemon and client are of versions that do not fit.
    """

    def __init__(self, instance: str | None = None, path: str | Path | None = None, *, timeout: float = 60.0) -> None:
        self.path = Path(path) if path else socket_path(instance)
        self.timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections; a later call opens new ones."""
        session, self._session = self._session, None
        if session:
            await session.close()

    async def _do(self, call: calls.Call[T]) -> T:
        if self._session is None:
            connector = aiohttp.UnixConnector(str(self.path), limit=CONNECTIONS)
            timeout = aiohttp.ClientTimeout(total=self.timeout)
            self._session = aiohttp.ClientSession(connector=connector, timeout=timeout)
        url = URL(f"http://localhost{call.target}", encoded=True)
        try:
            async with self._session.request(call.method, url, data=call.body, headers=call.headers) as answer:
                return call.read(answer.status, answer.headers.get(VERSION_HEADER), await answer.read())
        except aiohttp.ClientConnectorError as error:
            raise unavailable(self.path, error.os_error) from None
        except aiohttp.ClientError:
            raise unavailable(self.path, None) from None
        except TimeoutError:
            raise silent(self.path, self.timeout) from None

    async def _every(self, path: str, item: type[T], filters: Mapping[str, Any]) -> AsyncIterator[T]:
        token = ""
        while True:
            page = await self._do(calls.page(path, item, filters, calls.MOST, token))
            for one in page:
                yield one
            token = page.next_token
            if not token:
                return

    # VPCs

    async def create_vpc(self, spec: VpcSpec) -> Vpc:
        """Makes it, or finds the one with the same name and content, or the same client_token.

        Raises InvalidVpc,
        ResourceConflict (the name is taken by one with other content), IdempotentParameterMismatch.
        """
        return await self._do(calls.post("/vpcs", Vpc, spec))

    async def get_vpc(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> Vpc:
        """By id or name. Raises ResourceNotFound."""
        return await self._do(calls.get(calls.one("/vpcs", ref), Vpc, account=account))

    async def list_vpcs(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[VpcFilters]
    ) -> Listed[Vpc]:
        """One page, the oldest first. account None: of all accounts. limit: 1 to 1,000, else 100."""
        return await self._do(calls.page("/vpcs", Vpc, filters, limit, next_token))

    def vpcs(self, **filters: Unpack[VpcFilters]) -> AsyncIterator[Vpc]:
        """`async for` over all pages of list_vpcs()."""
        return self._every("/vpcs", Vpc, filters)

    async def update_vpc(self, ref: str, spec: VpcSpec) -> Vpc:
        """Makes it what spec says, all fields. Raises ResourceNotFound, DependencyViolation or ResourceConflict (what
        is in use and cannot change), and what create_vpc() raises."""
        return await self._do(calls.put(calls.one("/vpcs", ref), Vpc, spec))

    async def delete_vpc(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> None:
        """Raises ResourceNotFound, DependencyViolation, which names what uses it."""
        await self._do(calls.delete(calls.one("/vpcs", ref), None, account=account))

    # Subnets

    async def create_subnet(self, spec: SubnetSpec) -> Subnet:
        """Makes it, or finds the one with the same name and content, or the same client_token.

        Raises InvalidVpc, InvalidSubnet (a range that overlaps another),
        ResourceConflict (the name is taken by one with other content), IdempotentParameterMismatch.
        """
        return await self._do(calls.post("/subnets", Subnet, spec))

    async def get_subnet(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> Subnet:
        """By id or name. Raises ResourceNotFound."""
        return await self._do(calls.get(calls.one("/subnets", ref), Subnet, account=account))

    async def list_subnets(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[SubnetFilters]
    ) -> Listed[Subnet]:
        """One page, the oldest first. account None: of all accounts. limit: 1 to 1,000, else 100."""
        return await self._do(calls.page("/subnets", Subnet, filters, limit, next_token))

    def subnets(self, **filters: Unpack[SubnetFilters]) -> AsyncIterator[Subnet]:
        """`async for` over all pages of list_subnets()."""
        return self._every("/subnets", Subnet, filters)

    async def update_subnet(self, ref: str, spec: SubnetSpec) -> Subnet:
        """Makes it what spec says, all fields. Raises ResourceNotFound, DependencyViolation or ResourceConflict (what
        is in use and cannot change), and what create_subnet() raises."""
        return await self._do(calls.put(calls.one("/subnets", ref), Subnet, spec))

    async def delete_subnet(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> None:
        """Raises ResourceNotFound, DependencyViolation, which names what uses it."""
        await self._do(calls.delete(calls.one("/subnets", ref), None, account=account))

    # Security groups

    async def create_security_group(self, spec: SecurityGroupSpec) -> SecurityGroup:
        """Makes it, or finds the one with the same name and content, or the same client_token.

        Raises InvalidVpc, InvalidSecurityGroup (a rule that cannot be read),
        ResourceConflict (the name is taken by one with other content), IdempotentParameterMismatch.
        """
        return await self._do(calls.post("/security-groups", SecurityGroup, spec))

    async def get_security_group(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> SecurityGroup:
        """By id or name. Raises ResourceNotFound."""
        return await self._do(calls.get(calls.one("/security-groups", ref), SecurityGroup, account=account))

    async def list_security_groups(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[SecurityGroupFilters]
    ) -> Listed[SecurityGroup]:
        """One page, the oldest first. account None: of all accounts. limit: 1 to 1,000, else 100."""
        return await self._do(calls.page("/security-groups", SecurityGroup, filters, limit, next_token))

    def security_groups(self, **filters: Unpack[SecurityGroupFilters]) -> AsyncIterator[SecurityGroup]:
        """`async for` over all pages of list_security_groups()."""
        return self._every("/security-groups", SecurityGroup, filters)

    async def update_security_group(self, ref: str, spec: SecurityGroupSpec) -> SecurityGroup:
        """Makes it what spec says, all fields. Raises ResourceNotFound, DependencyViolation or ResourceConflict (what
        is in use and cannot change), and what create_security_group() raises."""
        return await self._do(calls.put(calls.one("/security-groups", ref), SecurityGroup, spec))

    async def delete_security_group(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> None:
        """Raises ResourceNotFound, DependencyViolation, which names what uses it."""
        await self._do(calls.delete(calls.one("/security-groups", ref), None, account=account))

    # Functions

    async def create_function(self, spec: FunctionSpec) -> Function:
        """Makes it, or finds the one with the same name and content, or the same client_token.

        Raises InvalidSubnet, InvalidSecurityGroup, SubnetOutOfIPAddresses,
        ResourceConflict (the name is taken by one with other content), IdempotentParameterMismatch.
        """
        return await self._do(calls.post("/functions", Function, spec))

    async def get_function(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> Function:
        """By id or name. Raises ResourceNotFound."""
        return await self._do(calls.get(calls.one("/functions", ref), Function, account=account))

    async def list_functions(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[FunctionFilters]
    ) -> Listed[Function]:
        """One page, the oldest first. account None: of all accounts. limit: 1 to 1,000, else 100."""
        return await self._do(calls.page("/functions", Function, filters, limit, next_token))

    def functions(self, **filters: Unpack[FunctionFilters]) -> AsyncIterator[Function]:
        """`async for` over all pages of list_functions()."""
        return self._every("/functions", Function, filters)

    async def update_function(self, ref: str, spec: FunctionSpec) -> Function:
        """Makes it what spec says, all fields. Raises ResourceNotFound, DependencyViolation or ResourceConflict (what
        is in use and cannot change), and what create_function() raises."""
        return await self._do(calls.put(calls.one("/functions", ref), Function, spec))

    async def delete_function(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> None:
        """Raises ResourceNotFound, DependencyViolation, which names what uses it."""
        await self._do(calls.delete(calls.one("/functions", ref), None, account=account))

    # ENIs: functions make them

    async def get_eni(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> Eni:
        """Raises ResourceNotFound."""
        return await self._do(calls.get(calls.one("/enis", ref), Eni, account=account))

    async def list_enis(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[EniFilters]
    ) -> Listed[Eni]:
        """One page, the oldest first. account None: of all accounts. limit: 1 to 1,000, else 100."""
        return await self._do(calls.page("/enis", Eni, filters, limit, next_token))

    def enis(self, **filters: Unpack[EniFilters]) -> AsyncIterator[Eni]:
        """`async for` over all pages of list_enis()."""
        return self._every("/enis", Eni, filters)

    # Environments

    async def start_environment(self, spec: EnvironmentSpec) -> Environment:
        """Returns when it is attached.

        Raises ResourceNotFound (the function), FunctionNotActive, EniNotReady, NamespaceNotFound, NotATunnel,
        PermissionMissing, ResourceConflict (the name or the namespace is in use), TooManyRequests, DeviceError,
        EngineError.
        """
        return await self._do(calls.post("/environments", Environment, spec))

    async def end_environment(self, ref: str, *, drain: float = 0.0, account: str = DEFAULT_ACCOUNT) -> Environment:
        """drain: seconds in which its flows may end by themselves; then, or at once, both sides get an RST. Ending it
        again is no error. Raises ResourceNotFound."""
        path = calls.one("/environments", ref)
        return await self._do(calls.delete(path, Environment, account=account, drain=f"{drain:f}" if drain else None))

    async def get_environment(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> Environment:
        """By id or name; those that ended are kept for a while. Raises ResourceNotFound."""
        return await self._do(calls.get(calls.one("/environments", ref), Environment, account=account))

    async def list_environments(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[EnvironmentFilters]
    ) -> Listed[Environment]:
        """One page, the oldest first. account None: of all accounts. limit: 1 to 1,000, else 100."""
        return await self._do(calls.page("/environments", Environment, filters, limit, next_token))

    def environments(self, **filters: Unpack[EnvironmentFilters]) -> AsyncIterator[Environment]:
        """`async for` over all pages of list_environments()."""
        return self._every("/environments", Environment, filters)

    async def send_descriptor(self, fd: int) -> str:
        """Hands an open TUN (IFF_NO_PI, IFF_VNET_HDR) to the daemon; the answer is for EnvironmentSpec.descriptor, once
        and soon. fd stays the caller's to close. Raises NotATunnel, TooManyRequests, DaemonUnavailable."""
        return await asyncio.to_thread(passing.send, self.path, fd, self.timeout)

    # Documents

    async def apply(self, document: Document | ApplyRequest, *, dry_run: bool = False, prune: bool = False) -> Plan:
        """Makes an account's declared resources so, all or none; the plan says what changed, or what would.

        prune: delete what the document does not name. Raises what the create, update and delete methods raise; .field
        says where in the document.
        """
        request = calls.application(document, dry_run=dry_run, prune=prune)
        return await self._do(calls.post("/apply", Plan, request))

    async def export(self, account: str = DEFAULT_ACCOUNT) -> Document:
        """What an account has declared, as apply() takes it."""
        return await self._do(calls.get("/export", Document, account=account))

    # Traffic

    async def list_flows(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[FlowFilters]
    ) -> Listed[Flow]:
        """One page. remote: an address or a network. Raises ResourceNotFound, EngineError (no engine runs)."""
        return await self._do(calls.page("/flows", Flow, filters, limit, next_token))

    def flows(self, **filters: Unpack[FlowFilters]) -> AsyncIterator[Flow]:
        """`async for` over all pages of list_flows()."""
        return self._every("/flows", Flow, filters)

    async def get_flow(self, flow_id: int) -> Flow:
        """Raises ResourceNotFound when it has ended."""
        return await self._do(calls.get(calls.one("/flows", flow_id), Flow))

    async def list_drops(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[DropFilters]
    ) -> Listed[Drop]:
        """One page of the dropped packets that are remembered, the oldest first. after: a drop's number."""
        return await self._do(calls.page("/drops", Drop, filters, limit, next_token))

    def drops(self, **filters: Unpack[DropFilters]) -> AsyncIterator[Drop]:
        """`async for` over all pages of list_drops()."""
        return self._every("/drops", Drop, filters)

    # The daemon

    async def reconcile(self) -> Plan:
        """Makes kernel and engine as the store says; the plan holds what was not so. Raises DeviceError,
        EngineError."""
        return await self._do(calls.post("/reconcile", Plan))

    async def health(self) -> Health:
        """Also when it is not well: see Health.status."""
        return await self._do(calls.HEALTH)

    async def status(self) -> DaemonStatus:
        """Daemon, engine, and sums."""
        return await self._do(calls.get("/status", DaemonStatus))

    async def metrics(self) -> str:
        """As Prometheus reads them."""
        return (await self._do(calls.text("/metrics"))).decode()

    async def openapi(self) -> dict[str, Any]:
        """The API's OpenAPI document."""
        return await self._do(calls.get("/openapi.json", dict[str, Any]))
