#!/bin/sh
# Two proxy neighbours that every listing shows alike: one outlives a flap of the carrier, the other does not.
#
# Expected: a proxy neighbour has no state (it is configuration, not something learnt), so it stays until somebody
#   deletes it or the device goes down; and what a dump does not show cannot differ.
# Seen: the kernel remembers for each whether NUD_PERMANENT was in the request that made it and drops those without at
#   loss of carrier. Dumps show state NUD_NONE for both. `ip neigh add proxy` gives NUD_PERMANENT unasked; netlink
#   clients that leave the state out, `ip neigh add proxy ... nud none`, and the ioctl SIOCSARP (that is `arp -s ...
#   pub`) even with ATF_PERM, do not. A repeated request without the state takes the permanence away from one that had
#   it.
# Versions: Linux 6.1.192, 6.12.95, 6.18.44 and 7.3.4 with iproute2 6.1 (Debian 12). It came with a patch that added
#   "permanent" to struct pneigh_entry and that stable kernels took over; a kernel before it drops all proxies then
#   (source only, not run).
# Source: net/core/neighbour.c of 6.18: pneigh_create(), pneigh_ifdown(skip_perm), called by neigh_carrier_down();
#   net/ipv4/arp.c: arp_req_set_public() passes permanent=false.
# Why it matters: comparing what should be with a dump finds nothing amiss, until an uplink's cable is pulled. So our
#   requests always carry the state, and the table is read again whenever a carrier came back.
set -eu

ns=finding-$$
trap 'ip netns del "$ns" 2>/dev/null || true' EXIT
ip netns add "$ns"
ip -n "$ns" link add v type veth peer name w
ip -n "$ns" link set w up
ip -n "$ns" link set v up
ip -n "$ns" addr add 198.18.0.1/24 dev v

ip -n "$ns" neigh add proxy 198.18.0.11 dev v
ip -n "$ns" neigh add proxy 198.18.0.12 dev v nud none
ip -n "$ns" neigh add proxy 198.18.0.14 dev v
ip -n "$ns" neigh replace proxy 198.18.0.14 dev v nud none
ip netns exec "$ns" python3 - <<'PYTHON'
import fcntl, socket, struct

SIOCSARP, ATF_PERM, ATF_PUBL = 0x8955, 0x04, 0x08


def inet(address):
    return struct.pack("=HH4s8x", socket.AF_INET, 0, socket.inet_aton(address))


request = inet("198.18.0.13") + bytes(16) + struct.pack("i", ATF_PERM | ATF_PUBL) + inet("255.255.255.255")
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    fcntl.ioctl(control, SIOCSARP, request + b"v".ljust(16, b"\0"))
PYTHON

listed() { ip -n "$ns" neigh show proxy; }
addresses() { listed | cut -d' ' -f1 | sort | tr '\n' ' '; }
before=$(addresses)
shapes=$(listed | cut -d' ' -f2- | sort -u | wc -l)

ip -n "$ns" link set w down
deadline=$(($(date +%s) + 5))
while ip -n "$ns" link show v | grep -q LOWER_UP; do [ "$(date +%s)" -lt $deadline ] || exit 2; done
while [ "$(addresses)" = "$before" ] && [ "$(date +%s)" -lt $deadline ]; do :; done
ip -n "$ns" link set w up
after=$(addresses)

echo "Linux $(uname -r): proxies before: $before"
echo "ways in which the listing tells them apart (but for the address): $((shapes - 1))"
echo "after the carrier was lost and came back: $after"
[ "$before" = "198.18.0.11 198.18.0.12 198.18.0.13 198.18.0.14 " ] && [ "$shapes" -eq 1 ] &&
  [ "$after" = "198.18.0.11 " ]
