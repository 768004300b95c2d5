"""`daemon`, `engine`, `stop` and `completion`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, get_args

import click

from hyperplane.cli.options import EMPTY, given, instance_option, refuse_empty
from hyperplane.model import Io

LEVELS: Final = ("debug", "info", "warning", "error")
SHELLS: Final = ("bash", "zsh", "fish")
# The engine's own options, of `engine` and of the daemon that starts one.
ENGINE: Final[tuple[tuple[str, dict[str, Any]], ...]] = (
    ("--max-flows", {"type": int, "metavar": "N", "help": "Flows at the same time (262,144)."}),
    ("--max-mappings", {"type": int, "metavar": "N", "help": "UDP sockets and pings at the same time (0: fitting)."}),
    ("--max-links", {"type": int, "metavar": "N", "help": "Environments and ENIs at the same time (16,384)."}),
    ("--max-addresses", {"type": int, "metavar": "N", "help": "Addresses of all ENIs (256)."}),
    ("--io", {"type": click.Choice(get_args(Io)), "help": "How packets are read (auto)."}),
    ("--buffers", {"type": int, "metavar": "N", "help": "Receive buffers of 64 KiB, a power of two (256)."}),
    ("--drop-records", {"type": int, "metavar": "N", "help": "Dropped packets that are remembered (4,096)."}),
    ("--refusal-rate", {"type": int, "metavar": "N", "help": "Refusals told a second, of each environment (100)."}),
    ("--port-quarantine", {"type": float, "metavar": "SECONDS", "help": "Before a port is used again (30)."}),
    ("--workers", {"type": int, "metavar": "N", "help": "Threads that translate, each on its share (1)."}),
    ("--pin", {"metavar": "CPUS", "help": "The CPUs of the workers, such as 2,3 or 2-5 (any)."}),
    ("--spin", {"type": int, "metavar": "MICROSECONDS", "help": "Looks for packets that long before it sleeps (50)."}),
    ("--huge-pages/--no-huge-pages", {"default": None, "help": "Tables on huge pages, where there are some."}),
)
ENGINE_FIELDS: Final = tuple(flags.partition("/")[0][2:].replace("-", "_") for flags, _ in ENGINE)


def _directory(context: click.Context, option: click.Parameter, value: str | None) -> Path | None:
    if value == "":  # as a path it would be the working directory
        raise click.BadParameter(EMPTY)
    return None if value is None else Path(value)


def _engine_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for flags, settings in reversed(ENGINE):
        command = click.option(flags, **settings)(command)
    return command


def _apart(values: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The engine's options, and the rest."""
    chosen = given(values)
    engine = {name: chosen.pop(name) for name in ENGINE_FIELDS if name in chosen}
    return engine, chosen


@click.command(short_help="Serve: keep what is declared, attach environments.")
@instance_option
@click.option("--group", metavar="GROUP", help="Whose members may use it (default: hyperplane-nat, if there is one).")
@click.option(
    "--run-dir", callback=_directory, metavar="DIRECTORY", help="Sockets (HYPERPLANE_RUN_DIR, /run/hyperplane-nat)."
)
@click.option(
    "--state-dir", callback=_directory, metavar="DIRECTORY",
    help="Database (HYPERPLANE_STATE_DIR, /var/lib/hyperplane-nat).",
)  # fmt: skip
@click.option(
    "--log-format", type=click.Choice(("auto", "console", "json")),
    help="auto: console on a terminal, else JSON.",
)  # fmt: skip
@click.option("--log-level", type=click.Choice(LEVELS), help="From which level on (info).")
@click.option("--pool", type=click.IntRange(0), metavar="N", help="Fresh environments kept ready (0).")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads that work in namespaces (4).")
@click.option("--engine-user", metavar="USER", help="Whom the engine becomes (nobody).")
@click.option(
    "--engine-patience", type=click.FloatRange(0), metavar="SECONDS",
    help="After how long without a daemon the engine ends by itself (0: never).",
)  # fmt: skip
@_engine_options
def daemon(**values: Any) -> int:
    """Serves the API on a Unix socket until SIGTERM or Ctrl-C. Needs root.

    Adopts the instance's engine, or starts one. The engine outlives the daemon: connections go on while the daemon is
    stopped, killed or upgraded. `hyperplane-nat stop --engine` ends both.
    """
    refuse_empty(click.get_current_context())

    from hyperplane.daemon import main as verb

    engine, chosen = _apart(values)
    return verb.run(verb.DaemonOptions(engine=engine, **chosen))


@click.command(short_help="The process that translates; the daemon starts it.")
@instance_option
@click.option("--run-dir", callback=_directory, metavar="DIRECTORY", help="Where its socket is (that of the instance).")
@click.option("--user", metavar="USER", help="Whom it becomes once its socket is there (nobody).")
@click.option(
    "--patience", type=click.FloatRange(0), metavar="SECONDS",
    help="After how long without a daemon it ends by itself (0: never).",
)  # fmt: skip
@click.option("--successor", is_flag=True, help="Wait for the memory of an engine that died.")
@_engine_options
def engine(instance: str, run_dir: Path | None, **values: Any) -> int:
    """Holds descriptors and tables, and translates packets; it needs no privileges once it runs.

    Daemons start it, and come and go while it works. It ends by SIGTERM.
    """
    refuse_empty(click.get_current_context())

    from hyperplane import engine as verb
    from hyperplane.daemon.places import Places

    options, chosen = _apart(values)
    directory = run_dir or Places(instance).run
    return verb.run(verb.EngineOptions(instance=instance, run_dir=directory, options=options, **chosen))


@click.command(short_help="End the daemon, and the engine too if asked.")
@instance_option
@click.option("--engine", is_flag=True, help="The engine too: connections end.")
@click.option("--run-dir", callback=_directory, metavar="DIRECTORY", help="As the daemon was given it.")
@click.option(
    "--timeout", type=click.FloatRange(0), default=30.0, show_default=True, metavar="SECONDS",
    help="How long to wait until it is gone.",
)  # fmt: skip
def stop(instance: str, engine: bool, run_dir: Path | None, timeout: float) -> int:
    """Asks the daemon to end (SIGTERM) and waits until it has. Environments and their connections stay.

    With --engine the engine is ended after it, and with it every connection. Nothing to end is no error.
    """
    from hyperplane.cli import stopping
    from hyperplane.daemon.places import Places

    return stopping.run(Places(instance, run_dir), engine=engine, timeout=timeout)


@click.command(short_help="Print what makes a shell complete commands and names.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Prints a script for SHELL.

    \b
    bash:  hyperplane-nat completion bash > /etc/bash_completion.d/hyperplane-nat
    zsh:   hyperplane-nat completion zsh > "${fpath[1]}/_hyperplane-nat"
    fish:  hyperplane-nat completion fish > ~/.config/fish/completions/hyperplane-nat.fish
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made, shell
    click.echo(made(context.find_root().command, {}, "hyperplane-nat", "_HYPERPLANE_NAT_COMPLETE").source())
    return 0
