"""What people read, in words: sizes, times, counts, flows and packets."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Address

from hyperplane.model import ANYWHERE, Drop, Flow, Rule

PROTOCOLS = {1: "icmp", 6: "tcp", 17: "udp"}  # IANA's protocol numbers
CLOCK_STEP = 0.1  # seconds


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.1f} ms"


def duration(seconds: float) -> str:
    """As in `0.4 s`, `2 h 4 min`."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def volume(size: float) -> str:
    """Bytes, in powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def many(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def rules_text(rules: Iterable[Rule]) -> str:
    return ", ".join(f"{rule} (anywhere)" if rule.cidr == ANYWHERE else str(rule) for rule in rules)


def endpoint(address: IPv4Address, port: int) -> str:
    return f"{address}:{port}"


def flow_text(flow: Flow) -> str:
    """`tcp 198.18.0.2:40000 → 198.19.0.5:13293 → 198.19.0.10:8000`: inside, outside, remote."""
    ends = ((flow.inside, flow.inside_port), (flow.outside, flow.outside_port), (flow.remote, flow.remote_port))
    return f"{flow.protocol} {' → '.join(endpoint(address, port) for address, port in ends)}"


def packet_text(drop: Drop) -> str:
    """`tcp 198.18.0.2:40000 → 198.19.0.10:25`."""
    protocol = PROTOCOLS.get(drop.protocol, f"protocol {drop.protocol}")
    if protocol == "icmp":
        return f"icmp type {drop.source_port} {drop.source} → {drop.destination}"
    if protocol not in ("tcp", "udp"):
        return f"{protocol} {drop.source} → {drop.destination}"
    source = endpoint(drop.source, drop.source_port)
    return f"{protocol} {source} → {endpoint(drop.destination, drop.destination_port)}"


def drops_text(drops: Mapping[str, int]) -> str:
    """`3 (security_group 2, no_flow 1)`, most first."""
    total = sum(drops.values())
    if not total:
        return "0"
    each = ", ".join(
        f"{reason} {count:,}" for reason, count in sorted(drops.items(), key=lambda one: (-one[1], one[0]))
    )
    return f"{total:,} ({each})"


def boot_time() -> int:
    """CLOCK_BOOTTIME in milliseconds, the clock of flows and drops: dataplane.now(), without loading the engine."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


_boot = 0.0  # seconds since the epoch when CLOCK_BOOTTIME was 0


def wall_time(boot: int, now: int) -> datetime:
    """CLOCK_BOOTTIME ms as a time of day; now: that clock at present.

    The same for the same time whenever it is asked for, until somebody sets the clock.
    """
    global _boot
    present = time.time() - now / 1000
    if abs(present - _boot) > CLOCK_STEP:
        _boot = present
    return datetime.fromtimestamp(_boot + boot / 1000, UTC)
