"""ARP on real segments: namespaces on the ports of a bridge in a namespace of its own. The hosts are Linux kernels."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from typing import Any

import pytest
from scapy.layers.l2 import ARP, Ether

from hyperplane.errors import DeviceError
from hyperplane.linux import arp
from hyperplane.linux.arp import Holder

from .daemons import ROOT
from .support import Namespaces, Within, descriptors, ip, ip_json, run_in, wait_until

ENI, FREE = IPv4Address("198.19.0.5"), IPv4Address("198.19.0.6")
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
LONG = 5.0  # seconds for a probe that must not miss anything; it ends when all addresses are taken


class Segment:
    """A switch (a bridge), and hosts on it with device `up0` and the addresses 198.19.0.81, .82, ... of a /24."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._namespaces = namespaces
        self.switch = namespaces.make("switch")
        ip("-n", self.switch, "link", "add", "br0", "type", "bridge")
        ip("-n", self.switch, "link", "set", "br0", "up")
        self._ports = 0

    def host(self, *, address: bool = True) -> str:
        name = self._namespaces.make("host")
        self.plug(name, "up0")
        if address:
            ip("-n", name, "addr", "add", f"198.19.0.{80 + self._ports}/24", "dev", "up0")
        return name

    def plug(self, host: str, device: str) -> str:
        """One more device of a host on the segment; the switch's port."""
        self._ports += 1
        port = f"port{self._ports}"
        ip("-n", self.switch, "link", "add", port, "type", "veth", "peer", "name", device, "netns", host)
        ip("-n", self.switch, "link", "set", port, "master", "br0", "up")
        ip("-n", host, "link", "set", device, "up")
        wait_until(lambda: carrier(host, device))
        return port


@pytest.fixture
def segment(netns_factory: Namespaces) -> Segment:
    return Segment(netns_factory)


@pytest.fixture
def announce(within: Within) -> Callable[..., None]:
    return lambda host, *addresses, device="up0": within(host, lambda _: arp.announce(device, addresses))


@pytest.fixture
def probe(within: Within) -> Callable[..., dict[IPv4Address, Holder]]:
    def run(host: str, *addresses: IPv4Address, device: str = "up0", timeout: float = 0.3) -> dict[IPv4Address, Holder]:
        found: dict[IPv4Address, Holder] = within(host, lambda _: arp.probe(device, addresses, timeout=timeout))
        return found

    return run


@pytest.fixture
def heard(within: Within, segment: Segment) -> Iterator[Callable[[], list[Any]]]:
    """All ARP frames that passed the switch since; scapy's."""

    def opened(_: object) -> socket.socket:
        packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        packets.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        packets.bind(("br0", arp.ETH_P_ARP))
        return packets

    with within(segment.switch, opened) as packets:
        packets.setblocking(False)

        def read() -> list[Any]:
            frames = []
            while True:
                try:
                    frames.append(Ether(packets.recv(2048)))
                except BlockingIOError:
                    return frames

        yield read


def carrier(host: str, device: str) -> bool:
    (link,) = ip_json("-n", host, "link", "show", "dev", device)
    return bool(link["operstate"] == "UP")


def mac(host: str, device: str = "up0") -> str:
    (link,) = ip_json("-n", host, "link", "show", "dev", device)
    return str(link["address"])


def neighbour(host: str, address: IPv4Address) -> tuple[str, list[str]]:
    """The MAC and state by which host knows address."""
    (entry,) = ip_json("-n", host, "neigh", "show", str(address), "dev", "up0")
    return entry.get("lladdr", ""), entry["state"]


def take(host: str, address: IPv4Address, device: str = "up0") -> None:
    ip("-n", host, "addr", "add", f"{address}/32", "dev", device)


def serve_by_proxy(host: str, address: IPv4Address) -> None:
    """As an ENI's host does: a proxy neighbour, and a route to another device."""
    ip("-n", host, "link", "add", "behind", "type", "bridge")
    ip("-n", host, "link", "set", "behind", "up")
    ip("-n", host, "route", "add", f"{address}/32", "dev", "behind")
    ip("-n", host, "neigh", "add", "proxy", str(address), "dev", "up0")
    set_(host, "conf/up0/forwarding", "1")
    set_(host, "neigh/up0/proxy_delay", "0")


