"""Clients of the daemon's API: `Client` (asyncio) and `SyncClient` (blocking), with the same methods.

They know the resources and the errors, and nothing of the daemon's other parts.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hyperplane.client.places import socket_path

if TYPE_CHECKING:
    from hyperplane.client.asynchronous import Client
    from hyperplane.client.synchronous import SyncClient

__all__ = ["Client", "SyncClient", "socket_path"]
_HOME = {"Client": "asynchronous", "SyncClient": "synchronous"}  # a command line needs no asyncio


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
