"""`run FUNCTION -- CMD...`: a command in an environment of its own. Exit codes of its own are env(1)'s."""

from __future__ import annotations

from typing import Any

import click

from hyperplane.cli.nouns import refs
from hyperplane.cli.options import Caller, instance_option, refuse_empty

FAILED = 125


class Misused(click.UsageError):
    """Wrong usage, told apart from what the wrapped command exits with."""

    exit_code = FAILED

    def __init__(self, error: click.UsageError) -> None:
        super().__init__(error.format_message(), error.ctx)


class Wrapper(click.Command):
    """A command whose wrong usage is Misused. Options stand before FUNCTION or between it and `--`; what follows the
    first word of the wrapped command is that command's own.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        before, rest = self._options(ctx, args)
        if rest:
            between, command = self._options(ctx, rest[1:])
            args = [*before, *between, "--", rest[0], *command]
        return super().parse_args(ctx, args)

    def _options(self, context: click.Context, words: list[str]) -> tuple[list[str], list[str]]:
        """The options that words begin with, and the words after them without a `--` between."""
        options = [one for one in self.get_params(context) if isinstance(one, click.Option)]
        with_value = {name for one in options for name in one.opts if not one.is_flag}
        at = 0
        while at < len(words) and words[at].startswith("-") and words[at] not in ("-", "--"):
            at += 2 if words[at] in with_value else 1
        return words[:at], words[at + 1 :] if words[at : at + 1] == ["--"] else words[at:]

    def make_context(self, *arguments: Any, **more: Any) -> click.Context:
        try:
            context = super().make_context(*arguments, **more)
            if not context.resilient_parsing:
                refuse_empty(context)
            return context
        except click.UsageError as error:
            raise Misused(error) from None


@click.command(
    cls=Wrapper,
    short_help="Run a command in an environment of its own.",
    context_settings={"allow_interspersed_args": False},
)
@click.argument("function", shell_complete=refs("function"))
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--name", metavar="NAME", default="", help="The environment's name; made up unless given.")
@click.option("--device", metavar="NAME", default="eth0", show_default=True, help="The TUN's name in the namespace.")
@click.option("-q", "--quiet", is_flag=True, help="No hints on standard error.")
@click.option("--account", metavar="NAME", help="Whose function it is.")
@instance_option
def run(
    function: str, command: tuple[str, ...], name: str, device: str, quiet: bool, account: str | None, instance: str
) -> int:
    """Runs a command in a fresh network namespace with a tunnel to FUNCTION's ENI, and removes all of it afterwards.

    No root is needed, but membership of the daemon's group. Names are looked up by the VPC's resolvers. The exit code
    is the command's, 128 + N when signal N ended it; 125: it could not be run, 126: it is no program, 127: it is not
    there. Signals are sent on to it, and it ends when this program is killed.

    \b
    hyperplane-nat run reports -- psql -h db.internal -c "SELECT 1"
    hyperplane-nat run reports -- bash
    """
    from hyperplane.cli import running

    return running.run(Caller(instance, account), function, command, name=name, device=device, quiet=quiet)
