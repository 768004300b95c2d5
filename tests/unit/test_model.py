"""The plain values: rules and their text, timers, sums of counters, JSON."""

from __future__ import annotations

import json
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperplane.errors import HyperplaneError, InvalidValue
from hyperplane.model import ANYWHERE, Counters, Drop, Flow, FlowState, Reason, Rule, SecurityGroup, Timers, to_json

FLOW = Flow(
    id=1 << 32,
    tunnel="env-1",
    tunnel_number=2,
    eni="eni0",
    eni_number=1,
    protocol="tcp",
    state=FlowState.ESTABLISHED,
    inside=IPv4Address("198.18.0.2"),
    inside_port=40000,
    outside=IPv4Address("198.19.0.5"),
    outside_port=2000,
    remote=IPv4Address("198.19.0.80"),
    remote_port=443,
    packets_out=1,
    bytes_out=40,
    packets_in=0,
    bytes_in=0,
    started=1,
    last_seen=2,
    expires=3,
)


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("all", Rule("all")),
        ("all 0.0.0.0/0", Rule("all")),
        ("tcp", Rule("tcp")),
        ("tcp/80", Rule("tcp", ports=(80, 80))),
        ("tcp/5432 198.19.0.0/24", Rule("tcp", IPv4Network("198.19.0.0/24"), (5432, 5432))),
        ("tcp/8000-8100 198.19.0.10/32", Rule("tcp", IPv4Network("198.19.0.10/32"), (8000, 8100))),
        ("udp/53", Rule("udp", ports=(53, 53))),
        ("udp/0-65535", Rule("udp", ports=(0, 65535))),
        ("udp 198.19.0.10", Rule("udp", IPv4Network("198.19.0.10/32"))),
        ("icmp", Rule("icmp")),
        ("icmp/8", Rule("icmp", icmp_type=8)),
        ("  icmp/0\t198.19.0.0/16 ", Rule("icmp", IPv4Network("198.19.0.0/16"), icmp_type=0)),
    ],
)
def test_rules_are_read(text: str, rule: Rule) -> None:
    assert Rule.parse(text) == rule
    assert Rule.parse(str(rule)) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "sctp",
        "TCP/80",
        "tcp/",
        "tcp/x",
        "tcp/-1",
        "tcp/80-",
        "tcp/80-70",
        "tcp/65536",
        "tcp/99999",
        "tcp/100000",
        "tcp/80/81",
        "tcp/8\u0660",
        "tcp/80 198.19.0.0/33",
        "tcp/80 198.19.0.1/24",
        "tcp/80 198.19.0",
        "tcp/80 2001:db8::/32",
        "tcp/80 198.19.0.0/24 udp",
        "tcp 80",
        "icmp/256",
        "icmp/8-9",
        "all/80",
        "6/80",
        "tcp/80\nall",
    ],
)
def test_wrong_rules_are_refused_in_one_line_that_shows_a_right_one(text: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        Rule.parse(text)
    line = str(caught.value)
    assert "\n" not in line
    assert "tcp/443" in line
    assert repr(text) in line or not text.isprintable()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        *[(f"icmp/{kind}", "only echo (icmp/8) is translated") for kind in (0, 3, 11, 12, 13, 17, 42, 255)],
        ("tcp/80 127.0.0.0/8", "127.0.0.0/8 is no network of hosts"),
        ("all 127.0.0.1", "127.0.0.1/32 is no network of hosts"),
        ("udp 224.0.0.0/4", "224.0.0.0/4 is no network of hosts"),
        ("udp/67 255.255.255.255", "255.255.255.255/32 is no network of hosts"),
        ("icmp 240.0.0.0/8", "240.0.0.0/8 is no network of hosts"),
        ("all 0.0.0.0/8", "anywhere is 0.0.0.0/0"),
        ("all 0.0.0.0", "anywhere is 0.0.0.0/0"),
    ],
)
def test_rules_that_can_never_let_anything_out_are_not_declared(text: str, said: str) -> None:
    """They are readable nevertheless: databases hold them."""
    with pytest.raises(InvalidValue, match="can never let anything out") as caught:
        Rule.declared(text)
    assert said in str(caught.value)
    assert Rule.parse(str(Rule.parse(text))) == Rule.parse(text)


