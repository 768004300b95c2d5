"""`hyperplane-nat doctor`: whether this host can run daemon, engine and `run`, and what to do where it cannot.

Nothing here needs the daemon, and nothing is changed: what has to be tried is tried by a child in a namespace that goes
with it.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import socket
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from hyperplane.cli import probes
from hyperplane.cli.options import Caller
from hyperplane.cli.terminal import Styled
from hyperplane.errors import DaemonUnavailable, HyperplaneError

State = Literal["ok", "warn", "fail"]
STYLES: Final[dict[str, str]] = {"ok": "green", "warn": "yellow", "fail": "bold red"}
LEAST_FILES: Final = 1024
ENOUGH_FILES: Final = 16_384
WATCHES: Final = 8192  # one for each namespace that is watched by its name
HUGE_PAGES: Final = Path("/sys/kernel/mm/transparent_hugepage")
TUN: Final = "/dev/net/tun"
MOST_NAMED: Final = 3
# capabilities(7): what the daemon uses. PTRACE: to open another process's namespace.
CAPABILITIES: Final = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21}
# From which kernel on, and what there is without it.
KERNELS: Final = (
    ((5, 6), "fail", "pidfd_open() and io_uring are too old for the daemon"),
    ((6, 1), "warn", "the tables get no huge pages (MADV_COLLAPSE, 6.1)"),
    ((6, 2), "warn", "UDP is not segmented by the kernel (TUN_F_USO4, 6.2)"),
    ((6, 4), "warn", "who holds a TUN's descriptor may hold others up for 10 ms (RWF_NOWAIT for a TUN, 6.4)"),
    ((6, 7), "warn", "packets are read by epoll (io_uring reads that repeat themselves, 6.7)"),
)


class Check(msgspec.Struct, frozen=True):
    """One line: what was looked at, what was found, what to do about it ("" for nothing)."""

    check: str
    state: State
    found: str
    remedy: str = ""


def run(caller: Caller, namespaces: Sequence[str], engine_user: str) -> int:
    """Prints all checks; 1 when one of them says that it cannot work. namespaces: of VPCs, to be looked at besides.
    engine_user: whom the daemon's engine becomes."""
    checks = [one for look in CHECKS for one in look()]
    checks += _io(engine_user)
    known = _enis(caller)
    for namespace in namespaces or ("",):
        checks += _forwarding(namespace)
        checks += _crossing(namespace, known)
    checks += _daemon(caller)
    if caller.as_json:
        print(msgspec.json.encode(checks).decode())
    else:
        _print(caller, checks)
    return int(any(one.state == "fail" for one in checks))


def _print(caller: Caller, checks: Sequence[Check]) -> None:
    printer = caller.printer()
    width = max(len(one.check) for one in checks)
    for one in checks:
        printer.line(Styled(f"{one.state:<6}", STYLES[one.state]), f"{one.check:<{width}}  ", one.found)
        if one.remedy:
            printer.line(f"{'':<{width + 8}}→ {one.remedy}")


# Looks


def _kernel() -> Iterable[Check]:
    release = platform.release()
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    lacks: list[tuple[State, str]] = [
        ("fail" if state == "fail" else "warn", text) for least, state, text in KERNELS if version < least
    ]
    if not lacks:
        yield Check("kernel", "ok", f"Linux {release}")
        return
    worst: State = "fail" if any(state == "fail" for state, _ in lacks) else "warn"
    yield Check("kernel", worst, f"Linux {release}: {'; '.join(text for _, text in lacks)}", "use Linux 6.7 or newer")


def _tun() -> Iterable[Check]:
    remedy = "load the module (modprobe tun), or give the container /dev/net/tun"
    try:
        if not stat.S_ISCHR(os.stat(TUN).st_mode):
            yield Check(TUN, "fail", "it is no device", remedy)
            return
        os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        remedy = "chmod 0666 /dev/net/tun (what udev sets), or allow the container's device cgroup c 10:200 rwm"
        yield Check(TUN, "fail" if os.geteuid() == 0 else "warn", "it may not be opened", remedy)
    except OSError as error:
        yield Check(TUN, "fail", error.strerror or str(error), remedy)
    else:
        yield Check(TUN, "ok", "it can be opened")


