#!/bin/sh
# Offloads that a program sets on a persistent TUN device outlive it: the next one reads wrong checksums, and packets
# longer than the MTU, without a header that would tell.
#
# Expected: TUNSETOFFLOAD is part of an agreement between the kernel and whoever opened the device with IFF_VNET_HDR.
#   Who opens it later without that header gets whole packets: checksums right, none longer than the MTU.
# Seen: the offloads stay with the device. Without header, a UDP datagram comes with a checksum that nobody has
#   finished, and what a sender handed over for segmentation (UDP_SEGMENT) comes as one packet of several times the
#   MTU. Nothing says that something is missing, and a descriptor without header may set offloads as well. Setting
#   them to 0 mends it.
# Versions: Linux 6.1 (checksums; it has no USO), 6.12, 6.18 and 7.3.
# Source: drivers/net/tun.c: set_offload() puts them into the device's features, asks neither for IFF_VNET_HDR nor who
#   sets them; that nothing takes them back at close() or TUNSETIFF: seen only.
# Why it matters: a persistent device that a platform hands to us by descriptor keeps the offloads that we set. Whoever
#   opens it next, another program perhaps, has to set its own, also 0. We refuse a descriptor without the header, and set
#   offloads of every device that we take.
set -eu

ns=finding-$$
trap 'ip netns del "$ns" 2>/dev/null || true' EXIT
ip netns add "$ns"

echo "Linux $(uname -r)"
ip netns exec "$ns" python3 - <<'PYTHON'
import fcntl, os, select, socket, struct, subprocess, sys

TUNSETIFF, TUNSETPERSIST, TUNSETOFFLOAD = 0x400454CA, 0x400454CB, 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
CSUM, USO4, USO6 = 0x01, 0x20, 0x40
UDP_SEGMENT = 103  # linux/udp.h
MTU, SEGMENT = 1500, 1000


def opened(flags):
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tun", IFF_TUN | IFF_NO_PI | flags))
    return tun


def right(packet):
    """Whether the checksum of a UDP datagram in an IPv4 packet without options is right."""
    data = packet[12:20] + struct.pack("!HH", socket.IPPROTO_UDP, len(packet) - 20) + packet[20:]
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total == 0xFFFF


def packets(tun, segments):
    """(length, whether the checksum is right) of each packet that comes of so many segments handed over at once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        if segments > 1:
            udp.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, SEGMENT)
        udp.sendto(bytes(range(250)) * 4 * segments, ("198.18.0.2", 9))
    found = []
    while select.select([tun], [], [], 0.3)[0]:
        packet = os.read(tun, 65536)
        found.append((len(packet), right(packet)))
    return found


first = opened(IFF_VNET_HDR)
fcntl.ioctl(first, TUNSETPERSIST, 1)
subprocess.run(["sysctl", "-qw", "net.ipv6.conf.tun.disable_ipv6=1"], check=True)
subprocess.run(["ip", "link", "set", "tun", "up", "mtu", str(MTU)], check=True)
subprocess.run(["ip", "addr", "add", "198.18.0.1/24", "dev", "tun"], check=True)
uso = True
try:
    fcntl.ioctl(first, TUNSETOFFLOAD, CSUM | USO4 | USO6)
except OSError:  # before 6.2
    uso = False
    fcntl.ioctl(first, TUNSETOFFLOAD, CSUM)
os.close(first)
second = opened(0)
before = packets(second, 1), packets(second, 5) if uso else None
print(f"without header, after one that had it: (length, checksum right) of 1 segment: {before[0]}; of 5: {before[1]}")
fcntl.ioctl(second, TUNSETOFFLOAD, 0)
mended = packets(second, 1), packets(second, 5) if uso else None
print(f"after setting no offloads: {mended[0]}; {mended[1]}")
length = 20 + 8 + SEGMENT
expected = [(length, False)], [(20 + 8 + 5 * SEGMENT, False)] if uso else None
plain = [(length, True)], [(length, True)] * 5 if uso else None
sys.exit(not (before == expected and mended == plain))
PYTHON
