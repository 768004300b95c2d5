#!/bin/sh
# Writing 1 to ip_forward that is 1 mends nothing; writing 1 to IPv6's all/forwarding that is 1 does.
#
# Expected: `sysctl net.ipv4.ip_forward=1` makes the namespace forward, whatever was before; and IPv4 and IPv6 agree.
# Seen: IPv4 copies the value to the devices only when the written value differs from the one that is there. A device
#   whose own forwarding somebody has set to 0 stays at 0 however often 1 is written, and drops what should be
#   forwarded. IPv6 copies it to all devices at each writing. A change of the value does work: any, even from 1 to 2,
#   which is accepted.
# Versions: Linux 6.1, 6.12, 6.18 and 7.3.
# Source: net/ipv4/devinet.c: devinet_sysctl_forward() does everything under "value changed", also in 3.x and 5.x;
#   net/ipv6/addrconf.c: addrconf_fixup_forwarding().
# Why it matters: who writes ip_forward and no more, and reads it back, finds 1 and believes that this is enough. What
#   decides is conf/DEVICE/forwarding of the device where packets come in; so that one is looked at, and written.
set -eu

ns=finding-$$
trap 'ip netns del "$ns" 2>/dev/null || true' EXIT
ip netns add "$ns"
inside() { ip netns exec "$ns" "$@"; }
device() { inside sysctl -n "net.$1.conf.v.forwarding"; }

inside ip link add v type veth peer name w
inside sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
inside sysctl -qw net.ipv4.conf.v.forwarding=0 net.ipv6.conf.v.forwarding=0
inside sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
again4=$(device ipv4)
again6=$(device ipv6)
inside sysctl -qw net.ipv4.ip_forward=2
changed=$(device ipv4)

echo "Linux $(uname -r): forwarding of a device after 0 was written to it, then 1 once more for all:"
echo "IPv4 $again4, IPv6 $again6; after ip_forward went from 1 to 2: IPv4 $changed"
[ "$again4 $again6 $changed" = "0 1 2" ]
