"""`vpc`, `subnet`, `security-group`, `function`, `eni`, `environment`: the same commands for each, from kinds.py.

What a command does stands in resource_verbs.py, which is imported when it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from hyperplane.cli.kinds import BY_NAME, Noun
from hyperplane.cli.options import Caller, Commands, asks_daemon, field_options, given
from hyperplane.client.places import instance_name
from hyperplane.errors import HyperplaneError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

QUIET_HELP: Final = "Ids only, one a line."
Act = Callable[..., int]


def refs(noun: str) -> Callable[..., list[CompletionItem]]:
    """Completes names that the daemon knows; none when it does not answer."""

    def complete(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from click.shell_completion import CompletionItem

        from hyperplane.cli.asking import every

        try:
            caller = Caller(context.params.get("instance") or instance_name(), context.params.get("account"))
            with caller.client() as client:
                names = [item.name for item in every(client, noun, account=caller.own)]
        except HyperplaneError:
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]

    return complete


def make(noun: Noun) -> click.Group:
    """The group of commands of one noun."""
    group = Commands(noun.name, help=noun.help, short_help=noun.short)
    group.add_command(_list(noun))
    group.add_command(_show(noun))
    if noun.spec:
        group.add_command(_create(noun, noun.spec))
        group.add_command(_update(noun, noun.spec))
        group.add_command(_delete(noun))
    return group


def _command(
    name: str, help_text: str, act: Callable[[Caller, dict[str, Any]], int], parameters: Sequence[click.Parameter]
) -> click.Command:
    """A command with its own parameters, and those of every command that asks the daemon."""

    def run(caller: Caller, **values: Any) -> int:
        return act(caller, values)

    made = click.Command(name, callback=asks_daemon(run), help=help_text)
    shared = getattr(made.callback, "__click_params__", [])
    made.params = [*parameters, *reversed(shared)]
    return made


def _list(noun: Noun) -> click.Command:
    parameters: list[click.Parameter] = [_filter(noun, name, text) for name, text in noun.filters.items()]
    parameters.append(click.Option(["-q", "--quiet"], is_flag=True, help=QUIET_HELP))

    def act(caller: Caller, values: dict[str, Any]) -> int:
        from hyperplane.cli import resource_verbs

        quiet = values.pop("quiet")
        return resource_verbs.show_list(caller, noun, given(values), quiet=quiet)

    return _command("list", f"Lists {noun.plural}: all of them, or those that fit every option.", act, parameters)


def _filter(noun: Noun, name: str, text: str) -> click.Option:
    flag = f"--{name.replace('_', '-')}"
    if name in noun.choices:
        return click.Option([flag], help=text, type=click.Choice(noun.choices[name]))
    return click.Option([flag], help=text, metavar="NAME" if name == "name" else "REF")


def _show(noun: Noun) -> click.Command:
    ref = click.Argument(["ref"], metavar="REF", shell_complete=refs(noun.name))

    def act(caller: Caller, values: dict[str, Any]) -> int:
        from hyperplane.cli import resource_verbs

        return resource_verbs.show(caller, noun, values["ref"])

    return _command("show", f"Shows one of the {noun.plural}, by name or id.", act, [ref])


def _create(noun: Noun, spec: Any) -> click.Command:
    name = click.Argument(["name"], metavar="NAME")

    def act(caller: Caller, values: dict[str, Any]) -> int:
        from hyperplane.cli import resource_verbs

        return resource_verbs.create(caller, noun, given(values))

    text = f"Creates a {noun.word}. One of that name with the same content is as good."
    return _command("create", text, act, [name, *field_options(spec, noun.fields)])


def _update(noun: Noun, spec: Any) -> click.Command:
    ref = click.Argument(["ref"], metavar="REF", shell_complete=refs(noun.name))
    fields = {name: text for name, text in noun.fields.items() if name != "client_token"}

    def act(caller: Caller, values: dict[str, Any]) -> int:
        from hyperplane.cli import resource_verbs

        return resource_verbs.update(caller, noun, values.pop("ref"), given(values))

    text = f"Changes a {noun.word}: the options that are given; the rest stays. An empty value empties a list."
    return _command("update", text, act, [ref, *field_options(spec, fields, update=True)])


def _delete(noun: Noun) -> click.Command:
    wanted = click.Argument(["refs"], metavar="REF...", nargs=-1, required=True, shell_complete=refs(noun.name))

    def act(caller: Caller, values: dict[str, Any]) -> int:
        from hyperplane.cli import resource_verbs

        return resource_verbs.delete(caller, noun, values["refs"])

    return _command(
        "delete", f"Deletes {noun.plural}, by name or id. What is in use stays, and says by whom.", act, [wanted]
    )


def _environment() -> click.Group:
    noun = BY_NAME["environment"]
    group = make(noun)
    function = click.Argument(["function"], metavar="FUNCTION", shell_complete=refs("function"))
    where: list[click.Parameter] = [
        click.Option(["--namespace"], metavar="NAMESPACE", help="An existing namespace: a name, a path, or pid:N."),
        click.Option(
            ["--pid"],
            type=click.IntRange(1),
            metavar="N",
            help="The namespace of process N, a container's say; "
            "with --fd: the process that the environment ends with.",
        ),
        click.Option(["--fd"], type=click.IntRange(0), metavar="N", help="An open TUN: the number of a descriptor."),
        click.Option(["--name"], metavar="NAME", help="Its name; unique among those that run. Made up unless given."),
        click.Option(["--device"], metavar="NAME", help="The TUN's name in the namespace (default: eth0)."),
        click.Option(
            ["--routed/--no-routed"],
            default=None,
            help="A guest behind the namespace has the inside address (default: as the function says).",
        ),
        click.Option(["--client-token"], metavar="TEXT", help="Makes repeating it safe."),
    ]

    def start(caller: Caller, values: dict[str, Any]) -> int:
        from hyperplane.cli import resource_verbs

        return resource_verbs.start(caller, given(values))

    text = (
        "Starts an environment of a function: in an existing namespace, on an open TUN, or in a fresh namespace, which "
        "is removed when the environment ends."
    )
    group.add_command(_command("start", text, start, [function, *where]))
    alias = _command("create", text, start, [function, *where])
    alias.hidden = True
    group.add_command(alias)
    wanted = click.Argument(["refs"], metavar="REF...", nargs=-1, required=True, shell_complete=refs("environment"))
    drain = click.Option(
        ["--drain"], type=click.FloatRange(0), metavar="SECONDS",
        help="Lets flows come to their end for so long, without new ones. What is left is reset.",
    )  # fmt: skip

    def end(caller: Caller, values: dict[str, Any]) -> int:
        from hyperplane.cli import resource_verbs

        return resource_verbs.end(caller, values["refs"], values["drain"] or 0.0)

    text = "Ends environments: their flows are reset on both sides, at once unless they are drained."
    group.add_command(_command("delete", text, end, [wanted, drain]))
    return group


def __getattr__(name: str) -> click.Group:
    """The group of a noun, such as `security_group`: made when it is asked for, since one is."""
    if name == "environment":
        return _environment()
    if noun := BY_NAME.get(name.replace("_", "-")):
        return make(noun)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