def set_(host: str, setting: str, value: str) -> None:
    run_in(host, ["sysctl", "-qw", f"net/ipv4/{setting}={value}"])


class TestAnnounce:
    def test_a_neighbour_learns_at_once(self, segment: Segment, announce: Callable[..., None]) -> None:
        """Also within `locktime` (1 s by default) after it has learnt the old MAC."""
        old, new, client = segment.host(), segment.host(), segment.host()
        take(old, ENI)
        run_in(client, ["ping", "-c1", "-W5", str(ENI)])
        assert neighbour(client, ENI)[0] == mac(old)
        ip("-n", old, "addr", "del", f"{ENI}/32", "dev", "up0")
        announce(new, ENI)
        wait_until(lambda: neighbour(client, ENI)[0] == mac(new))

    def test_one_that_found_nobody_learns(self, segment: Segment, announce: Callable[..., None]) -> None:
        new, client = segment.host(), segment.host()
        for name in ("mcast_solicit", "retrans_time_ms"):
            set_(client, f"neigh/up0/{name}", "1")
        run_in(client, ["ping", "-c1", "-W1", str(ENI)], check=False)
        wait_until(lambda: neighbour(client, ENI) == ("", ["FAILED"]))
        announce(new, ENI)
        wait_until(lambda: neighbour(client, ENI) == (mac(new), ["STALE"]))

    def test_what_is_sent(
        self, segment: Segment, announce: Callable[..., None], heard: Callable[[], list[Any]]
    ) -> None:
        host = segment.host(address=False)
        announce(host, ENI, FREE)
        frames = heard()
        assert [(one[ARP].psrc, one[ARP].pdst, one[ARP].op) for one in frames] == [
            (str(address), str(address), operation) for address in (ENI, FREE) for operation in (1, 2)
        ]
        assert {(one.dst, one.src, one[ARP].hwsrc) for one in frames} == {("ff:ff:ff:ff:ff:ff", mac(host), mac(host))}

    def test_hundreds_of_addresses(
        self, segment: Segment, announce: Callable[..., None], heard: Callable[[], list[Any]]
    ) -> None:
        """None is lost on the way out, and no socket stays."""
        host = segment.host()
        many = [IPv4Address("198.19.4.0") + number for number in range(600)]
        before = descriptors()
        announce(host, *many)
        assert descriptors() == before
        assert [one[ARP].psrc for one in heard() if one[ARP].op == 1] == [str(address) for address in many]


