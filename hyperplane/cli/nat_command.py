"""The options of `nat`: a NAT without daemon, in the foreground."""

from __future__ import annotations

from typing import Any, get_args

import click

from hyperplane.cli.options import TIMERS, color_option, read_timers, refuse_empty
from hyperplane.errors import InvalidValue
from hyperplane.model import Io, Rule, Timers


def _environments(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """NAMESPACE[=NAME] -> (namespace, name). Names may not have "=" in them, paths may."""
    found = []
    for value in values:
        namespace, equals, name = value.rpartition("=")
        if not equals:
            namespace, name = value, value.rpartition("/")[2]
        if not namespace or not name:
            raise click.BadParameter(f"{value!r} is not NAMESPACE or NAMESPACE=NAME")
        found.append((namespace, name))
    return tuple(found)


def _rules(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> tuple[Rule, ...]:
    try:
        return tuple(Rule.declared(value) for value in values)
    except InvalidValue as error:
        raise click.BadParameter(str(error)) from None


def _timers(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> Timers:
    return Timers(**read_timers(values))


@click.command(short_help="Run a NAT in the foreground, from environments into a VPC.")
@click.option("--vpc", metavar="NAMESPACE", required=True, help="The VPC's network namespace.")
@click.option(
    "--eni-address", "eni_addresses", metavar="ADDRESS", multiple=True, required=True,
    help="Address of the shared interface in the VPC; may be given up to 8 times.",
)  # fmt: skip
@click.option(
    "--environment", "environments", metavar="NAMESPACE[=NAME]", callback=_environments, multiple=True, required=True,
    help="An execution environment's namespace, with a name for it (default: the namespace's); may be repeated.",
)  # fmt: skip
@click.option(
    "--allow", "rules", metavar="RULE", callback=_rules, multiple=True,
    help='What environments may connect to: "PROTOCOL[/PORT[-PORT]] [CIDR]" with tcp, udp, icmp[/TYPE] or all; may be '
    "repeated. Without it: everything.",
)  # fmt: skip
@click.option(
    "--inside-address", metavar="ADDRESS", default="198.18.0.2", show_default=True,
    help="The address that every environment has.",
)  # fmt: skip
@click.option(
    "--route", "routes", metavar="CIDR", multiple=True, default=("0.0.0.0/0",), show_default=True,
    help="What environments reach through the tunnel; may be repeated.",
)  # fmt: skip
@click.option("--mtu", type=int, default=1500, show_default=True, help="MTU of the tunnels and of the ENI.")
@click.option("--device", metavar="NAME", default="eth0", show_default=True, help="Device in each environment.")
@click.option("--eni-device", metavar="NAME", default="eni0", show_default=True, help="Device in the VPC.")
@click.option(
    "--max-flows", type=int, default=262_144, show_default=True,
    help="Flows at the same time; more are refused (flow_table_full).",
)  # fmt: skip
@click.option("--workers", type=int, default=1, show_default=True, help="Threads that translate, each on its share.")
@click.option("--pin", metavar="CPUS", default="", help="The CPUs of the workers, such as 2,3 or 2-5.")
@click.option("--io", type=click.Choice(get_args(Io)), default="auto", show_default=True, help="How packets are read.")
@click.option(
    "--spin", type=int, metavar="MICROSECONDS", default=50, show_default=True,
    help="Looks for packets that long before it sleeps, where that pays.",
)  # fmt: skip
@click.option(
    "--timers", metavar="NAME=SECONDS", callback=_timers, multiple=True,
    help=f"Idle seconds after which flows end: {', '.join(TIMERS)}; may be repeated.",
)  # fmt: skip
@click.option("--watch", is_flag=True, help="Show flows and drops all the time, not on SIGUSR1 only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@color_option
def nat(*, as_json: bool, no_color: bool, **values: Any) -> int:
    """Attach environments to a VPC through one shared interface (ENI), until Ctrl-C or SIGTERM.

    A NAMESPACE is a name as `ip netns list` shows it, the path of a namespace file, or pid:N for that of a process.
    Namespaces must exist; devices and routes are made in them, and removed again at the end. Nothing can connect in.

    \b
    hyperplane-nat nat --vpc customer --eni-address 198.19.0.5 --environment box1 --environment box2
    hyperplane-nat nat --vpc customer --eni-address 198.19.0.5 --environment pid:4711=job-17 \\
        --allow "tcp/5432 198.19.0.10/32" --allow udp/53 --watch

    Once it is ready, SIGUSR1 makes it print flows and drops. Exit codes: 0 ended by a signal, or all environments are
    gone; 1 failed; 2 wrong usage; 128+N ended by signal N before it was ready.
    """
    refuse_empty(click.get_current_context())

    from hyperplane.cli import nat as verb
    from hyperplane.cli.lines import JsonOutput
    from hyperplane.cli.render import TextOutput
    from hyperplane.cli.terminal import Printer

    return verb.run(verb.Plan(**values), JsonOutput() if as_json else TextOutput(Printer(color=not no_color)))
