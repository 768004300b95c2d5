"""`status` and `doctor`: how the daemon is, and whether this host will do."""

from __future__ import annotations

import click

from hyperplane.cli.options import Caller, asks_daemon, color_option, instance_option, json_option, refuse_empty


@click.command(short_help="Say how daemon and engine are.")
@asks_daemon
def status(caller: Caller) -> int:
    """Shows daemon and engine: versions, restarts, counts of resources, traffic. Exit code 1 when no daemon answers."""
    from hyperplane.cli import states

    return states.show(caller)


@click.command(short_help="Look whether this host has what is needed.")
@click.option(
    "--vpc", "namespaces", metavar="NAMESPACE", multiple=True,
    help="A VPC's namespace: whether its kernel settings or firewall would drop; may be repeated.",
)  # fmt: skip
@click.option(
    "--engine-user", metavar="USER", default="nobody", show_default=True,
    help="Whom the daemon's engine becomes: what it may use is tried as that user.",
)  # fmt: skip
@instance_option
@json_option
@color_option
def doctor(namespaces: tuple[str, ...], engine_user: str, instance: str, as_json: bool, no_color: bool) -> int:
    """Looks at kernel, devices, privileges and limits; says what to do about each that will not do.

    Needs no daemon and changes nothing. Exit code 1 when something is missing that the daemon cannot do without.
    """
    refuse_empty(click.get_current_context())

    from hyperplane.cli import doctor as verb

    return verb.run(Caller(instance, None, as_json, no_color), namespaces, engine_user)
