"""VPCs, subnets and security groups: what they may contain, and what keeps them from changing or going away."""

from __future__ import annotations

from collections.abc import Collection
from ipaddress import IPv4Network
from typing import Any, Final, get_args

from msgspec.structs import replace

from hyperplane.control import addresses, names
from hyperplane.control.enis import Enis
from hyperplane.control.state import State, range_entry
from hyperplane.errors import (
    DependencyViolation,
    HyperplaneError,
    InvalidSecurityGroup,
    InvalidSubnet,
    InvalidValue,
    InvalidVpc,
)
from hyperplane.model import Rule, UdpMapping
from hyperplane.resources import (
    Kind,
    SecurityGroup,
    SecurityGroupSpec,
    Subnet,
    SubnetSpec,
    Vpc,
    VpcSpec,
)

Spec = VpcSpec | SubnetSpec | SecurityGroupSpec
LEAST_MTU, LARGEST_MTU = 576, 65535  # RFC 1122 section 3.3.3; the most a TUN takes
SUBNET_PREFIXES: Final = range(16, 29)  # as in AWS
MOST_DNS: Final = 3  # MAXNS of resolv.conf(5)
OF_ENIS: Final = ("namespace", "mtu", "timers", "udp_mapping", "silent")  # fields of a VPC that its ENIs were made with


