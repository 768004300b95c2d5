"""Options that many commands share, and options that are made from a request's fields: one name everywhere."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, get_args, get_origin

import click
import msgspec
from click.core import ParameterSource

from hyperplane.client.places import INSTANCE, INSTANCE_VARIABLE, check_instance
from hyperplane.errors import InvalidValue
from hyperplane.model import Timers
from hyperplane.resources import DEFAULT_ACCOUNT

if TYPE_CHECKING:
    from hyperplane.cli.terminal import Printer
    from hyperplane.client import SyncClient

EMPTY: Final = "it is empty: give a value, or leave it out"
TIMERS: Final = Timers.__struct_fields__


class Caller(msgspec.Struct, frozen=True):
    """What every command that asks the daemon was given. account: None where none was given."""

    instance: str
    account: str | None = None
    as_json: bool = False
    no_color: bool = False

    @property
    def own(self) -> str:
        """The account that the command is about."""
        return self.account or DEFAULT_ACCOUNT

    def client(self) -> SyncClient:
        from hyperplane.client import SyncClient

        return SyncClient(self.instance)

    def printer(self) -> Printer:
        from hyperplane.cli.terminal import Printer

        return Printer(color=not self.no_color)


class Commands(click.Group):
    """A group that shows its help on standard error when it is called without a command, as wrong usage."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)


def instance_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--instance", metavar="NAME", envvar=INSTANCE_VARIABLE, default=INSTANCE, show_default=True,
        help=f"Which daemon, where several run ({INSTANCE_VARIABLE}).", callback=_instance,
    )(command)  # fmt: skip


def _instance(context: click.Context, option: click.Parameter, value: str) -> str:
    given = context.get_parameter_source(option.name or "")
    what = INSTANCE_VARIABLE if given is ParameterSource.ENVIRONMENT else "--instance"
    try:
        return check_instance(value, what)
    except InvalidValue as error:
        raise click.UsageError(str(error), context) from None


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="JSON with the API's field names.")(command)


def color_option(command: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--no-color", is_flag=True, help="No colour, on a terminal either.")(command)


def asks_daemon(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --instance, --account, --json and --no-color; the command gets them as its first argument, a Caller."""

    @functools.wraps(command)
    def run(*, instance: str, account: str | None, as_json: bool, no_color: bool, **values: Any) -> Any:
        refuse_empty(click.get_current_context())
        return command(Caller(instance, account, as_json, no_color), **values)

    account_option = click.option(
        "--account", metavar="NAME", help=f"Whose ({DEFAULT_ACCOUNT}; lists of resources show everybody's)."
    )
    return account_option(instance_option(json_option(color_option(run))))


def refuse_empty(context: click.Context) -> None:
    """An empty text is what a shell makes of a variable that is not set, and hardly ever meant; bytes that are no UTF-8
    are nobody's name. Raises click.BadParameter. Options with several values refuse empty ones themselves."""
    for parameter in context.command.params:
        name = parameter.name or ""
        if context.get_parameter_source(name) is ParameterSource.DEFAULT:
            continue
        value = context.params.get(name)
        if value == "" or (isinstance(value, tuple) and "" in value):
            raise click.BadParameter(EMPTY, context, parameter)
        if any(isinstance(one, str) and not one.isprintable() and _foreign(one) for one in _each(value)):
            raise click.BadParameter("it is no UTF-8", context, parameter)


def _each(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else (value,)


def _foreign(text: str) -> bool:
    """Whether a text holds bytes that were no UTF-8: os.fsdecode() makes surrogates of them."""
    return any("\udc80" <= one <= "\udcff" for one in text)


# Options from fields


def field_options(spec: type[msgspec.Struct], helps: Mapping[str, str], *, update: bool = False) -> list[click.Option]:
    """An option for each field that helps explains, in its order; for an update none is required."""
    fields = {field.name: field for field in msgspec.structs.fields(spec)}
    return [_option(fields[name], text, update=update) for name, text in helps.items()]


def given(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that were given, as JSON would have them."""
    found = {name: value for name, value in values.items() if value is not None and value != ()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def _option(field: msgspec.structs.FieldInfo, text: str, *, update: bool) -> click.Option:
    flag = f"--{field.name.replace('_', '-')}"
    settings: dict[str, Any] = {"help": text, "required": field.required and not update}
    kind = field.type
    if get_origin(kind) is UnionType:
        kind = next(one for one in get_args(kind) if one is not type(None))
    if kind is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}"], default=None, **settings)
    if kind is Timers:
        return click.Option([flag], multiple=True, metavar="NAME=SECONDS", callback=_timers_given, **settings)
    if get_origin(kind) is Literal:
        return click.Option([flag], type=click.Choice(get_args(kind)), **settings)
    if get_origin(kind) is tuple:
        settings["help"] += " Repeat it, or put commas between."
        settings |= {"metavar": _metavar(get_args(kind)[0]), "callback": _emptied if update else _words}
        return click.Option([flag], multiple=True, **settings)
    numbers: dict[Any, Any] = {int: click.INT, float: click.FLOAT}
    return click.Option([flag], type=numbers.get(kind, click.STRING), metavar=_metavar(kind), **settings)


def _metavar(kind: Any) -> str:
    return {"IPv4Address": "ADDRESS", "IPv4Network": "CIDR", "int": "N", "float": "SECONDS"}.get(kind.__name__, "TEXT")


def _words(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> list[str] | None:
    """Commas part the values; none were given without the option."""
    found = _emptied(context, option, values)
    if found == []:
        raise click.BadParameter(EMPTY)
    return found


def _emptied(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> list[str] | None:
    """As _words(), but `--dns ""` is an empty list."""
    if not values:
        return None
    return [word.strip() for value in values for word in value.split(",") if word.strip()]


def _timers_given(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> dict[str, float] | None:
    return read_timers(values) if values else None


def read_timers(values: Sequence[str]) -> dict[str, float]:
    """NAME=SECONDS, in one value also several with commas or blanks between them. Raises click.BadParameter."""
    chosen: dict[str, float] = {}
    for word in re.split(r"[,\s]+", " ".join(values).strip()) if values else ():
        name, _, seconds = word.partition("=")
        if name not in TIMERS:
            raise click.BadParameter(f"{word!r} is not NAME=SECONDS; names are {', '.join(TIMERS)}")
        try:
            chosen[name] = float(seconds)
        except ValueError:
            raise click.BadParameter(f"{word!r}: give a number of seconds") from None
    try:
        Timers(**chosen)
    except InvalidValue as error:
        raise click.BadParameter(str(error)) from None
    return chosen
