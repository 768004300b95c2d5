"""The sdist and the wheel: each, installed alone in an empty environment, runs the command and translates a packet. An
installation as docs/install.md has it works for users without privileges."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# What a user's first program does, without a device: one packet in, one packet out, with the ENI's address.
PROGRAM = """
from hyperplane import Engine, SecurityGroup

# An echo request, 198.18.0.2 > 203.0.113.1.
ping = bytes.fromhex("4500001c00010000400178cac6120002cb0071010800f7fd00010001")
with Engine(max_flows=1024) as engine:
    eni = engine.add_eni("192.0.2.10", name="eni0", security_groups=[SecurityGroup.parse("all", ["icmp"])])
    tunnel = engine.add_tunnel(eni, name="env-1", address="198.18.0.2")
    (out,) = engine.translate([(tunnel, ping)])
    assert out.packet[12:16] == bytes([192, 0, 2, 10]), out
    (flow,) = engine.flows()
    print(flow)
"""
DOCUMENT = ROOT / "docs" / "install.md"
USER = pwd.getpwnam("nobody")
# Of this tree, or of the environment that the tests run in.
FOREIGN = ("PYTHON", "VIRTUAL_ENV", "HYPERPLANE")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command with nothing of this tree on its path; its output, or a failure that shows it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}
    done = subprocess.run(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}:\n{done.stdout}"
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was built from that sdist."""
    out = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    return out


@pytest.mark.timeout(900)
@pytest.mark.parametrize("pattern", ["*.tar.gz", "*-cp311-abi3-linux_*.whl"])
def test_installs_and_runs_in_an_empty_environment(dist: Path, tmp_path: Path, pattern: str) -> None:
    (artifact,) = dist.glob(pattern)
    venv.create(tmp_path / "venv", with_pip=True)
    scripts = tmp_path / "venv" / "bin"
    run(scripts / "pip", "install", "--quiet", artifact, cwd=tmp_path)
    version = run(scripts / "hyperplane-nat", "--version", cwd=tmp_path)
    assert version.split()[-1] in artifact.name
    assert "192.0.2.10" in run(scripts / "python", "-c", PROGRAM, cwd=tmp_path)


# For all users


@pytest.fixture(scope="module")
def installed(dist: Path) -> Iterator[Path]:
    """A directory that everybody may enter, with what the commands of docs/install.md make."""
    text = DOCUMENT.read_text(encoding="utf-8")
    match = re.search(r"<!-- run by tests/packaging -->\n\n((?: {4}.*\n)+)", text)
    assert match
    place = Path(tempfile.mkdtemp(prefix="hpt-install-"))
    place.chmod(0o755)
    (place / "bin").mkdir()
    commands = match[1].replace("/opt/hyperplane-nat", f"{place}/opt").replace("/usr/local/bin", f"{place}/bin")
    (place / "dist").symlink_to(dist)
    run("sh", "-ec", f"umask 077\n{commands}", cwd=place)
    (place / "dist").unlink()
    yield place
    shutil.rmtree(place)


def as_user(place: Path, *arguments: str, group: int = USER.pw_gid) -> subprocess.CompletedProcess[str]:
    """The command by a user without privileges, in a directory and with variables that are not root's.

    The shell executes it: setpriv itself still has root's capabilities when it looks for a program.
    """
    drop = ["setpriv", f"--reuid={USER.pw_uid}", f"--regid={group}", "--clear-groups", "--bounding-set=-all"]
    variables = {"PATH": f"{place}/bin:/usr/bin:/bin", "HYPERPLANE_RUN_DIR": f"{place}/run", "HOME": "/nonexistent"}
    command = [*drop, "sh", "-c", 'exec "$@"', "sh", "hyperplane-nat", *arguments]
    return subprocess.run(command, cwd="/", env=variables, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture(scope="module")
def daemon(installed: Path) -> Iterator[Path]:
    """The same, with a daemon of it that root has started."""
    variables = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HYPERPLANE_RUN_DIR": f"{installed}/run"}
    variables["HYPERPLANE_STATE_DIR"] = f"{installed}/state"
    program = installed / "bin" / "hyperplane-nat"
    options = ["--group", "nogroup", "--max-flows", "1024", "--max-links", "64", "--no-huge-pages"]
    with (installed / "daemon.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "daemon", *options, "--engine-patience", "10"],
            cwd="/", env=variables, stdin=subprocess.DEVNULL, stdout=log, stderr=log, umask=0o077,
        )  # fmt: skip
    try:
        end = time.monotonic() + 30
        while b'"event": "ready"' not in (installed / "daemon.log").read_bytes():
            assert process.poll() is None, (installed / "daemon.log").read_text()
            assert time.monotonic() < end
            time.sleep(0.02)
        yield installed
    finally:
        subprocess.run([program, "stop", "--engine"], cwd="/", env=variables, stdout=subprocess.DEVNULL, check=True)
        process.wait(30)


@pytest.mark.timeout(600)
def test_a_user_without_privileges_can_run_what_was_installed_for_all(daemon: Path) -> None:
    version = as_user(daemon, "--version")
    assert (version.returncode, version.stderr) == (0, "")
    assert version.stdout.startswith("hyperplane-nat ")
    status = as_user(daemon, "status")
    assert (status.returncode, status.stderr) == (0, "")
    assert "instance default" in status.stdout
    listed = as_user(daemon, "environment", "list", "--json")
    assert (listed.returncode, listed.stdout) == (0, "[]\n")
    doctor = as_user(daemon, "doctor")
    assert re.search(r"^ok +daemon +instance default answers$", doctor.stdout, re.MULTILINE), doctor.stdout
    missing = as_user(daemon, "run", "none", "--", "true")
    assert (missing.returncode, missing.stderr.count("\n")) == (125, 1)
    assert "no function 'none'" in missing.stderr


@pytest.mark.timeout(600)
def test_who_is_not_in_the_group_is_told_which(daemon: Path) -> None:
    told = as_user(daemon, "environment", "list", group=1)
    assert told.returncode == 3
    assert "may not be used by this user; join the group" in told.stderr
    text = re.search(r"^daemon  (the daemon's socket .*)\.\.\.$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert text
    assert as_user(daemon, "status", group=1).stdout.startswith(f"daemon  {text[1]}")
