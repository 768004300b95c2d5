"""What a daemon is told when it is started."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

LogFormat = Literal["auto", "console", "json"]
LOG_FORMATS: Final[tuple[LogFormat, ...]] = ("auto", "console", "json")
GROUP: Final = "hyperplane-nat"


@dataclass(frozen=True, slots=True)
class DaemonOptions:
    """instance, run_dir, state_dir: see Places. group: whose members may use the API; "" for `hyperplane-nat` where
    there is such a group, else root alone. log_format auto: console on a terminal, else JSON. log_level: debug, info,
    warning or error. pool: how many fresh environments are kept ready. threads: that work in namespaces. engine:
    options of a newly started engine, those of `Engine` (max_flows, max_links, io, huge_pages). engine_user: whom the
    engine becomes, "" for its default. engine_patience: seconds after which an engine ends by itself when no daemon has
    come back, 0 for never.
    """

    instance: str = "default"
    run_dir: Path | None = None
    state_dir: Path | None = None
    group: str = ""
    log_format: LogFormat = "auto"
    log_level: str = "info"
    pool: int = 0
    threads: int = 4
    engine: dict[str, Any] = field(default_factory=dict)
    engine_user: str = ""
    engine_patience: float = 0.0
