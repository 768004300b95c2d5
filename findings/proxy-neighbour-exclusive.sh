#!/bin/sh
# Everybody may add the same proxy neighbour: what exists already is no error, and what does not exist can be changed.
#
# Expected: `ip neigh add` asks for a new entry (NLM_F_CREATE and NLM_F_EXCL) and fails with EEXIST when there is one;
#   `ip neigh change` (neither flag) fails with ENOENT when there is none. Ordinary neighbours do.
# Seen: for a proxy neighbour the kernel ignores both flags: the second `add` succeeds and changes nothing that shows,
#   and `change` makes an entry. There is one entry all the same: the first of two users that deletes takes it from
#   the other.
# Versions: Linux 6.1, 6.12, 6.18 and 7.3 with iproute2 6.1 (Debian 12).
# Source: net/core/neighbour.c of 6.18: neigh_add() goes to pneigh_create() for NTF_PROXY, which takes no nlmsg_flags
#   and updates an entry that it finds.
# Why it matters: whether a proxy neighbour is ours cannot be learnt from the kernel's answer when we add it. It has
#   to be looked up before, and left there at the end if it was there at the start.
set -eu

ns=finding-$$
trap 'ip netns del "$ns" 2>/dev/null || true' EXIT
ip netns add "$ns"
ip -n "$ns" link add v type veth peer name w
ip -n "$ns" link set v up

outcome() { if ip -n "$ns" neigh "$@" 2>/dev/null; then echo success; else echo failure; fi; }
ordinary="$(outcome add 198.18.0.10 lladdr 02:00:00:00:00:10 dev v)"
ordinary="$ordinary $(outcome add 198.18.0.10 lladdr 02:00:00:00:00:10 dev v)"
ordinary="$ordinary $(outcome change 198.18.0.11 lladdr 02:00:00:00:00:11 dev v)"
proxy="$(outcome add proxy 198.18.0.20 dev v) $(outcome add proxy 198.18.0.20 dev v)"
proxy="$proxy $(outcome change proxy 198.18.0.21 dev v)"
made=$(ip -n "$ns" neigh show proxy | wc -l)
ip -n "$ns" neigh del proxy 198.18.0.20 dev v
left=$(ip -n "$ns" neigh show proxy)

echo "Linux $(uname -r): add, add again, change of what does not exist:"
echo "ordinary neighbour: $ordinary; proxy neighbour: $proxy ($made entries)"
echo "after one of the two who added it had deleted it: ${left:-none}"
[ "$ordinary" = "success failure failure" ] && [ "$proxy" = "success success success" ] && [ "$made" -eq 2 ] &&
  [ "${left%% *}" = 198.18.0.21 ]
