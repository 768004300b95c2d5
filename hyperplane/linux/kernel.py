"""What daemon and engine need of the kernel and have no other way for: tried, since distributions carry changes back,
and sandboxes refuse what the kernel has. All else that a kernel may lack is found out, and done otherwise, where it is
used.
"""

from __future__ import annotations

import errno
import fcntl
import os
import platform
from collections.abc import Callable
from typing import Final

from hyperplane.errors import PermissionMissing

REFUSED: Final = (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EACCES, errno.EOPNOTSUPP)


def check_kernel() -> None:
    """Raises PermissionMissing, which names what is missing, the kernel's version, and one that has it."""
    for what, since, attempt in _NEEDED:
        try:
            os.close(attempt())
        except OSError as error:
            if error.errno not in REFUSED:
                continue  # no descriptor left, say: whoever needs one tells
            raise PermissionMissing(
                f"Linux {platform.release()} refuses {what}: {error.strerror}",
                resource=what,
                remedy=f"use Linux {since} or newer, or allow it in the container's seccomp profile",
            ) from None


def _pidfd() -> int:
    return os.pidfd_open(os.getpid())


def _sealed_memory() -> int:
    fd = os.memfd_create("hyperplane-probe", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    except BaseException:
        os.close(fd)
        raise
    return fd


# The newest of what has no other way is from 5.3: whoever has that has the rest (TUNGETDEVNETNS, netlink's answers).
_NEEDED: Final[tuple[tuple[str, str, Callable[[], int]], ...]] = (
    ("pidfd_open()", "5.3", _pidfd),
    ("memfd_create() with seals", "5.3", _sealed_memory),
)
