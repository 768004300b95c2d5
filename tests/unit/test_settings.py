"""Settings that are changed while ENIs need them, against sysctls in a dictionary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hyperplane.errors import PermissionMissing
from hyperplane.linux import settings
from hyperplane.linux.settings import Setting, Settings, forwarding, sysctl_name

KEY = (4, 4026531840)
IP_FORWARD = "/proc/sys/net/ipv4/ip_forward"
UPLINK = forwarding("up0")


class Sysctls(dict[str, str]):
    """written: what was, in order. read_only: whether nothing may be."""

    def __init__(self) -> None:
        super().__init__({IP_FORWARD: "0", UPLINK.path: "0"})
        self.written: list[tuple[str, str]] = []
        self.read_only = False

    def write(self, path: str, value: str) -> None:
        if self.read_only:
            raise PermissionMissing("read-only", resource=path)
        self[path] = value
        self.written.append((path, value))

    def ip_forward(self, value: str) -> None:
        """As the kernel: a change sets every device."""
        if self[IP_FORWARD] != value:
            self[IP_FORWARD] = self[UPLINK.path] = value


@pytest.fixture
def sysctls(monkeypatch: pytest.MonkeyPatch) -> Sysctls:
    made = Sysctls()
    monkeypatch.setattr(settings, "read", made.__getitem__)
    monkeypatch.setattr(settings, "write", made.write)
    return made


def test_what_it_was_comes_back_with_the_last_holder(sysctls: Sysctls) -> None:
    held = Settings()
    assert held.hold(KEY, UPLINK, "a") == "0"
    assert held.hold(KEY, UPLINK, "b") is None
    held.release(KEY, UPLINK, "a", restore=True)
    assert sysctls[UPLINK.path] == "1"
    held.release(KEY, UPLINK, "a", restore=True)  # once more says nothing
    held.release(KEY, UPLINK, "b", restore=True)
    assert sysctls[UPLINK.path] == "0"


def test_what_is_right_is_not_written(sysctls: Sysctls) -> None:
    sysctls[UPLINK.path] = "1"
    sysctls.read_only = True
    held = Settings()
    assert held.hold(KEY, UPLINK, "a") is None
    held.release(KEY, UPLINK, "a", restore=True)
    assert sysctls.written == []


def test_one_that_cannot_be_written_is_not_held(sysctls: Sysctls) -> None:
    sysctls.read_only = True
    held = Settings()
    with pytest.raises(PermissionMissing):
        held.hold(KEY, UPLINK, "a")
    sysctls.read_only = False
    held.release(KEY, UPLINK, "a", restore=True)
    assert sysctls.written == []


@pytest.mark.parametrize(
    ("others", "left"),
    [
        ([], "0"),
        (["1"], "1"),
        (["1", "0"], "0"),
        (["1", "0", "1"], "1"),
    ],
)
@pytest.mark.parametrize("looked", [False, True])
def test_others_write_ip_forward_meanwhile(sysctls: Sysctls, others: list[str], left: str, looked: bool) -> None:
    """Whether it was looked at in between or not."""
    held = Settings()
    held.hold(KEY, UPLINK, "a")
    for value in others:
        sysctls.ip_forward(value)
        if looked:
            held.hold(KEY, UPLINK, "a")
    held.hold(KEY, UPLINK, "a")
    assert sysctls[UPLINK.path] == "1"
    held.release(KEY, UPLINK, "a", restore=True)
    assert sysctls[UPLINK.path] == left


def test_what_others_have_set_since_is_theirs(sysctls: Sysctls) -> None:
    held = Settings()
    delay = Setting("/proc/sys/net/ipv4/neigh/up0/proxy_delay", "0")
    sysctls[delay.path] = "80"
    held.hold(KEY, delay, "a")
    sysctls[delay.path] = "70"
    assert held.hold(KEY, delay, "a") == "70"
    held.release(KEY, delay, "a", restore=True)
    assert sysctls[delay.path] == "70"
    held.hold(KEY, delay, "a")
    sysctls[delay.path] = "60"
    held.release(KEY, delay, "a", restore=True)  # not looked at since
    assert sysctls[delay.path] == "60"


@pytest.mark.parametrize("others", ["", "1"])
def test_a_successor_sets_back_what_a_killed_process_changed(sysctls: Sysctls, tmp_path: Path, others: str) -> None:
    journal = tmp_path / "settings.json"
    killed, successor = Settings(), Settings()
    killed.journal(journal)
    killed.hold(KEY, UPLINK, "a")
    if others:
        sysctls.ip_forward(others)
    successor.journal(journal)
    assert successor.hold(KEY, UPLINK, "b") is None
    successor.release(KEY, UPLINK, "b", restore=True)
    assert sysctls[UPLINK.path] == (others or "0")


@pytest.mark.parametrize("original", ["0", "1"])
@pytest.mark.parametrize("governor", ["0", "1"])
@pytest.mark.parametrize("adopted", [False, True])
def test_a_journal_of_before_governors_were_noted(
    sysctls: Sysctls, tmp_path: Path, original: str, governor: str, adopted: bool
) -> None:
    """What it was counts: nobody knows whether the governor has been written since."""
    journal = tmp_path / "settings.json"
    journal.write_text(json.dumps([[*KEY, UPLINK.path, original]]))
    sysctls[IP_FORWARD], sysctls[UPLINK.path] = governor, "1"
    successor = Settings()
    successor.journal(journal)
    if adopted:
        assert successor.hold(KEY, UPLINK, "a") is None
        successor.release(KEY, UPLINK, "a", restore=True)
    else:
        successor.release_inherited(KEY, UPLINK, restore=True)
    assert sysctls[UPLINK.path] == original


def test_what_others_write_after_such_a_journal_was_read(sysctls: Sysctls, tmp_path: Path) -> None:
    journal = tmp_path / "settings.json"
    journal.write_text(json.dumps([[*KEY, UPLINK.path, "0"]]))
    sysctls[UPLINK.path] = "1"
    successor = Settings()
    successor.journal(journal)
    successor.hold(KEY, UPLINK, "a")
    sysctls.ip_forward("1")
    successor.release(KEY, UPLINK, "a", restore=True)
    assert sysctls[UPLINK.path] == "1"


def test_a_namespace_that_is_gone_is_forgotten(sysctls: Sysctls) -> None:
    held = Settings()
    held.hold(KEY, UPLINK, "a")
    held.forget("a")
    sysctls[UPLINK.path] = "0"  # another namespace, whose key is the same
    assert held.hold(KEY, UPLINK, "b") == "0"
    held.release(KEY, UPLINK, "b", restore=True)
    assert sysctls[UPLINK.path] == "0"


def test_a_new_namespace_with_the_key_of_one_that_was_not_forgotten(sysctls: Sysctls) -> None:
    held = Settings()
    held.hold(KEY, UPLINK, "of the old one")
    sysctls[UPLINK.path] = "0"
    held.hold(KEY, UPLINK, "a")
    held.hold(KEY, UPLINK, "b")
    held.release(KEY, UPLINK, "a", restore=True)
    assert sysctls[UPLINK.path] == "1"
    held.release(KEY, UPLINK, "b", restore=True)
    assert sysctls[UPLINK.path] == "0"


@pytest.mark.parametrize(
    ("device", "name"), [("up0", "net.ipv4.conf.up0.forwarding"), ("eth0.5", "net.ipv4.conf.eth0/5.forwarding")]
)
def test_names_as_sysctl_has_them(device: str, name: str) -> None:
    assert sysctl_name(forwarding(device).path) == forwarding(device).name == name
