"""The HTTP API on a Unix socket: routes, errors, the OpenAPI document, metrics."""

from __future__ import annotations

from hyperplane.api.app import make_app
from hyperplane.api.server import serve
from hyperplane.api.service import ServiceProtocol

__all__ = ["ServiceProtocol", "make_app", "serve"]
