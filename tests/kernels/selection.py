"""What runs on each kernel: rows of the table, each with its tests. A few of each kind: an emulated guest is slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SYSTEM: Final = "tests/system/"
# "[io_uring" in a test's name: it is left out where the kernel has none, which is a fact of its own.
ITEMS: Final[Mapping[str, tuple[str, ...]]] = {
    # Without the servers that are no part of it: to start them takes an emulated machine minutes.
    "demo": ("test_demo.py::test_servers_and_nft_that_are_not_installed_are_left_out",),
    "TCP": ("test_forwarding.py::test_tcp",),
    "UDP": ("test_forwarding.py::test_udp",),
    "ICMP": ("test_forwarding.py::test_icmp",),
    "engine killed": ("test_forwarding.py::test_an_engine_that_is_killed",),
    "daemon restarts": (
        "test_daemon_restart.py::test_a_restart_touches_nothing",
        "test_daemon_restart.py::test_devices_that_somebody_deleted",
    ),
    "devices": (
        "test_devices.py::TestTun::test_device_in_its_namespace",
        "test_devices.py::TestTun::test_adopted_descriptors",
    ),
    "ENIs": (
        "test_eni.py::TestEni::test_addresses_are_routed_not_assigned",
        "test_eni.py::TestEni::test_a_shared_segment_finds_the_eni",
    ),
    "namespaces": ("test_namespaces.py::TestWatch",),
    "both I/O engines": ("test_datagrams.py::test_segmented_datagrams_both_ways",),
    "two workers": ("test_workers.py::test_both_work_and_every_packet_finds_its_flow",),
}
