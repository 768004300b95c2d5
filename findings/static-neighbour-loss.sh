#!/bin/sh
# What costs a device its static neighbours and its proxy neighbours: neither list is what one would guess.
#
# Expected: a permanent neighbour and a proxy neighbour are configuration. Both stay until somebody deletes them or
#   sets the device down; a new MAC address of our own says nothing about the MAC addresses of others.
# Seen (4: IPv4, 6: IPv6; what is left):
#                                                    permanent    proxy
#     the carrier is lost                            4 6          4 6
#     the device gets another MAC address            none         4 6
#     one of two IPv4 addresses is deleted           4 6          4 6
#     the last IPv4 address is deleted               6            6
#   The last comes about by itself when an address is renewed by deleting it and adding it again.
# Versions: Linux 6.1, 6.12, 6.18 and 7.3 with iproute2 6.1 (Debian 12).
# Source: net/core/neighbour.c of 6.18: neigh_changeaddr() flushes permanent neighbours too, and no proxies;
#   neigh_carrier_down() spares permanent ones of both. net/ipv4/fib_frontend.c: fib_disable_ip() calls arp_ifdown(),
#   which is all of neigh_ifdown(), when no address is left.
# Why it matters: the proxy neighbours of ENIs on an uplink go when its DHCP client renews the address in that way,
#   which no message tells (proxy-neighbour-silent.sh); what is told is the address. So each change of an uplink's
#   addresses is a reason to look.
set -eu

ns=finding-$$
trap 'ip netns del "$ns" 2>/dev/null || true' EXIT
ip netns add "$ns"
ip -n "$ns" link add v type veth peer name w
ip -n "$ns" link set w up
ip -n "$ns" link set v up

fill() { # one IPv4 address, and a neighbour of each kind
  ip -n "$ns" addr replace 198.18.0.1/24 dev v
  for address in 198.18.0.10 2001:db8::10; do
    ip -n "$ns" neigh replace $address lladdr 02:00:00:00:00:10 dev v nud permanent
  done
  for address in 198.18.0.20 2001:db8::20; do ip -n "$ns" neigh replace proxy $address dev v; done
}
families() { # of the neighbours that are read
  sed -n 's/^198\.18\..*/4/p; s/^2001:.*/6/p' | sort | tr -d '\n'
}
left() {
  permanent=$(ip -n "$ns" neigh show dev v nud permanent | families)
  proxy=$(ip -n "$ns" neigh show proxy | families)
  echo "${permanent:-none} ${proxy:-none}"
}
learned() { ip -n "$ns" neigh show dev v nud reachable; }

fill
ip -n "$ns" neigh replace 198.18.0.30 lladdr 02:00:00:00:00:30 dev v nud reachable
ip -n "$ns" link set w down
deadline=$(($(date +%s) + 5))
while [ -n "$(learned)" ]; do # a neighbour that is not permanent goes: then the kernel has dealt with it
  [ "$(date +%s)" -lt $deadline ] || { echo "nothing comes of the loss of the carrier" >&2; exit 2; }
done
carrier_lost=$(left)
ip -n "$ns" link set w up
fill
ip -n "$ns" link set v address 02:00:00:00:00:99
mac_changed=$(left)
fill
ip -n "$ns" addr add 198.19.0.1/24 dev v
ip -n "$ns" addr del 198.19.0.1/24 dev v
one_of_two=$(left)
ip -n "$ns" addr del 198.18.0.1/24 dev v
last=$(left)

echo "Linux $(uname -r): permanent and proxy neighbours that are left (4: IPv4, 6: IPv6) after"
echo "loss of the carrier: $carrier_lost; another MAC address: $mac_changed"
echo "one of two IPv4 addresses deleted: $one_of_two; the last one deleted: $last"
[ "$carrier_lost, $mac_changed, $one_of_two, $last" = "46 46, none 46, 46 46, 6 6" ]
