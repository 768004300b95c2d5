"""TUN devices and what the reaper does with them; no engine takes part."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from hyperplane.errors import (
    DeviceError,
    InvalidValue,
    NotATunnel,
    PermissionMissing,
)
from hyperplane.linux import netlink, rtnl, tun
from hyperplane.linux.device import Shape, make_device
from hyperplane.linux.jobs import HalfWay
from hyperplane.linux.namespaces import Namespace, open_namespace
from hyperplane.linux.reaper import Reaper

from .support import DEADLINE, Namespaces, Within, descriptors, devices, ip, ip_json, run_in

INSIDE = IPv4Address("198.18.0.2")
DEFAULT = IPv4Network("0.0.0.0/0")


class TestTun:
    @pytest.mark.parametrize("at_once", [False, True])
    def test_device_in_its_namespace(self, netns_factory: Namespaces, within: Within, at_once: bool) -> None:
        """Address, MTU, queue, up, route with its source, and no IPv6 chatter; exactly one descriptor."""
        name = netns_factory("box")
        shape = Shape("eth0", INSIDE, 1400, (DEFAULT, IPv4Network("198.19.0.0/16")))

        def make(_: Namespace) -> int:
            if at_once:
                return make_device(shape, Reaper(1)).fd
            fd = tun.open_tun("eth0")
            netlink.configure("eth0", mtu=shape.mtu, address=shape.address, routes=shape.routes)
            return fd

        before = descriptors()
        fd = within(name, make)
        assert descriptors() == before + 1
        (link,) = ip_json("-n", name, "addr", "show", "dev", "eth0")
        assert "UP" in link["flags"]
        assert (link["mtu"], link["txqlen"], link["qdisc"]) == (1400, rtnl.TUN_QUEUE, "noqueue")
        assert [(one["local"], one["prefixlen"]) for one in link["addr_info"]] == [("198.18.0.2", 32)]
        assert link["linkinfo"]["info_data"]["vnet_hdr"] is True
        assert link["linkinfo"]["info_data"]["pi"] is False
        assert link["linkinfo"]["info_data"]["persist"] is False
        routes = ip_json("-n", name, "route", "show")
        assert {(one["dst"], one["dev"], one["prefsrc"]) for one in routes} == {
            ("default", "eth0", "198.18.0.2"),
            ("198.19.0.0/16", "eth0", "198.18.0.2"),
        }
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)
        assert struct.unpack("i", fcntl.ioctl(fd, 0x800454D7, bytes(4))) == (10,)  # TUNGETVNETHDRSZ
        with pytest.raises(BlockingIOError):
            os.read(fd, 2048)
        assert within(name, lambda _: offloads("eth0")) == {"tx-checksum": 1, "tso": 1}
        os.close(fd)
        assert devices(name) == {"lo"}

    def test_one_for_a_guest_has_no_address_and_forwards(self, netns_factory: Namespaces, within: Within) -> None:
        """Its routes prefer no source: nothing here has one."""
        name = netns_factory("box")
        shape = Shape("eth0", None, 1400, (DEFAULT, IPv4Network("198.19.0.0/16")), forwards=True)
        fd = within(name, lambda _: make_device(shape, Reaper(1)).fd)
        (link,) = ip_json("-n", name, "addr", "show", "dev", "eth0")
        assert "UP" in link["flags"]
        assert (link["mtu"], link["txqlen"], link["qdisc"], link["addr_info"]) == (1400, rtnl.TUN_QUEUE, "noqueue", [])
        assert run_in(name, ["sysctl", "-n", "net.ipv4.conf.eth0.forwarding"]).stdout == "1\n"
        assert run_in(name, ["sysctl", "-n", "net.ipv4.ip_forward"]).stdout == "0\n"
        assert {(one["dst"], one["dev"], one.get("prefsrc")) for one in ip_json("-n", name, "route", "show")} == {
            ("default", "eth0", None),
            ("198.19.0.0/16", "eth0", None),
        }
        os.close(fd)

    def test_a_burst_waits_in_the_device(self, netns_factory: Namespaces, within: Within) -> None:
        """As many packets as its queue is long, in their order, without a queueing discipline before it."""
        name = netns_factory("box")

        def make(_: Namespace) -> int:
            fd = make_device(Shape("eth0", INSIDE, 1500, (DEFAULT,)), Reaper(1)).fd
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as burst:
                for number in range(rtnl.TUN_QUEUE):
                    burst.sendto(number.to_bytes(4, "big"), ("198.19.0.80", 9))
            return fd

        fd = within(name, make)
        came = [int.from_bytes(os.read(fd, 2048)[-4:], "big") for _ in range(rtnl.TUN_QUEUE)]
        assert came == list(range(rtnl.TUN_QUEUE))
        os.close(fd)

    def test_a_device_in_another_namespace(self, netns_factory: Namespaces) -> None:
        """The calling thread is where it was, and so are its devices."""
        name, shape = netns_factory("box"), Shape("eth0", INSIDE, 1400, (DEFAULT,))
        before = descriptors(), socket.if_nameindex()
        with open_namespace(name) as there, open_namespace(Path("/proc/thread-self/ns/net")) as here:
            made = make_device(shape, Reaper(1), environment=there.fd, home=here.fd)
        assert tun.device_of(made.fd)[0] == "eth0"
        assert "UP" in ip_json("-n", name, "link", "show", "dev", "eth0")[0]["flags"]
        assert (descriptors(), socket.if_nameindex()) == (before[0] + 1, before[1])
        os.close(made.fd)
        assert devices(name) == {"lo"}

    def test_a_process_that_cannot_return_ends(self, netns_factory: Namespaces) -> None:
        """Rather than go on in a customer's namespace."""
        program = (
            "import os, sys\n"
            "from ipaddress import IPv4Address\n"
            "from hyperplane.linux.device import Shape, make_device\n"
            "from hyperplane.linux.reaper import Reaper\n"
            "there = os.open(sys.argv[1], os.O_RDONLY)\n"
            "nowhere = os.open(os.devnull, os.O_RDONLY)\n"
            "shape = Shape('eth0', IPv4Address('198.18.0.2'), 1500, ())\n"
            "make_device(shape, Reaper(1), environment=there, home=nowhere)\n"
        )
        name = netns_factory("box")
        command = [sys.executable, "-c", program, f"/run/netns/{name}"]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
        assert ended.returncode == -signal.SIGABRT
        assert "cannot return from a network namespace" in ended.stderr
        assert devices(name) == {"lo"}

    def test_what_is_no_namespace_is_not_entered(self) -> None:
        before = descriptors()
        with open(os.devnull, "rb") as nothing, pytest.raises(PermissionMissing, match="may not be entered"):
            make_device(Shape("eth0", INSIDE, 1500, ()), Reaper(1), environment=nothing.fileno(), home=-1)
        assert descriptors() == before

    def test_an_idle_device_says_nothing(self, netns_factory: Namespaces, within: Within) -> None:
        """No router solicitation, no MLD report: what arrives first is what the environment sent."""
        name = netns_factory("box")

        def make(_: Namespace) -> int:
            fd = tun.open_tun("eth0")
            netlink.configure("eth0", mtu=1500, address=INSIDE, routes=[DEFAULT])
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.sendto(b"first", ("198.19.0.80", 9))
            return fd

        fd = within(name, make)
        packet = os.read(fd, 2048)[10:]
        assert packet[0] >> 4 == 4
        assert packet.endswith(b"first")
        os.close(fd)

    @pytest.mark.parametrize("device", ["", ".", "..", "a b", "a/b", "eth%d", "a:1", "x" * 16, "é", None])
    def test_bad_names(self, device: Any) -> None:
        with pytest.raises(InvalidValue, match="device name"):
            tun.open_tun(device)

    def test_a_device_that_exists_is_refused(self, netns_factory: Namespaces, within: Within) -> None:
        """Also a persistent TUN without an owner, which TUNSETIFF would otherwise hand over."""
        name = netns_factory("box")
        ip("-n", name, "tuntap", "add", "mode", "tun", "vnet_hdr", "name", "theirs")
        before = descriptors()
        for device in ("lo", "theirs"):
            with pytest.raises(DeviceError, match=f"{device} exists already"):
                within(name, partial(open_named, device))
        assert descriptors() == before
        assert devices(name) == {"lo", "theirs"}

    def test_refusals_of_the_batch_say_which_step(self, netns_factory: Namespaces, within: Within) -> None:
        name = netns_factory("box")

        def make(_: Namespace) -> list[str]:
            fd = tun.open_tun("eth0")
            said = []
            for options in (
                {"mtu": 1500, "routes": [IPv4Network("198.19.0.0/16"), IPv4Network("198.19.0.0/16")]},
                {"mtu": 67, "routes": []},
            ):
                with pytest.raises(DeviceError) as caught:
                    netlink.configure("eth0", address=None, **options)  # type: ignore[arg-type]  # a table of both kinds
                said.append(str(caught.value))
            os.close(fd)
            return said

        route, mtu = within(name, make)
        assert re.search(r"eth0: route 198\.19\.0\.0/16 exists already; ", route)
        assert re.search(r"eth0: MTU 67 refused: .*mtu.*", mtu)

    @pytest.mark.parametrize("address", [INSIDE, None])
    def test_a_device_that_is_refused_half_way_goes(
        self, netns_factory: Namespaces, within: Within, address: IPv4Address | None
    ) -> None:
        """Made by one call: the error says which step, and the reaper has the descriptor."""
        name = netns_factory("box")
        reaper = Reaper(1)
        twice = IPv4Network("198.19.0.0/16")
        before = descriptors()

        def make(_: Namespace) -> tuple[str, str]:
            with pytest.raises(HalfWay) as refused:
                make_device(Shape("eth0", address, 1500, (twice, DEFAULT, twice)), reaper)
            refused.value.closing.result(DEADLINE)
            with pytest.raises(DeviceError) as exists:
                make_device(Shape("lo", INSIDE, 1500, ()), reaper)
            return str(refused.value.error), str(exists.value)

        refused, exists = within(name, make)
        assert re.search(r"eth0: route 198\.19\.0\.0/16 exists already; ", refused)
        assert re.search(r"device lo exists already", exists)
        assert descriptors() == before
        assert devices(name) == {"lo"}
        reaper.stop()

    def test_adopted_descriptors(self, netns_factory: Namespaces, within: Within) -> None:
        name = netns_factory("guest")

        def make(_: Namespace) -> int:
            return tun.open_tun("tun7")

        theirs = within(name, make)
        ours = tun.adopt_tun(theirs)
        assert tun.device_of(ours)[0] == "tun7"
        os.close(theirs)
        assert devices(name) == {"lo", "tun7"}
        os.close(ours)
        assert devices(name) == {"lo"}

    @pytest.mark.parametrize(
        ("flags", "said"),
        [
            (0x0002 | 0x1000 | 0x4000, "TAP"),
            (0x0001 | 0x1000, "IFF_VNET_HDR"),
            (0, "no TUN"),
        ],
    )
    def test_descriptors_of_the_wrong_kind(
        self, netns_factory: Namespaces, within: Within, flags: int, said: str
    ) -> None:
        name = netns_factory("guest")

        def make(_: Namespace) -> int:
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            if flags:
                fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", b"theirs", flags))  # TUNSETIFF
            return fd

        fd = within(name, make)
        before = descriptors()
        try:
            with pytest.raises(NotATunnel, match=said):
                tun.adopt_tun(fd)
            assert descriptors() == before
        finally:
            os.close(fd)

    def test_descriptors_that_are_none(self) -> None:
        with open("/dev/null", "rb") as other:
            for fd in (other.fileno(), 999_999):
                with pytest.raises(NotATunnel):
                    tun.adopt_tun(fd)
        for value in (-1, "3", True):
            with pytest.raises(InvalidValue):
                tun.adopt_tun(value)  # type: ignore[arg-type]  # that is the point

    def test_no_privilege(self, netns_factory: Namespaces) -> None:
        # Given up when everything is loaded: another user may not be able to read the interpreter or the tree.
        drop = "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)"
        said = self.refused(netns_factory("box"), [], drop)
        assert re.search(r"^PermissionMissing device eth0 may not be made; .*CAP_NET_ADMIN", said)

    def test_no_device_node(self, netns_factory: Namespaces) -> None:
        hide = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /dev/net && exec "$@"', "-"]
        said = self.refused(netns_factory("box"), hide, "")
        assert re.search(r"^PermissionMissing .*/dev/net/tun is not there; .*modprobe tun", said)

    @staticmethod
    def refused(namespace: str, command: list[str], before: str) -> str:
        """What opening a TUN says in a process of its own."""
        code = f"""
from hyperplane.linux import tun
{before}
try:
    tun.open_tun("eth0")
except Exception as error:
    print(type(error).__name__, error)
"""
        done = run_in(namespace, [*command, sys.executable, "-c", code], cwd=Path(__file__).parents[2])
        assert len(done.stdout.splitlines()) == 1
        return done.stdout


class TestReaper:
    def test_closes_in_its_own_threads(self, netns_factory: Namespaces, within: Within) -> None:
        name = netns_factory("box")
        reaper = Reaper()
        done = []
        for number in range(10):
            fd = within(name, partial(open_named, f"t{number}"))
            done.append(reaper.close(fd))
        reaper.drain()
        assert all(one.done() for one in done)
        assert devices(name) == {"lo"}
        reaper.stop()
        assert not [one for one in threading.enumerate() if one.name.startswith("reaper")]


def open_named(device: str, _: Namespace) -> int:
    return tun.open_tun(device)


def offloads(device: str) -> dict[str, int]:
    """What ETHTOOL_GTXCSUM and ETHTOOL_GTSO (linux/ethtool.h) say of a device of this namespace."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for word, command in (("tx-checksum", 0x16), ("tso", 0x1E)):
            value = (ctypes.c_uint32 * 2)(command, 0)
            request = struct.pack("16sP16x", device.encode(), ctypes.addressof(value))
            fcntl.ioctl(any_socket, 0x8946, request)  # SIOCETHTOOL
            found[word] = value[1]
    return found
