"""hyperplane-nat: many execution environments, even with one and the same address, behind one shared interface.

The public API is what stands in `__all__`; docs/api.md describes it. Names are imported when they are first used, so
that `hyperplane-nat --version`, and programs that only read the model, load neither the engine nor asyncio.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hyperplane.attachment import Attachment, Attachments
    from hyperplane.client import Client, SyncClient
    from hyperplane.dataplane import Engine, Eni, Translated, Tunnel
    from hyperplane.errors import HyperplaneError
    from hyperplane.model import Counters, Drop, Flow, Reason, Rule, SecurityGroup, Timers, Verdict
    from hyperplane.resources import (
        Document,
        EnvironmentSpec,
        FunctionSpec,
        SecurityGroupSpec,
        SubnetSpec,
        VpcSpec,
    )

__version__ = "0.1.0"

_HOME = {
    "Attachment": "attachment",
    "Attachments": "attachment",
    "Client": "client",
    "Counters": "model",
    "Document": "resources",
    "Drop": "model",
    "Engine": "dataplane",
    "Eni": "dataplane",
    "EnvironmentSpec": "resources",
    "Flow": "model",
    "FunctionSpec": "resources",
    "HyperplaneError": "errors",
    "Reason": "model",
    "Rule": "model",
    "SecurityGroup": "model",
    "SecurityGroupSpec": "resources",
    "SubnetSpec": "resources",
    "SyncClient": "client",
    "Timers": "model",
    "Translated": "dataplane",
    "Tunnel": "dataplane",
    "Verdict": "model",
    "VpcSpec": "resources",
}

__all__ = [  # noqa: RUF022 - in the order one meets them
    "Client",
    "SyncClient",
    "Document",
    "VpcSpec",
    "SubnetSpec",
    "SecurityGroupSpec",
    "FunctionSpec",
    "EnvironmentSpec",
    "Attachments",
    "Attachment",
    "Engine",
    "Eni",
    "Tunnel",
    "Translated",
    "SecurityGroup",
    "Rule",
    "Timers",
    "Flow",
    "Drop",
    "Counters",
    "Reason",
    "Verdict",
    "HyperplaneError",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
