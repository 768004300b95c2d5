"""Where the time of a data plane goes: `python -m bench.profile [LOAD]...`, as root, with perf (Debian: linux-perf).

Samples the whole machine by the clock (so it works where no hardware counter is) while a load runs over ours, over the
bare forwarder and over the kernel's NAT. Prints whose the processor time was, and what the thread that carries the
packets spent its own on (where there is none: what all did); `make bench` measures how fast they are, this says why.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from signal import SIGINT
from typing import Any, Final

from bench import loads
from bench.figures import number
from bench.lab import Lab, wait_until
from bench.rivals import Rival, bare_forwarder, hyperplane, kernel_nft

HERTZ: Final = 4999
SECONDS: Final = 1.5
SHOWN: Final = 14
ENTERS: Final = "syscalls:sys_enter_io_uring_enter"
SWITCHES: Final = "sched:sched_switch"

LOADS: Final[dict[str, Callable[[Lab, Rival], Any]]] = {
    "tcp": lambda lab, rival: loads.tcp(lab, rival, 2),
    "tcp-back": lambda lab, rival: loads.tcp(lab, rival, 2, back=True),
    "udp": lambda lab, rival: loads.udp(lab, rival, SECONDS),
    "udp-mixed": lambda lab, rival: loads.udp(lab, rival, SECONDS, flows=64),
    "udp-trains": lambda lab, rival: loads.udp(lab, rival, SECONDS, segments=32),
    "question": lambda lab, rival: loads.question(lab, rival, SECONDS),
    "beside-bulk": lambda lab, rival: loads.question_beside_bulk(lab, rival, SECONDS),
    "connections": lambda lab, rival: loads.connections(lab, rival, SECONDS),
}


def worker(rival: Rival) -> tuple[str, int] | None:
    """Name and number of the thread that carries the packets: of ours the first worker, of the kernel none."""
    if rival.process is None:
        return None
    tasks = sorted(Path(f"/proc/{rival.process.pid}/task").iterdir())
    threads = [(path.joinpath("comm").read_text().strip(), int(path.name)) for path in tasks]
    return next((one for one in threads if one[0].startswith("hp-worker")), threads[0])


@contextmanager
def recorded(*command: str | Path) -> Iterator[None]:
    """perf runs within."""
    process = subprocess.Popen(["perf", *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(SIGINT)
        process.wait()


def sampled(path: Path) -> Counter[tuple[str, str]]:
    """How often each function was met, by thread name."""
    done = subprocess.run(
        ["perf", "script", "-i", path, "-F", "comm,ip,sym"], capture_output=True, text=True, check=True
    )
    found: Counter[tuple[str, str]] = Counter()
    for line in done.stdout.splitlines():
        comm, _, rest = line.strip().rpartition("  ")
        symbol = rest.strip().partition(" ")[2]
        found[comm.strip(), symbol or "?"] += 1
    return found


def counted(path: Path) -> dict[str, float]:
    """What perf stat -x, counted, by event."""
    lines = (line.split(",") for line in path.read_text().splitlines() if line.count(",") > 2)
    return {words[2]: float(words[0]) for words in lines if words[0].replace(".", "").isdigit()}


def show(lab: Lab, rival: Rival, name: str, scratch: Path) -> None:
    thread = worker(rival)
    whose = ("-t", str(thread[1])) if thread else ("-a",)
    data, counts = scratch / "perf.data", scratch / "counts"
    for path in (data, counts):
        path.unlink(missing_ok=True)
    with (
        recorded("record", "-q", "-a", "-e", "cpu-clock", "-F", str(HERTZ), "-o", data),
        recorded("stat", "-x", ",", "-e", f"{ENTERS},{SWITCHES}", *whose, "-o", counts),
    ):
        wait_until(data.exists, "perf's file")
        result = LOADS[name](lab, rival)
    samples, events = sampled(data), counted(counts)
    by_comm: Counter[str] = Counter()
    for (who, _), times in samples.items():
        by_comm["idle" if who == "swapper" else who] += times
    own: Counter[str] = Counter()
    for (who, symbol), times in samples.items():
        if who == thread[0] if thread else who != "swapper":
            own[symbol] += times
    total, mine = samples.total(), own.total()
    print(f"\n{name}, {rival.name}: {result}")
    print("  machine: " + ", ".join(f"{who} {100 * times / total:.0f} %" for who, times in by_comm.most_common(6)))
    print("  " + ", ".join(f"{event.partition(':')[2]} {number(value)}" for event, value in events.items()))
    print(f"  of {thread[0] if thread else 'all'}:")
    for symbol, times in own.most_common(SHOWN):
        print(f"    {100 * times / mine:5.1f} %  {symbol}")


def main(names: list[str]) -> None:
    assert shutil.which("perf"), "perf is needed: apt-get install linux-perf"
    unknown = set(names) - LOADS.keys()
    assert not unknown, f"no load {unknown}: one of {', '.join(LOADS)}"
    with Lab() as lab, ExitStack() as stack, tempfile.TemporaryDirectory() as scratch:
        entered = (hyperplane(lab, "io_uring"), bare_forwarder(lab), kernel_nft(lab))
        rivals = [stack.enter_context(one) for one in entered]
        for name in names or LOADS:
            for rival in rivals:
                show(lab, rival, name, Path(scratch))


if __name__ == "__main__":
    main(sys.argv[1:])
