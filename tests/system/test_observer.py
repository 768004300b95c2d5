"""What `Attachments` tells an Observer of changes by others, for whoever embeds it."""

from __future__ import annotations

from collections.abc import Sequence

from hyperplane.attachment import Attachments, Observer
from hyperplane.linux.repair import Difference

from .support import ENI, SMALL, Namespaces, devices, eventually, ip, ip_json


class Noted(Observer):
    def __init__(self) -> None:
        self.changes: list[tuple[str, Difference]] = []
        self.troubles: list[tuple[str, tuple[str, ...]]] = []

    def put_right(self, link: str, difference: Difference) -> None:
        self.changes.append((link, difference))

    def troubled(self, link: str, troubles: Sequence[str]) -> None:
        self.troubles.append((link, tuple(troubles)))


async def test_changes_are_told_once_each(vpc: str, netns_factory: Namespaces) -> None:
    box, noted = netns_factory("box"), Noted()
    async with Attachments(observer=noted, **SMALL) as attachments:
        eni = await attachments.open_eni(vpc=vpc, addresses=ENI)
        made = await attachments.attach(eni, namespace=box)
        assert noted.changes == []
        (device,) = devices(vpc) - {"lo", "lan0"}
        ip("-n", vpc, "link", "set", device, "mtu", "1280")
        ip("-n", box, "link", "set", made.device, "mtu", "1300")
        expected = {
            (eni.name, Difference("MTU", "1280", "1500")),
            (made.tunnel.name, Difference("MTU", "1300", "1500")),
        }
        await eventually(lambda: len(noted.changes) >= 2)
        assert len(noted.changes) == 2
        assert set(noted.changes) == expected
        for namespace, name in ((vpc, device), (box, made.device)):
            assert ip_json("-n", namespace, "link", "show", "dev", name)[0]["mtu"] == 1500
    assert noted.troubles == []


async def test_trouble_is_told_and_that_it_is_over(vpc: str) -> None:
    noted = Noted()
    async with Attachments(observer=noted, **SMALL) as attachments:
        eni = await attachments.open_eni(vpc=vpc, addresses=ENI)
        ip("-n", vpc, "route", "add", f"{ENI}/32", "dev", "lo", "table", "100")
        ip("-n", vpc, "rule", "add", "to", str(ENI), "table", "100")
        await eventually(lambda: bool(noted.troubles))
        ((link, (trouble,)),) = noted.troubles
        assert link == eni.name
        assert trouble.startswith(f"{ENI} is routed to device lo, not to ")
        ip("-n", vpc, "rule", "del", "to", str(ENI), "table", "100")
        await eventually(lambda: len(noted.troubles) > 1)
        assert noted.troubles[1:] == [(eni.name, ())]
