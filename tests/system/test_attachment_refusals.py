"""hyperplane.attachment, bad input: one line that says what to do, and nothing left."""

from __future__ import annotations

import fcntl
import os
import re
import resource
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from hyperplane.attachment import Attachments
from hyperplane.dataplane import Eni
from hyperplane.errors import (
    AddressInUse,
    DeviceError,
    EngineError,
    HyperplaneError,
    InvalidValue,
    NamespaceNotFound,
    NotATunnel,
    ResourceConflict,
)
from hyperplane.linux import tun
from hyperplane.linux.namespaces import Namespace

from .support import (
    ENI,
    SERVER,
    SMALL,
    Namespaces,
    Within,
    blocking,
    descriptors,
    devices,
    ip_json,
)


def fill_descriptors() -> list[int]:
    """Lowers the limit of open files and uses up what it leaves."""
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 8, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    used = []
    with suppress(OSError):
        while True:
            used.append(os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC))
    return used


class TestRefusals:
    """Each leaves nothing: no device, no descriptor, no tunnel."""

    @pytest.mark.parametrize(
        ("options", "error", "said"),
        [
            ({}, InvalidValue, "exactly one of namespace, pid and fd"),
            ({"namespace": "BOX", "pid": 1}, InvalidValue, "exactly one"),
            ({"namespace": "hpt-none"}, NamespaceNotFound, "no network namespace hpt-none; .*ip netns add"),
            ({"pid": 4194304}, NamespaceNotFound, "no process for namespace pid:4194304"),
            ({"pid": 0}, InvalidValue, "pid is 0"),
            ({"namespace": "VPC"}, InvalidValue, "is the VPC's"),
            ({"namespace": "BOX", "address": ENI}, AddressInUse, f"{ENI} is an address of ENI eni0"),
            ({"namespace": "BOX", "address": "198.18.0"}, InvalidValue, "inside address"),
            ({"namespace": "BOX", "address": "224.0.0.1"}, InvalidValue, "unicast"),
            ({"namespace": "BOX", "address": "198.18.0.2/24"}, InvalidValue, "inside address"),
            ({"namespace": "BOX", "device": "a/b"}, InvalidValue, "device name"),
            ({"namespace": "BOX", "device": "lo"}, DeviceError, "device lo exists already"),
            ({"namespace": "BOX", "mtu": 500}, InvalidValue, "MTU"),
            ({"namespace": "BOX", "mtu": 1500.0}, InvalidValue, "MTU"),
            ({"namespace": "BOX", "address": ["198.18.0.2"]}, InvalidValue, "inside address"),
            ({"namespace": "BOX", "routes": ([0],)}, InvalidValue, "route"),
            ({"namespace": "BOX", "routes": ("198.19.0.1/24",)}, InvalidValue, "host bits set"),
            ({"namespace": "BOX", "routes": "0.0.0.0/0"}, InvalidValue, "list of networks"),
            ({"namespace": "BOX", "routes": ["198.19.0.0/24"] * 65}, InvalidValue, "64 routes"),
            ({"namespace": "BOX", "routes": ("203.0.113.0/24",)}, DeviceError, "route 203.0.113.0/24 exists already"),
            ({"namespace": "BOX", "name": "two\nlines"}, InvalidValue, "tunnel name"),
            ({"namespace": "BOX", "max_flows": -1}, InvalidValue, "max_flows"),
            ({"fd": 999_999}, NotATunnel, "descriptor 999999 is not open"),
            ({"fd": "PIPE"}, NotATunnel, "no TUN"),
        ],
    )
    async def test_attach(
        self,
        attachments: Attachments,
        eni: Eni,
        vpc: str,
        netns_factory: Namespaces,
        options: dict[str, Any],
        error: type[HyperplaneError],
        said: str,
    ) -> None:
        box = netns_factory("box")
        lan = netns_factory.bridge(box, "203.0.113.1/24")
        pipe = os.pipe()
        words = {"BOX": box, "VPC": vpc, "PIPE": pipe[0]}
        given: dict[str, Any] = {key: words.get(str(value), value) for key, value in options.items()}
        before = descriptors()
        try:
            with pytest.raises(error, match=said) as caught:
                await attachments.attach(eni, **given)
        finally:
            os.close(pipe[0])
            os.close(pipe[1])
        assert "\n" not in str(caught.value)
        assert devices(box) == {"lo", lan}
        assert descriptors() == before - 2
        assert attachments.engine.tunnels == ()
        assert attachments.attachments() == ()

    async def test_a_descriptor_with_packet_information(
        self, attachments: Attachments, eni: Eni, netns_factory: Namespaces, within: Within
    ) -> None:
        box = netns_factory("box")

        def platform(_: Namespace) -> int:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"plat0", tun.IFF_TUN | tun.IFF_VNET_HDR))
            return fd

        fd = await blocking(within, box, platform)
        before = descriptors()
        with pytest.raises(DeviceError, match="IFF_NO_PI"):
            await attachments.attach(eni, fd=fd)
        assert descriptors() == before
        os.close(fd)

    async def test_a_name_that_is_taken(self, attachments: Attachments, eni: Eni, netns_factory: Namespaces) -> None:
        box = netns_factory("box")
        await attachments.attach(eni, namespace=box)
        with pytest.raises(InvalidValue, match="name"):
            await attachments.attach(eni, namespace=box, device="eth1", routes=())
        assert devices(box) == {"lo", "eth0"}

    async def test_a_device_that_is_in_use_under_another_name(
        self, attachments: Attachments, eni: Eni, netns_factory: Namespaces, tmp_path: Path
    ) -> None:
        """Whatever way its namespace is named: nobody is told to remove it. Another device is another tunnel."""
        box = netns_factory("box")
        (tmp_path / "link").symlink_to(f"/run/netns/{box}")
        first = await attachments.attach(eni, namespace=box, name="e1")
        for way in (box, f"/run/netns/{box}", tmp_path / "link"):
            with pytest.raises(ResourceConflict, match=r"is used by environment e1; detach that one first"):
                await attachments.attach(eni, namespace=way, name="e2")
        other = await attachments.attach(eni, namespace=tmp_path / "link", name="e2", device="eth1", routes=())
        assert devices(box) == {"lo", "eth0", "eth1"}
        await attachments.detach(other)
        await attachments.detach(first)
        with pytest.raises(DeviceError, match="device lo exists already"):
            await attachments.attach(eni, namespace=box, name="e2", device="lo")
        assert await attachments.attach(eni, namespace=tmp_path / "link", name="e2")

    async def test_no_descriptor_left(self, attachments: Attachments, eni: Eni, netns_factory: Namespaces) -> None:
        """Whichever of the few that an attach needs for a moment is missing."""
        box = netns_factory("box")
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        spare = fill_descriptors()
        refused = 0
        try:
            while not attachments.attachments():
                try:
                    await attachments.attach(eni, namespace=box)
                except DeviceError as error:
                    assert re.search(r": no descriptor left \(limit: \d+ open files.*\); raise", str(error))  # noqa: PT017
                    assert not attachments.engine.tunnels
                    refused += 1
                os.close(spare.pop())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for fd in spare:
                os.close(fd)
        assert refused >= 3
        assert devices(box) == {"lo", "eth0"}

    @pytest.mark.parametrize(
        ("options", "error", "said"),
        [
            ({"vpc": "hpt-none"}, NamespaceNotFound, "hpt-none"),
            ({"addresses": ()}, InvalidValue, "1 to 8 addresses"),
            ({"addresses": "127.0.0.1"}, InvalidValue, "unicast"),
            ({"addresses": SERVER}, AddressInUse, f"{SERVER} is the address of device lan0"),
            ({"addresses": [ENI, "198.19.0.255"]}, InvalidValue, "198.19.0.255"),
            ({"device": "lan0"}, DeviceError, "lan0 exists already"),
            ({"mtu": 70_000}, InvalidValue, "MTU"),
            ({"name": ""}, InvalidValue, "ENI name"),
            ({"udp_mapping": "none"}, InvalidValue, "UDP mapping"),
        ],
    )
    async def test_open_eni(
        self, attachments: Attachments, vpc: str, options: dict[str, Any], error: type[HyperplaneError], said: str
    ) -> None:
        before = descriptors()
        with pytest.raises(error, match=said):
            await attachments.open_eni(**{"vpc": vpc, "addresses": ENI, **options})
        assert devices(vpc) == {"lo", "lan0"}
        assert ip_json("-n", vpc, "neigh", "show", "proxy") == []
        assert descriptors() == before
        assert attachments.enis == attachments.engine.enis == ()

    async def test_an_eni_in_use(self, attachments: Attachments, eni: Eni, vpc: str, netns_factory: Namespaces) -> None:
        made = await attachments.attach(eni, namespace=netns_factory("box"))
        with pytest.raises(EngineError, match=f"ENI eni0 is in use by tunnels: {made.tunnel.name}; detach"):
            await attachments.close_eni(eni)
        await attachments.detach(made)
        await attachments.close_eni(eni)
        assert devices(vpc) == {"lo", "lan0"}
        await attachments.detach(made)
        for use in (attachments.close_eni(eni), attachments.attach(eni, namespace="x")):
            with pytest.raises(InvalidValue, match="ENI eni0 is not open here"):
                await use

    async def test_before_and_after(self, vpc: str) -> None:
        attachments = Attachments(**SMALL)
        with pytest.raises(EngineError, match="not open"):
            await attachments.open_eni(vpc=vpc, addresses=ENI)
        await attachments.close()
        async with attachments:
            pass
        await attachments.close()
        with pytest.raises(EngineError, match="not open"):
            await attachments.open_eni(vpc=vpc, addresses=ENI)
        with pytest.raises(EngineError, match="only once"):
            await attachments.__aenter__()
        before = descriptors()
        with pytest.raises(InvalidValue, match="max_flows"):
            await Attachments(max_flows=-1).__aenter__()
        assert descriptors() == before
