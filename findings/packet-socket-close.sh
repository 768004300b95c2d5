#!/bin/sh
# Closing a packet socket takes thousands of times as long as closing a datagram socket; bind() can cost as much
# again.
#
# Expected: close() of a socket that holds no data is a matter of microseconds, whatever the family.
# Seen: close() of any AF_PACKET socket waits for an RCU grace period (here 16 ms as a rule; UDP 2 us), also of one
#   that was only used to send, with protocol 0. A socket made with a protocol and then bound to a device waits once
#   more, in bind(). One made with protocol 0 and given its protocol by bind() does not wait there. At times the wait
#   is some 50 us only, so a measurement may miss it: synchronize_net() asks for an expedited grace period while
#   anybody holds RTNL.
# Versions: Linux 6.1, 6.12, 6.18 and 7.3 (there with one processor no longer: 4 times as long); Python's socket
#   module, no library.
# Source: net/packet/af_packet.c: packet_release() calls synchronize_net(), since 4.x at least; packet_do_bind()
#   unhooks a socket that has a protocol already by __unregister_prot_hook(sync=true), which waits too.
#   net/core/dev.c: synchronize_net() (rtnl_is_locked()).
# Why it matters: a program that opens a packet socket for each ARP announcement or probe is blocked for that time,
#   without a system call that looks slow: 64 addresses are a second. So all addresses on
#   a device are asked for, or announced, through one socket.
set -eu

ns=finding-$$
trap 'ip netns del "$ns" 2>/dev/null || true' EXIT
ip netns add "$ns"
ip -n "$ns" link add v type veth peer name w
ip -n "$ns" link set w up
ip -n "$ns" link set v up

echo "Linux $(uname -r)"
ip netns exec "$ns" python3 - <<'PYTHON'
import socket, statistics, sys, time

ETH_P_ALL = 3
ROUNDS, SECONDS = 41, 15  # in a batch; batches are made for so long at most


def seconds(make):
    """What making such a socket takes, each time, and what closing it takes."""
    opening, closing = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        made = make()
        opened = time.perf_counter()
        made.close()
        opening.append(opened - began)
        closing.append(time.perf_counter() - opened)
    return opening, closing


def packet(protocol, bound):
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
    if bound:
        made.bind(("v", ETH_P_ALL))
    return made


def slow(times, usual, factor):
    """How many of times are more than factor times as long as is usual among the others."""
    return sum(one > factor * statistics.median(usual) for one in times)


deadline = time.monotonic() + SECONDS
closing, binding, count = [0, 0], [0, 0], 0
while time.monotonic() < deadline and not (closing[1] >= closing[0] + 3 and binding[1] >= binding[0] + 3):
    _, udp = seconds(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    _, sender = seconds(lambda: packet(0, bound=False))
    late, _ = seconds(lambda: packet(0, bound=True))
    early, _ = seconds(lambda: packet(ETH_P_ALL, bound=True))
    for found, times, usual, factor in ((closing, (udp, sender), udp, 300), (binding, (late, early), late, 20)):
        for index, one in enumerate(times):
            found[index] += slow(one, usual, factor)
    count += ROUNDS
print(f"of {count} each, close() took over 300 times as long as UDP's usually does:")
print(f"UDP {closing[0]}, packet {closing[1]}; open and bind() took over 20 times as long as usual with protocol 0:")
print(f"with protocol 0 {binding[0]}, with another {binding[1]}")
sys.exit(not (closing[1] >= closing[0] + 3 and binding[1] >= binding[0] + 3))
PYTHON
