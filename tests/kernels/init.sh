#!/bin/busybox sh
# shellcheck shell=dash
# /init of a guest: the machine's root, read-only, below an overlay in memory; then inside.py, from the tree. What is told
# by image.py lies in files: order (modules), tree (the project's directory), python (the interpreter).
b=/bin/busybox
fail() {
  echo "init: $*"
  $b poweroff -f
}

$b mount -t proc proc /proc || fail "no /proc"
$b mount -t sysfs sys /sys || fail "no /sys"
$b mount -t devtmpfs dev /dev || fail "no /dev"
while read -r module; do $b insmod "$module" || fail "$module cannot be loaded"; done </order
$b mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose root /lower || fail "no root over 9p"
$b mount -t tmpfs -o mode=755 tmpfs /upper || fail "no memory for an overlay"
$b mkdir /upper/data /upper/work
$b mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work root /root || fail "no overlay"
tree=$($b cat /tree)
python=$($b cat /python)
for place in proc sys dev; do $b mount --move /$place /root/$place || fail "/$place cannot be moved"; done
# shellcheck disable=SC2016,SC2093 # the shell that is started expands it; what stands behind is for the case that none is
exec $b switch_root /root /bin/sh -c 'cd "$0" && exec "$1" -m tests.kernels.inside' "$tree" "$python"
fail "no shell in the machine's root"
