"""`nat --watch` on a terminal: tables at its bottom that are drawn anew."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.live import Live
from rich.text import Text

from hyperplane.cli.render import MOST_DROPS, Ready, Snapshot
from hyperplane.cli.tables import drop_table, flow_table
from hyperplane.cli.terminal import Part, Printer, Styled
from hyperplane.cli.words import drops_text, many, volume
from hyperplane.model import Drop

HEADING = 5  # lines that are no rows: the summary, both headers, blanks
LEAST_ROWS = 3


class Screen:
    """Shows as many of the flows last used and of the latest drops as the terminal has room for."""

    def __init__(self, printer: Printer, console: Console | None = None) -> None:
        """console: of printer's terminal; standard output's unless given."""
        self._printer = printer
        self._console = console or Console(file=sys.stdout, force_terminal=True, highlight=False, emoji=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=False, vertical_overflow="crop")
        self._live.start()
        self._recent: list[Drop] = []
        self._last: Snapshot | None = None

    def show(self, ready: Ready, snapshot: Snapshot) -> None:
        self._recent = [*self._recent, *snapshot.drops][-MOST_DROPS:]
        width, height = self._console.size
        room = max(height - HEADING, 2 * LEAST_ROWS)
        drops = self._recent[-max(LEAST_ROWS, room // 3) :]
        rows = max(room - len(drops), LEAST_ROWS)
        flows = sorted(snapshot.flows, key=lambda flow: flow.last_seen, reverse=True)
        lines = [self._summary(ready, snapshot), *flow_table(flows, snapshot.now, rows).lines(width)]
        if drops:
            lines += [[], *drop_table(drops, snapshot.now).lines(width)]
        self._last = snapshot
        text = Text("\n", no_wrap=True, overflow="ellipsis").join(
            Text.from_ansi(self._printer.text(*line)) for line in lines
        )
        self._live.update(text, refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _summary(self, ready: Ready, snapshot: Snapshot) -> list[Part]:
        words = many(len(snapshot.flows), "flow")
        last = self._last
        if last and snapshot.now > last.now:
            seconds = (snapshot.now - last.now) / 1000
            out, back = snapshot.counters, last.counters
            words += f"; out {volume((out.bytes_out - back.bytes_out) / seconds)}/s"
            words += f", in {volume((out.bytes_in - back.bytes_in) / seconds)}/s"
        words += f"; dropped packets: {drops_text(snapshot.counters.drops)}"
        return [Styled(f"ENI {', '.join(map(str, ready.eni_addresses))}: ", "bold"), words]
