"""Decides: what may exist, what must be done for it. No sockets, no clock of its own: it takes requests, events and the
time, and returns resources, changes to keep and actions to carry out."""

from hyperplane.control.control import Control
from hyperplane.control.outcome import (
    Action,
    Attach,
    Delete,
    Detach,
    Limits,
    MakeEni,
    Outcome,
    Prepared,
    Put,
    Record,
    RemoveEni,
    TunnelSpec,
    UpdateEni,
)

__all__ = [
    "Action",
    "Attach",
    "Control",
    "Delete",
    "Detach",
    "Limits",
    "MakeEni",
    "Outcome",
    "Prepared",
    "Put",
    "Record",
    "RemoveEni",
    "TunnelSpec",
    "UpdateEni",
]
