"""The demo's HTTP server and client, each a process of its own in a namespace: nothing but Python itself is imported.

    demo_http.py serve ADDRESS PORT
    demo_http.py fetch ADDRESS PORT SOURCE_PORT    GET /, then keeps the connection
    demo_http.py connect ADDRESS PORT TIMEOUT      TCP only

Each writes one line of JSON once it is ready or done; serve and fetch then go on until their standard input ends.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DEADLINE = 10.0  # seconds


class Handler(BaseHTTPRequestHandler):
    """Tells clients which address and port they come from, as far as the server can see."""

    protocol_version = "HTTP/1.1"  # connections stay open

    def do_GET(self) -> None:
        body = json.dumps({"client": f"{self.client_address[0]}:{self.client_address[1]}"}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:  # noqa: A002 - the base class calls it so
        pass


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def serve(address: str, port: str) -> None:
    server = ThreadingHTTPServer((address, int(port)), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    say(ready=True)
    sys.stdin.read()


def fetch(address: str, port: str, source_port: str) -> None:
    connection = http.client.HTTPConnection(
        address, int(port), timeout=DEADLINE, source_address=("0.0.0.0", int(source_port))
    )
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        body = json.loads(response.read())
    except OSError as error:
        say(error=str(error))
        return
    say(status=response.status, reason=response.reason, client=body["client"])
    sys.stdin.read()


def connect(address: str, port: str, timeout: str) -> None:
    started = time.perf_counter()
    try:
        socket.create_connection((address, int(port)), float(timeout)).close()
        outcome = "connected"
    except TimeoutError:
        outcome = "no answer"
    except OSError as error:
        outcome = "refused" if isinstance(error, ConnectionRefusedError) else str(error)
    say(outcome=outcome, seconds=time.perf_counter() - started)


if __name__ == "__main__":
    verbs: dict[str, Callable[..., None]] = {"serve": serve, "fetch": fetch, "connect": connect}
    verbs[sys.argv[1]](*sys.argv[2:])
