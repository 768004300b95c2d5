"""Resources as people read them: a table for a list, lines for one. Names stand for ids where there are any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from rich.table import Table
from rich.text import Text

from hyperplane.cli.asking import Names
from hyperplane.cli.kinds import Noun
from hyperplane.cli.render import duration, milliseconds, plain_table
from hyperplane.resources import DEFAULT_ACCOUNT, Timings

if TYPE_CHECKING:
    from hyperplane.resources import Plan

# Fields that hold ids, with the kind that they are of. An ENI's name is its id.
REFERENCES: Final = {
    "vpc": "vpc",
    "subnet": "subnet",
    "subnets": "subnet",
    "security_groups": "security-group",
    "function": "function",
    "functions": "function",
}
STYLES: Final = {
    "Active": "green", "available": "green", "in-use": "green", "attached": "green",
    "Pending": "yellow", "pending": "yellow", "attaching": "yellow", "detaching": "yellow",
    "Failed": "red", "ended": "dim", "Inactive": "dim", "Deleting": "dim", "deleting": "dim",
}  # fmt: skip
COUNTS: Final = ("available", "environments", "max_flows")
NUMBERS: Final = (*COUNTS, "mtu")
MOST_WORDS: Final = 4  # of a list in a table
MARKS: Final = {"create": ("+", "green"), "update": ("~", "yellow"), "delete": ("-", "red")}
DONE: Final = {"create": "created", "update": "updated", "delete": "deleted"}


def resource_table(noun: Noun, items: Sequence[Any], names: Names) -> Table:
    """Columns in which nothing stands are left out; the account's is there when there is another than the default."""
    fields = [*noun.columns]
    if any(item.account != DEFAULT_ACCOUNT for item in items):
        fields.append("account")
    rows = [[_words(field, getattr(item, field), names, short=True) for field in fields] for item in items]
    shown = [i for i in range(len(fields)) if i < 2 or any(row[i] for row in rows)]
    columns = [fields[i] for i in shown]
    table = plain_table(*(column.replace("_", " ") for column in columns), right=NUMBERS)
    for row in rows:
        table.add_row(*(_styled(fields[i], row[i], first=i == 0) for i in shown))
    return table


def resource_lines(item: Any, names: Names) -> Table:
    """Every field of one resource."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for field in item.__struct_fields__:
        words = _words(field, getattr(item, field), names, short=False)
        if words:
            table.add_row(field.replace("_", " "), _styled(field, words, first=field == "name"))
    return table


def plan_lines(plan: Plan) -> Iterable[Text]:
    """`+ vpc customer`, `~ subnet front  cidr: 198.19.0.0/24 → 198.19.1.0/24`, and what it comes to."""
    for change in plan.changes:
        mark, style = MARKS[change.action]
        changed = "; ".join(f"{field}: {old or '-'} → {new or '-'}" for field, (old, new) in change.fields.items())
        line = Text(f"{mark} {change.kind} {change.name}", style)
        yield line.append(f"  {changed}", "not bold default") if changed else line
    yield Text(plan_summary(plan))


def plan_summary(plan: Plan) -> str:
    if not plan.changes:
        return "nothing to change"
    counts = {action: sum(change.action == action for change in plan.changes) for action in MARKS}
    words = ", ".join(f"{count} {DONE[action] if plan.applied else f'to {action}'}" for action, count in counts.items())
    return words if plan.applied else f"plan: {words}"


def _styled(column: str, words: str, *, first: bool) -> Text:
    return Text(words, "cyan" if first else STYLES.get(words, "") if column == "state" else "")


def _words(field: str, value: Any, names: Names, *, short: bool) -> str:
    if field in REFERENCES and value:
        return _references(REFERENCES[field], value, names, short=short)
    if isinstance(value, Timings):
        parts = [name for name in value.__struct_fields__ if name != "decided"]  # which is within another
        return ", ".join(f"{name} {milliseconds(getattr(value, name))}" for name in parts)
    if isinstance(value, msgspec.Struct):
        return ", ".join(f"{name}={getattr(value, name):g}" for name in value.__struct_fields__)
    if isinstance(value, bool):
        return "yes" if value else ""
    if field in ("created", "ended"):
        return moment(value) if value else ""
    if isinstance(value, tuple):
        return _list([str(one) for one in value], short=short)
    if value is None or (value == 0 and field in ("max_flows", "pid")):
        return ""
    return f"{value:,}" if field in COUNTS else str(value)


def _references(kind: str, value: str | tuple[str, ...], names: Names, *, short: bool) -> str:
    refs = (value,) if isinstance(value, str) else value
    found = [names.of(kind, ref) for ref in refs]
    if not short:
        found = [name if name == ref else f"{name} ({ref})" for name, ref in zip(found, refs, strict=True)]
    return _list(found, short=short)


def _list(words: list[str], *, short: bool) -> str:
    if short and len(words) > MOST_WORDS:
        words = [*words[: MOST_WORDS - 1], f"and {len(words) - MOST_WORDS + 1} more"]
    return ", ".join(words)


def moment(seconds: float) -> str:
    """Local time, and how long ago."""
    then = datetime.fromtimestamp(seconds).astimezone()
    ago = datetime.now().astimezone() - then
    return f"{then:%Y-%m-%d %H:%M:%S} ({duration(ago.total_seconds())} ago)"