def _capabilities() -> Iterable[Check]:
    status = Path("/proc/self/status").read_text(encoding="ascii")
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", status, re.MULTILINE)
    effective = int(match[1], 16) if match else 0
    missing = [name for name, bit in CAPABILITIES.items() if not effective >> bit & 1]
    if not missing:
        yield Check("capabilities", "ok", ", ".join(CAPABILITIES))
    elif os.geteuid():
        text = "not root, which `daemon` needs; `run` and all else work for members of the daemon's group"
        yield Check("capabilities", "warn", text, "sudo hyperplane-nat doctor looks at what the daemon would have")
    else:
        remedy = f"give the container {', '.join(missing)} (docker run --cap-add ...)"
        yield Check("capabilities", "fail", f"root without {', '.join(missing)}", remedy)


def _open_files() -> Iterable[Check]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= ENOUGH_FILES:
        yield Check("open files", "ok", "no limit" if hard == resource.RLIM_INFINITY else f"up to {hard:,}")
        return
    remedy = "LimitNOFILE= in the unit, or `ulimit -Hn`: each environment takes one in the daemon and one in the engine"
    text = f"up to {hard:,}: some {max(hard - 200, 0):,} environments"
    yield Check("open files", "fail" if hard < LEAST_FILES else "warn", text, remedy)


def _io(user: str) -> Iterable[Check]:
    """As the engine's user: root may more."""
    engines, problem = probes.packet_io(user)
    if problem:
        yield Check("packet I/O", "fail", f"not tried as {user}: {problem}", "--engine-user USER, as for the daemon")
        return
    as_whom = f" as {user}" if os.geteuid() == 0 else ""
    works = [name for name, problem in engines.items() if not problem]
    problem = engines.get("io_uring", "")
    if not works:
        text = f"none{as_whom}: io_uring: {problem}; epoll: {engines.get('epoll', '')}"
        yield Check("packet I/O", "fail", text, "use Linux 6.7")
    elif problem:
        remedy = (
            "Linux 6.7, kernel.io_uring_disabled=0 (or 1, and the engine's user in kernel.io_uring_group);"
            " containers: a seccomp profile that allows io_uring"
        )
        yield Check("packet I/O", "warn", f"{', '.join(works)}{as_whom}; no io_uring: {problem}", remedy)
    else:
        yield Check("packet I/O", "ok", f"{', '.join(works)}{as_whom}")


def _offloads() -> Iterable[Check]:
    found, problem = probes.offloads()
    if problem:
        yield Check("TUN offloads", "warn", f"not tried: {problem}", "run doctor as root")
    elif "USO" in found:
        yield Check("TUN offloads", "ok", ", ".join(found))
    else:
        text = f"{', '.join(found) or 'none'}: UDP is not segmented by the kernel"
        yield Check("TUN offloads", "warn", text, "use Linux 6.2 or newer")


def _huge_pages() -> Iterable[Check]:
    try:
        shmem = (HUGE_PAGES / "shmem_enabled").read_text(encoding="ascii")
    except OSError:
        text = "the kernel has no transparent huge pages: many flows cost more cache misses"
        yield Check("huge pages", "warn", text, "a kernel with CONFIG_TRANSPARENT_HUGEPAGE")
        return
    chosen = re.search(r"\[(\w+)\]", shmem)
    yield Check("huge pages", "ok", f"there are some; shmem_enabled is {chosen[1] if chosen else '?'}, either will do")


def _inotify() -> Iterable[Check]:
    watches = probes.number(probes.PROC / "fs/inotify/max_user_watches")
    instances = probes.number(probes.PROC / "fs/inotify/max_user_instances")
    if watches < WATCHES or instances < 2:
        remedy = "sysctl fs.inotify.max_user_watches=65536 fs.inotify.max_user_instances=128"
        text = f"{watches:,} watches, {instances:,} instances: namespaces that go away are noticed late"
        yield Check("inotify", "warn", text, remedy)
    else:
        yield Check("inotify", "ok", f"{watches:,} watches, {instances:,} instances")


def _user_namespaces() -> Iterable[Check]:
    if not (problem := probes.user_namespaces()):
        yield Check("user namespaces", "ok", "`run` works without root")
        return
    causes = (
        ("kernel/apparmor_restrict_unprivileged_userns", 1, 0),
        ("kernel/unprivileged_userns_clone", 0, 1),
        ("user/max_user_namespaces", 0, 65536),
    )
    wrong = [(name, good) for name, bad, good in causes if probes.number(probes.PROC / name) == bad]
    settings = " ".join(f"{name.replace('/', '.')}={good}" for name, good in wrong)
    remedy = f"sysctl {settings}, or use `run` as root" if wrong else "use `run` as root"
    yield Check("user namespaces", "warn", f"not without root: {problem}; `run` needs them then", remedy)


