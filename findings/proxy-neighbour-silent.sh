#!/bin/sh
# Nobody is told when a proxy neighbour comes or goes.
#
# Expected: whoever joins RTNLGRP_NEIGH (`ip monitor neigh`) hears of every change in the neighbour tables, for a
#   proxy neighbour is added, listed and deleted by the same RTM_NEWNEIGH, RTM_GETNEIGH and RTM_DELNEIGH.
# Seen: an ordinary neighbour is told, a proxy neighbour never: not when it is added, nor when it is deleted, nor when
#   the kernel itself drops it because the device goes down, nor by deleting the device's last IPv4 address.
# Versions: Linux 6.1, 6.12, 6.18 and 7.3 with iproute2 6.1 (Debian 12).
# Source: net/core/neighbour.c of 6.18: pneigh_create(), pneigh_delete() and pneigh_ifdown() change the table and call
#   no __neigh_notify(); only what touches a struct neighbour does (neigh_update_notify(),
#   neigh_cleanup_and_release()).
# Why it matters: the address of an ENI is a proxy neighbour of the uplink. A watch of netlink alone learns nothing
#   when somebody deletes it; the table has to be read again, on other events and from time to time.
set -eu

ns=finding-$$
heard=$(mktemp)
monitor=
end() {
  [ -z "$monitor" ] || kill "$monitor" 2>/dev/null || true
  ip netns del "$ns" 2>/dev/null || true
  rm -f "$heard"
}
trap end EXIT

ip netns add "$ns"
ip -n "$ns" link add v type veth peer name w
ip -n "$ns" link set w up
ip -n "$ns" link set v up
ip -n "$ns" addr add 198.18.0.1/24 dev v

ip netns exec "$ns" stdbuf -oL ip monitor neigh >"$heard" &
monitor=$!

# The monitor hears in order: once it has told the last neighbour, it has told all that it was going to tell.
hears() { # address: adds an ordinary neighbour until the monitor tells it
  tries=0
  until grep -q "^$1 " "$heard"; do
    tries=$((tries + 1))
    [ $tries -le 100 ] || { echo "the monitor hears nothing at all" >&2; exit 2; }
    ip -n "$ns" neigh replace "$1" lladdr "02:00:00:00:00:$(printf %02x $tries)" dev v nud permanent
    sleep 0.05
  done
}

hears 198.18.0.10
ip -n "$ns" neigh add proxy 198.18.0.20 dev v
ip -n "$ns" neigh del proxy 198.18.0.20 dev v
hears 198.18.0.11
ip -n "$ns" neigh add proxy 198.18.0.21 dev v
ip -n "$ns" addr del 198.18.0.1/24 dev v
without_address=$(ip -n "$ns" neigh show proxy)
ip -n "$ns" addr add 198.18.0.1/24 dev v
hears 198.18.0.12
ip -n "$ns" neigh add proxy 198.18.0.22 dev v
ip -n "$ns" link set v down
while_down=$(ip -n "$ns" neigh show proxy)
ip -n "$ns" link set v up
hears 198.18.0.13

ordinary=$(grep -c '198\.18\.0\.1[0-3] ' "$heard") || true
proxies=$(grep -c '198\.18\.0\.2[0-2]' "$heard") || true
echo "Linux $(uname -r): messages about ordinary neighbours: $ordinary, about proxy neighbours: $proxies"
echo "proxies left when the last address was deleted: ${without_address:-none};" \
  "when the device went down: ${while_down:-none}"
[ "$ordinary" -ge 4 ] && [ "$proxies" -eq 0 ] && [ -z "$without_address" ] && [ -z "$while_down" ]
