#!/bin/sh
# Makes sure that the system has what a make target needs: tools/bootstrap.sh run|demo|test|lint|bench ...
#
# Every need is checked by what is used of it (a command, a header, a library), not by package name, so that what was
# installed by other means counts. What is missing is installed by apt when this runs as root; else one line says
# what to install. A server that comes this way is neither started nor left enabled: tests start their own.
set -eu

say() { printf '%s\n' "$*"; }
fail() {
  printf 'hyperplane-nat: %s\n' "$*" >&2
  exit 1
}

has() { command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ]; }
has_header() { printf '#include <%s>\n' "$1" | gcc -E -x c - >/dev/null 2>&1; }
has_cmocka() { printf '#include <stdarg.h>\n#include <stddef.h>\n#include <setjmp.h>\n#include <cmocka.h>\n' | gcc -E -x c - >/dev/null 2>&1; }
has_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null; }
has_python_header() {
  python3 -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2>/dev/null
}
has_fuzzer() { [ -n "$(find "$(clang -print-resource-dir 2>/dev/null)/lib" -name 'libclang_rt.fuzzer*' 2>/dev/null)" ]; }
clang_version() { { clang -dumpversion || echo 14; } 2>/dev/null | cut -d. -f1; } # 14: Debian 12's
has_postgres() { has postgres || [ -n "$(find /usr/lib/postgresql -path '*/bin/postgres' 2>/dev/null)" ]; }
has_pgbench() { has pgbench || [ -n "$(find /usr/lib/postgresql -path '*/bin/pgbench' 2>/dev/null)" ]; }

missing=""
need() { # Debian package, check...
  package=$1
  shift
  "$@" || missing="$missing $package"
}

needs() { # set
  case $1 in
    run)
      need gcc has gcc
      need libc6-dev has_header stdio.h
      need liburing-dev has_header liburing.h
      need python3-venv has_venv
      need python3-dev has_python_header
      ;;
    demo)
      needs run
      need iproute2 has ip
      need nftables has nft
      ;;
    test)
      needs demo
      need bind9-dnsutils has dig
      need bubblewrap has bwrap
      need busybox-static has busybox
      need clang has clang
      need containerd has ctr
      need curl has curl
      need dnsmasq-base has dnsmasq
      need docker.io has dockerd
      need iperf3 has iperf3
      need iputils-ping has ping
      need iputils-tracepath has tracepath
      need "libclang-rt-$(clang_version)-dev" has_fuzzer
      need libcmocka-dev has_cmocka
      need llvm has llvm-symbolizer # readable reports of the sanitizers and fuzzers
      need nginx-light has nginx
      need podman has podman
      need postgresql has_postgres
      need postgresql-contrib has_pgbench
      need procps has ps
      need qemu-system-x86 has qemu-system-x86_64
      need redis-server has redis-server
      need redis-tools has redis-benchmark
      need runc has runc
      need strace has strace
      need systemd has systemd-analyze
      need systemd-container has systemd-nspawn
      need traceroute has traceroute
      ;;
    lint)
      needs run
      need clang has clang
      need clang-format has clang-format
      need clang-tidy has clang-tidy
      need libcmocka-dev has_cmocka
      need shellcheck has shellcheck
      ;;
    bench)
      needs demo
      need iperf3 has iperf3
      need passt has pasta
      need procps has ps
      need slirp4netns has slirp4netns
      ;;
    *) fail "unknown set \"$1\": one of run, demo, test, lint, bench" ;;
  esac
}

# Namespaces and TUN devices are root's; finding that out after minutes of installing would be late.
needs_root() { # set
  case $1 in
    demo | test | bench)
      [ "$(id -u)" -eq 0 ] || fail "make $1 makes network namespaces and TUN devices, so it must run as root: sudo make $1"
      [ -c /dev/net/tun ] || fail "make $1 needs /dev/net/tun: modprobe tun (in a container: --device /dev/net/tun --cap-add NET_ADMIN --cap-add SYS_ADMIN)"
      ;;
  esac
}

check_python() {
  has python3 || missing="$missing python3"
  if has python3 && ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    fail "Python 3.11 or newer is needed, $(command -v python3) is $(python3 -V 2>&1 | cut -d' ' -f2): put a newer one first in PATH"
  fi
}

apt() { apt-get -qq -y -o DPkg::Lock::Timeout=300 -o Dpkg::Use-Pty=0 "$@"; }

# While packages are installed no service starts (policy-rc.d, see invoke-rc.d(8)) and no PostgreSQL cluster is made.
# What their installation has enabled for the next boot is disabled afterwards: units by their links, since
# deb-systemd-helper does nothing for others than dpkg.
SERVICES="containerd docker iperf3 nginx podman postgresql redis"
enabled() {
  for service in $SERVICES; do
    find /etc/systemd/system -path "*.wants/$service*" 2>/dev/null || true
    find /etc/init.d -name "$service*" 2>/dev/null || true
  done
}
guard_services() {
  guarded=""
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod 755 /usr/sbin/policy-rc.d
    guarded="$guarded /usr/sbin/policy-rc.d"
  fi
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    mkdir -p /etc/postgresql-common/createcluster.d
    echo "create_main_cluster = false" >/etc/postgresql-common/createcluster.d/hyperplane-nat.conf
    guarded="$guarded /etc/postgresql-common/createcluster.d/hyperplane-nat.conf"
  fi
  before=" $(enabled | tr '\n' ' ') "
}
unguard_services() {
  # shellcheck disable=SC2086 # lists of words without spaces
  rm -f $guarded
  for one in $(enabled); do
    case $before$one in
      *" $one "*) ;; # as it was
      *.wants/*) rm -f "$one" ;;
      *) update-rc.d "${one##*/}" disable >/dev/null 2>&1 || true ;;
    esac
  done
}

install() {
  has apt-get || fail "missing:$missing (names of Debian's packages); this system has no apt-get: install them by its own means"
  [ "$(id -u)" -eq 0 ] || fail "missing packages; as root: apt-get install$missing"
  say "bootstrap: installing$missing"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  guard_services
  trap 'unguard_services; rm -f "$log"' EXIT
  trap 'exit 130' INT TERM
  # A line for each package that is in place is the progress shown; a pipe keeps no exit status, so the last line tells.
  # shellcheck disable=SC2086 # a list of package names
  { apt update && apt install --no-install-recommends $missing && echo installed; } 2>&1 | tee "$log" |
    sed -n 's/^Setting up \([^ ]*\) (\(.*\)) \.\.\./bootstrap:   \1 \2/p'
  if [ "$(tail -n 1 "$log")" != installed ]; then
    tail -n 20 "$log" >&2
    fail "apt-get could not install$missing (its last lines stand above)"
  fi
}

[ $# -gt 0 ] || fail "usage: tools/bootstrap.sh run|demo|test|lint|bench ..."
check_python
for set in "$@"; do
  needs_root "$set"
  needs "$set"
done
if [ -n "$missing" ]; then
  # shellcheck disable=SC2086
  missing=" $(printf '%s\n' $missing | sort -u | tr '\n' ' ' | sed 's/ $//')"
  install
  missing=""
  for set in "$@"; do needs "$set"; done
  [ -z "$missing" ] || fail "still missing after installing:$missing; is another python3 or gcc first in PATH?"
fi
