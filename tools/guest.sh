#!/bin/sh
# A kernel and an initramfs for the virtual machines of tests and documents: tools/guest.sh DIRECTORY
#
# The kernel is Debian's smallest, downloaded and unpacked, not installed. The initramfs is busybox with an init that
# does what the kernel's command line says, and then switches the machine off:
#   address=198.18.0.2/30 gateway=198.18.0.1   of its network device
#   fetch=http://198.19.0.10/                  its first line is printed; times=N: so often, once a second
set -eu

fail() {
  printf 'hyperplane-nat: %s\n' "$*" >&2
  exit 1
}

[ $# -eq 1 ] || fail "usage: tools/guest.sh DIRECTORY"
command -v busybox >/dev/null || fail "no busybox: tools/bootstrap.sh test"
directory=$1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$directory" "$work/bin" "$work/modules" "$work/package"

download() {
  package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: //p' | head -n 1)
  [ -n "$package" ] && (cd "$work/package" && apt-get -qq -o APT::Sandbox::User=root download "$package" 2>/dev/null)
}
download || { apt-get -qq -o DPkg::Lock::Timeout=300 update && download; } || fail "apt has no linux-image-cloud-amd64"
dpkg-deb -x "$work"/package/*.deb "$work/package/root"

cp "$(command -v busybox)" "$work/bin/busybox"
# In an order in which each finds those that it needs. What is missing is part of the kernel.
for module in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci \
  failover net_failover virtio_net; do
  find "$work/package/root/lib/modules" -name "$module.ko*" -exec cp {} "$work/modules/" \;
  echo "$module" >>"$work/modules/order"
done
cat >"$work/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mkdir -p /proc /sys
mount -t proc none /proc
mount -t sysfs none /sys
for module in $(cat /modules/order); do
  for file in /modules/$module.ko*; do [ -e "$file" ] && insmod "$file"; done
done
times=1
for word in $(cat /proc/cmdline); do
  case $word in address=* | gateway=* | fetch=* | times=*) eval "${word%%=*}='${word#*=}'" ;; esac
done
ip link set lo up
ip address add "$address" dev eth0
ip link set eth0 up
ip route add default via "$gateway"
while :; do
  # Not -T: Debian 12's busybox crashes on it.
  echo "guest: $(timeout 2 wget -q -O - "$fetch" 2>&1 | head -n 1)"
  times=$((times - 1))
  [ $times -gt 0 ] || break
  sleep 1
done
poweroff -f
INIT
chmod 755 "$work/init"
(cd "$work" && find init bin modules | busybox cpio -o -H newc 2>/dev/null | gzip -1) >"$directory/initramfs.new"
cp "$work"/package/root/boot/vmlinuz-* "$directory/vmlinuz"
mv "$directory/initramfs.new" "$directory/initramfs.img" # last: where it is, all is there