@pytest.mark.parametrize(
    "text", ["icmp", "icmp/8", "all", "all 0.0.0.0/0", "tcp/0", "udp 128.0.0.0/1", "tcp 0.0.0.0/1"]
)
def test_other_rules_are_declared_as_they_are_read(text: str) -> None:
    assert Rule.declared(text) == Rule.parse(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sctp", "sctp is not translated"),
        ("gre 198.19.0.0/24", "gre is not translated"),
        ("udp-lite/80", "udp-lite is not translated"),
        ("tcp/80 2001:db8::/32", "IPv6 is not translated"),
        ("tcp/https", "it is not PROTOCOL"),
    ],
)
def test_what_is_wrong_with_a_rule_is_said(text: str, said: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        Rule.declared(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"protocol": "gre"},
        {"protocol": None},
        {"protocol": "tcp", "cidr": "0.0.0.0/0"},
        {"protocol": "tcp", "ports": (1,)},
        {"protocol": "tcp", "ports": [1, 2]},
        {"protocol": "tcp", "ports": (True, 2)},
        {"protocol": "tcp", "ports": (2, 1)},
        {"protocol": "tcp", "ports": (-1, 1)},
        {"protocol": "tcp", "ports": (1, 65536)},
        {"protocol": "tcp", "icmp_type": 8},
        {"protocol": "icmp", "ports": (1, 2)},
        {"protocol": "icmp", "icmp_type": 256},
        {"protocol": "icmp", "icmp_type": True},
        {"protocol": "all", "ports": (1, 2)},
    ],
)
def test_rules_made_by_hand_are_checked_too(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match="security-group rule"):
        Rule(**values)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    prefix = draw(st.integers(0, 32))
    network = IPv4Network((draw(st.integers(0, 2**32 - 1)), prefix), strict=False)
    protocol = draw(st.sampled_from(["tcp", "udp", "icmp", "all"]))
    if protocol == "icmp":
        return Rule("icmp", network, icmp_type=draw(st.none() | st.integers(0, 255)))
    if protocol == "all" or draw(st.booleans()):
        return Rule(protocol, network)  # type: ignore[arg-type]
    low = draw(st.integers(0, 65535))
    return Rule(protocol, network, ports=(low, draw(st.integers(low, 65535))))  # type: ignore[arg-type]


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(rule=rules())
def test_a_rule_is_its_text(rule: Rule) -> None:
    assert Rule.parse(str(rule)) == rule


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(text=st.text(max_size=30) | st.from_regex(r"(tcp|udp|icmp)/[0-9]{1,6}(-[0-9]{1,6})?", fullmatch=True))
def test_any_text_is_a_rule_or_an_error_of_one_line(text: str) -> None:
    try:
        rule = Rule.parse(text)
    except InvalidValue as error:
        said = str(error)
    else:
        said = str(rule)
        assert Rule.parse(said) == rule
    assert len(said.splitlines()) == 1


def test_groups() -> None:
    group = SecurityGroup.parse("web", ["tcp/80", "udp/53 198.19.0.2/32"])
    assert (group.name, [str(rule) for rule in group.rules]) == ("web", ["tcp/80", "udp/53 198.19.0.2/32"])
    assert SecurityGroup.parse("none", []).rules == ()
    with pytest.raises(InvalidValue, match="list of rules"):
        SecurityGroup.parse("web", "tcp/80")
    with pytest.raises(AttributeError):
        group.name = "other"  # type: ignore[misc]


def test_default_timers_are_those_of_the_rfcs() -> None:
    """RFC 5382 REQ-5: 2 h 4 min and 4 min; RFC 4787 REQ-5: 5 min; RFC 5508 REQ-2: 60 s."""
    timers = Timers()
    assert (timers.tcp_established, timers.tcp_transitory, timers.tcp_closing) == (7440, 240, 240)
    assert (timers.udp, timers.dns, timers.icmp) == (300, 30, 60)


@pytest.mark.parametrize("name", Timers.__struct_fields__)
@pytest.mark.parametrize("value", [0, -1, 0.0009, 1_000_001, float("inf"), float("nan"), "60", None, True])
def test_wrong_timers(name: str, value: Any) -> None:
    with pytest.raises(InvalidValue, match=name) as caught:
        Timers(**{name: value})
    assert "seconds" in str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, HyperplaneError)


def test_counters_add_up() -> None:
    one = Counters(packets_in=1, bytes_in=10, flows_created=2, drops={"no_flow": 3})
    two = Counters(packets_in=2, refusals_sent=1, ignored=7, gone=True, drops={"no_flow": 1, "fragment": 5})
    total = one + two
    assert total == Counters(
        packets_in=3,
        bytes_in=10,
        flows_created=2,
        refusals_sent=1,
        ignored=7,
        gone=True,
        drops={"no_flow": 4, "fragment": 5},
    )
    assert one.drops == {"no_flow": 3}
    assert one + Counters() == one


def test_counters_do_not_share_their_drops() -> None:
    Counters().drops["no_flow"] = 1
    assert Counters().drops == {}


def test_reasons_are_their_words() -> None:
    assert str(Reason.SECURITY_GROUP) == "security_group"
    assert f"{Reason.NO_FLOW}" == "no_flow"
    assert Reason("ttl_exceeded") is Reason.TTL_EXCEEDED
    assert len({str(reason) for reason in Reason}) == len(Reason)


def test_json() -> None:
    decoded = json.loads(to_json([FLOW]))[0]
    assert (decoded["inside"], decoded["protocol"], decoded["state"]) == ("198.18.0.2", "tcp", "established")
    drop = Drop(
        number=1,
        time=2,
        link="env-1",
        link_number=2,
        reason=Reason.NO_FLOW,
        protocol=6,
        source=IPv4Address(1),
        source_port=1,
        destination=IPv4Address(2),
        destination_port=2,
        length=40,
    )
    assert json.loads(to_json({"drop": drop}))["drop"]["reason"] == "no_flow"
    assert json.loads(to_json(SecurityGroup.parse("a", ["tcp/80"])))["rules"][0]["cidr"] == str(ANYWHERE)
    with pytest.raises(NotImplementedError, match="object"):
        to_json(object())


def test_values_are_immutable() -> None:
    with pytest.raises(AttributeError):
        FLOW.inside_port = 1  # type: ignore[misc]
    with pytest.raises(AttributeError):
        Timers().udp = 1  # type: ignore[misc]
