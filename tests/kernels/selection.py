"""What runs on each kernel: rows of the table, each with its tests. A few of each kind: an emulated guest is slow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

SYSTEM: Final = "tests/system/"
# "[io_uring" in a test's name: it is left out where the kernel has none, which is a fact of its own.
ITEMS: Final[Mapping[str, tuple[str, ...]]] = {
    "demo": ("test_demo.py::test_it_tells_people_and_works_a_second_time",),
    "TCP": ("test_forwarding.py::test_tcp",),
    "UDP": ("test_forwarding.py::test_udp",),
    "ICMP": ("test_forwarding.py::test_icmp",),
    "engine killed": ("test_forwarding.py::test_an_engine_that_is_killed", "test_kill.py::test_the_engine"),
    "daemon restarts": (
        "test_daemon_restart.py::test_a_restart_touches_nothing",
        "test_daemon_restart.py::test_daemon_and_engine_both_gone",
        "test_daemon_restart.py::test_devices_that_somebody_deleted",
    ),
    "devices": ("test_devices.py",),
    "ENIs": ("test_eni.py",),
    "namespaces": ("test_namespaces.py",),
    "both I/O engines": (
        "test_datagrams.py::test_segmented_datagrams_both_ways",
        "test_datagrams.py::test_datagrams_without_checksum",
        "test_paths.py::test_closed_port_is_refused_at_once",
    ),
    "workers": ("test_workers.py::test_both_work_and_every_packet_finds_its_flow", "test_steering.py"),
    "privileges": ("test_service_privileges.py",),
}
