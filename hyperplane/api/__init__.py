"""The HTTP API on a Unix socket: routes, errors, the OpenAPI document, metrics."""
