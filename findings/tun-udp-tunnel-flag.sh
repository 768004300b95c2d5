#!/bin/sh
# A TUN device accepts an offload that its frame header is too short for, and from then on every read fails.
#
# Expected: TUNSETOFFLOAD refuses (EINVAL) what the device cannot do; offloads say what may come, so a frame that
#   needs none of them is read as before.
# Seen: TUN_F_UDP_TUNNEL_GSO is accepted with a virtio header of 10 or 12 bytes, the usual ones. Then each read()
#   fails with EFAULT, though the buffer is fine, also for a plain UDP datagram; the frame is gone and counted
#   nowhere, neither as transmitted nor as dropped. With a header of 24 bytes (TUNSETVNETHDRSZ) all is well.
# Versions: Linux 6.18 and 7.3. Linux 6.1 and 6.12 do not know the flag and refuse it; there this script says so and
#   exits 1.
# Source: drivers/net/tun_vnet.h: tun_vnet_parse_size() asks the offloads how much of the header to write, and not the
#   header's size; __tun_vnet_hdr_put() then fills a rest whose length is negative.
# Why it matters: the descriptor of an environment's device may be shared with others, and offloads belong to the
#   device. One ioctl by somebody else cuts it off. EFAULT there is no fault of our buffers; header size and offloads
#   are set again.
set -eu

ns=finding-$$
trap 'ip netns del "$ns" 2>/dev/null || true' EXIT
ip netns add "$ns"

echo "Linux $(uname -r)"
ip netns exec "$ns" python3 - <<'PYTHON'
import errno, fcntl, os, select, socket, struct, subprocess, sys

TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
CSUM, TSO4, TSO6, UDP_TUNNEL_GSO = 0x01, 0x02, 0x04, 0x80


def count(name):
    with open(f"/sys/class/net/tun/statistics/{name}") as file:
        return int(file.read())


def reading(tun):
    """What a read gives after one datagram was sent: its length, or the name of the error."""
    sent, dropped = count("tx_packets"), count("tx_dropped")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.sendto(b"finding", ("198.18.0.2", 9))
    if not select.select([tun], [], [], 5)[0]:
        sys.exit("the datagram never came to the device")
    try:
        outcome = str(len(os.read(tun, 2048)))
    except OSError as error:
        outcome = errno.errorcode[error.errno]
    told = f"transmitted {count('tx_packets') - sent}, dropped {count('tx_dropped') - dropped}"
    return f"{outcome} ({told}, more to read: {bool(select.select([tun], [], [], 0)[0])})"


found = {}
for size in (10, 12, 24):
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"tun", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(tun, TUNSETVNETHDRSZ, struct.pack("i", size))
    subprocess.run(["sysctl", "-qw", "net.ipv6.conf.tun.disable_ipv6=1"], check=True)
    subprocess.run(["ip", "link", "set", "tun", "up"], check=True)
    subprocess.run(["ip", "addr", "add", "198.18.0.1/24", "dev", "tun"], check=True)
    fcntl.ioctl(tun, TUNSETOFFLOAD, CSUM | TSO4 | TSO6)
    before = reading(tun)
    try:
        fcntl.ioctl(tun, TUNSETOFFLOAD, CSUM | TSO4 | TSO6 | UDP_TUNNEL_GSO)
    except OSError as error:
        sys.exit(f"TUN_F_UDP_TUNNEL_GSO is refused: {error.strerror}")
    found[size] = reading(tun)
    print(f"header of {size} bytes: read() gives {before}; with TUN_F_UDP_TUNNEL_GSO: {found[size]}")
    os.close(tun)

broken = "EFAULT (transmitted 0, dropped 0, more to read: False)"
length = 24 + 20 + 8 + len("finding")
sys.exit(not (found[10] == found[12] == broken and found[24].startswith(f"{length} ")))
PYTHON
