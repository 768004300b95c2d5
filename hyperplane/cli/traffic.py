"""`flow` and `drop`: what goes through, and what did not."""

from __future__ import annotations

from typing import Any, Final, get_args

import click

from hyperplane.cli.nouns import refs
from hyperplane.cli.options import Caller, Commands, asks_daemon, given
from hyperplane.model import DROP_REASONS, FlowState, Protocol

REASONS: Final = [str(reason) for reason in DROP_REASONS]


@click.group(cls=Commands, short_help="Connections, and UDP and ICMP exchanges.")
def flow() -> None:
    """Connections, and UDP and ICMP exchanges, of all environments. Packets make them: they are listed only."""


@click.group(cls=Commands, short_help="Dropped packets, with the reason.")
def drop() -> None:
    """The latest dropped packets, with the reason for each."""


@flow.command("list")
@click.option("--environment", metavar="REF", help="Those of this environment.", shell_complete=refs("environment"))
@click.option("--function", metavar="REF", help="Those of this function.", shell_complete=refs("function"))
@click.option("--eni", metavar="REF", help="Those through this ENI.", shell_complete=refs("eni"))
@click.option("--protocol", type=click.Choice(get_args(Protocol)), help="Those of this protocol.")
@click.option("--state", type=click.Choice([str(state) for state in FlowState]), help="Those in this state.")
@click.option("--remote", metavar="CIDR", help="Those to this address or network.")
@click.option("-q", "--quiet", is_flag=True, help="Ids only, one a line.")
@asks_daemon
def list_flows(caller: Caller, quiet: bool, **filters: Any) -> int:
    """Lists flows: whose each is, and its three endpoints: inside, outside (the ENI's) and remote."""
    from hyperplane.cli import traffic_verbs

    return traffic_verbs.flows(caller, given(filters), quiet=quiet)


@flow.command("show")
@click.argument("flow_id", metavar="ID", type=int)
@asks_daemon
def show_flow(caller: Caller, flow_id: int) -> int:
    """Shows one flow, by its id."""
    from hyperplane.cli import traffic_verbs

    return traffic_verbs.show_flow(caller, flow_id)


@drop.command("list")
@click.option("--environment", metavar="REF", help="Of this environment.", shell_complete=refs("environment"))
@click.option("--eni", metavar="REF", help="Of this ENI.", shell_complete=refs("eni"))
@click.option("--reason", type=click.Choice(REASONS), metavar="REASON", help="For this reason.")
@click.option("--after", type=click.IntRange(0), metavar="N", help="Those with a higher number.")
@asks_daemon
def list_drops(caller: Caller, **filters: Any) -> int:
    """Lists the latest dropped packets, oldest first, as far as they are remembered."""
    from hyperplane.cli import traffic_verbs

    return traffic_verbs.drops(caller, given(filters))
