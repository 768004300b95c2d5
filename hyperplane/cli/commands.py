"""The command `hyperplane-nat` and its verbs. A verb's module is imported when it is asked for: starting stays fast."""

from __future__ import annotations

from importlib import import_module
from typing import Final

import click

import hyperplane

# Where each command stands, in the order of the help text.
SECTIONS: Final[dict[str, dict[str, str]]] = {
    "First steps": {"demo": "demo_command", "doctor": "operations"},
    "Declare": {"apply": "documents", "export": "documents"},
    "Resources": {
        "vpc": "nouns", "subnet": "nouns", "security-group": "nouns", "function": "nouns", "eni": "nouns",
        "environment": "nouns",
    },
    "Use": {"run": "run_command", "flow": "traffic", "drop": "traffic"},
    "Serve": {
        "daemon": "service", "status": "operations", "stop": "service", "engine": "service", "nat": "nat_command",
    },
    "Shell": {"completion": "service"},
}  # fmt: skip
MODULES: Final = {name: module for section in SECTIONS.values() for name, module in section.items()}


class Verbs(click.Group):
    """Commands by name, imported one by one; shown in sections."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(MODULES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.commands and name in MODULES:
            module = import_module(f"hyperplane.cli.{MODULES[name]}")
            self.add_command(getattr(module, name.replace("-", "_")), name)
        return self.commands.get(name)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        width = max(map(len, MODULES))
        for title, names in SECTIONS.items():
            found = [(name, self.get_command(context, name)) for name in names]
            rows = [(f"{name:<{width}}", command.get_short_help_str(80)) for name, command in found if command]
            with formatter.section(title):
                formatter.write_dl(rows)


@click.group(
    cls=Verbs,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="docs/cli.md is the reference. HYPERPLANE_DEBUG=1 shows tracebacks, NO_COLOR=1 turns colour off.",
)
@click.version_option(hyperplane.__version__, prog_name="hyperplane-nat", message="%(prog)s %(version)s")
@click.pass_context
def group(context: click.Context) -> None:
    """NATs many execution environments, even with one and the same address, into a VPC through one shared interface.

    \b
    hyperplane-nat demo                   see it work, between namespaces of its own
    hyperplane-nat daemon                 serve, until it is stopped; connections outlive it
    hyperplane-nat apply network.toml     VPCs, subnets, security groups and functions, from a file
    hyperplane-nat run FUNCTION -- CMD    a command, in an environment of its own
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help(), err=True)
        context.exit(2)
