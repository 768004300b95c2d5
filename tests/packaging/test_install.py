"""The sdist and the wheel: each, installed alone in an empty environment, runs the command and translates a packet."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
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
