"""What ENIs leave of a setting, whatever others write and whoever is killed: what it would be without them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from unittest.mock import patch

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from hyperplane.linux import settings
from hyperplane.linux.settings import Settings, forwarding

KEY = (4, 4026531840)
IP_FORWARD = "/proc/sys/net/ipv4/ip_forward"
UPLINK = forwarding("up0")
VALUES = st.sampled_from(["0", "1"])
HOLDERS = st.sampled_from(["a", "b"])


class Others(RuleBasedStateMachine):
    """alone: the setting as it would be if no ENI had ever needed it. Others' writes are told apart by looks, so each
    is followed by one, or by the end, before the next; one that changes nothing is not seen by anybody."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.journal = Path(self.folder.name) / "settings.json"
        self.held = self.process()
        self.holders: set[str] = set()
        self.unseen = False
        self.values: dict[str, str] = {}
        self.alone = ""
        self.patched = patch.multiple(settings, read=self.values.__getitem__, write=self.values.__setitem__)
        self.patched.start()

    def process(self) -> Settings:
        made = Settings()
        made.journal(self.journal)
        return made

    def teardown(self) -> None:
        self.patched.stop()
        self.folder.cleanup()

    @initialize(governor=VALUES, uplink=VALUES)
    def begin(self, governor: str, uplink: str) -> None:
        self.values |= {IP_FORWARD: governor, UPLINK.path: uplink}
        self.alone = uplink

    @rule(holder=HOLDERS)
    def look(self, holder: str) -> None:
        self.held.hold(KEY, UPLINK, holder)
        self.holders.add(holder)
        self.unseen = False
        assert self.values[UPLINK.path] == "1"

    @precondition(lambda self: not self.unseen)
    @rule(value=VALUES)
    def others_write_ip_forward(self, value: str) -> None:
        if self.values[IP_FORWARD] != value:  # as the kernel: only a change sets the devices
            self.values[IP_FORWARD] = self.values[UPLINK.path] = self.alone = value
            self.unseen = True

    @precondition(lambda self: not self.unseen)
    @rule(value=VALUES)
    def others_write_the_setting(self, value: str) -> None:
        if self.values[UPLINK.path] != value:
            self.values[UPLINK.path] = self.alone = value
            self.unseen = True

    @rule(holder=HOLDERS)
    def release(self, holder: str) -> None:
        self.held.release(KEY, UPLINK, holder, restore=True)
        self.holders.discard(holder)

    @precondition(lambda self: self.holders)
    @rule(ends=st.booleans())
    def killed(self, ends: bool) -> None:
        """Its successor takes the ENIs over, or finds that they are gone."""
        self.held = self.process()
        if ends:
            self.held.release_inherited(KEY, UPLINK, restore=True)
            self.holders.clear()
        else:
            for holder in self.holders:
                self.held.hold(KEY, UPLINK, holder)
            self.unseen = False

    @invariant()
    def nothing_of_ours_is_left(self) -> None:
        if self.values and not self.holders:
            assert self.values[UPLINK.path] == self.alone


TestOthers = Others.TestCase
