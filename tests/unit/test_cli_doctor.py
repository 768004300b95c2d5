"""What doctor makes of what it finds; the host's own state is left out where it can be."""

from __future__ import annotations

import json
import os
import platform
import pwd
import resource
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hyperplane.cli import doctor, probes
from hyperplane.cli.doctor import Check
from hyperplane.cli.options import Caller
from hyperplane.errors import DeviceError


def one(checks: Any) -> Check:
    (found,) = checks
    assert isinstance(found, Check)
    assert found.remedy or found.state == "ok"
    return found


@pytest.mark.parametrize(
    ("release", "state", "words"),
    [
        ("6.7.0", "ok", ""),
        ("6.18.44-cloud", "ok", ""),
        ("6.5.0-1", "warn", "epoll"),
        ("6.1.0-28-amd64", "warn", "TUN_F_USO4"),
        ("5.15.0", "warn", "MADV_COLLAPSE"),
        ("5.4.0", "fail", "pidfd_open"),
        ("strange", "fail", "pidfd_open"),
    ],
)
def test_kernels(release: str, state: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    found = one(doctor._kernel())
    assert found.state == state
    assert words in found.found


@pytest.mark.parametrize(
    ("hard", "state"), [(resource.RLIM_INFINITY, "ok"), (1 << 20, "ok"), (4096, "warn"), (512, "fail")]
)
def test_open_files(hard: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, hard))
    assert one(doctor._open_files()).state == state


def test_a_missing_tun_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "TUN", str(tmp_path / "tun"))
    found = one(doctor._tun())
    assert (found.state, "modprobe tun" in found.remedy) == ("fail", True)
    (tmp_path / "tun").touch()
    assert one(doctor._tun()).found == "it is no device"


@pytest.mark.parametrize(
    ("engines", "state"),
    [
        ({"io_uring": "", "epoll": ""}, "ok"),
        ({"io_uring": "not permitted", "epoll": ""}, "warn"),
        ({"io_uring": "no", "epoll": "no"}, "fail"),
    ],
)
def test_packet_io(engines: dict[str, str], state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "packet_io", lambda user: (engines, ""))
    assert one(doctor._io("nobody")).state == state


