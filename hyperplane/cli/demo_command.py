"""The options of `demo`."""

from __future__ import annotations

import click

from hyperplane.cli.options import color_option

MOST_ENVIRONMENTS = 20  # more would not fit a screen


@click.command(short_help="See it work: environments, a VPC and real servers, all made for it and removed again.")
@click.option(
    "--environments", type=click.IntRange(2, MOST_ENVIRONMENTS), default=3, show_default=True,
    help="How many to attach.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@color_option
def demo(*, environments: int, as_json: bool, no_color: bool) -> int:
    """Attach several environments with one and the same address to a VPC, and show what that does.

    Makes namespaces named hpdemo-..., an HTTP server in one of them, and Redis and PostgreSQL when they are installed;
    uses addresses from 198.18.0.0/15 (RFC 2544) inside these namespaces only. Everything is removed at the end, also
    on Ctrl-C.
    """
    from hyperplane.cli import demo as verb
    from hyperplane.cli.terminal import Printer

    return verb.run(environments, Printer(color=not no_color), as_json=as_json)
