"""Real servers for a VPC: PostgreSQL, Redis, nginx and dnsmasq, each in a namespace that the test made.

A server lives in a temporary directory, listens on one address (its namespace must have it), serves when its function
has returned, and is ended by its process id. One that dies early fails the test with the last lines of its log. Should
the test run itself be killed, the kernel ends the servers (PR_SET_PDEATHSIG), but for dnsmasq, which lays that off with
its privileges: the next run finds it in a namespace of this one.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .sockets import reachable
from .support import wait_until

POSTGRESQL, REDIS, NGINX, DNSMASQ = "198.19.0.10", "198.19.0.11", "198.19.0.12", "198.19.0.13"
UNPRIVILEGED = "nobody"  # PostgreSQL refuses to run as root
DIRECTORY = "hyperplane-servers-"
START_SECONDS, STOP_SECONDS = 30.0, 15.0


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. log: what it wrote; access: nginx's list of requests."""

    directory: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    @property
    def access(self) -> str:
        return (self.directory / "access").read_text(errors="replace")


def program(name: str) -> str:
    """The path of a program, also where Debian keeps those of PostgreSQL and of the administrator."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    path = os.pathsep.join([*map(str, versions), os.environ["PATH"], "/usr/sbin", "/sbin"])
    found = shutil.which(name, path=path)
    assert found, f"{name} is not installed: tools/bootstrap.sh test"
    return found


@contextmanager
def server_directory() -> Iterator[Path]:
    """A temporary directory that servers of any user can reach; those of test runs that were killed go as well."""
    for old in Path(tempfile.gettempdir()).glob(f"{DIRECTORY}*"):
        if not Path("/proc", old.name.removeprefix(DIRECTORY).partition("-")[0]).exists():
            shutil.rmtree(old)
    directory = Path(tempfile.mkdtemp(prefix=f"{DIRECTORY}{os.getpid()}-"))
    try:
        directory.chmod(0o755)
        yield directory
    finally:
        shutil.rmtree(directory)


def in_namespace(namespace: str, command: Sequence[str], *, end: str = "KILL", user: str = "") -> list[str]:
    """The command line that runs command in a namespace under its own process id, and until its parent ends at most."""
    become = [f"--reuid={user}", f"--regid={pwd.getpwnam(user).pw_gid}", "--clear-groups"] if user else []
    return [
        program("nsenter"),
        f"--net=/run/netns/{namespace}",
        program("setpriv"),
        *become,
        f"--pdeathsig={end}",
        program(command[0]),
        *command[1:],
    ]


@contextmanager
def running(
    namespace: str,
    command: Sequence[str],
    directory: Path,
    address: str,
    port: int,
    *,
    end: signal.Signals = signal.SIGTERM,
    user: str = "",
) -> Iterator[Server]:
    """Runs a server in the foreground from when it takes connections on; end is the signal that ends it in order."""
    words = in_namespace(namespace, command, end=end.name.removeprefix("SIG"), user=user)
    with open(directory / "log", "ab") as log:
        process = subprocess.Popen(
            words, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    server = Server(directory, process)
    try:
        wait_until(lambda: ended(server) or reachable(namespace, address, port), START_SECONDS, f"{command[0]} listens")
        yield server
        assert not ended(server)
    finally:
        process.send_signal(end)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # it is the leader of its own session
            process.wait()
            raise


def ended(server: Server) -> bool:
    """False; fails the test when the server is not alive any more."""
    status = server.process.poll()
    words = " ".join(map(str, server.process.args)) if isinstance(server.process.args, list) else ""
    assert status is None, f"{words}: ended with status {status}; its log ends with:\n{server.log[-2000:]}"
    return False


def make_cluster(directory: Path) -> Path:
    """initdb: a PostgreSQL cluster in a new directory, of the unprivileged user; its own user is `postgres`."""
    data = directory / "cluster"
    data.mkdir()
    shutil.chown(data, UNPRIVILEGED, pwd.getpwnam(UNPRIVILEGED).pw_gid)
    options = ["--auth=trust", "--username=postgres", "--locale=C", "--encoding=UTF8", "--no-sync", "-D", str(data)]
    account = pwd.getpwnam(UNPRIVILEGED)
    made = subprocess.run(
        [program("initdb"), *options],
        cwd=data,
        user=account.pw_uid,
        group=account.pw_gid,
        extra_groups=[],
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    (data / "pg_hba.conf").write_text("host all all 198.19.0.0/24 trust\n")
    return data


@contextmanager
def postgresql(namespace: str, cluster: Path, address: str = POSTGRESQL) -> Iterator[Server]:
    """On port 5432, without a password. Safe against nothing: what it holds lives as long as the test run."""
    settings = {
        "listen_addresses": address,
        "unix_socket_directories": "",
        "fsync": "off",
        "full_page_writes": "off",
        "synchronous_commit": "off",
        "autovacuum": "off",
        "max_connections": "200",
        "shared_buffers": "32MB",
    }
    command = ["postgres", "-D", str(cluster), "-p", "5432"]
    for name, value in settings.items():
        command += ["-c", f"{name}={value}"]
    # SIGINT ends it without waiting for clients.
    with running(namespace, command, cluster, address, 5432, end=signal.SIGINT, user=UNPRIVILEGED) as server:
        ready = in_namespace(namespace, ["pg_isready", "-q", "-h", address, "-p", "5432"])
        wait_until(lambda: ended(server) or not subprocess.run(ready).returncode, START_SECONDS, "PostgreSQL is ready")
        yield server


@contextmanager
def redis(namespace: str, directory: Path, address: str = REDIS) -> Iterator[Server]:
    """On port 6379; keeps nothing."""
    command = ["redis-server", "--bind", address, "--port", "6379", "--protected-mode", "no", "--daemonize", "no"]
    command += ["--save", "", "--appendonly", "no", "--dir", str(directory)]
    with running(namespace, command, directory, address, 6379) as server:
        yield server


NGINX_CONFIGURATION = """
daemon off;
worker_processes 1;
pid {directory}/pid;
error_log {directory}/log;
events {{ worker_connections 512; }}
http {{
  log_format who '$remote_addr $remote_port $arg_by $status $bytes_sent';
  access_log {directory}/access who;
  client_body_temp_path {directory}/incoming;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
  sendfile on;
  server {{
    listen {address}:80;
    root {root};
    location /upload/ {{
      root {directory};
      dav_methods PUT;
      create_full_put_path on;
      client_max_body_size 1g;
    }}
  }}
}}
user root;
"""


@contextmanager
def nginx(namespace: str, directory: Path, root: Path, address: str = NGINX) -> Iterator[Server]:
    """On port 80: gives the files below root, takes PUT of files below /upload/ into directory.

    A line of its access file: client address, client port, the request's argument `by`, status, bytes.
    """
    configuration = directory / "nginx.conf"
    configuration.write_text(NGINX_CONFIGURATION.format(directory=directory, root=root, address=address))
    (directory / "access").touch()
    command = ["nginx", "-p", str(directory), "-e", str(directory / "log"), "-c", str(configuration)]
    with running(namespace, command, directory, address, 80) as server:
        yield server


@contextmanager
def dnsmasq(namespace: str, directory: Path, records: Sequence[str], address: str = DNSMASQ) -> Iterator[Server]:
    """On port 53, UDP and TCP; records are its options --address=..., --txt-record=... It asks nobody else.

    Its log names address and port of every client.
    """
    command = ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts"]
    command += [f"--listen-address={address}", "--bind-interfaces", "--except-interface=none", "--user=root"]
    command += ["--pid-file=", "--log-queries=extra", "--log-facility=-", *records]
    with running(namespace, command, directory, address, 53) as server:
        yield server
