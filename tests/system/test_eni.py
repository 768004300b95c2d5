"""The ENI's device and what is set in the VPC's namespace for it; no engine takes part."""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address

import pytest

from hyperplane.errors import (
    AddressInUse,
    DeviceError,
    HyperplaneError,
    InvalidValue,
)
from hyperplane.linux import tun
from hyperplane.linux.eni import EniDevice, create_eni, withdraw_eni
from hyperplane.linux.namespaces import Namespace, NamespaceThreads
from hyperplane.linux.settings import Setting, Settings, read, write

from .support import DEADLINE, Namespaces, Within, descriptors, devices, ip, ip_json, run_in, wait_until

ENI = IPv4Address("198.19.0.5")


class TestEni:
    @pytest.fixture
    def make(self, within: Within, threads: NamespaceThreads) -> Iterator[Callable[..., EniDevice]]:
        made: list[EniDevice] = []

        def run(name: str, *addresses: IPv4Address, device: str = "eni0", mtu: int = 1500) -> EniDevice:
            eni: EniDevice = within(
                name, lambda ns: create_eni(ns, device=device, addresses=addresses or (ENI,), mtu=mtu)
            )
            made.append(eni)
            return eni

        yield run
        for eni in made:
            remove(eni, threads)

    def test_addresses_are_routed_not_assigned(
        self, netns_factory: Namespaces, make: Callable[..., EniDevice], threads: NamespaceThreads
    ) -> None:
        vpc = netns_factory("vpc")
        before = descriptors()
        eni = make(vpc, ENI, IPv4Address("203.0.113.9"), mtu=1450)
        assert descriptors() == before + 1
        (link,) = ip_json("-n", vpc, "addr", "show", "dev", "eni0")
        assert (link["mtu"], link["addr_info"]) == (1450, [])
        assert {one["dst"]: one["dev"] for one in ip_json("-n", vpc, "route")} == {
            "198.19.0.5": "eni0",
            "203.0.113.9": "eni0",
        }
        assert setting(vpc, "conf/eni0/forwarding") == "0", "nothing to forward without a shared segment"
        remove(eni, threads)
        assert devices(vpc) == {"lo"}
        assert ip_json("-n", vpc, "route") == []
        assert descriptors() == before

    def test_a_shared_segment_finds_the_eni(
        self, netns_factory: Namespaces, make: Callable[..., EniDevice], threads: NamespaceThreads
    ) -> None:
        """A neighbour on the LAN reaches the ENI by ARP alone, and the ENI reaches it; afterwards all is as before."""
        vpc, server = netns_factory("vpc"), netns_factory("server")
        lan, _ = netns_factory.connect(vpc, "198.19.0.1/24", server, "198.19.0.80/24")
        ip("netns", "exec", vpc, "sysctl", "-qw", f"net.ipv4.neigh.{lan}.proxy_delay=70")
        eni = make(vpc)
        assert eni.segments == ((lan, ENI),)
        assert [(one["dst"], one["dev"]) for one in ip_json("-n", vpc, "neigh", "show", "proxy")] == [
            ("198.19.0.5", lan)
        ]
        settings = (f"conf/{lan}/forwarding", "conf/eni0/forwarding", f"neigh/{lan}/proxy_delay", "ip_forward")
        assert [setting(vpc, one) for one in settings] == ["1", "1", "0", "0"]

        ping = netns_factory.start_in(server, ["ping", "-c1", "-W5", str(ENI)], stdout=subprocess.DEVNULL)
        packet = wait_until(lambda: read_icmp(eni.fd))
        assert packet[12:20] == IPv4Address("198.19.0.80").packed + ENI.packed
        # The answer: addresses exchanged, echo reply, both checksums unchanged but for the type.
        answer = bytearray(packet)
        answer[12:16], answer[16:20] = packet[16:20], packet[12:16]
        answer[20] = 0
        answer[22:24] = struct.pack("!H", ones_sum(struct.unpack_from("!H", packet, 22)[0], 0x0800))
        os.write(eni.fd, bytes(10) + answer)
        assert ping.wait(DEADLINE) == 0

        remove(eni, threads)
        assert ip_json("-n", vpc, "neigh", "show", "proxy") == []
        assert [setting(vpc, one) for one in (settings[0], *settings[2:])] == ["0", "70", "0"]

    def test_a_namespace_with_the_key_of_one_that_is_gone(self, netns_factory: Namespaces, within: Within) -> None:
        """The kernel gives inode numbers again: what was held there is set all the same."""
        vpc = netns_factory("vpc")
        path = f"/proc/sys/net/ipv4/conf/{netns_factory.bridge(vpc, '198.19.0.1/24')}/forwarding"

        def hold_twice(namespace: Namespace) -> str:
            held, setting = Settings(), Setting(path, "1")
            held.hold(namespace.key, setting, "an ENI")
            write(path, "0")  # as in a new namespace
            held.hold(namespace.key, setting, "an ENI")
            before = read(path)
            held.release(namespace.key, setting, "an ENI", restore=True)
            return f"{before} {read(path)}"

        assert within(vpc, hold_twice) == "1 0"

    def test_two_enis_on_one_segment(
        self, netns_factory: Namespaces, make: Callable[..., EniDevice], threads: NamespaceThreads
    ) -> None:
        """The settings stay until the last of them goes, whichever that is."""
        vpc = netns_factory("vpc")
        lan = netns_factory.bridge(vpc, "198.19.0.1/24")
        first = make(vpc, ENI, IPv4Address("198.19.0.6"))
        second = make(vpc, IPv4Address("198.19.0.7"), device="eni1")
        remove(first, threads)
        assert setting(vpc, f"conf/{lan}/forwarding") == "1"
        assert setting(vpc, f"neigh/{lan}/proxy_delay") == "0"
        remove(second, threads)
        assert setting(vpc, f"conf/{lan}/forwarding") == "0"
        assert setting(vpc, f"neigh/{lan}/proxy_delay") != "0"

    def test_another_process_s_eni_keeps_its_settings(
        self, netns_factory: Namespaces, make: Callable[..., EniDevice], threads: NamespaceThreads
    ) -> None:
        vpc = netns_factory("vpc")
        lan = netns_factory.bridge(vpc, "198.19.0.1/24")
        eni = make(vpc)
        ip("-n", vpc, "neigh", "add", "proxy", "198.19.0.77", "dev", lan)
        remove(eni, threads)
        assert setting(vpc, f"conf/{lan}/forwarding") == "1"

    def test_a_setting_that_somebody_made_stays(
        self, netns_factory: Namespaces, make: Callable[..., EniDevice], threads: NamespaceThreads
    ) -> None:
        vpc = netns_factory("vpc")
        lan = netns_factory.bridge(vpc, "198.19.0.1/24")
        ip("netns", "exec", vpc, "sysctl", "-qw", f"net.ipv4.conf.{lan}.forwarding=1")
        remove(make(vpc), threads)
        assert setting(vpc, f"conf/{lan}/forwarding") == "1"

    def test_a_device_deleted_meanwhile(
        self, netns_factory: Namespaces, make: Callable[..., EniDevice], threads: NamespaceThreads
    ) -> None:
        vpc = netns_factory("vpc")
        lan = netns_factory.bridge(vpc, "198.19.0.1/24")
        eni = make(vpc)
        ip("-n", vpc, "link", "del", "eni0")
        remove(eni, threads)
        assert ip_json("-n", vpc, "neigh", "show", "proxy") == []
        assert setting(vpc, f"conf/{lan}/forwarding") == "0"
        eni = make(vpc)
        ip("-n", vpc, "link", "del", lan)
        remove(eni, threads)
        assert devices(vpc) == {"lo"}

    @pytest.mark.parametrize(
        ("address", "error", "said"),
        [
            ("198.19.0.1", AddressInUse, "198.19.0.1 is the address of device lan0 in namespace hpt"),
            ("198.19.0.255", InvalidValue, "198.19.0.255 is no host's in 198.19.0.0/24 on lan0"),
            ("198.19.0.0", InvalidValue, "198.19.0.0 is no host's"),
            ("127.0.0.9", AddressInUse, "127.0.0.9 is local"),
            ("203.0.113.9", AddressInUse, "203.0.113.9 is routed to device lan0 already"),
        ],
    )
    def test_addresses_that_are_taken(
        self,
        netns_factory: Namespaces,
        make: Callable[..., EniDevice],
        address: str,
        error: type[HyperplaneError],
        said: str,
    ) -> None:
        vpc = netns_factory("vpc")
        netns_factory.bridge(vpc, "198.19.0.1/24")
        ip("-n", vpc, "route", "add", "203.0.113.9/32", "dev", "lan0", "metric", "100")
        before = descriptors()
        with pytest.raises(error, match=re.escape(said)):
            make(vpc, ENI, IPv4Address(address))
        assert devices(vpc) == {"lo", "lan0"}
        assert descriptors() == before
        assert ip_json("-n", vpc, "neigh", "show", "proxy") == []
        assert setting(vpc, "conf/lan0/forwarding") == "0"

    def test_two_enis_with_one_address(self, netns_factory: Namespaces, make: Callable[..., EniDevice]) -> None:
        vpc = netns_factory("vpc")
        make(vpc)
        with pytest.raises(AddressInUse, match=r"198\.19\.0\.5 is routed to device eni0 already in namespace"):
            make(vpc, device="eni1")
        with pytest.raises(DeviceError, match="device eni0 exists already"):
            make(vpc, IPv4Address("198.19.0.6"))
        assert devices(vpc) == {"lo", "eni0"}


def remove(eni: EniDevice, threads: NamespaceThreads) -> None:
    """As the attachment layer does; a second time it does nothing."""
    try:
        tun.device_of(eni.fd)
    except OSError as error:
        if error.errno == errno.EBADF:
            return
    threads.submit(withdraw_eni, eni, threads).result(DEADLINE)
    os.close(eni.fd)


def setting(namespace: str, path: str) -> str:
    return run_in(namespace, ["cat", f"/proc/sys/net/ipv4/{path}"]).stdout.strip()


def read_icmp(fd: int) -> bytes:
    """The next IPv4 ICMP packet that waits on a TUN descriptor, without its virtio_net_hdr; b"" when none does."""
    while True:
        try:
            packet = os.read(fd, 65546)[10:]
        except BlockingIOError:
            return b""
        if packet[0] >> 4 == 4 and packet[9] == 1:
            return packet


def ones_sum(checksum: int, more: int) -> int:
    """RFC 1624: the checksum after a word of the data has become smaller by more."""
    total = checksum + more
    return (total & 0xFFFF) + (total >> 16)