class TestProbe:
    def test_taken_and_free(self, segment: Segment, probe: Callable[..., dict[IPv4Address, Holder]]) -> None:
        other, host = segment.host(), segment.host()
        take(other, ENI)
        before = descriptors()
        assert probe(host, ENI, FREE) == {ENI: Holder(mac(other), by_proxy=False)}
        assert descriptors() == before
        assert not ip_json("-n", other, "neigh", "show", str(ENI)), "nobody has learnt anything"

    def test_what_is_asked(
        self, segment: Segment, probe: Callable[..., dict[IPv4Address, Holder]], heard: Callable[[], list[Any]]
    ) -> None:
        """A free address thrice in both ways, and so the subnet's own; one that is taken once."""
        other, host = segment.host(), segment.host()
        take(other, ENI)
        heard()
        probe(host, ENI, FREE)
        asked = Counter((one[ARP].psrc, one[ARP].pdst) for one in heard() if one[ARP].hwsrc == mac(host))
        assert asked == {
            ("0.0.0.0", str(FREE)): 3,
            ("198.19.0.82", str(FREE)): 3,
            ("198.19.0.82", "198.19.0.0"): 3,
            ("0.0.0.0", "198.19.0.0"): 3,
            ("0.0.0.0", str(ENI)): 1,
            ("198.19.0.82", str(ENI)): 1,
        }

    def test_all_taken_is_known_early(self, segment: Segment, probe: Callable[..., dict[IPv4Address, Holder]]) -> None:
        other, host = segment.host(), segment.host()
        take(other, ENI)
        begun = time.monotonic()
        assert set(probe(host, ENI, timeout=30.0)) == {ENI}
        assert time.monotonic() - begun < 9.0, "an answer to the first of the three probes is enough"

    def test_a_device_without_an_address(
        self, segment: Segment, probe: Callable[..., dict[IPv4Address, Holder]]
    ) -> None:
        other, host = segment.host(), segment.host(address=False)
        take(other, ENI)
        assert probe(host, ENI, FREE) == {ENI: Holder(mac(other), by_proxy=False)}

    def test_another_host_s_eni(self, segment: Segment, probe: Callable[..., dict[IPv4Address, Holder]]) -> None:
        """A proxy neighbour answers no probe, so it has to be asked in another way."""
        other, host = segment.host(), segment.host()
        serve_by_proxy(other, ENI)
        assert probe(host, ENI, FREE) == {ENI: Holder(mac(other), by_proxy=True)}

    def test_a_router_that_answers_for_everybody(
        self, segment: Segment, probe: Callable[..., dict[IPv4Address, Holder]]
    ) -> None:
        """It has none of the addresses; what a host has is found all the same."""
        router, other, host = segment.host(), segment.host(), segment.host()
        set_(router, "conf/up0/proxy_arp_pvlan", "1")
        set_(router, "conf/up0/forwarding", "1")
        set_(router, "neigh/up0/proxy_delay", "0")
        run_in(host, ["ping", "-c1", "-W1", str(FREE)], check=False)
        assert neighbour(host, FREE)[0] == mac(router)
        take(other, ENI)
        assert probe(host, ENI, FREE) == {ENI: Holder(mac(other), by_proxy=False)}

    def test_a_host_that_has_everything(
        self, segment: Segment, probe: Callable[..., dict[IPv4Address, Holder]]
    ) -> None:
        """As the fabric of a cloud: it answers probes for whatever address."""
        fabric, other, host = segment.host(), segment.host(), segment.host()
        ip("-n", fabric, "route", "add", "local", "198.19.0.0/24", "dev", "lo")
        assert probe(host, ENI, FREE) == {}
        other_address = IPv4Address("198.19.0.82")
        ip("-n", fabric, "route", "del", "local", "198.19.0.0/24", "dev", "lo")
        assert probe(host, ENI, other_address) == {other_address: Holder(mac(other), by_proxy=False)}

    def test_two_that_want_it_at_the_same_time(
        self, segment: Segment, probe: Callable[..., dict[IPv4Address, Holder]]
    ) -> None:
        hosts = [segment.host(), segment.host()]
        with ThreadPoolExecutor(2) as both:
            found = list(both.map(lambda host: probe(host, ENI, timeout=LONG), hosts))
        assert any(found), "at most one may take it"
        for one, other in zip(found, reversed(hosts), strict=True):
            assert one in ({}, {ENI: Holder(mac(other), by_proxy=False)})

    def test_own_frames_that_come_back(
        self, segment: Segment, probe: Callable[..., dict[IPv4Address, Holder]], heard: Callable[[], list[Any]]
    ) -> None:
        host = segment.host()
        other = segment.host()
        ip("-n", segment.switch, "link", "set", "port1", "type", "bridge_slave", "hairpin", "on")
        assert probe(host, ENI) == {}
        assert heard()
        take(other, ENI)
        assert probe(host, ENI) == {ENI: Holder(mac(other), by_proxy=False)}

    def test_a_second_device_of_the_same_namespace(
        self, segment: Segment, probe: Callable[..., dict[IPv4Address, Holder]]
    ) -> None:
        """On the same segment; the kernel answers there for all that is local. That is not somebody else."""
        host = segment.host()
        segment.plug(host, "up1")
        take(host, ENI, "up1")
        assert probe(host, ENI) == {}

    @pytest.mark.parametrize("kind", ["macvlan", "vxlan", "bridge"])
    def test_on_other_devices(
        self,
        segment: Segment,
        probe: Callable[..., dict[IPv4Address, Holder]],
        announce: Callable[..., None],
        kind: str,
    ) -> None:
        """Each of two hosts has such a device, over a segment that both are on."""
        hosts = [segment.host(), segment.host()]
        for number, host in enumerate(hosts):
            set_(host, "conf/all/arp_ignore", "1")  # else up0 answers for on0 too
            peer = f"198.19.0.{80 + 3 - 1 - number}"
            if kind == "bridge":
                ip("-n", host, "link", "add", "on0", "type", "bridge")
                ip("-n", host, "addr", "flush", "dev", "up0")
                ip("-n", host, "link", "set", "up0", "master", "on0")
            elif kind == "macvlan":
                ip("-n", host, "link", "add", "link", "up0", "name", "on0", "type", "macvlan", "mode", "bridge")
            else:
                vxlan = ("type", "vxlan", "id", "7", "dstport", "4789", "remote", peer, "dev", "up0")
                ip("-n", host, "link", "add", "on0", *vxlan)
            ip("-n", host, "addr", "add", f"198.18.7.{number + 1}/24", "dev", "on0")
            ip("-n", host, "link", "set", "on0", "up")
        address = IPv4Address("198.18.7.5")
        take(hosts[0], address, "on0")
        run_in(hosts[1], ["ping", "-c1", "-W5", "198.18.7.1"])
        assert probe(hosts[1], address, device="on0") == {address: Holder(mac(hosts[0], "on0"), by_proxy=False)}

        run_in(hosts[1], ["ping", "-c1", "-W5", str(address)])
        (entry,) = ip_json("-n", hosts[1], "neigh", "show", str(address), "dev", "on0")
        assert entry["lladdr"] == mac(hosts[0], "on0")
        ip("-n", hosts[0], "link", "set", "on0", "address", "02:00:00:00:07:05")
        announce(hosts[0], address, device="on0")

        def learnt() -> bool:
            (now,) = ip_json("-n", hosts[1], "neigh", "show", str(address), "dev", "on0")
            return bool(now["lladdr"] == "02:00:00:00:07:05")

        wait_until(learnt)