def _forwarding(namespace: str) -> Iterable[Check]:
    """What a VPC's namespace ("": the one that we are in) would drop."""
    where = f" in {namespace}" if namespace else ""
    looked, problem = probes.forwarding(namespace)
    if problem:
        yield Check(f"forwarding{where}", "fail", problem, "give a namespace as `ip netns list` shows it, and be root")
        return
    if looked.strict:
        text = f"strict for {' and '.join(looked.strict)}: answers by another device than requests leave by are lost"
        remedy = f"sysctl net.ipv4.conf.all.rp_filter=2{where}, if routes there are asymmetric"
        yield Check(f"rp_filter{where}", "warn", text, remedy)
    else:
        yield Check(f"rp_filter{where}", "ok", "not strict")
    text = "off: on a shared segment it is set for the devices that need it; elsewhere whoever routes sets it"
    yield Check(f"ip_forward{where}", "ok", "on" if looked.ip_forward else text)
    if looked.dropping:
        text = f"{', '.join(looked.dropping)} drops what it does not know"
        remedy = "if ENIs are made there, accept what comes in or goes out by eni*"
        yield Check(f"firewall{where}", "warn", text, remedy)
    elif looked.unseen:
        yield Check(f"firewall{where}", "warn", f"not looked at: {looked.unseen}", "run doctor as root")
    else:
        tools = ", ".join(looked.tools) or "neither nft nor iptables is installed"
        yield Check(f"firewall{where}", "ok", f"no chain drops forwarded packets by default ({tools})")


def _crossing(namespace: str, enis: Mapping[str, str]) -> Iterable[Check]:
    """Whether what ENIs send gets through a VPC's namespace, and the answers back. enis: id by device."""
    where = f" in {namespace}" if namespace else ""
    found, problem = probes.crossing(namespace)
    wrong = [one for one in found if one.settings]
    if found and not wrong:
        yield Check(f"ENIs{where}", "ok", "what is beyond the namespace can be reached, and answers come back")
    if problem or not wrong:
        return  # then _forwarding() has said it
    names = [f"{one.device} ({enis[one.device]})" if one.device in enis else one.device for one in wrong]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    settings = list(dict.fromkeys(setting for one in wrong for setting in one.settings))
    uplinks = list(dict.fromkeys(name for one in wrong for name in one.uplinks))
    zero = " and ".join(f"{setting} is 0" for setting in settings)
    lost = f"nothing beyond {', '.join(uplinks)} can be reached, and no sender is told"
    # Writing 1 where there is 1 already sets no device.
    needed = ["net.ipv4.ip_forward"] if not wrong[0].ip_forward else ["net.ipv4.conf.default.forwarding", *settings]
    prefix = f"ip netns exec {namespace} " if "/" not in namespace and ":" not in namespace and namespace else ""
    remedy = f"{prefix}sysctl {' '.join(f'{name}=1' for name in needed)}"
    state: State = "fail" if any(one.nothing for one in wrong) else "warn"
    yield Check(f"ENIs{where}", state, f"{', '.join(names[:MOST_NAMED])}{more}: {zero}: {lost}", remedy)


def _enis(caller: Caller) -> dict[str, str]:
    """The id of each ENI by its device; none when the daemon does not say."""
    try:
        with caller.client() as client:
            return {one.device: one.id for one in client.enis()}
    except HyperplaneError:
        return {}


CHECKS: Final[tuple[Callable[[], Iterable[Check]], ...]] = (
    _kernel, _tun, _capabilities, _open_files, _offloads, _huge_pages, _inotify, _user_namespaces,
)  # fmt: skip


def _daemon(caller: Caller) -> Iterable[Check]:
    """Whether it answers, and what it says of itself and of its ENIs in the kernel: it compares them all the time."""
    from hyperplane.client import socket_path

    path = socket_path(caller.instance)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(5)
        try:
            asking.connect(str(path))
        except PermissionError:
            yield Check("daemon", "warn", f"{path} may not be used by this user", "join the daemon's group")
            return
        except OSError:
            text = f"instance {caller.instance} does not run"
            yield Check("daemon", "ok", text, f"start it: hyperplane-nat daemon --instance {caller.instance}")
            return
    try:
        with caller.client() as client:
            reasons = client.health().reasons
    except DaemonUnavailable as error:
        yield Check("daemon", "warn", error.message, error.remedy)
    except HyperplaneError as error:
        yield Check("daemon", "warn", str(error))
    else:
        if not reasons:
            yield Check("daemon", "ok", f"instance {caller.instance} answers")
        for found, _, remedy in (reason.partition("; ") for reason in reasons):
            yield Check("daemon", "fail", found, remedy or "the daemon's log says more")