def test_packet_io_is_tried_as_the_engine_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may use io_uring where kernel.io_uring_disabled is 1, and lock more memory than the engine may."""

    def told() -> dict[str, str]:
        status = Path("/proc/thread-self/status").read_bytes().decode()
        (privileges,) = (line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
        refused = f"user {os.geteuid()}, capabilities {privileges}"
        soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        return {"io_uring": refused if soft == hard else f"locked memory: {soft}", "epoll": ""}

    monkeypatch.setattr("hyperplane.dataplane.io_engines", told)
    whom = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
    found = one(doctor._io("nobody"))
    assert (found.state, f"no io_uring: user {whom}, capabilities {'0' * 16}" in found.found) == ("warn", True)
    assert "kernel.io_uring_group" in found.remedy


def test_packet_io_for_nobody_that_there_is() -> None:
    found = one(doctor._io("no-such-user"))
    if os.geteuid() == 0:
        assert (found.state, "no user 'no-such-user'" in found.found) == ("fail", True)
    else:
        assert found.state != "fail"


@pytest.mark.parametrize(
    ("found", "problem", "state"), [(["TSO", "USO"], "", "ok"), (["TSO"], "", "warn"), ([], "not permitted", "warn")]
)
def test_offloads(found: list[str], problem: str, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "offloads", lambda: (found, problem))
    assert one(doctor._offloads()).state == state


def test_what_would_drop(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = probes.Forwarding(["all"], False, ["nft"], ["nft inet filter forward"])
    monkeypatch.setattr(probes, "forwarding", lambda namespace: (looked, ""))
    checks = {check.check: check for check in doctor._forwarding("box")}
    assert [checks[f"{name} in box"].state for name in ("rp_filter", "ip_forward", "firewall")] == [
        "warn",
        "ok",
        "warn",
    ]
    assert "nft inet filter forward" in checks["firewall in box"].found
    monkeypatch.setattr(probes, "forwarding", lambda namespace: (looked, "no network namespace box"))
    assert one(doctor._forwarding("box")).state == "fail"
    unseen = probes.Forwarding([], True, ["nft"], [], "that needs root")
    monkeypatch.setattr(probes, "forwarding", lambda namespace: (unseen, ""))
    assert [check.state for check in doctor._forwarding("")] == ["ok", "ok", "warn"]


ENI = probes.Crossing("eni00", [], [], nothing=False, ip_forward=False)
SHUT = probes.Crossing("eni11", ["net.ipv4.conf.eni11.forwarding"], ["up0"], nothing=True, ip_forward=False)
PARTLY = probes.Crossing("eni22", ["net.ipv4.conf.up1.forwarding"], ["up1"], nothing=False, ip_forward=True)


@pytest.mark.parametrize(
    ("found", "state", "words", "remedy"),
    [
        ([ENI], "ok", "can be reached", ""),
        (
            [ENI, SHUT], "fail",
            "eni11 (eni-0a): net.ipv4.conf.eni11.forwarding is 0: nothing beyond up0 can be reached",
            "ip netns exec box sysctl net.ipv4.ip_forward=1",
        ),
        (
            [PARTLY], "warn", "eni22: net.ipv4.conf.up1.forwarding is 0: nothing beyond up1 can be reached",
            "ip netns exec box sysctl net.ipv4.conf.default.forwarding=1 net.ipv4.conf.up1.forwarding=1",
        ),
        ([SHUT] * 5, "fail", "eni11 (eni-0a), eni11 (eni-0a), eni11 (eni-0a) and 2 more", "ip netns exec box sysctl"),
    ],
)  # fmt: skip
def test_enis_whose_packets_are_not_forwarded(
    found: list[probes.Crossing], state: str, words: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "crossing", lambda namespace: (found, ""))
    check = one(doctor._crossing("box", {"eni11": "eni-0a"}))
    assert (check.check, check.state) == ("ENIs in box", state)
    assert words in check.found
    assert check.remedy.startswith(remedy)


def test_nothing_is_said_of_enis_where_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "crossing", lambda namespace: ([], ""))
    assert list(doctor._crossing("box", {})) == []
    monkeypatch.setattr(probes, "crossing", lambda namespace: ([], "no network namespace box"))
    assert list(doctor._crossing("box", {})) == []


def test_user_namespaces_that_are_forbidden_name_the_setting(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "user").mkdir()
    (tmp_path / "user/max_user_namespaces").write_text("0\n")
    monkeypatch.setattr(probes, "PROC", tmp_path)
    monkeypatch.setattr(probes, "user_namespaces", lambda: "No space left on device")
    found = one(doctor._user_namespaces())
    assert (found.state, found.remedy) == ("warn", "sysctl user.max_user_namespaces=65536, or use `run` as root")


def test_chains_are_read_as_nft_and_iptables_print_them(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = {"family": "ip", "table": "filter", "name": "FORWARD", "hook": "forward", "policy": "drop"}
    others = ({**chain, "policy": "accept"}, {**chain, "hook": "input"}, {**chain, "family": "bridge"})
    said = {
        "nft": json.dumps({"nftables": [{"metainfo": {}}, {"chain": chain}, *({"chain": one} for one in others)]}),
        "iptables": "-P FORWARD DROP\n-A FORWARD -j DOCKER\n",
    }

    def run(command: list[str], **more: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 0, said[command[0]], "")

    monkeypatch.setattr(subprocess, "run", run)
    assert probes._dropping_chains(["nft", "iptables"]) == ["nft ip filter FORWARD", "iptables FORWARD"]
    said.update(nft="Operation not permitted", iptables="-P FORWARD ACCEPT\n")
    assert probes._dropping_chains(["nft", "iptables"]) == []


def test_a_probe_answers_from_a_process_of_its_own() -> None:
    def raising(error: Exception) -> Any:
        raise error

    assert probes._in_child(lambda: [1, 2]) == ([1, 2], "")
    assert probes._in_child(lambda: os._exit(0)) == (None, "the probe ended")
    assert probes._in_child(lambda: raising(PermissionError(1, "not permitted"))) == (None, "not permitted")
    assert probes._in_child(lambda: raising(DeviceError("no device"))) == (None, "no device")


def test_the_exit_code_is_1_when_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HYPERPLANE_RUN_DIR", "/nowhere")
    monkeypatch.setattr(doctor, "_forwarding", lambda namespace: [])
    monkeypatch.setattr(doctor, "_io", lambda user: [])
    for state, code in (("ok", 0), ("warn", 0), ("fail", 1)):
        checks = [Check("this", state, "found", "do it" if state != "ok" else "")]  # type: ignore[arg-type]
        monkeypatch.setattr(doctor, "CHECKS", (lambda checks=checks: checks,))
        assert doctor.run(Caller("default"), (), "nobody") == code
        text = capsys.readouterr().out
        assert text.startswith(f"{state:<6}this    found\n")
        assert ("→ do it" in text) == bool(code or state == "warn")
        assert doctor.run(Caller("default", as_json=True), (), "nobody") == code
        shown = json.loads(capsys.readouterr().out)
        assert [one["check"] for one in shown] == ["this", "daemon"]
        assert "does not run" in shown[1]["found"]
