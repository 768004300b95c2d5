"""System calls that an older kernel, or a sandbox, refuses: another way is taken, or the start is refused in words.

strace(1) refuses them here, for daemon and engine, from their first instruction on; `-D` leaves the daemon itself as
the process that was started. What real kernels do stands in docs/service.md.
"""

from __future__ import annotations

import os
import platform
import signal

import pytest

from .daemons import SERVER, SMALL, TestDaemon, declare, start, until
from .support import Namespaces, eventually, run_in


def refusing(rule: str) -> tuple[str, ...]:
    calls = rule.partition(":")[0]
    return ("strace", "-D", "-qq", "-f", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={rule}")


@pytest.mark.parametrize(
    ("rule", "options", "io"),
    [
        ("io_uring_setup:error=ENOSYS", {}, "epoll"),
        ("io_uring_setup:error=EPERM", {}, "epoll"),
        ("io_uring_register:error=EINVAL", {}, "epoll"),
        ("preadv2,pwritev2:error=EOPNOTSUPP", {"io": "epoll"}, "epoll"),
        ("preadv2,pwritev2:error=ENOSYS", {"io": "epoll"}, "epoll"),
        ("madvise:error=EINVAL", {"huge_pages": True}, None),
        ("bpf:error=EPERM", {"workers": 2}, None),
        ("close_range,clone3:error=ENOSYS", {}, None),
    ],
)
async def test_there_is_another_way(
    rule: str, options: dict[str, object], io: str | None, vpc: str, netns_factory: Namespaces
) -> None:
    """Packets pass, and go on when the engine is killed."""
    box = netns_factory("box")
    with TestDaemon(engine={**SMALL, **options}) as daemon:
        daemon.start(prefix=refusing(rule))
        async with daemon.client() as client:
            await declare(client, vpc)
            await start(client, box)
            run_in(box, ["ping", "-c", "3", "-i", "0.05", "-W", "5", SERVER])
            process = (await client.status()).engine
            assert process
            assert io in (None, process.status.io)
            os.kill(process.pid, signal.SIGKILL)
            await eventually(lambda: daemon.engine_pid() not in (0, process.pid), 20.0)
            run_in(box, ["ping", "-c", "3", "-i", "0.05", "-W", "5", SERVER])
            assert (await until(client.health, lambda found: found.status == "ok")).reasons == ()


@pytest.mark.parametrize(
    ("rule", "what"),
    [("pidfd_open:error=ENOSYS", "pidfd_open()"), ("memfd_create:error=ENOSYS", "memfd_create() with seals")],
)
def test_or_the_start_is_refused(rule: str, what: str) -> None:
    """In one line, with the kernel's version and what to do."""
    with TestDaemon(engine=SMALL) as daemon:
        line = daemon.refused(prefix=refusing(rule))
        assert f"Linux {platform.release()} refuses {what}" in line
        assert "use Linux 5.3 or newer" in line
