"""The declarative document: what is written is read back, and errors name the line."""

from __future__ import annotations

import tomllib
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hyperplane.cli.documents import placed, read
from hyperplane.cli.failures import CONFLICT, INVALID, DocumentError, exit_code
from hyperplane.cli.toml_lines import line_of, syntax_error
from hyperplane.cli.toml_text import write
from hyperplane.errors import DependencyViolation, HyperplaneError, InvalidSubnet, InvalidValue, ResourceConflict
from hyperplane.model import Timers
from hyperplane.resources import Document, FunctionSpec, SecurityGroupSpec, SubnetSpec, VpcSpec

TEXT = (
    '''\
# [[vpc]] is no table here
account = "acme" # nor [[vpc]] here
[[vpc]]
name = "a[0].b"
namespace = 'it''
dns = [ # the first
  "198.19.0.1", # ] no end
  "198.19.0.2",
]
timers = { udp = 3, "dns" = 4 }

[[vpc]]
name = """
[[vpc]]
mtu = 1 \\""" """
'''.replace("'it''", "'it[['")
    + '''\
namespace = """x"""
[vpc.timers]
icmp = 3
[[ subnet ]] # a comment
name = 'q]'
"cidr" = "198.19.0.0/24"
reserved = ["198.19.0.1/32",
            "198.19.0.2/32"]
vpc."deep".er = { a = [ { b = 1 }, { c = "}" , d = [[1], [2,
  3]] } ] }
[x.y.z]
k = 1979-05-27T07:32:00Z
l = true
'''
)


@pytest.mark.parametrize(
    ("field", "line"),
    [
        ("account", 2),
        ("vpc", 3),
        ("vpc[0]", 3),
        ("vpc[0].name", 4),
        ("vpc[0].namespace", 5),
        ("vpc[0].dns", 6),
        ("vpc[0].dns[0]", 7),
        ("vpc[0].dns[1]", 8),
        ("vpc[0].timers.udp", 10),
        ("vpc[0].timers.dns", 10),
        ("vpc[1]", 12),
        ("vpc[1].name", 13),
        ("vpc[1].namespace", 16),
        ("vpc[1].timers", 17),
        ("vpc[1].timers.icmp", 18),
        ("subnet[0]", 19),
        ("subnet[0].name", 20),
        ("subnet[0].cidr", 21),
        ("subnet[0].reserved[0]", 22),
        ("subnet[0].reserved[1]", 23),
        ("subnet[0].vpc.deep.er", 24),
        ("subnet[0].vpc.deep.er.a[1].d[1][1]", 25),
        ("x.y.z.l", 28),
        # What is not there: the nearest around it.
        ("vpc[1].mtu", 12),
        ("subnet[0].reserved[7]", 22),
        ("function[0].name", 0),
        ("", 0),
    ],
)
def test_a_field_has_its_line(field: str, line: int) -> None:
    tomllib.loads(TEXT)
    assert line_of(TEXT, field) == line


def test_an_unknown_field_has_its_own_line() -> None:
    message = "vpc[0]: Object contains unknown field `dns`"
    assert line_of(TEXT, "vpc[0]", message) == 6


@settings(deadline=None)
@given(st.text(alphabet="[]{}\"'=.,#\\\n ab1", max_size=60))
def test_no_text_confuses_the_walk(text: str) -> None:
    assert 0 <= line_of(text, "a[1].b") <= text.count("\n") + 1


@pytest.mark.parametrize(
    ("text", "line"),
    [("a = \n", 1), ("a = 1\nb = [1,\n", 2), ("[[vpc]]\nname = 'x'\nname = 'y'\n", 3), ("a = 1\n[b\n", 2)],
)
def test_a_syntax_error_has_its_line(text: str, line: int) -> None:
    with pytest.raises(tomllib.TOMLDecodeError) as caught:
        tomllib.loads(text)
    found, message = syntax_error(text, caught.value)
    assert found == line
    assert "(at" not in message
    with pytest.raises(DocumentError, match=rf"^net\.toml:{line}: "):
        read("net.toml", text)


# Reading

SUBNET = '[[subnet]]\nname = "a"\nvpc = "v"\ncidr = "198.19.0.0/24"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'{SUBNET}[[subnet]]\nname = "b"\nvpc = "v"\ncidr = "198.19.0.1/24"\n', "f:8: subnet[1].cidr: 198.19.0.1/24"),
        (f"{SUBNET}mtu = 3\n", "f:5: subnet[0]: Object contains unknown field `mtu`"),
        ('[[vpc]]\nname = "v"\n', "f:1: vpc[0]: Object missing required field `namespace`"),
        ('[[vpc]]\nname = "v"\nnamespace = "n"\nmtu = "big"\n', "f:4: vpc[0].mtu: Expected `int`, got `str`"),
        ('[[vpc]]\nname = "v"\nnamespace = "n"\n\ntimers = { udp = "x" }\n', "f:5: vpc[0].timers.udp: Expected"),
        ('[vpc]\nname = "v"\n', "f:1: vpc: Expected `array`, got `object`"),
        ("[[vpcs]]\n", "f:1: Object contains unknown field `vpcs`"),
        ("account = 7\n", "f:1: account: Expected `str`"),
    ],
)
def test_a_wrong_value_has_its_line(text: str, message: str) -> None:
    with pytest.raises(DocumentError) as caught:
        read("f", text)
    assert str(caught.value).startswith(message)
    assert exit_code(caught.value) == INVALID


