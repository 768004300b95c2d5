"""TUN devices (Documentation/networking/tuntap.rst): opened by python-pytun, then set up as the engine needs them."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from typing import Final

import pytun  # without type hints: its one class is Any here, and nothing of it leaves open_tun()

from hyperplane.errors import DeviceError, DeviceExists, HyperplaneError, InvalidValue, NotATunnel, PermissionMissing
from hyperplane.linux.namespaces import descriptors_exhausted

# linux/if_tun.h
TUNSETOFFLOAD, TUNGETIFF, TUNSETVNETHDRSZ, TUNGETDEVNETNS = 0x400454D0, 0x800454D2, 0x400454D8, 0x54E3
IFF_TUN, IFF_MULTI_QUEUE, IFF_NO_PI, IFF_VNET_HDR, IFF_TUN_EXCL = 0x0001, 0x0100, 0x1000, 0x4000, 0x8000
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6 = 0x01, 0x02, 0x04, 0x20, 0x40
# Best first; UDP segmentation needs Linux 6.2. No TUN_F_TSO_ECN: the kernel cuts the rare super-segment with CWR.
OFFLOADS: Final = (TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_USO4 | TUN_F_USO6, TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6)
VNET_HEADER: Final = 10  # struct virtio_net_hdr, linux/virtio_net.h
IFNAMSIZ: Final = 16  # linux/if.h

# What dev_valid_name() in the kernel takes, less "%" (it would number the device) and what shells and tools trip over.
DEVICE_NAME: Final = re.compile(r"(?!\.{1,2}$)[A-Za-z0-9_.@-]{1,15}")


def check_name(device: str) -> str:
    """A device name that the kernel takes as it stands. Raises InvalidValue."""
    if not isinstance(device, str) or not DEVICE_NAME.fullmatch(device):
        limit = f"1 to {IFNAMSIZ - 1} letters, digits, and . _ @ -"
        raise InvalidValue(f"device name is {device!r}", resource="device name", limit=limit)
    return device


def open_tun(device: str) -> int:
    """Makes a TUN in the namespace of the calling thread and returns its only descriptor; its last close removes it.

    The device is down and has the kernel's default MTU: netlink.configure() does the rest. The last close takes
    milliseconds: leave it to the reaper. Raises InvalidValue, DeviceError (also when a device of that name exists),
    PermissionMissing.
    """
    check_name(device)
    # IFF_TUN_EXCL: else the kernel would hand us a persistent TUN of that name that somebody else made.
    return _open(device, IFF_TUN_EXCL)


def open_queues(device: str, count: int) -> list[int]:
    """As open_tun(), with a descriptor for each of `count` queues, numbered in this order as long as all are open.

    Only the first when the kernel gives no more.
    """
    check_name(device)
    if count == 1:
        return [_open(device, IFF_TUN_EXCL)]
    queues = [_open(device, IFF_TUN_EXCL | IFF_MULTI_QUEUE)]
    try:
        while len(queues) < count:
            queues.append(_open(device, IFF_MULTI_QUEUE))
    except DeviceError:
        for fd in reversed(queues[1:]):
            os.close(fd)
        return queues[:1]
    except BaseException:
        for fd in queues:
            os.close(fd)
        raise
    return queues


def _open(device: str, flags: int) -> int:
    try:
        tun = pytun.TunTapDevice(name=device, flags=IFF_TUN | IFF_NO_PI | IFF_VNET_HDR | flags)
    except pytun.Error as error:
        raise open_error(device, error.errno or 0) from None
    try:
        # pytun closes its descriptor with its object, and opens without O_CLOEXEC: ours is a duplicate.
        fd = fcntl.fcntl(tun.fileno(), fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError:
        raise descriptors_exhausted(f"device {device}") from None
    finally:
        tun.close()
    try:
        prepare(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def adopt_tun(fd: int) -> int:
    """A duplicate of a TUN descriptor that a platform handed in, set up for the engine; the platform keeps its own.

    Address, MTU and routes of the device stay as they are. Raises InvalidValue, NotATunnel.
    """
    if not isinstance(fd, int) or isinstance(fd, bool) or fd < 0:
        raise InvalidValue(f"descriptor is {fd!r}", resource="descriptor", remedy="give an open TUN descriptor")
    what = f"descriptor {fd}"
    try:
        copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    except OSError as error:
        if error.errno == errno.EMFILE:
            raise descriptors_exhausted(what) from None
        raise NotATunnel(f"{what} is not open", resource=what, remedy="give an open TUN descriptor") from None
    try:
        _check(copy, what)
        prepare(copy)
    except BaseException:
        os.close(copy)  # not the last: the platform has its own
        raise
    return copy


def prepare(fd: int) -> None:
    """Offloads, the size of the virtio_net_hdr, and non-blocking, as csrc/link.h wants it. Raises DeviceError."""
    for offloads in OFFLOADS:
        try:
            fcntl.ioctl(fd, TUNSETOFFLOAD, offloads)
            break
        except OSError:
            # An older kernel; without any of them everything works, only slower.
            continue
    try:
        fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("i", VNET_HEADER))
    except OSError as error:
        raise DeviceError(f"TUN header size refused: {error.strerror}", limit=f"{VNET_HEADER} bytes") from None
    os.set_blocking(fd, False)


def device_of(fd: int) -> tuple[str, int]:
    """Name and IFF_ flags of the device behind a TUN descriptor (TUNGETIFF). Raises OSError."""
    answer = fcntl.ioctl(fd, TUNGETIFF, bytes(40))  # struct ifreq
    name, flags = struct.unpack_from(f"{IFNAMSIZ}sH", answer)
    return name.rstrip(b"\0").decode(errors="replace"), flags


def namespace_of(fd: int) -> int:
    """A new descriptor of the namespace that the device behind fd is in. Raises OSError (EPERM too)."""
    return fcntl.ioctl(fd, TUNGETDEVNETNS)


def _check(fd: int, what: str) -> None:
    try:
        name, flags = device_of(fd)
    except OSError:
        remedy = "give the descriptor of an attached TUN device (TUNSETIFF)"
        raise NotATunnel(f"{what} is no TUN device", resource=what, remedy=remedy) from None
    what = f"{what} ({name})"
    if not flags & IFF_TUN:
        raise NotATunnel(f"{what} is a TAP device", resource=what, remedy="open it with IFF_TUN")
    # IFF_NO_PI cannot be seen here, it has the value of IFF_NOFILTER: the engine probes for it (csrc/link_tun.c).
    if not flags & IFF_VNET_HDR:
        raise NotATunnel(f"{what} was opened without IFF_VNET_HDR", resource=what, remedy="open it with IFF_VNET_HDR")


def open_error(device: str, number: int) -> HyperplaneError:
    """Why a TUN could not be made, by its errno."""
    what = f"device {device}"
    if number in (errno.ENOENT, errno.ENODEV, errno.ENXIO):
        remedy = "load the module (modprobe tun), or give the container /dev/net/tun"
        return PermissionMissing("/dev/net/tun is not there", resource=what, remedy=remedy)
    if number in (errno.EPERM, errno.EACCES):
        remedy = "run as root or with CAP_NET_ADMIN in the namespace, and with access to /dev/net/tun"
        return PermissionMissing(f"{what} may not be made", resource=what, remedy=remedy)
    if number in (errno.EBUSY, errno.EEXIST):
        remedy = "remove it, or give another device name"
        return DeviceExists(f"{what} exists already in the namespace", resource=what, remedy=remedy)
    if number in (errno.EMFILE, errno.ENFILE):
        return descriptors_exhausted(what)
    return DeviceError(f"{what} refused: {os.strerror(number)}", resource=what)