class Networks:
    def __init__(self, state: State, enis: Enis) -> None:
        self._state = state
        self._enis = enis

    def create(self, kind: Kind, spec: Any, now: float) -> Any:
        state = self._state
        names.check_new(spec)
        if (found := names.repeated(state, kind, spec)) is not None:
            return found
        content = self._content(kind, spec)
        if (found := names.same_name(state, kind, spec, content)) is not None:
            return found
        types = {"vpc": Vpc, "subnet": Subnet, "security-group": SecurityGroup}
        id_ = state.new_id(kind)
        resource = types[kind](id=id_, account=spec.account, name=spec.name, created=now, **content)
        self._put(kind, resource, names.token_internals(kind, spec))
        return resource

    def update(self, kind: Kind, resource: Any, spec: Any) -> Any:
        state = self._state
        names.check_name(spec.name)
        names.check_rename(state, kind, resource, spec.name)
        content = self._content(kind, spec, resource.id)
        changed = [name for name, value in content.items() if getattr(resource, name) != value]
        if not changed and spec.name == resource.name:
            return resource
        self._check_change(kind, resource, changed, content)
        updated = replace(resource, name=spec.name, **content)
        internals = {name: value for name, value in state.internals(resource.id).items() if name != "taken"}
        self._put(kind, updated, internals)
        if kind == "security-group" and "rules" in changed:
            self._enis.rules_changed(updated)
        return updated

    def delete(self, kind: Kind, resource: Any) -> None:
        state = self._state
        if kind == "vpc":
            found: tuple[str, ...] = (
                names.holders(state, "subnet", state.ids("subnets", resource.id)),
                names.holders(state, "security-group", state.ids("groups", resource.id)),
            )
        else:
            self._enis.let_go(resource.id)
            found = self._holders(resource.id)
        if held := " and ".join(text for text in found if text):
            message = f"{names.words(kind)} {resource.name} is used by {held}"
            raise DependencyViolation(message, resource=resource.name, remedy="delete or change these first")
        state.delete(kind, resource.id)

    def _put(self, kind: Kind, resource: Any, internals: dict[str, Any]) -> None:
        """Whether the VPC then still leaves the inside addresses alone is asked of what it has become."""
        state = self._state
        state.put(kind, resource, internals)
        if kind == "vpc" and not state.applying:
            addresses.check_free_inside(state, resource, InvalidValue, "dns")
        elif kind == "subnet" and not state.applying:
            addresses.check_free_inside(state, state.vpcs[resource.vpc], InvalidSubnet, "cidr")

    def _holders(self, id_: str) -> tuple[str, ...]:
        """Functions and, where a function has left its ENI behind, the environments that are still on it."""
        state = self._state
        functions = state.ids("functions", id_)
        left = [one for eni in state.ids("enis", id_) for one in names.running(state, eni)]
        environments = [one for one in left if state.environments[one].function not in functions]
        return names.holders(state, "function", functions), names.holders(state, "environment", environments)

    def _check_outside(self, subnet: Subnet, content: dict[str, Any]) -> None:
        """Refuses to call an address the gateway's or reserved that an ENI has. Raises DependencyViolation."""
        for id_ in self._state.ids("enis", subnet.id):
            eni = self._state.enis[id_]
            for address in eni.addresses:
                field = "gateway" if address == content["gateway"] else "reserved"
                if field == "gateway" or any(address in network for network in content["reserved"]):
                    message = f"{address} is the address of ENI {eni.name}"
                    raise DependencyViolation(message, resource=str(address), remedy="choose others", field=field)

    def _check_change(self, kind: Kind, resource: Any, changed: Collection[str], content: dict[str, Any]) -> None:
        """Refuses what cannot change while somebody uses it. Raises DependencyViolation."""
        state = self._state
        if kind == "subnet":
            self._check_outside(resource, content)
        fixed: Collection[str] = {"vpc": OF_ENIS, "subnet": ("vpc", "cidr"), "security-group": ("vpc",)}[kind]
        found = [name for name in changed if name in fixed]
        if not found:
            return
        if kind == "vpc":
            used = {one for eni in state.ids("enis", resource.id) for one in state.ids("functions", eni)}
            left = {one for eni in state.ids("enis", resource.id) for one in names.running(state, eni)} - used
            held: tuple[str, ...] = (
                names.holders(state, "function", used),
                names.holders(state, "environment", () if used else left),
            )
        else:
            held = self._holders(resource.id)
        if text := " and ".join(one for one in held if one):
            message = f"{', '.join(found)} of {names.words(kind)} {resource.name} cannot change: it is used by {text}"
            remedy = "delete these first, or make a new one under another name"
            raise DependencyViolation(message, resource=resource.name, remedy=remedy, field=found[0])

    def _content(self, kind: Kind, spec: Any, own_id: str = "") -> dict[str, Any]:
        """The fields of the resource that the request describes, checked."""
        if kind == "vpc":
            return _vpc_content(spec)
        vpc: Vpc = names.require(self._state, "vpc", spec.vpc, spec.account, InvalidVpc, "vpc")
        if kind == "security-group":
            return {"vpc": vpc.id, "rules": _rules(spec, self._state.limits.rules)}
        return _subnet_content(self._state, spec, vpc, own_id)


def check_mtu(mtu: int, field: str = "mtu") -> None:
    if not LEAST_MTU <= mtu <= LARGEST_MTU:
        limit = f"{LEAST_MTU} to {LARGEST_MTU} bytes"
        raise InvalidValue(f"{field} is {mtu}", resource=field, limit=limit, field=field)


def check_namespace(namespace: str, field: str = "namespace") -> None:
    """Its form only: a name, a path or pid:N. Raises InvalidValue."""
    kind, colon, number = namespace.partition(":")
    usable = namespace.isprintable() and namespace == namespace.strip() and namespace not in ("", ".", "..")
    if colon and kind == "fd":
        usable = False  # it would be a descriptor of the daemon's
    elif colon and kind == "pid":
        usable = number.isdecimal() and len(number) <= 9 and int(number) > 0
    if not usable or len(namespace) > 4096:
        remedy = "give a name as `ip netns list` shows it, an absolute path, or pid:N"
        raise InvalidValue(f"{field} is {namespace!r}", resource=field, remedy=remedy, field=field)
    if "/" in namespace and not namespace.startswith("/"):
        remedy = "give an absolute path: the daemon's working directory is not yours"
        raise InvalidValue(f"{field} {namespace} is a relative path", resource=field, remedy=remedy, field=field)


