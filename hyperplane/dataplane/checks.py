"""Every value is checked here before C sees it: each function returns it in its final type or raises InvalidValue."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import TypeVar

from hyperplane._native import lib
from hyperplane.errors import InvalidValue
from hyperplane.model import Rule, SecurityGroup

T = TypeVar("T")

NAME_LENGTH = 200
CPUS = 1024  # CPU_SETSIZE, sched.h
THIS_NETWORK = IPv4Network("0.0.0.0/8")  # RFC 1122 section 3.2.1.3


def integer(what: str, value: int, low: int, high: int) -> int:
    """A whole number in [low, high]."""
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        limit = f"{low} to {high}"
        raise InvalidValue(f"{what} is {value!r}", resource=what, limit=limit, remedy="give a whole number")
    return value


def power_of_two(what: str, value: int, low: int, high: int) -> int:
    if integer(what, value, low, high) & (value - 1):
        raise InvalidValue(f"{what} is {value}", resource=what, limit="a power of two", remedy="give 64, 128, 256, ...")
    return value


def milliseconds(what: str, seconds: float, longest: float) -> int:
    """Seconds (at least a millisecond) as whole milliseconds."""
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not number or not 0.001 <= seconds <= longest:
        limit = f"0.001 to {longest:.0f} seconds"
        raise InvalidValue(f"{what} is {seconds!r}", resource=what, limit=limit, remedy="give a number of seconds")
    return round(seconds * 1000)


def cpus(what: str, value: str, most: int) -> list[int]:
    """Numbers of processors, as taskset has them: "0,2" or "0-3"; "" for none."""
    found: list[int] = []
    try:
        for part in instance(what, value, str).split(",") if value != "" else ():
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
        if (value and not found) or len(found) > most or any(not 0 <= number < CPUS for number in found):
            raise ValueError
    except ValueError:
        limit = f"at most {most} processors"
        remedy = "give numbers and ranges such as 0,2-3"
        raise InvalidValue(f"{what} is {value!r}", resource=what, limit=limit, remedy=remedy) from None
    return found


def choice(what: str, value: str, choices: Iterable[str]) -> str:
    known = tuple(choices)
    if value not in known:
        limit = f"one of {', '.join(known)}"
        raise InvalidValue(f"{what} is {value!r}", resource=what, limit=limit)
    return value


def name(what: str, value: str) -> str:
    """A name fits one line of any output: printable, no blanks at its ends."""
    if not isinstance(value, str) or not value.isprintable() or value != value.strip() or not value:
        raise InvalidValue(f"{what} is {value!r}", resource=what, remedy="give printable text without blanks around it")
    if len(value) > NAME_LENGTH:
        raise InvalidValue(f"{what} has {len(value)} characters", resource=what, limit=f"{NAME_LENGTH} characters")
    return value


def unicast(what: str, value: str | IPv4Address) -> IPv4Address:
    """An address that one host can have: not multicast, reserved (240/4), loopback or of "this network" (0/8)."""
    if not isinstance(value, (str, IPv4Address)):
        raise InvalidValue(f"{what} is {value!r}", resource=what, remedy="give an IPv4 address such as '198.19.0.5'")
    try:
        address, one_host = _address(value)
    except ValueError as error:
        remedy = "give an IPv4 address such as 198.19.0.5"
        raise InvalidValue(f"{what}: {error}", resource=what, remedy=remedy) from None
    if not one_host:
        raise InvalidValue(f"{what} is {address}", resource=what, limit="a unicast address of one host")
    return address


@lru_cache(maxsize=256)  # environments that are clones of one have the same
def _address(value: str | IPv4Address) -> tuple[IPv4Address, bool]:
    """And whether one host can have it. Raises ValueError."""
    address = IPv4Address(value)
    nobodys = address.is_multicast or address.is_reserved or address.is_loopback or address in THIS_NETWORK
    return address, not nobodys


def addresses(what: str, value: str | IPv4Address | Iterable[str | IPv4Address]) -> tuple[IPv4Address, ...]:
    """One to HP_ENI_ADDRESSES different addresses."""
    given: Iterable[str | IPv4Address] = (value,) if isinstance(value, (str, IPv4Address)) else _tuple(what, value)
    checked = tuple(unicast(what, one) for one in given)
    if not 1 <= len(checked) <= lib.HP_ENI_ADDRESSES:
        limit = f"1 to {lib.HP_ENI_ADDRESSES} addresses"
        remedy = "add a further ENI for more"
        raise InvalidValue(f"{what}: {len(checked)} addresses", resource=what, limit=limit, remedy=remedy)
    if len(set(checked)) != len(checked):
        raise InvalidValue(f"{what}: an address is given twice", resource=what, remedy="name each address once")
    return checked


def groups(what: str, value: Iterable[SecurityGroup]) -> tuple[SecurityGroup, ...]:
    """Security groups with at most HP_MAX_RULES rules together."""
    checked = _tuple(what, value)
    for one in checked:
        if not isinstance(one, SecurityGroup):
            remedy = "make it with SecurityGroup.parse(name, rules)"
            raise InvalidValue(f"{what}: {one!r} is no SecurityGroup", resource=what, remedy=remedy)
        name(f"{what}: name of a group", one.name)
        for rule in one.rules:
            instance(f"{what}: a rule of group {one.name}", rule, Rule)
    count = sum(len(group.rules) for group in checked)
    if count > lib.HP_MAX_RULES:
        limit = f"{lib.HP_MAX_RULES} rules of one ENI"
        remedy = "join CIDRs or port ranges, or use a further ENI"
        raise InvalidValue(f"{what}: {count} rules", resource=what, limit=limit, remedy=remedy)
    return checked


def instance(what: str, value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise InvalidValue(f"{what} is {value!r}", resource=what, remedy=f"give a {kind.__name__}")
    return value


def _tuple(what: str, value: Iterable[T]) -> tuple[T, ...]:
    try:
        return tuple(value)
    except TypeError:
        raise InvalidValue(f"{what} is {value!r}", resource=what, remedy="give a list") from None
