"""Resources as people read them: a table for a list, lines for one. Names stand for ids where there are any."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec

from hyperplane.cli.terminal import Part, Styled, Table
from hyperplane.cli.words import duration, endpoint, milliseconds, packet_text, volume, wall_time
from hyperplane.model import Drop, Flow
from hyperplane.resources import DEFAULT_ACCOUNT, Timings

if TYPE_CHECKING:
    from ipaddress import IPv4Address

    from hyperplane.cli.asking import Names
    from hyperplane.cli.kinds import Noun
    from hyperplane.resources import Environment, Plan

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
MOST_WORDS: Final = 4  # of a list in a table on a terminal
MARKS: Final = {"create": ("+", "green"), "update": ("~", "yellow"), "delete": ("-", "red")}
DONE: Final = {"create": "created", "update": "updated", "delete": "deleted"}
FLOW_STYLES: Final = {
    "established": "green", "active": "green", "reset": "red", "opening": "yellow", "closing": "dim",
}  # fmt: skip


def resource_table(noun: Noun, items: Sequence[Any], names: Names, *, short: bool) -> Table:
    """Columns in which nothing stands are left out; the account's is there when there is another than the default.
    short: of long lists only the first words are shown, and how many more there are."""
    most = MOST_WORDS if short else 0
    fields = [*noun.columns]
    if any(item.account != DEFAULT_ACCOUNT for item in items):
        fields.append("account")
    rows = [[_words(field, getattr(item, field), names, most) for field in fields] for item in items]
    shown = [i for i in range(len(fields)) if i < 2 or any(row[i] for row in rows)]
    styled = [[_styled(fields[i], row[i], first=i == 0) for i in shown] for row in rows]
    spare = [title(field) for field in noun.spare if fields.index(field) in shown]
    return Table([title(fields[i]) for i in shown], styled, right=NUMBERS, spare=spare, free=noun.free)


def title(field: str) -> str:
    return field.replace("_", " ")


def resource_lines(item: Any, names: Names) -> list[tuple[str, Part]]:
    """Every field of one resource in which something stands."""
    fields = [(field, _words(field, getattr(item, field), names, ids=True)) for field in item.__struct_fields__]
    return [(title(field), _styled(field, words, first=field == "name")) for field, words in fields if words]


def resolver_lines(environment: Environment, dns: Sequence[IPv4Address]) -> list[tuple[str, Part]]:
    """Where the VPC's resolvers are to be found in an environment."""
    name = environment.namespace.removeprefix("/run/netns/")
    if not dns:
        return []
    if environment.fresh:
        how = f"for `ip netns exec {name}`"
    elif not name or "/" in name or name.startswith("pid:"):
        how = "not set: a resolv.conf there is its owner's"
    else:
        how = f"not set: /etc/netns/{name}/resolv.conf is its owner's"
    return [("resolvers", f"{', '.join(map(str, dns))} ({how})")]


def plan_lines(plan: Plan) -> Iterable[list[Part]]:
    """`+ vpc customer`, `~ subnet front  cidr: 198.19.0.0/24 → 198.19.1.0/24`, and what it comes to."""
    for change in plan.changes:
        mark, style = MARKS[change.action]
        changed = "; ".join(f"{field}: {old or '-'} → {new or '-'}" for field, (old, new) in change.fields.items())
        line = Styled(f"{mark} {change.kind} {change.name}", style)
        yield [line, f"  {changed}"] if changed else [line]
    yield [plan_summary(plan)]


def plan_summary(plan: Plan) -> str:
    if not plan.changes:
        return "nothing to change"
    counts = {action: sum(change.action == action for change in plan.changes) for action in MARKS}
    words = ", ".join(f"{count} {DONE[action] if plan.applied else f'to {action}'}" for action, count in counts.items())
    return words if plan.applied else f"plan: {words}"


def _styled(column: str, words: str, *, first: bool) -> Styled:
    return Styled(words, "cyan" if first else STYLES.get(words, "") if column == "state" else "")


def _words(field: str, value: Any, names: Names, most: int = 0, *, ids: bool = False) -> str:
    """most: words of a list, 0 for all; ids: after the names."""
    if field in REFERENCES and value:
        return _references(REFERENCES[field], value, names, most, ids=ids)
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
        return _list([str(one) for one in value], most)
    if value is None or (value == 0 and field in ("max_flows", "pid")):
        return ""
    return f"{value:,}" if field in COUNTS else str(value)


def _references(kind: str, value: str | tuple[str, ...], names: Names, most: int, *, ids: bool) -> str:
    refs = (value,) if isinstance(value, str) else value
    found = [names.of(kind, ref) for ref in refs]
    if ids:
        found = [name if name == ref else f"{name} ({ref})" for name, ref in zip(found, refs, strict=True)]
    return _list(found, most)


def _list(words: list[str], most: int) -> str:
    if most and len(words) > most:
        words = [*words[: most - 1], f"and {len(words) - most + 1} more"]
    return ", ".join(words)


def moment(seconds: float) -> str:
    """Local time, and how long ago."""
    then = datetime.fromtimestamp(seconds).astimezone()
    ago = datetime.now().astimezone() - then
    return f"{then:%Y-%m-%d %H:%M:%S} ({duration(ago.total_seconds())} ago)"


# Traffic


def flow_table(flows: Sequence[Flow], now: int, most: int) -> Table:
    """Flows with the environment that each belongs to."""
    rows: list[list[Part]] = [
        [
            Styled(flow.tunnel or "?", "cyan"),
            flow.protocol,
            endpoint(flow.inside, flow.inside_port),
            endpoint(flow.outside, flow.outside_port),
            str(flow.remote) if flow.protocol == "icmp" else endpoint(flow.remote, flow.remote_port),
            Styled(flow.state, FLOW_STYLES.get(flow.state, "")),
            volume(flow.bytes_out),
            volume(flow.bytes_in),
            duration((now - flow.last_seen) / 1000),
        ]
        for flow in flows[:most]
    ]
    titles = ("environment", "", "inside", "outside (ENI)", "remote", "state", "out", "in", "idle")
    return Table(titles, rows, right=titles[6:], spare=("idle", "in", "out", "state"))


def drop_table(drops: Sequence[Drop], now: int) -> Table:
    rows: list[list[Part]] = []
    for drop in drops:
        moment = wall_time(drop.time, now).astimezone()
        rows.append([f"{moment:%H:%M:%S}", Styled(drop.reason, "red"), drop.link or "?", packet_text(drop)])
    return Table(("time", "dropped because", "from", "packet"), rows)