def test_an_error_of_the_daemon_has_its_line_and_keeps_its_exit_code() -> None:
    for error, line, code in (
        (InvalidSubnet("subnet a overlaps b", field="document.subnet[1].cidr"), "f:8: subnet a overlaps b", INVALID),
        (ResourceConflict("vpc v exists", remedy="rename it", field="vpc[3]"), "f: vpc v exists; rename it", CONFLICT),
    ):
        found = placed("f", f'{SUBNET}[[subnet]]\nname = "b"\nvpc = "v"\ncidr = "198.19.0.0/24"\n', error)
        assert str(found) == line
        assert exit_code(found) == code
    other = DependencyViolation("function x has environments")
    assert placed("f", SUBNET, other) is other


def test_tables_belong_to_the_documents_account() -> None:
    for text, account in (
        (SUBNET, None),
        (f'account = "acme"\n{SUBNET}', "acme"),
        (f'account = "acme"\n{SUBNET}account = "b"\n', None),
    ):
        document = read("f", text, account)
        wanted = "acme" if "acme" in text else "default"
        assert document.account == wanted
        assert document.subnet[0].account == ("b" if '"b"' in text else wanted)
    assert read("f", SUBNET, "acme").subnet[0].account == "acme"
    with pytest.raises(DocumentError, match=r"^f:1: the document is of account acme, not other"):
        read("f", f'account = "acme"\n{SUBNET}', "other")


def test_a_document_that_is_no_text_is_one_line() -> None:
    error: HyperplaneError = placed("f", "", InvalidValue("no good"))
    assert str(error) == "f: no good"


# Writing

words = st.text(min_size=0, max_size=12)
addresses = st.integers(0, 2**32 - 1).map(IPv4Address)
networks = st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)).map(lambda one: IPv4Network(one, strict=False))
seconds = st.floats(0.001, 1_000_000) | st.integers(1, 1_000_000)


def many(element: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(element, max_size=3).map(tuple)


def common(account: st.SearchStrategy[str]) -> dict[str, st.SearchStrategy[Any]]:
    return {"name": words, "account": account, "client_token": words}


@st.composite
def documents(draw: st.DrawFn) -> Document:
    account = draw(words)
    more = common(st.just(account) | words)
    mapping: st.SearchStrategy[Any] = st.sampled_from(["endpoint-independent", "endpoint-dependent"])
    timers = st.builds(Timers, udp=seconds, tcp_established=seconds)
    vpc = st.builds(
        VpcSpec, namespace=words, dns=many(addresses), mtu=st.integers(0, 2**31), timers=timers, silent=st.booleans(),
        udp_mapping=mapping, **more,
    )  # fmt: skip
    subnet = st.builds(
        SubnetSpec, vpc=words, cidr=networks, gateway=st.none() | addresses, reserved=many(networks), **more
    )
    group = st.builds(SecurityGroupSpec, vpc=words, rules=many(words), **more)
    function = st.builds(
        FunctionSpec, subnets=many(words), security_groups=many(words), inside_address=st.none() | addresses,
        routed=st.booleans(), routes=many(networks), mtu=st.integers(), max_flows=st.integers(), **more,
    )  # fmt: skip
    return Document(
        account=account, vpc=draw(many(vpc)), subnet=draw(many(subnet)), security_group=draw(many(group)),
        function=draw(many(function)),
    )  # fmt: skip


@settings(deadline=None)
@given(documents())
def test_what_is_written_is_read_back(document: Document) -> None:
    text = write(document)
    assert read("f", text) == document
    lines = text.split("\n")
    for kind in Document.__struct_fields__[1:]:
        for number, spec in enumerate(getattr(document, kind)):
            assert lines[line_of(text, f"{kind}[{number}]") - 1] == f"[[{kind}]]"
            assert lines[line_of(text, f"{kind}[{number}].name") - 1].startswith("name = "), spec


def test_defaults_are_left_out_and_long_lists_have_a_line_each() -> None:
    rules = tuple(f"tcp/{port} 198.19.0.0/24" for port in range(80, 90))
    document = Document(
        vpc=(VpcSpec(name="v", namespace="v", timers=Timers(udp=10)),),
        security_group=(SecurityGroupSpec(name="g", vpc="v", rules=rules),),
        function=(FunctionSpec(name="f", subnets=("a",), security_groups=("g",)),),
    )
    listed = "".join(f'  "{rule}",\n' for rule in rules)
    assert write(document) == (
        '[[vpc]]\nname = "v"\nnamespace = "v"\ntimers = { udp = 10 }\n\n'
        f'[[security_group]]\nname = "g"\nvpc = "v"\nrules = [\n{listed}]\n\n'
        '[[function]]\nname = "f"\nsubnets = ["a"]\nsecurity_groups = ["g"]\n'
    )
