"""What the systemd unit leaves the daemon is enough: its capabilities, its umask, and no way to get more."""

from __future__ import annotations

import os
import pwd
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperplane.resources import EnvironmentState

from . import traffic
from .daemons import ROOT, SERVER, TestDaemon, declare, start, until
from .support import Namespaces, devices, ip_json, wait_until

UNIT = (ROOT / "packaging" / "systemd" / "hyperplane-nat@.service").read_text(encoding="utf-8")
USER = pwd.getpwnam("nobody")
MEMLOCK = 8 << 20  # systemd's default


def capabilities() -> list[str]:
    (line,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT, re.MULTILINE)
    return [name.removeprefix("CAP_").lower() for name in line.split()]


def confined() -> tuple[str, ...]:
    """The command line before the daemon's: as systemd would start it, root with these capabilities and no others."""
    bounding = ",".join(["-all", *(f"+{name}" for name in capabilities())])
    return (
        "prlimit", f"--memlock={MEMLOCK}:{MEMLOCK}",
        "setpriv", f"--bounding-set={bounding}", "--inh-caps=-all", "--no-new-privs",
        "sh", "-c", 'umask 077; exec "$@"', "sh",
    )  # fmt: skip


def status(pid: int, field: str) -> str:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    return next(line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(f"{field}:"))


@pytest.fixture
def daemon() -> Iterator[TestDaemon]:
    with TestDaemon(group="nogroup") as made:
        for place in (made.places.run, made.places.state):  # what systemd makes: RuntimeDirectory=, StateDirectory=
            place.mkdir(parents=True)
        made.start(prefix=confined())
        yield made


@pytest.fixture
def sandbox() -> Iterator[subprocess.Popen[str]]:
    """A process of a user without privileges, in user and network namespaces of its own."""
    user = ["setpriv", "--reuid", str(USER.pw_uid), "--regid", str(USER.pw_gid), "--clear-groups"]
    command = [*user, "unshare", "--user", "--net", "sh", "-c", "echo there; exec sleep 100"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        yield process
        process.kill()


async def test_the_units_capabilities_are_enough(
    daemon: TestDaemon, vpc: str, netns_factory: Namespaces, sandbox: subprocess.Popen[str]
) -> None:
    assert daemon.process
    held = sum(1 << number for number, name in enumerate(names()) if name in capabilities())
    assert int(status(daemon.process.pid, "CapEff"), 16) == held
    assert status(daemon.process.pid, "NoNewPrivs") == "1"
    engine = daemon.engine_pid()
    for field in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert int(status(engine, field), 16) == 0, field
    assert status(engine, "Uid").split() == [str(USER.pw_uid)] * 4
    found = daemon.places.api.stat()
    assert (oct(found.st_mode & 0o777), found.st_gid) == ("0o660", USER.pw_gid)

    box = netns_factory("box")
    async with daemon.client() as client:
        await declare(client, vpc)
        one, two, three = await start(client, box), await start(client), await start(client, f"pid:{sandbox.pid}")
        assert {one.state, two.state, three.state} == {EnvironmentState.ATTACHED}
        assert (await client.status()).engine is not None
        async with traffic.connection(box, vpc, SERVER) as pair:
            await traffic.transfer(pair.client, pair.server, 100_000, 1)
            os.kill(engine, signal.SIGKILL)
            await until(client.status, lambda now: now.engine is not None and now.engine.restarts == 1)
            await traffic.transfer(pair.server, pair.client, 100_000, 2)
        assert daemon.engine_pid() != engine
        assert status(daemon.engine_pid(), "Uid").split() == [str(USER.pw_uid)] * 4
        for environment in (one, two, three):
            await client.end_environment(environment.id)
        await client.delete_function("f")
        wait_until(lambda: not [name for name in devices(vpc) if name.startswith("eni")])
        assert not ip_json("-n", vpc, "neigh", "show", "proxy")
    assert devices(box) == {"lo"}
    assert not daemon.fresh_namespaces()
    daemon.end()


def names() -> list[str]:
    """Of capabilities, in the order of their numbers."""
    done = subprocess.run(["setpriv", "--list-caps"], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_they_are_enough_for_arp(netns_factory: Namespaces) -> None:
    """Of what a packet socket takes systemd checks the family too: tests/packaging/test_service_unit.py."""
    host = netns_factory("host")
    netns_factory.connect(host, "198.19.0.1/24", netns_factory("peer"), "198.19.0.80/24")
    (device,) = devices(host) - {"lo"}
    code = (
        "from ipaddress import IPv4Address as A\nfrom hyperplane.linux import arp\n"
        f"print(*arp.probe({device!r}, [A('198.19.0.80')])); arp.announce({device!r}, [A('198.19.0.5')])"
    )
    command = ["ip", "netns", "exec", host, *confined(), sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "198.19.0.80\n", "")
