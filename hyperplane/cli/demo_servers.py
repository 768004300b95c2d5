"""The servers of the demo's VPC: started without privileges, in temporary directories; no service is touched.

Redis and PostgreSQL take part when they are installed: `start_*()` return how to use them, or why they are left out.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hyperplane.cli.demo_lab import Lab, find, wait_until
from hyperplane.errors import HyperplaneError

ADDRESS: Final = "198.19.0.10"
HTTP_PORT, REDIS_PORT, POSTGRES_PORT = 80, 6379, 5432
TALKER: Final = [sys.executable, "-I", "-S", str(Path(__file__).with_name("demo_http.py"))]


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs. ask: runs its client in an environment with these arguments and returns what it printed."""

    name: str
    port: int
    ask: Callable[..., str]


def start_http(lab: Lab) -> None:
    lab.start_talker("vpc", [*TALKER, "serve", ADDRESS, str(HTTP_PORT)])


def start_redis(lab: Lab) -> Server | str:
    server, client = find("redis-server"), find("redis-cli")
    if not (server and client):
        return "Redis is not installed"
    user = _user("redis")
    directory = lab.directory(user)
    options = f"--bind {ADDRESS} --port {REDIS_PORT} --protected-mode no --appendonly no --dir {directory}"
    process = lab.start("vpc", [server, *options.split(), "--save", ""], **_quiet(user, directory))
    prefix = [client, "-h", ADDRESS, "-p", str(REDIS_PORT)]

    def ask(label: str, *words: str) -> str:
        return lab.command([*prefix, *words], label=label).strip()

    if not wait_until(lambda: _works(lambda: ask("vpc", "PING")), process):
        return "Redis did not start"
    return Server("Redis", REDIS_PORT, ask)


def start_postgres(lab: Lab, allowed: str) -> Server | str:
    """allowed: the only address that may connect, which is the ENI's."""
    programs = {name: _postgres_program(name) for name in ("initdb", "postgres", "psql", "pg_isready")}
    if missing := [name for name, path in programs.items() if not path]:
        return "PostgreSQL is not installed" + (f" completely ({', '.join(missing)})" if len(missing) < 4 else "")
    user = _user("postgres")
    directory = lab.directory(user)
    data = directory / "data"
    options = ["--auth=trust", "--username=postgres", "--no-sync", "--no-locale", "--encoding=UTF8", f"--pgdata={data}"]
    made = lab.start("vpc", [programs["initdb"], *options], **_quiet(user, directory))
    if made.wait():
        return "PostgreSQL could not make a database"
    (data / "pg_hba.conf").write_text(f"host all all {allowed}/32 trust\nhost all all {ADDRESS}/32 trust\n")
    settings = {"listen_addresses": ADDRESS, "port": str(POSTGRES_PORT), "unix_socket_directories": "", "fsync": "off"}
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    # SIGQUIT: at once, without writing to disk what is deleted anyway.
    process = lab.start(
        "vpc", [programs["postgres"], "-D", str(data), *words], end=signal.SIGQUIT, **_quiet(user, directory)
    )
    where = ["-h", ADDRESS, "-p", str(POSTGRES_PORT), "-U", "postgres"]
    if not wait_until(lambda: _works(lambda: lab.command([programs["pg_isready"], *where], label="vpc")), process):
        return "PostgreSQL did not start"

    def ask(label: str, query: str) -> str:
        return lab.command([programs["psql"], *where, "-XAtc", query], label=label).strip()

    return Server("PostgreSQL", POSTGRES_PORT, ask)


def _works(job: Callable[[], str]) -> bool:
    try:
        job()
    except HyperplaneError:
        return False
    return True


def _postgres_program(name: str) -> str:
    """Debian keeps the server's programs out of PATH, a directory for each version."""
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"), key=lambda path: path.parts[-3].zfill(4))
    usable = [str(path) for path in versions if os.access(path, os.X_OK)]
    return usable[-1] if usable else find(name)


def _user(wanted: str) -> str:
    """Whom a server runs as: never root."""
    names = {entry.pw_name for entry in pwd.getpwall() if entry.pw_uid}
    return wanted if wanted in names else "nobody"


def _quiet(user: str, directory: Path) -> dict[str, Any]:
    """Options of a process that runs as user in a directory and says nothing."""
    nothing = subprocess.DEVNULL
    group = pwd.getpwnam(user).pw_gid
    owner = {"user": user, "group": group, "extra_groups": []}
    return {**owner, "cwd": directory, "stdin": nothing, "stdout": nothing, "stderr": nothing}
