"""VPCs, subnets, security groups and functions: what they may be, who holds whom, which addresses are given."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from hyperplane.control import Limits, MakeEni, Outcome, RemoveEni, UpdateEni
from hyperplane.errors import (
    DependencyViolation,
    HyperplaneError,
    IdempotentParameterMismatch,
    InvalidSecurityGroup,
    InvalidSubnet,
    InvalidValue,
    InvalidVpc,
    NamespaceNotFound,
    ResourceConflict,
    ResourceNotFound,
    SubnetOutOfIPAddresses,
)
from hyperplane.model import Rule, SecurityGroup
from hyperplane.resources import Document, FunctionSpec, FunctionState, SecurityGroupSpec, SubnetSpec, VpcSpec
from tests.unit.control_support import World, address

NET, IP = IPv4Network, IPv4Address
VPC: dict[str, Any] = {"name": "v", "namespace": "n"}
SUBNET: dict[str, Any] = {"name": "s", "vpc": "customer", "cidr": NET("198.19.9.0/24")}
GROUP: dict[str, Any] = {"name": "g", "vpc": "customer"}
FUNCTION: dict[str, Any] = {"name": "x", "subnets": ("a",), "security_groups": ("web",)}


@pytest.fixture
def world() -> World:
    world = World()
    world.network()
    world.control.create_vpc(VpcSpec(name="other", namespace="o"), world.now)
    world.control.create_subnet(SubnetSpec(name="far", vpc="other", cidr=NET("203.0.113.0/24")), world.now)
    world.control.create_security_group(SecurityGroupSpec(name="fargroup", vpc="other"), world.now)
    world.control.take()
    return world


@pytest.mark.parametrize(
    ("kind", "more", "error", "field"),
    [
        ("vpc", {"name": ""}, InvalidValue, "name"),
        ("vpc", {"name": "-v"}, InvalidValue, "name"),
        ("vpc", {"name": 65 * "v"}, InvalidValue, "name"),
        ("vpc", {"account": "a b"}, InvalidValue, "account"),
        ("vpc", {"client_token": "a b"}, InvalidValue, "client_token"),
        ("vpc", {"namespace": ""}, InvalidValue, "namespace"),
        ("vpc", {"mtu": 575}, InvalidValue, "mtu"),
        ("vpc", {"mtu": 65536}, InvalidValue, "mtu"),
        ("vpc", {"dns": (IP("224.0.0.1"),)}, InvalidValue, "dns[0]"),
        ("vpc", {"dns": (IP("198.19.0.53"), IP("198.19.0.53"))}, InvalidValue, "dns[1]"),
        ("vpc", {"udp_mapping": "none"}, InvalidValue, "udp_mapping"),
        ("vpc", {"name": "customer"}, ResourceConflict, "name"),
        ("subnet", {"vpc": "none"}, InvalidVpc, "vpc"),
        ("subnet", {"cidr": NET("198.18.0.0/15")}, InvalidSubnet, "cidr"),
        ("subnet", {"cidr": NET("198.19.9.0/29")}, InvalidSubnet, "cidr"),
        ("subnet", {"cidr": NET("224.0.0.0/24")}, InvalidSubnet, "cidr"),
        ("subnet", {"cidr": NET("198.19.0.128/25")}, InvalidSubnet, "cidr"),
        ("subnet", {"gateway": IP("198.19.9.0")}, InvalidSubnet, "gateway"),
        ("subnet", {"gateway": IP("198.19.8.1")}, InvalidSubnet, "gateway"),
        ("subnet", {"reserved": (NET("198.19.8.0/24"),)}, InvalidSubnet, "reserved[0]"),
        ("security_group", {"rules": ("tcp", "tpc/80")}, InvalidSecurityGroup, "rules[1]"),
        ("security_group", {"rules": ("tcp", "icmp/13")}, InvalidSecurityGroup, "rules[1]"),
        ("security_group", {"rules": ("all 127.0.0.0/8",)}, InvalidSecurityGroup, "rules[0]"),
        ("security_group", {"rules": 1025 * ("tcp/80",)}, InvalidSecurityGroup, "rules"),
        ("function", {"subnets": ()}, InvalidSubnet, "subnets"),
        ("function", {"subnets": 17 * ("a",)}, InvalidSubnet, "subnets"),
        ("function", {"subnets": ("a", "none")}, InvalidSubnet, "subnets[1]"),
        ("function", {"subnets": ("a", "a")}, InvalidSubnet, "subnets[1]"),
        ("function", {"subnets": ("a", "far")}, InvalidSubnet, "subnets[1]"),
        ("function", {"security_groups": ("web", "fargroup")}, InvalidSecurityGroup, "security_groups[1]"),
        ("function", {"security_groups": ()}, InvalidSecurityGroup, "security_groups"),
        ("function", {"security_groups": 6 * ("web",)}, InvalidSecurityGroup, "security_groups"),
        ("function", {"mtu": 100}, InvalidValue, "mtu"),
        ("function", {"max_flows": -1}, InvalidValue, "max_flows"),
        ("function", {"routes": 2 * (NET("198.19.0.0/16"),)}, InvalidValue, "routes[1]"),
        ("function", {"inside_address": IP("198.19.1.7")}, InvalidValue, "inside_address"),
        ("function", {"inside_address": IP("224.0.0.1")}, InvalidValue, "inside_address"),
    ],
)
def test_bad_requests(world: World, kind: str, more: dict[str, Any], error: type[HyperplaneError], field: str) -> None:
    type_: Any
    base, type_ = {
        "vpc": (VPC, VpcSpec),
        "subnet": (SUBNET, SubnetSpec),
        "security_group": (GROUP, SecurityGroupSpec),
        "function": (FUNCTION, FunctionSpec),
    }[kind]
    with pytest.raises(error) as caught:
        getattr(world.control, f"create_{kind}")(type_(**base | more), world.now)
    assert caught.value.field == field
    assert world.control.take() == Outcome()


def test_an_overlap_names_the_other(world: World) -> None:
    with pytest.raises(InvalidSubnet, match=r"overlaps subnet a \(198\.19\.0\.0/24\)"):
        world.control.create_subnet(SubnetSpec(**SUBNET | {"cidr": NET("198.19.0.0/16")}), world.now)
    world.control.create_subnet(SubnetSpec(name="same", vpc="other", cidr=NET("198.19.0.0/24")), world.now)


def test_the_same_again_is_the_same(world: World) -> None:
    spec = SecurityGroupSpec(name="g", vpc="customer", rules=("tcp/443-443  0.0.0.0/0",), client_token="t")
    made = world.control.create_security_group(spec, world.now)
    assert made.rules == ("tcp/443",)
    assert world.control.create_security_group(spec, world.now) == made
    same = SecurityGroupSpec(name="g", vpc=made.vpc, rules=("tcp/443",))
    assert world.control.create_security_group(same, world.now) == made
    other = SecurityGroupSpec(name="h", vpc="customer", client_token="t")
    with pytest.raises(IdempotentParameterMismatch):
        world.control.create_security_group(other, world.now)


def test_accounts_do_not_see_each_other(world: World) -> None:
    vpc = world.control.get("vpc", "customer")
    with pytest.raises(ResourceNotFound):
        world.control.get("vpc", vpc.id, "acme")
    world.control.create_vpc(VpcSpec(name="customer", namespace="n", account="acme"), world.now)
    assert world.control.get("vpc", "customer", "acme").id != vpc.id
    assert world.control.get("vpc", vpc.id, None) == vpc
    assert world.control.accounts() == ("acme", "default")
    assert len(world.control.list("vpc")) == 3
    assert [one.name for one in world.control.list("vpc", "default", name="other")] == ["other"]


def test_functions_with_the_same_key_share_an_eni(world: World) -> None:
    first = world.function("one", groups=("web", "db"))
    second = world.function("two", groups=("db", "web"))
    third = world.function("three", groups=("db",))
    assert first.enis == second.enis != third.enis
    (eni,) = first.enis
    make = world.control.take().actions[0]
    assert isinstance(make, MakeEni)
    assert set(make.security_groups) == {
        SecurityGroup("web", (Rule("tcp", ports=(443, 443)),)),
        SecurityGroup("db", (Rule("tcp", ports=(5432, 5432)),)),
    }
    assert world.control.get("eni", eni).functions == tuple(sorted((first.id, second.id)))
    world.control.delete_function("one", "default", world.now)
    assert world.control.take().actions == ()
    world.control.delete_function("two", "default", world.now)
    (remove,) = world.control.take().actions
    assert isinstance(remove, RemoveEni)
    assert remove.eni.id == eni
    world.control.eni_removed(eni, world.now)
    assert world.control.find("eni", eni) is None


def test_addresses_go_in_order_and_around_what_others_have() -> None:
    world = World()
    world.control.create_vpc(VpcSpec(name="v", namespace="n"), 1.0)
    reserved = (NET("198.19.0.2/31"), NET("198.19.0.8/29"))
    spec = SubnetSpec(name="s", vpc="v", cidr=NET("198.19.0.0/28"), gateway=IP("198.19.0.5"), reserved=reserved)
    assert world.control.create_subnet(spec, 1.0).available == 4
    given = []
    for name in ("g1", "g2", "g3", "g4"):
        world.control.create_security_group(SecurityGroupSpec(name=name, vpc="v"), 1.0)
        function = world.function(name, ("s",), (name,))
        given.append(str(world.control.get("eni", function.enis[0]).addresses[0]))
    assert given == ["198.19.0.1", "198.19.0.4", "198.19.0.6", "198.19.0.7"]
    assert world.control.get("subnet", "s").available == 0
    world.control.take()
    with pytest.raises(SubnetOutOfIPAddresses, match="subnet s") as caught:
        world.function("more", ("s",), ("g1", "g2"))
    assert caught.value.field == "subnets[0]"
    assert world.control.take() == Outcome()


def test_two_vpcs_in_one_namespace_do_not_give_an_address_twice(world: World) -> None:
    world.control.create_vpc(VpcSpec(name="again", namespace="/run/netns/ns-customer"), world.now)
    world.control.create_subnet(SubnetSpec(name="again", vpc="again", cidr=NET("198.19.0.0/24")), world.now)
    world.control.create_security_group(SecurityGroupSpec(name="again", vpc="again"), world.now)
    enis = (*world.function("f").enis, *world.function("g", ("again",), ("again",)).enis)
    assert len({world.control.get("eni", one).addresses for one in enis}) == 2


def test_inside_addresses_keep_out_of_the_vpc(world: World) -> None:
    assert str(world.function("plain").inside_address) == "198.18.0.2"
    with pytest.raises(InvalidSubnet, match="function plain") as caught:
        world.control.create_subnet(SubnetSpec(**SUBNET | {"cidr": NET("198.18.0.0/24")}), world.now)
    assert caught.value.field == "cidr"
    spec = VpcSpec(name="customer", namespace="ns-customer", dns=(IP("198.18.0.2"),))
    with pytest.raises(InvalidValue, match="function plain"):
        world.control.update_vpc("customer", spec, world.now)
    world.control.create_subnet(SubnetSpec(name="near", vpc="other", cidr=NET("198.18.0.0/24")), world.now)
    moved = world.function("moved", ("near",), ("fargroup",))
    assert str(moved.inside_address) == "100.64.0.2"
    assert "198.18.0.2 is in subnet near" in moved.notice


def test_what_is_in_use_stays(world: World) -> None:
    world.active("f")
    now = world.now
    for kind, ref, holder in (
        ("vpc", "customer", "subnets a, b and security groups db, web"),
        ("subnet", "a", "function f"),
        ("security_group", "web", "function f"),
    ):
        with pytest.raises(DependencyViolation, match=holder):
            getattr(world.control, f"delete_{kind}")(ref, "default", now)
    with pytest.raises(DependencyViolation, match="function f") as caught:
        world.control.update_vpc("customer", VpcSpec(name="customer", namespace="elsewhere"), now)
    assert caught.value.field == "namespace"
    spec = SubnetSpec(name="a", vpc="customer", cidr=NET("198.19.9.0/24"))
    with pytest.raises(DependencyViolation, match="function f"):
        world.control.update_subnet("a", spec, now)
    spec = SubnetSpec(name="a", vpc="customer", cidr=NET("198.19.0.0/24"), reserved=(NET("198.19.0.0/28"),))
    with pytest.raises(DependencyViolation, match="ENI"):
        world.control.update_subnet("a", spec, now)
    world.start("f", name="e")
    with pytest.raises(DependencyViolation, match="environment e"):
        world.control.delete_function("f", "default", now)


def test_rules_change_on_what_runs(world: World) -> None:
    world.active("f")
    spec = SecurityGroupSpec(name="web", vpc="customer", rules=("udp/53",))
    world.control.update_security_group("web", spec, world.now)
    (action,) = world.control.take().actions
    assert isinstance(action, UpdateEni)
    assert action.security_groups == (SecurityGroup("web", (Rule("udp", ports=(53, 53)),)),)


def test_rules_of_all_groups_must_fit_the_eni() -> None:
    world = World(Limits(rules=2))
    world.network()
    world.active("f", groups=("web", "db"))
    spec = SecurityGroupSpec(name="web", vpc="customer", rules=("tcp", "udp"))
    with pytest.raises(InvalidSecurityGroup, match="3 rules together"):
        world.control.update_security_group("web", spec, world.now)


def test_a_wrong_namespace_can_be_put_right(world: World) -> None:
    """Its functions have failed and hold no ENI, so nothing keeps it."""
    function = world.function("f")
    world.control.eni_failed(function.enis[0], NamespaceNotFound("no such namespace"), world.now)
    world.control.update_vpc("customer", VpcSpec(name="customer", namespace="right"), world.now)
    world.function("f")
    world.run()
    assert world.control.get("function", "f").state is FunctionState.ACTIVE


def test_a_rollback_takes_everything_back(world: World) -> None:
    before = world.control.export()
    world.active("f")
    world.control.take()
    exported = world.control.export()
    world.start()
    world.control.create_vpc(VpcSpec(**VPC), world.now)
    world.control.rollback()
    assert world.control.export() == exported != before
    assert world.control.list("environment") == ()


def test_bad_filters(world: World) -> None:
    with pytest.raises(InvalidValue, match="no filter"):
        world.control.list("vpc", color="red")
    with pytest.raises(InvalidValue, match="Pending"):
        world.control.list("function", state="pending")
    with pytest.raises(ResourceNotFound):
        world.control.list("subnet", "default", vpc="none")


def test_available_counts_what_a_shared_namespace_has_of_the_range(world: World) -> None:
    """Also when the subnet has fewer blocks than the namespace has ENIs, which are looked for by block then."""
    world.control.create_vpc(VpcSpec(name="third", namespace="ns-customer"), world.now)
    for name, cidr in (("c", "198.19.0.0/28"), ("d", "198.19.1.0/28")):
        world.control.create_subnet(SubnetSpec(name=name, vpc="third", cidr=IPv4Network(cidr)), world.now)
    for number in range(6):
        name = f"g{number}"
        world.control.create_security_group(SecurityGroupSpec(name=name, vpc="customer"), world.now)
        world.active(name, groups=(name,))
    assert {one.addresses[0] for one in world.control.list("eni")} == {address(f"198.19.0.{n}") for n in range(2, 8)}
    free = {name: world.control.get("subnet", name).available for name in "abcd"}
    assert free == {"a": 253 - 6, "b": 253, "c": 13 - 6, "d": 13}


def test_a_thousand_subnets_cost_what_ten_times_a_hundred_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted: comparisons of two ranges, and of an address with a range."""
    counted = Counter[str]()
    for name in ("overlaps", "__contains__"):
        original = getattr(IPv4Network, name)

        def counting(self: IPv4Network, other: Any, name: str = name, original: Any = original) -> Any:
            counted[name] += 1
            return original(self, other)

        monkeypatch.setattr(IPv4Network, name, counting)
    steps = []
    for count in (100, 1000):
        world = World()
        cidrs = [f"100.{64 + number // 10}.{number % 10}.0/24" for number in range(count)]
        document = Document(
            vpc=(VpcSpec(name="v", namespace="n"),),
            subnet=tuple(SubnetSpec(name=f"s{n}", vpc="v", cidr=IPv4Network(cidr)) for n, cidr in enumerate(cidrs)),
            security_group=(SecurityGroupSpec(name="g", vpc="v"),),
            function=tuple(
                FunctionSpec(name=f"f{number}", subnets=(f"s{number}",), security_groups=("g",))
                for number in range(count)
            ),
        )
        counted.clear()
        world.control.apply(document, False, world.now)
        assert world.control.apply(document, False, world.now).changes == ()
        steps.append(counted.total())
        assert {one.available for one in world.control.list("subnet")} == {252}
    assert steps[1] <= 11 * steps[0]
