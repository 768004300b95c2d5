"""`nat --watch` on a terminal: tables at its bottom that are drawn anew."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from hyperplane.cli.render import MOST_DROPS, Ready, Snapshot, drop_table, drops_text, flow_table, many, volume
from hyperplane.model import Drop

HEADING = 5  # lines that are no rows: the summary, both headers, blanks
LEAST_ROWS = 3


class Screen:
    """Shows as many of the flows last used and of the latest drops as the terminal has room for."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False, transient=False, vertical_overflow="crop")
        self._live.start()
        self._console = console
        self._recent: list[Drop] = []
        self._last: Snapshot | None = None

    def show(self, ready: Ready, snapshot: Snapshot) -> None:
        self._recent = [*self._recent, *snapshot.drops][-MOST_DROPS:]
        room = max(self._console.size.height - HEADING, 2 * LEAST_ROWS)
        drops = self._recent[-max(LEAST_ROWS, room // 3) :]
        rows = max(room - len(drops), LEAST_ROWS)
        flows = sorted(snapshot.flows, key=lambda flow: flow.last_seen, reverse=True)
        parts: list[RenderableType] = [
            self._summary(ready, snapshot),
            flow_table(flows, snapshot.now, rows, self._console.width),
        ]
        if drops:
            parts += [Text(), drop_table(drops, snapshot.now)]
        self._last = snapshot
        self._live.update(Group(*parts), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _summary(self, ready: Ready, snapshot: Snapshot) -> Text:
        text = Text(f"ENI {', '.join(map(str, ready.eni_addresses))}: ", "bold", no_wrap=True, overflow="ellipsis")
        text.append(f"{many(len(snapshot.flows), 'flow')}")
        last = self._last
        if last and snapshot.now > last.now:
            seconds = (snapshot.now - last.now) / 1000
            out, back = snapshot.counters, last.counters
            text.append(f"; out {volume((out.bytes_out - back.bytes_out) / seconds)}/s")
            text.append(f", in {volume((out.bytes_in - back.bytes_in) / seconds)}/s")
        text.append(f"; dropped packets: {drops_text(snapshot.counters.drops)}")
        return text
