"""What runs on each kernel: rows of the table, each with its tests. A few of each kind: an emulated guest is slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SYSTEM: Final = "tests/system/"
# "[io_uring" in a test's name: it is left out where the kernel has none, which is a fact of its own. No test
# that counts super-packets is here: 6.1 makes none of UDP.
ITEMS: Final[Mapping[str, tuple[str, ...]]] = {
    # Without the servers that are no part of it: to start them takes an emulated machine minutes.
    "demo": ("test_demo.py::test_servers_and_nft_that_are_not_installed_are_left_out",),
    "TCP": ("test_forwarding.py::test_tcp",),
    "UDP": ("test_forwarding.py::test_udp",),
    "ICMP": ("test_forwarding.py::test_icmp",),
    "engine killed": ("test_forwarding.py::test_an_engine_that_is_killed",),
    "daemon killed": ("test_daemon_restart.py::test_a_restart_touches_nothing[kill]",),
    "devices": (
        "test_devices.py::TestTun::test_device_in_its_namespace",
        "test_devices.py::TestTun::test_adopted_descriptors",
    ),
    "ENIs": (
        "test_eni.py::TestEni::test_addresses_are_routed_not_assigned",
        "test_eni.py::TestEni::test_a_shared_segment_finds_the_eni",
    ),
    "namespaces": ("test_namespaces.py::TestWatch",),
    "io_uring and epoll": (
        "test_datagrams.py::test_datagrams_without_checksum[io_uring]",
        "test_datagrams.py::test_datagrams_without_checksum[epoll]",
        "test_workers.py::test_errors_find_the_flow_that_they_are_about[io_uring-steered]",
        "test_workers.py::test_errors_find_the_flow_that_they_are_about[epoll-steered]",
    ),
    "two workers": ("test_workers.py::test_a_daemon_that_comes_and_goes_and_an_engine_that_is_killed",),
}
