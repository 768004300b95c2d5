"""The nouns of the command line, as data: nouns.py makes the same commands for each of them.

`fields` and `filters` are the API's names; an option's name is its field's with "-" for "_".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from hyperplane.resources import (
    SENDERS,
    EniState,
    EnvironmentState,
    FunctionSpec,
    FunctionState,
    SecurityGroupSpec,
    SubnetSpec,
    VpcSpec,
)


class Noun(msgspec.Struct, frozen=True, kw_only=True):
    """name: as in a command. plural: in sentences. short: for an overview. spec: None where nobody declares it.

    columns: of the list; spare: those that a narrow terminal leaves out, first what can be missed most; free: the one
    that may wrap there.
    """

    name: str
    plural: str
    short: str
    help: str
    columns: tuple[str, ...]
    spare: tuple[str, ...]
    free: str = ""
    filters: Mapping[str, str] = {}
    fields: Mapping[str, str] = {}
    spec: type[msgspec.Struct] | None = None
    choices: Mapping[str, tuple[str, ...]] = {}

    @property
    def word(self) -> str:
        """One of them, in a sentence."""
        return self.plural.removesuffix("s")


TOKEN: Final = "Makes repeating it safe: the same token with the same content gives the same resource."
NAME: Final = "Those with this name."

NOUNS: Final = (
    Noun(
        name="vpc",
        plural="VPCs",
        short="Customers' networks.",
        help="Customers' networks: the network namespaces that hold them or their uplinks.",
        spec=VpcSpec,
        columns=("name", "id", "namespace", "dns", "mtu"),
        spare=("mtu", "dns"),
        filters={"name": NAME, "namespace": "The one in this namespace."},
        fields={
            "namespace": "A name as `ip netns list` shows it, a path, or pid:N.",
            "dns": "Resolvers that environments use.",
            "mtu": "Of the path into the VPC.",
            "timers": "Idle seconds after which flows end.",
            "udp_mapping": "Whether one outside port serves all destinations of a UDP socket (RFC 4787).",
            "silent": "Refuse without telling the sender.",
            "client_token": TOKEN,
        },
    ),
    Noun(
        name="subnet",
        plural="subnets",
        short="Ranges of a VPC that ENIs take their addresses from.",
        help="Ranges of a VPC that shared interfaces (ENIs) take their addresses from.",
        spec=SubnetSpec,
        columns=("name", "id", "vpc", "cidr", "gateway", "available"),
        spare=("gateway", "available", "vpc"),
        filters={"name": NAME, "vpc": "Those of this VPC."},
        fields={
            "vpc": "The VPC, by name or id.",
            "cidr": "The range.",
            "gateway": "Never given to an ENI; the first host address unless given.",
            "reserved": "Addresses and ranges that belong to others.",
            "client_token": TOKEN,
        },
    ),
    Noun(
        name="security-group",
        plural="security groups",
        short="What may be connected to.",
        help="What may be connected to from a VPC's ENIs. No rule, no packet.",
        spec=SecurityGroupSpec,
        columns=("name", "id", "vpc", "rules"),
        spare=("vpc",),
        free="rules",
        filters={"name": NAME, "vpc": "Those of this VPC."},
        fields={
            "vpc": "The VPC, by name or id.",
            "rules": '"PROTOCOL[/PORT[-PORT]] [CIDR]" with tcp, udp, icmp[/TYPE] or all.',
            "client_token": TOKEN,
        },
    ),
    Noun(
        name="function",
        plural="functions",
        short="Configurations that environments are started for.",
        help="Configurations that environments are started for. Each has an ENI in each of its subnets.",
        spec=FunctionSpec,
        columns=("name", "id", "state", "subnets", "security_groups", "inside_address", "enis"),
        spare=("enis", "inside_address", "security_groups", "subnets"),
        filters={
            "name": NAME,
            "state": "Those in this state.",
            "vpc": "Those of this VPC.",
            "subnet": "Those in this subnet.",
            "eni": "Those on this ENI.",
        },
        choices={"state": tuple(str(state) for state in FunctionState)},
        fields={
            "subnets": "Subnets of one VPC, by name or id.",
            "security_groups": "Security groups of that VPC, by name or id.",
            "inside_address": "Every environment's own address; 198.18.0.2 or another that is free unless given.",
            "routed": "A guest behind the namespace has that address; the TUN there gets none, and forwards.",
            "routes": "What environments reach through the tunnel.",
            "mtu": "Of the tunnels; 0: the VPC's.",
            "max_flows": "Of each environment; 0: no limit.",
            "client_token": TOKEN,
        },
    ),
    Noun(
        name="eni",
        plural="ENIs",
        short="Shared interfaces, which functions make.",
        help="Shared interfaces. Functions make them: one for each account, subnet and set of security groups.",
        columns=("id", "subnet", "security_groups", "addresses", "device", "state", "functions", "environments"),
        spare=("device", "functions", "security_groups", "environments", "subnet"),
        filters={
            "state": "Those in this state.",
            "vpc": "Those of this VPC.",
            "subnet": "Those in this subnet.",
            "function": "Those of this function.",
        },
        choices={"state": tuple(str(state) for state in EniState)},
    ),
    Noun(
        name="environment",
        plural="environments",
        short="Running copies of functions; start, list, show, delete.",
        help="Running copies of functions, each with a tunnel to an ENI.",
        columns=("name", "id", "function", "eni", "namespace", "device", "inside_address", "state", "sender", "reason"),
        spare=("device", "inside_address", "eni", "function", "namespace", "sender"),
        free="reason",
        filters={
            "name": NAME,
            "state": "Those in this state.",
            "function": "Those of this function.",
            "eni": "Those on this ENI.",
            "namespace": "Those in this namespace.",
            "sender": "Those whose descriptor was sent by a process that runs, or is gone.",
        },
        choices={"state": tuple(str(state) for state in EnvironmentState), "sender": SENDERS},
    ),
)

BY_NAME: Final = {noun.name: noun for noun in NOUNS}
