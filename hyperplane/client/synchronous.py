"""The blocking client."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from hyperplane.client import calls, passing
from hyperplane.client.answers import Listed
from hyperplane.client.connection import Answer, BadAnswer, Connection
from hyperplane.client.failures import VERSION_HEADER, silent, unavailable
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

if TYPE_CHECKING:
    from typing import Unpack

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

T = TypeVar("T")


class SyncClient:
    """Client's methods, blocking. One connection, kept and used by one call at a time; any thread may call.

    instance: the daemon's name, HYPERPLANE_INSTANCE's or `default` unless given; path: of its API's socket, instead.
    timeout: seconds for one call. A context manager. Errors are those of Client.
    """

    def __init__(self, instance: str | None = None, path: str | Path | None = None, *, timeout: float = 60.0) -> None:
        self.path = Path(path) if path else socket_path(instance)
        self.timeout = timeout
        self._lock = threading.Lock()
        self._connection = Connection(self.path, timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; a later call opens a new one."""
        with self._lock:
            self._connection.close()

    def _do(self, call: calls.Call[T]) -> T:
        with self._lock:
            answer = self._exchange(call)
        return call.read(answer.status, answer.headers.get(VERSION_HEADER.lower()), answer.body)

    def _exchange(self, call: calls.Call[Any]) -> Answer:
        connection = self._connection
        try:
            if connection.sock and _has_ended(connection.sock):
                connection.close()
            if connection.sock is None:
                self._connect()
            return connection.exchange(call.method, call.target, call.body, call.headers)
        except TimeoutError:
            connection.close()
            raise silent(self.path, self.timeout) from None
        except (BadAnswer, OSError):
            connection.close()
            raise unavailable(self.path, None) from None
        except BaseException:  # Ctrl-C: the answer is still to come, on a connection that must not be used again
            connection.close()
            raise

    def _connect(self) -> None:
        try:
            self._connection.connect()
        except OSError as error:
            self._connection.close()
            raise unavailable(self.path, error) from None

    def _every(self, path: str, item: type[T], filters: Mapping[str, Any]) -> list[T]:
        return list(self._pages(path, item, filters))

    def _pages(self, path: str, item: type[T], filters: Mapping[str, Any]) -> Iterator[T]:
        token = ""
        while True:
            page = self._do(calls.page(path, item, filters, calls.MOST, token))
            yield from page
            token = page.next_token
            if not token:
                return

    # VPCs

    def create_vpc(self, spec: VpcSpec) -> Vpc:
        """Makes it, or finds the one with the same name and content, or the same client_token.

        Raises InvalidVpc,
        ResourceConflict (the name is taken by one with other content), IdempotentParameterMismatch.
        """
        return self._do(calls.post("/vpcs", Vpc, spec))

    def get_vpc(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> Vpc:
        """By id or name. Raises ResourceNotFound."""
        return self._do(calls.get(calls.one("/vpcs", ref), Vpc, account=account))

    def list_vpcs(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[VpcFilters]
    ) -> Listed[Vpc]:
        """One page, the oldest first. account None: of all accounts. limit: 1 to 1,000, else 100."""
        return self._do(calls.page("/vpcs", Vpc, filters, limit, next_token))

    def vpcs(self, **filters: Unpack[VpcFilters]) -> list[Vpc]:
        """All pages of list_vpcs()."""
        return self._every("/vpcs", Vpc, filters)

    def update_vpc(self, ref: str, spec: VpcSpec) -> Vpc:
        """Makes it what spec says, all fields. Raises ResourceNotFound, DependencyViolation or ResourceConflict (what
        is in use and cannot change), and what create_vpc() raises."""
        return self._do(calls.put(calls.one("/vpcs", ref), Vpc, spec))

    def delete_vpc(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> None:
        """Raises ResourceNotFound, DependencyViolation, which names what uses it."""
        self._do(calls.delete(calls.one("/vpcs", ref), None, account=account))

    # Subnets

    def create_subnet(self, spec: SubnetSpec) -> Subnet:
        """Makes it, or finds the one with the same name and content, or the same client_token.

        Raises InvalidVpc, InvalidSubnet (a range that overlaps another),
        ResourceConflict (the name is taken by one with other content), IdempotentParameterMismatch.
        """
        return self._do(calls.post("/subnets", Subnet, spec))

    def get_subnet(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> Subnet:
        """By id or name. Raises ResourceNotFound."""
        return self._do(calls.get(calls.one("/subnets", ref), Subnet, account=account))

    def list_subnets(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[SubnetFilters]
    ) -> Listed[Subnet]:
        """One page, the oldest first. account None: of all accounts. limit: 1 to 1,000, else 100."""
        return self._do(calls.page("/subnets", Subnet, filters, limit, next_token))

    def subnets(self, **filters: Unpack[SubnetFilters]) -> list[Subnet]:
        """All pages of list_subnets()."""
        return self._every("/subnets", Subnet, filters)

    def update_subnet(self, ref: str, spec: SubnetSpec) -> Subnet:
        """Makes it what spec says, all fields. Raises ResourceNotFound, DependencyViolation or ResourceConflict (what
        is in use and cannot change), and what create_subnet() raises."""
        return self._do(calls.put(calls.one("/subnets", ref), Subnet, spec))

    def delete_subnet(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> None:
        """Raises ResourceNotFound, DependencyViolation, which names what uses it."""
        self._do(calls.delete(calls.one("/subnets", ref), None, account=account))

    # Security groups

    def create_security_group(self, spec: SecurityGroupSpec) -> SecurityGroup:
        """Makes it, or finds the one with the same name and content, or the same client_token.

        Raises InvalidVpc, InvalidSecurityGroup (a rule that cannot be read),
        ResourceConflict (the name is taken by one with other content), IdempotentParameterMismatch.
        """
        return self._do(calls.post("/security-groups", SecurityGroup, spec))

    def get_security_group(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> SecurityGroup:
        """By id or name. Raises ResourceNotFound."""
        return self._do(calls.get(calls.one("/security-groups", ref), SecurityGroup, account=account))

    def list_security_groups(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[SecurityGroupFilters]
    ) -> Listed[SecurityGroup]:
        """One page, the oldest first. account None: of all accounts. limit: 1 to 1,000, else 100."""
        return self._do(calls.page("/security-groups", SecurityGroup, filters, limit, next_token))

    def security_groups(self, **filters: Unpack[SecurityGroupFilters]) -> list[SecurityGroup]:
        """All pages of list_security_groups()."""
        return self._every("/security-groups", SecurityGroup, filters)

    def update_security_group(self, ref: str, spec: SecurityGroupSpec) -> SecurityGroup:
        """Makes it what spec says, all fields. Raises ResourceNotFound, DependencyViolation or ResourceConflict (what
        is in use and cannot change), and what create_security_group() raises."""
        return self._do(calls.put(calls.one("/security-groups", ref), SecurityGroup, spec))

    def delete_security_group(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> None:
        """Raises ResourceNotFound, DependencyViolation, which names what uses it."""
        self._do(calls.delete(calls.one("/security-groups", ref), None, account=account))

    # Functions

    def create_function(self, spec: FunctionSpec) -> Function:
        """Makes it, or finds the one with the same name and content, or the same client_token.

        Raises InvalidSubnet, InvalidSecurityGroup, SubnetOutOfIPAddresses,
        ResourceConflict (the name is taken by one with other content), IdempotentParameterMismatch.
        """
        return self._do(calls.post("/functions", Function, spec))

    def get_function(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> Function:
        """By id or name. Raises ResourceNotFound."""
        return self._do(calls.get(calls.one("/functions", ref), Function, account=account))

    def list_functions(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[FunctionFilters]
    ) -> Listed[Function]:
        """One page, the oldest first. account None: of all accounts. limit: 1 to 1,000, else 100."""
        return self._do(calls.page("/functions", Function, filters, limit, next_token))

    def functions(self, **filters: Unpack[FunctionFilters]) -> list[Function]:
        """All pages of list_functions()."""
        return self._every("/functions", Function, filters)

    def update_function(self, ref: str, spec: FunctionSpec) -> Function:
        """Makes it what spec says, all fields. Raises ResourceNotFound, DependencyViolation or ResourceConflict (what
        is in use and cannot change), and what create_function() raises."""
        return self._do(calls.put(calls.one("/functions", ref), Function, spec))

    def delete_function(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> None:
        """Raises ResourceNotFound, DependencyViolation, which names what uses it."""
        self._do(calls.delete(calls.one("/functions", ref), None, account=account))

    # ENIs: functions make them

    def get_eni(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> Eni:
        """Raises ResourceNotFound."""
        return self._do(calls.get(calls.one("/enis", ref), Eni, account=account))

    def list_enis(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[EniFilters]
    ) -> Listed[Eni]:
        """One page, the oldest first. account None: of all accounts. limit: 1 to 1,000, else 100."""
        return self._do(calls.page("/enis", Eni, filters, limit, next_token))

    def enis(self, **filters: Unpack[EniFilters]) -> list[Eni]:
        """All pages of list_enis()."""
        return self._every("/enis", Eni, filters)

    # Environments

    def start_environment(self, spec: EnvironmentSpec) -> Environment:
        """Returns when it is attached.

        Raises ResourceNotFound (the function), FunctionNotActive, EniNotReady, NamespaceNotFound, NotATunnel,
        PermissionMissing, ResourceConflict (the name or the namespace is in use), TooManyRequests, DeviceError,
        EngineError.
        """
        return self._do(calls.post("/environments", Environment, spec))

    def end_environment(self, ref: str, *, drain: float = 0.0, account: str = DEFAULT_ACCOUNT) -> Environment:
        """drain: seconds in which its flows may end by themselves; then, or at once, both sides get an RST. Ending it
        again is no error. Raises ResourceNotFound."""
        path = calls.one("/environments", ref)
        return self._do(calls.delete(path, Environment, account=account, drain=f"{drain:f}" if drain else None))

    def get_environment(self, ref: str, *, account: str = DEFAULT_ACCOUNT) -> Environment:
        """By id or name; those that ended are kept for a while. Raises ResourceNotFound."""
        return self._do(calls.get(calls.one("/environments", ref), Environment, account=account))

    def list_environments(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[EnvironmentFilters]
    ) -> Listed[Environment]:
        """One page, the oldest first. account None: of all accounts. limit: 1 to 1,000, else 100."""
        return self._do(calls.page("/environments", Environment, filters, limit, next_token))

    def environments(self, **filters: Unpack[EnvironmentFilters]) -> list[Environment]:
        """All pages of list_environments()."""
        return self._every("/environments", Environment, filters)

    def send_descriptor(self, fd: int) -> str:
        """Hands an open TUN (IFF_NO_PI, IFF_VNET_HDR) to the daemon; the answer is for EnvironmentSpec.descriptor, once
        and soon. fd stays the caller's to close. Raises NotATunnel, TooManyRequests, DaemonUnavailable."""
        return passing.send(self.path, fd, self.timeout)

    # Documents

    def apply(self, document: Document | ApplyRequest, *, dry_run: bool = False, prune: bool = False) -> Plan:
        """Makes an account's declared resources so, all or none; the plan says what changed, or what would.

        prune: delete what the document does not name. Raises what the create, update and delete methods raise; .field
        says where in the document.
        """
        request = calls.application(document, dry_run=dry_run, prune=prune)
        return self._do(calls.post("/apply", Plan, request))

    def export(self, account: str = DEFAULT_ACCOUNT) -> Document:
        """What an account has declared, as apply() takes it."""
        return self._do(calls.get("/export", Document, account=account))

    # Traffic

    def list_flows(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[FlowFilters]
    ) -> Listed[Flow]:
        """One page. remote: an address or a network. Raises ResourceNotFound, EngineError (no engine runs)."""
        return self._do(calls.page("/flows", Flow, filters, limit, next_token))

    def flows(self, **filters: Unpack[FlowFilters]) -> list[Flow]:
        """All pages of list_flows()."""
        return self._every("/flows", Flow, filters)

    def get_flow(self, flow_id: int) -> Flow:
        """Raises ResourceNotFound when it has ended."""
        return self._do(calls.get(calls.one("/flows", flow_id), Flow))

    def list_drops(
        self, *, limit: int | None = None, next_token: str = "", **filters: Unpack[DropFilters]
    ) -> Listed[Drop]:
        """One page of the dropped packets that are remembered, the oldest first. after: a drop's number."""
        return self._do(calls.page("/drops", Drop, filters, limit, next_token))

    def drops(self, **filters: Unpack[DropFilters]) -> list[Drop]:
        """All pages of list_drops()."""
        return self._every("/drops", Drop, filters)

    # The daemon

    def reconcile(self) -> Plan:
        """Makes kernel and engine as the store says; the plan holds what was not so. Raises DeviceError,
        EngineError."""
        return self._do(calls.post("/reconcile", Plan))

    def health(self) -> Health:
        """Also when it is not well: see Health.status."""
        return self._do(calls.HEALTH)

    def status(self) -> DaemonStatus:
        """Daemon, engine, and sums."""
        return self._do(calls.get("/status", DaemonStatus))

    def metrics(self) -> str:
        """As Prometheus reads them."""
        return (self._do(calls.text("/metrics"))).decode()

    def openapi(self) -> dict[str, Any]:
        """The API's OpenAPI document."""
        return self._do(calls.get("/openapi.json", dict[str, Any]))


def _has_ended(sock: socket.socket) -> bool:
    """Whether an idle connection was closed by the daemon: nothing else makes it readable."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))
