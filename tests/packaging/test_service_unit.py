"""The systemd unit: what it starts exists, systemd finds no fault with it, and it says what docs/service.md says."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import click

from hyperplane.cli.commands import group
from hyperplane.client.places import RUN_DIR
from hyperplane.daemon.options import GROUP
from hyperplane.daemon.places import STATE_DIR

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "packaging" / "systemd" / "hyperplane-nat@.service"
# systemd.exec(5): with one of these the service has a mount namespace of its own, and nobody else sees /run/netns/NAME.
MOUNTING = ("ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts", "ReadWritePaths",
            "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups",
            "InaccessiblePaths", "BindPaths", "TemporaryFileSystem", "RootDirectory", "DynamicUser")  # fmt: skip


def settings(text: str) -> dict[str, list[str]]:
    found = defaultdict(list)
    for line in text.splitlines():
        if "=" in line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            found[name].append(value)
    return found


def test_it_starts_what_there_is() -> None:
    (line,) = settings(UNIT.read_text(encoding="utf-8"))["ExecStart"]
    program, verb, *arguments = shlex.split(line.replace("%i", "default"))
    assert program == "/usr/bin/hyperplane-nat"
    command = group.get_command(click.Context(group), verb)
    assert command, verb
    with command.make_context(verb, arguments) as context:  # an option that there is not raises
        assert context.params["instance"] == "default"
        assert context.params["group"] == GROUP
        assert context.params["log_format"] == "json"


def test_systemd_finds_no_fault(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    assert analyze, "systemd-analyze is not installed: tools/bootstrap.sh test"
    unit = tmp_path / UNIT.name
    text = UNIT.read_text(encoding="utf-8")
    for broken in (False, True):
        changed = text.replace("/usr/bin/hyperplane-nat ", f"{shutil.which('true')} ")
        unit.write_text(changed.replace("KillMode=", "KillMood=") if broken else changed, encoding="utf-8")
        command = [analyze, "verify", "--man=no", str(tmp_path / "hyperplane-nat@default.service")]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
        if broken:
            assert "KillMood" in done.stdout
        else:
            assert (done.returncode, done.stdout) == (0, "")


def test_places_group_and_hardening() -> None:
    found = settings(UNIT.read_text(encoding="utf-8"))
    assert f"/run/{found['RuntimeDirectory'][0]}" == f"{RUN_DIR}/%i"
    assert f"/var/lib/{found['StateDirectory'][0]}" == f"{STATE_DIR}/%i"
    wanted = {
        "Type": "notify",
        "KillMode": "process",  # the engine is in the same control group, and stays
        "RuntimeDirectoryPreserve": "yes",  # with its socket
        "RuntimeDirectoryMode": "0755",  # members of the group go through it
        "StateDirectoryMode": "0700",
        "NoNewPrivileges": "yes",
        "RestrictNamespaces": "net",
        "DeviceAllow": "/dev/net/tun rw",
    }
    assert {name: found[name] for name in wanted} == {name: [value] for name, value in wanted.items()}
    assert int(found["LimitNOFILE"][0]) >= 2 * 16_384
    assert not [name for name in MOUNTING if name in found]
    # What hyperplane.linux.arp needs; systemd answers with EAFNOSUPPORT to a family that is not listed.
    assert "CAP_NET_RAW" in found["CapabilityBoundingSet"][0].split()
    assert "AF_PACKET" in found["RestrictAddressFamilies"][0].split()


def test_its_group_is_made() -> None:
    text = (UNIT.parent / "hyperplane-nat.sysusers").read_text(encoding="utf-8")
    (line,) = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert line.split() == ["g", GROUP, "-"]