class TestNobodyThere:
    @pytest.mark.parametrize("why", ["down", "no carrier", "arp off", "lo", "tun"])
    def test_nothing_is_sent(
        self,
        segment: Segment,
        probe: Callable[..., dict[IPv4Address, Holder]],
        announce: Callable[..., None],
        heard: Callable[[], list[Any]],
        why: str,
    ) -> None:
        host, device = segment.host(), "up0"
        if why == "down":
            ip("-n", host, "link", "set", "up0", "down")
        elif why == "no carrier":
            ip("-n", segment.switch, "link", "set", "port1", "down")
            wait_until(lambda: not carrier(host, "up0"))
        elif why == "arp off":
            ip("-n", host, "link", "set", "up0", "arp", "off")
        elif why == "lo":
            device = "lo"
        else:
            device = "tun7"
            ip("-n", host, "tuntap", "add", device, "mode", "tun")
            ip("-n", host, "link", "set", device, "up")
        heard()
        begun = time.monotonic()
        assert probe(host, ENI, device=device, timeout=30.0) == {}
        assert time.monotonic() - begun < 10.0, "nobody is waited for"
        announce(host, ENI, device=device)
        assert heard() == []

    def test_a_device_that_goes_meanwhile(
        self, segment: Segment, probe: Callable[..., dict[IPv4Address, Holder]]
    ) -> None:
        host = segment.host()
        with ThreadPoolExecutor(1) as other:
            found = other.submit(probe, host, ENI, timeout=2.0)
            ip("-n", host, "link", "del", "up0")
            error = found.exception()
        assert error is None or (isinstance(error, DeviceError) and "up0" in str(error)), "or gone before it began"
        assert error or found.result() == {}

    def test_no_such_device(
        self, segment: Segment, probe: Callable[..., dict[IPv4Address, Holder]], announce: Callable[..., None]
    ) -> None:
        host = segment.host()
        for run in (announce, probe):
            with pytest.raises(DeviceError, match=r"^device up9: ARP: No such device$"):
                run(host, ENI, device="up9")

    def test_without_the_capability(self, segment: Segment) -> None:
        host = segment.host()
        code = "from hyperplane.linux import arp; arp.announce('up0', [])"
        done = subprocess.run(
            ["ip", "netns", "exec", host, "setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw", sys.executable,
             "-c", code],
            cwd=ROOT, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        said = done.stderr.splitlines()[-1]
        assert said == (
            "hyperplane.errors.PermissionMissing: device up0: ARP not permitted; "
            "run as root or with CAP_NET_RAW in the namespace"
        )
