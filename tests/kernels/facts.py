"""What a kernel gives this program, found out by using it as the program does."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from ipaddress import IPv4Address
from typing import Final

from hyperplane.cli import probes
from hyperplane.cli.sandbox import isolate
from hyperplane.dataplane import Engine
from hyperplane.linux import steering, tun

FLOWS: Final = 65_536  # whose tables are larger than a huge page
ADDRESS: Final = IPv4Address("198.19.0.5")


def packet_io() -> str:
    """What `--io auto` takes."""
    with Engine(max_flows=1024, max_links=16, huge_pages=False) as engine:
        engine.start()
        return engine.status().io


def udp_segmentation() -> str:
    found, problem = probes.offloads()
    return problem or _yes("USO" in found)


def steering_program() -> str:
    """TUNSETSTEERINGEBPF with a map that is mapped (BPF_F_MMAPABLE)."""
    return str(probes._in_child(_steered)[0])


def _steered() -> str:
    isolate()
    queues = tun.open_queues("probe0", 2)
    return _yes(len(queues) == 2 and steering.steer(queues[0], [ADDRESS]) >= 0)


def huge_pages() -> str:
    """MADV_COLLAPSE of a memfd."""
    with Engine(max_flows=FLOWS, max_links=16) as engine:
        memory = engine.memory()
        return _yes(memory.huge_bytes > 0)


def reads_without_waiting() -> str:
    """preadv2(RWF_NOWAIT) of a TUN."""
    return str(probes._in_child(_read)[0])


def _read() -> str:
    isolate()
    fd = tun.open_tun("probe0")
    try:
        os.preadv(fd, [bytearray(2048)], 0, os.RWF_NOWAIT)
    except OSError as error:
        return _yes(error.errno == errno.EAGAIN)
    return _yes(True)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


FACTS: Final[Mapping[str, Callable[[], str]]] = {
    "packet I/O": packet_io,
    "UDP segmentation": udp_segmentation,
    "steering program": steering_program,
    "huge pages": huge_pages,
    "reads without waiting": reads_without_waiting,
}


def measure() -> dict[str, str]:
    return {"release": os.uname().release, **{name: look() for name, look in FACTS.items()}}
