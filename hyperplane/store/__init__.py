"""Keeps: resources as records, each transaction whole or not at all."""

from hyperplane.store.sqlite import SqliteStore
from hyperplane.store.store import Change, Record, Store

__all__ = ["Change", "Record", "SqliteStore", "Store"]
