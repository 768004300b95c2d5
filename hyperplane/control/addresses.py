"""Addresses: which of a subnet are given to ENIs, and which ones environments may have inside.

Never given: the network, the broadcast and the gateway's address, what is reserved, what another ENI in the same
namespace has (VPCs may share one), and what was found to belong to somebody else a short while ago ("taken").
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network, collapse_addresses
from typing import Final

from msgspec.structs import replace

from hyperplane.control.state import BLOCK_BITS, State, block_entry, namespace_key, range_entry
from hyperplane.errors import HyperplaneError, InvalidValue, SubnetOutOfIPAddresses
from hyperplane.resources import INSIDE_ADDRESS, Subnet, Vpc

THIS_NETWORK: Final = IPv4Network("0.0.0.0/8")  # RFC 1122 section 3.2.1.3
# RFC 2544, RFC 6598, then the documentation's blocks of RFC 5737: no server on the Internet has these.
INSIDE_ADDRESSES: Final = tuple(
    IPv4Address(text) for text in (INSIDE_ADDRESS, "100.64.0.2", "192.0.2.2", "203.0.113.2", "198.51.100.2")
)


def is_unicast(address: IPv4Address) -> bool:
    """One host can have it; as hyperplane.dataplane.checks has it."""
    return not (address.is_multicast or address.is_reserved or address.is_loopback or address in THIS_NETWORK)


def first_host(cidr: IPv4Network) -> IPv4Address:
    return cidr.network_address + 1


def allocate(state: State, vpc: Vpc, subnet: Subnet, now: float) -> IPv4Address:
    """The first address of the subnet that is free; the caller gives it to an ENI. Raises SubnetOutOfIPAddresses."""
    namespace = namespace_key(vpc.namespace)
    still = _taken(state, subnet, now)
    if len(still) < len(state.internals(subnet.id).get("taken", {})):
        mark_taken(state, subnet, (), now)  # without those that may be tried again
    taken = {int(IPv4Address(text)) for text in still}
    gateway = int(subnet.gateway)
    for low, high in _gaps(subnet.cidr, subnet.reserved):
        for number in range(low, high + 1):
            if number != gateway and number not in taken and state.one("address", namespace, number) is None:
                return IPv4Address(number)
    raise SubnetOutOfIPAddresses(
        f"subnet {subnet.name} ({subnet.cidr}) has no free address left for an ENI",
        resource=subnet.name,
        remedy="reserve less of it, or give the function a larger subnet",
    )


def available(state: State, subnet: Subnet) -> int:
    """How many addresses an ENI could still get."""
    gone = {int(subnet.gateway)} | {int(IPv4Address(text)) for text in state.internals(subnet.id).get("taken", ())}
    namespace = namespace_key(state.vpcs[subnet.vpc].namespace)
    first, size = int(subnet.cidr.network_address), subnet.cidr.num_addresses
    blocks = range(first, first + size, 1 << BLOCK_BITS)
    at = state.ids("at", namespace)
    few = (
        at if len(at) < len(blocks) else [id_ for block in blocks for id_ in state.ids(*block_entry(namespace, block))]
    )
    for id_ in few:
        gone.update(int(address) for address in state.enis[id_].addresses)
    gaps = list(_gaps(subnet.cidr, subnet.reserved))
    free = sum(high - low + 1 for low, high in gaps)
    return free - sum(1 for number in gone if any(low <= number <= high for low, high in gaps))


def viewed(state: State, subnet: Subnet) -> Subnet:
    """With what is derived."""
    return replace(subnet, available=available(state, subnet))


def mark_taken(state: State, subnet: Subnet, addresses: Iterable[IPv4Address], now: float) -> None:
    """Leaves these alone for a while; kept over a restart."""
    taken = _taken(state, subnet, now) | {str(address): now for address in addresses}
    state.put("subnet", subnet, {**state.internals(subnet.id), "taken": taken})


def collision(state: State, vpc: Vpc, address: IPv4Address) -> str:
    """What of the VPC an environment with this address could not reach, in words; "" for nothing."""
    if address in vpc.dns:
        return f"the address of a resolver of VPC {vpc.name}"
    for id_ in state.ids(*range_entry(vpc.id, address)):
        subnet = state.subnets[id_]
        if id_ not in state.passing and address in subnet.cidr:
            return f"in subnet {subnet.name} ({subnet.cidr}) of VPC {vpc.name}"
    return ""


def check_inside(state: State, vpc: Vpc, address: IPv4Address) -> None:
    """Refuses what somebody asked for by name. Raises InvalidValue."""
    field = "inside_address"
    if not is_unicast(address):
        limit = "a unicast address of one host"
        raise InvalidValue(f"{field} is {address}", resource=field, limit=limit, field=field)
    if found := collision(state, vpc, address):
        remedy = "leave it out, or choose an address that the VPC does not use"
        raise InvalidValue(f"{field} {address} is {found}", resource=str(address), remedy=remedy, field=field)


def default_inside(state: State, vpc: Vpc) -> tuple[IPv4Address, str]:
    """An inside address that the VPC leaves free, and what to tell the user about it. Raises InvalidValue."""
    notice = ""
    for address in INSIDE_ADDRESSES:
        found = collision(state, vpc, address)
        if not found:
            return address, notice and f"inside address is {address}: {notice}"
        notice = notice or f"{address} is {found}"
    field = "inside_address"
    remedy = f"give an {field} that the VPC does not use"
    raise InvalidValue(f"the VPC uses every default {field}", resource=field, remedy=remedy, field=field)


def check_free_inside(state: State, vpc: Vpc, error: type[HyperplaneError], field: str) -> None:
    """Refuses a change of the VPC by which an environment's own address becomes a destination. Raises `error`."""
    for id_ in state.ids("functions", vpc.id):
        function = state.functions[id_]
        found = collision(state, vpc, function.inside_address)
        if found and id_ not in state.passing:
            address = function.inside_address
            message = f"environments of function {function.name} have {address}, which is {found}"
            remedy = f"give function {function.name} another inside_address first"
            raise error(message, resource=function.name, remedy=remedy, field=field)


def _taken(state: State, subnet: Subnet, now: float) -> dict[str, float]:
    taken = state.internals(subnet.id).get("taken", {})
    return {text: since for text, since in taken.items() if now - since < state.limits.taken_seconds}


def _gaps(cidr: IPv4Network, reserved: Iterable[IPv4Network]) -> Iterator[tuple[int, int]]:
    """The subnet's host addresses without what is reserved, as inclusive ranges in order."""
    low, last = int(cidr.network_address) + 1, int(cidr.broadcast_address) - 1
    for network in sorted(collapse_addresses(reserved)):
        if low < int(network.network_address):
            yield low, int(network.network_address) - 1
        low = max(low, int(network.broadcast_address) + 1)
    if low <= last:
        yield low, last
