#!/bin/sh
# For a proxied address Linux answers whoever takes it, and not whoever asks whether it is free; for its own address
# it is the other way round.
#
# Expected: a router that answers ARP requests for an address answers probes for it too (RFC 5227 section 1.1: a
#   request with sender 0.0.0.0, sent before an address is taken), and it treats alike a proxied address and one of
#   its own.
# Seen:                             request    probe      announcement (request, sender = target)
#     the router's own address      answered   answered   silence
#     an address that it proxies    answered   silence    answered
#   So `arping -D`, and every host that does as RFC 5227 says, finds the proxied address free, takes it, and has a
#   conflict at once. (With rp_filter=1 on the router, the announcement gets no answer either.) IPv6 is not like that:
#   duplicate address detection (RFC 4862) finds a proxied address taken.
# Versions: Linux 6.1, 6.12, 6.18 and 7.3 (the table); iputils-arping 3:20221126-1+deb12u1.
# Source: net/ipv4/arp.c of 6.18: arp_process() deals with sender 0 by itself, answers for RTN_LOCAL only and returns
#   before it comes to proxies. Every other request needs a route from its sender (ip_route_input_noref()): one that
#   comes from an own address has none, one from a proxied address has one and is answered as any.
# Why it matters: the addresses of ENIs are proxied. Hosts on the uplink's segment that probe may take one; and when
#   we probe, another machine's ENI is silent. So we ask with a sender's address too.
set -eu

arping_version=3:20221126-1+deb12u1
ns=finding-$$
folder=$(mktemp -d)
end() {
  for side in router host; do ip netns del "$ns-$side" 2>/dev/null || true; done
  rm -rf "$folder"
}
trap end EXIT

cd "$folder"
chmod 755 . # apt fetches as a user of its own
if ! { apt-get -qq download "iputils-arping=$arping_version" 2>/dev/null && dpkg -x ./*.deb .; }; then
  echo "iputils-arping $arping_version cannot be fetched by apt-get download" >&2
  exit 2
fi
router() { ip netns exec "$ns-router" "$@"; }
host() { ip netns exec "$ns-host" "$@"; }

ip netns add "$ns-router"
ip netns add "$ns-host"
router sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.conf.all.rp_filter=0
router ip link add uplink type veth peer name w netns "$ns-host"
router ip link add inner type veth peer name behind
for device in behind inner uplink; do router ip link set "$device" up; done
host ip link set w up
router sysctl -qw net.ipv4.conf.uplink.rp_filter=0 net.ipv6.conf.uplink.proxy_ndp=1
router sysctl -qw net.ipv4.neigh.uplink.proxy_delay=0 net.ipv6.neigh.uplink.proxy_delay=0
router ip addr add 198.18.0.1/24 dev uplink
host ip addr add 198.18.0.2/24 dev w
for address in 198.18.0.9 2001:db8::9; do
  router ip route add "$address" dev inner
  router ip neigh add proxy "$address" dev uplink
done

free() {
  if host timeout 10 "$folder/usr/bin/arping" -q -D -I w -c 2 -w 2 "$1"; then echo yes; else echo no; fi
}
free="$(free 198.18.0.1) $(free 198.18.0.9)"

host ip addr add 2001:db8::9/64 dev w
deadline=$(($(date +%s) + 8))
while host ip addr show dev w to 2001:db8::9 | grep tentative | grep -qv dadfailed; do
  [ "$(date +%s)" -lt $deadline ] || break
  sleep 0.1
done
if host ip addr show dev w to 2001:db8::9 | grep -q dadfailed; then free6=no; else free6=yes; fi

answers=$(host python3 - <<'PYTHON'
import select, socket, struct, time

ETH_P_ARP, REQUEST, REPLY = 0x0806, 1, 2

arp = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
arp.bind(("w", ETH_P_ARP))
mac = arp.getsockname()[4]


def answered(sender, target):
    head = struct.pack("!HHBBH", 1, 0x0800, 6, 4, REQUEST)
    packet = head + mac + socket.inet_aton(sender) + bytes(6) + socket.inet_aton(target)
    arp.send(b"\xff" * 6 + mac + struct.pack("!H", ETH_P_ARP) + packet)
    deadline = time.monotonic() + 0.7
    while select.select([arp], [], [], max(0, deadline - time.monotonic()))[0]:
        reply = arp.recv(64)[14:]
        if reply[6:8] == struct.pack("!H", REPLY) and reply[14:18] == socket.inet_aton(target):
            return "answered"
    return "silence"


for target in ("198.18.0.1", "198.18.0.9"):
    print(*(answered(sender, target) for sender in ("198.18.0.2", "0.0.0.0", target)))
PYTHON
)

echo "Linux $(uname -r)"
echo "request, probe and announcement of the router's own address, then of the proxied one:"
echo "$answers"
echo "arping -D finds them free: $free; IPv6 duplicate address detection finds the proxied one free: $free6"
expected="answered answered silence
answered silence answered"
[ "$answers" = "$expected" ] && [ "$free" = "no yes" ] && [ "$free6" = no ]