def _vpc_content(spec: VpcSpec) -> dict[str, Any]:
    check_namespace(spec.namespace)
    check_mtu(spec.mtu)
    if spec.udp_mapping not in get_args(UdpMapping):
        limit = f"one of {', '.join(get_args(UdpMapping))}"
        message = f"udp_mapping is {spec.udp_mapping!r}"
        raise InvalidValue(message, resource="udp_mapping", limit=limit, field="udp_mapping")
    if len(spec.dns) > MOST_DNS:
        limit = f"{MOST_DNS} resolvers, as resolv.conf has them"
        raise InvalidValue(f"dns has {len(spec.dns)} addresses", resource="dns", limit=limit, field="dns")
    for position, address in enumerate(spec.dns):
        field = f"dns[{position}]"
        if not addresses.is_unicast(address):
            limit = "a unicast address of one host"
            raise InvalidValue(f"{field} is {address}", resource=field, limit=limit, field=field)
        if address in spec.dns[:position]:
            raise InvalidValue(f"{field} {address} is there twice", resource=field, field=field)
    return {name: getattr(spec, name) for name in ("namespace", "dns", "mtu", "timers", "udp_mapping", "silent")}


def _subnet_content(state: State, spec: SubnetSpec, vpc: Vpc, own_id: str) -> dict[str, Any]:
    cidr = spec.cidr
    if cidr.prefixlen not in SUBNET_PREFIXES:
        limit = f"/{SUBNET_PREFIXES[0]} to /{SUBNET_PREFIXES[-1]}"
        raise InvalidSubnet(f"cidr {cidr} has an unusable size", resource=spec.name, limit=limit, field="cidr")
    if not addresses.is_unicast(cidr.network_address):
        limit = "unicast addresses of hosts"
        raise InvalidSubnet(f"cidr {cidr} is no range for hosts", resource=spec.name, limit=limit, field="cidr")
    for id_ in state.ids(*range_entry(vpc.id, cidr.network_address)):
        other = state.subnets[id_]
        # One with the same name is for same_name(): it is this one, or a conflict of names.
        if id_ != own_id and other.cidr.overlaps(cidr) and id_ not in state.passing and other.name != spec.name:
            message = f"cidr {cidr} overlaps subnet {other.name} ({other.cidr}) of VPC {vpc.name}"
            raise InvalidSubnet(message, resource=spec.name, remedy="choose a free range", field="cidr")
    gateway = spec.gateway or addresses.first_host(cidr)
    if gateway not in cidr or gateway in (cidr.network_address, cidr.broadcast_address):
        message = f"gateway {gateway} is no host of {cidr}"
        raise InvalidSubnet(message, resource=spec.name, remedy="leave it out, or give a host", field="gateway")
    for position, network in enumerate(spec.reserved):
        if not (isinstance(network, IPv4Network) and network.subnet_of(cidr)):
            field = f"reserved[{position}]"
            message = f"{field} {network} is not in {cidr}"
            raise InvalidSubnet(message, resource=spec.name, remedy="give parts of the cidr", field=field)
    return {"vpc": vpc.id, "cidr": cidr, "gateway": gateway, "reserved": spec.reserved}


def _rules(spec: SecurityGroupSpec, most: int) -> tuple[str, ...]:
    """The rules' shortest texts, so that the same rule written otherwise is the same content."""
    if len(spec.rules) > most:
        message = f"security group {spec.name} has {len(spec.rules)} rules"
        raise InvalidSecurityGroup(message, resource=spec.name, limit=f"{most} rules", field="rules")
    found = []
    for position, text in enumerate(spec.rules):
        try:
            found.append(str(Rule.declared(text)))
        except HyperplaneError as error:
            field = f"rules[{position}]"
            raise InvalidSecurityGroup(error.message, resource=spec.name, remedy=error.remedy, field=field) from None
    return tuple(found)
