"""What the command line prints, for people and for programs."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Any

import pytest
from rich.console import Console

from hyperplane.cli import words
from hyperplane.cli.lines import JsonOutput, iso
from hyperplane.cli.live import Screen
from hyperplane.cli.render import Attached, Changes, Ready, Snapshot, TextOutput
from hyperplane.cli.tables import flow_table
from hyperplane.cli.terminal import Printer
from hyperplane.model import Counters, Drop, Flow, FlowState, Reason, Rule

NOW = 5_000_000


def flow(number: int = 1, **fields: Any) -> Flow:
    given: dict[str, Any] = {
        "id": number, "tunnel": f"box{number}", "tunnel_number": number, "eni": "eni0", "eni_number": 9,
        "protocol": "tcp", "state": FlowState.ESTABLISHED,
        "inside": IPv4Address("198.18.0.2"), "inside_port": 40000,
        "outside": IPv4Address("198.19.0.5"), "outside_port": 2000 + number,
        "remote": IPv4Address("198.19.0.10"), "remote_port": 80,
        "packets_out": 3, "bytes_out": 1500, "packets_in": 2, "bytes_in": 120,
        "started": NOW - 2000, "last_seen": NOW - 500, "expires": NOW + 1000,
    }  # fmt: skip
    return Flow(**given | fields)


def drop(number: int = 1, **fields: Any) -> Drop:
    given: dict[str, Any] = {
        "number": number, "time": NOW - 100, "link": "box1", "link_number": 1, "reason": Reason.SECURITY_GROUP,
        "protocol": 6, "source": IPv4Address("198.18.0.2"), "source_port": 40000,
        "destination": IPv4Address("198.19.0.10"), "destination_port": 25, "length": 60,
    }  # fmt: skip
    return Drop(**given | fields)


def snapshot(flows: Sequence[Flow] = (), records: Sequence[Drop] = (), **counters: Any) -> Snapshot:
    return Snapshot(NOW, flows, records, Counters(**counters))


def ready(count: int = 2, rules: tuple[Rule, ...] = ()) -> Ready:
    attached = tuple(
        Attached(f"box{n}", f"ns{n}", "eth0", IPv4Address("198.18.0.2"), 0.0004) for n in range(1, count + 1)
    )
    return Ready("customer", "eni0", (IPv4Address("198.19.0.5"),), rules, "epoll", 1024, 1500, 4711, attached)


def text_output() -> tuple[TextOutput, io.StringIO]:
    file = io.StringIO()
    return TextOutput(Printer(file=file)), file


# Words and tables


def test_sizes_and_times_are_short() -> None:
    assert [words.volume(size) for size in (0, 999, 1000, 2_500_000, 3e9, 4e12, 5e15)] == [
        "0 B", "999 B", "1.0 kB", "2.5 MB", "3.0 GB", "4.0 TB", "5000.0 TB",
    ]  # fmt: skip
    assert [words.duration(seconds) for seconds in (-1, 0.44, 59.6, 131, 7440)] == [
        "0.0 s", "0.4 s", "60 s", "2 min", "2 h 4 min",
    ]  # fmt: skip
    assert words.milliseconds(0.00051) == "0.51 ms"
    assert words.milliseconds(0.0123) == "12.3 ms"
    assert words.many(1, "flow") == "1 flow"
    assert words.many(1200, "flow") == "1,200 flows"
    assert words.drops_text({}) == "0"
    assert words.drops_text({"no_flow": 1, "security_group": 2}) == "3 (security_group 2, no_flow 1)"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({}, "tcp 198.18.0.2:40000 → 198.19.0.10:25"),
        ({"protocol": 17}, "udp 198.18.0.2:40000 → 198.19.0.10:25"),
        ({"protocol": 1, "source_port": 8}, "icmp type 8 198.18.0.2 → 198.19.0.10"),
        ({"protocol": 47}, "protocol 47 198.18.0.2 → 198.19.0.10"),
    ],
)
def test_a_dropped_packet_in_words(fields: dict[str, Any], text: str) -> None:
    assert words.packet_text(drop(**fields)) == text


def test_the_time_of_an_event_does_not_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "_boot", 0.0)
    first = words.wall_time(NOW, NOW)
    assert abs(first.timestamp() - time.time()) < 5
    later = words.wall_time(NOW, NOW + 1)  # one ms of that clock has passed, maybe less of the other
    assert later == first
    assert iso(first) == first.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_ready_says_what_is_allowed() -> None:
    output, file = text_output()
    output.ready(ready())
    text = file.getvalue()
    assert "ENI eni0 with 198.19.0.5 in VPC namespace customer" in text
    assert "allowed out: everything, since no --allow is given; in: nothing" in text
    assert "kill -USR1 4711" in text
    assert text.count("0.40 ms") == 2
    output, file = text_output()
    output.ready(ready(rules=(Rule("icmp"), Rule.parse("tcp/443 198.19.0.0/24"))))
    assert "allowed out: icmp (anywhere), tcp/443 198.19.0.0/24" in file.getvalue()


def test_many_environments_do_not_fill_the_screen() -> None:
    output, file = text_output()
    output.ready(ready(1000))
    assert len(file.getvalue().splitlines()) < 40
    assert "and 975 more; of all: median 0.40 ms, slowest 0.40 ms" in file.getvalue()


def test_names_are_taken_neither_for_markup_nor_for_commands_of_a_terminal() -> None:
    output, file = text_output()
    output.detached("[red]box", "namespace \x1b[31m[/] was\ndeleted", 1)
    assert file.getvalue() == "[red]box detached: namespace \\x1b[31m[/] was\\ndeleted; 1 environment left\n"


def test_a_snapshot_shows_flows_and_drops_with_their_environments() -> None:
    output, file = text_output()
    icmp = flow(2, protocol="icmp", remote_port=0, state=FlowState.ACTIVE)
    output.snapshot(snapshot([flow(), icmp], [drop()], drops={"security_group": 1}))
    rows = [" ".join(line.split()) for line in file.getvalue().splitlines()]
    assert "box1 tcp 198.18.0.2:40000 198.19.0.5:2001 198.19.0.10:80 established 1.5 kB 120 B 0.5 s" in rows
    assert "box2 icmp 198.18.0.2:40000 198.19.0.5:2002 198.19.0.10 active 1.5 kB 120 B 0.5 s" in rows
    assert any(row.endswith("security_group box1 tcp 198.18.0.2:40000 → 198.19.0.10:25") for row in rows)
    assert any(row.endswith("2 flows; dropped packets: 1 (security_group 1)") for row in rows)


@pytest.mark.parametrize(
    ("width", "last"), [(0, "idle"), (120, "idle"), (95, "out"), (90, "state"), (80, "remote"), (20, "remote")]
)
def test_a_narrow_terminal_loses_columns_and_no_digits(width: int, last: str) -> None:
    heading, row = (Printer(file=io.StringIO()).text(*line) for line in flow_table([flow()], NOW, 10).lines(width))
    shown = heading.split()
    assert (shown[-2] if shown[-1] == "…" else shown[-1]) == last
    assert (shown[-1] == "…") == (last != "idle")
    assert "198.18.0.2:40000  198.19.0.5:2001  198.19.0.10:80" in row
    assert not width or len(heading) <= width or width == 20


def test_changes_are_lines_where_there_is_no_terminal() -> None:
    output, file = text_output()
    output.ready(ready())
    file.truncate(0)
    output.changes(Changes([flow(1)], [flow(2)], snapshot([flow(1)], [drop()])))
    lines = [line.split("  ", 1)[1] for line in file.getvalue().lstrip("\0").splitlines()]
    assert lines == [
        "flow   box1  tcp 198.18.0.2:40000 → 198.19.0.5:2001 → 198.19.0.10:80",
        "ended  box2  tcp 198.18.0.2:40000 → 198.19.0.5:2002 → 198.19.0.10:80  out 1.5 kB, in 120 B",
        "drop   box1  tcp 198.18.0.2:40000 → 198.19.0.10:25  security_group",
    ]


def test_on_a_terminal_a_table_is_kept_up_to_date_and_fits() -> None:
    file = io.StringIO()
    console = Console(file=file, width=120, height=24, force_terminal=True, highlight=False)
    screen = Screen(Printer(file=file), console)
    flows, drops = [flow(number) for number in range(1, 200)], [drop(number) for number in range(1, 50)]
    screen.show(ready(), snapshot(flows, drops, bytes_out=1000))
    file.truncate(0)
    file.seek(0)
    screen.show(ready(), Snapshot(NOW + 1000, flows, [], Counters(bytes_out=3000, drops={"no_flow": 5})))
    shown = file.getvalue()
    assert shown.count("\n") < 24
    assert "199 flows; out 2.0 kB/s, in 0 B/s; dropped packets: 5 (no_flow 5)" in shown
    screen.close()


def test_the_end_is_told_in_numbers() -> None:
    output, file = text_output()
    output.ending("interrupted", Counters(flows_created=200, drops={"no_flow": 5}))
    assert file.getvalue() == "\nended: interrupted; 200 flows in all, dropped packets: 5 (no_flow 5)\n"


# JSON

FLOW_FIELDS = {
    "time", "event", "id", "environment", "eni", "protocol", "state", "inside", "inside_port", "outside",
    "outside_port", "remote", "remote_port", "packets_out", "bytes_out", "packets_in", "bytes_in", "started",
    "last_seen", "expires",
}  # fmt: skip
DROP_FIELDS = {
    "time", "event", "number", "reason", "link", "protocol", "source", "source_port", "destination", "destination_port",
    "length",
}  # fmt: skip


def test_json_is_one_object_per_line_with_stable_names(capsys: pytest.CaptureFixture[str]) -> None:
    output = JsonOutput()
    output.ready(ready(1, (Rule("icmp"),)))
    output.snapshot(snapshot([flow()], [drop(protocol=47)], packets_out=7))
    output.changes(Changes([flow()], [flow(2)], snapshot([flow()])))
    output.detached("box1", "namespace ns1 was deleted", 0)
    output.ending("no environment is left", Counters(flows_created=2, drops={"no_flow": 1}))
    lines: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == [
        "attached", "ready", "flow", "drop", "counters", "flow_started", "flow_ended", "counters", "detached", "ended",
    ]  # fmt: skip
    by_event = {line["event"]: line for line in lines}
    assert all(set(by_event[event]) == FLOW_FIELDS for event in ("flow", "flow_started", "flow_ended"))
    assert set(by_event["drop"]) == DROP_FIELDS
    assert by_event["drop"]["reason"] == "security_group"
    assert by_event["drop"]["protocol"] == "47"
    assert by_event["flow"]["environment"] == "box1"
    assert by_event["flow"]["state"] == "established"
    assert by_event["ready"]["allow"] == ["icmp"]
    assert by_event["ready"]["pid"] == 4711
    assert by_event["attached"]["seconds"] == 0.0004
    assert by_event["ended"]["drops"] == {"no_flow": 1}
    assert all(line["time"].endswith("Z") for line in lines)
