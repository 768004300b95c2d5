"""What doctor cannot read anywhere: tried by a child in namespaces of its own, or asked of other programs."""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hyperplane.cli.sandbox import isolate
from hyperplane.errors import HyperplaneError

SYSTEM_PATH: Final = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"
PROC: Final = Path("/proc/sys")
NOBODY: Final = 65534
PR_SET_DUMPABLE: Final = 4  # linux/prctl.h
DEADLINE: Final = 10.0  # seconds


def offloads() -> tuple[list[str], str]:
    """The segmentations that a TUN device here takes; or why that could not be tried."""
    found, problem = _in_child(_offloads)
    return found or [], problem


def packet_io(user: str) -> tuple[dict[str, str], str]:
    """The I/O engines, and why one cannot run, for a process that has become an engine of that user, with its limits
    and without root's privileges: root may more (io_uring, locked memory). Or why that could not be tried.
    """

    def probe() -> dict[str, str]:
        from hyperplane.dataplane import io_engines
        from hyperplane.linux.namespaces import raise_descriptor_limit
        from hyperplane.linux.privileges import drop_privileges, lift_memory_limit

        raise_descriptor_limit()  # nothing is imported once it is another user: Python may be root's alone
        lift_memory_limit()
        drop_privileges(user)
        return io_engines()

    found, problem = _in_child(probe)
    return found or {}, problem


def user_namespaces() -> str:
    """Why somebody who is not root cannot make a network namespace; "" when they can."""
    return _in_child(_isolate_as_somebody)[1]


@dataclass(frozen=True)
class Forwarding:
    """Of one namespace. strict: devices with a strict rp_filter. dropping: chains. unseen: why there are none."""

    strict: list[str]
    ip_forward: bool
    tools: list[str]
    dropping: list[str]
    unseen: str = ""


@dataclass(frozen=True)
class Crossing:
    """Of an ENI's device: what is 0 and would have to be 1 for its packets to get to and from these uplinks.

    nothing: by no uplink at all.
    """

    device: str
    settings: list[str]
    uplinks: list[str]
    nothing: bool
    ip_forward: bool


def forwarding(namespace: str) -> tuple[Forwarding, str]:
    """What a namespace would drop; or why it could not be looked at. "": the one that we are in."""
    found, problem = _in_child(lambda: _forwarding(namespace))
    return (Forwarding(**found) if found else Forwarding([], False, [], [])), problem


def number(path: Path) -> int:
    """A setting; -1 when the kernel has none of that name."""
    try:
        return int(path.read_text(encoding="ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return -1


def crossing(namespace: str) -> tuple[list[Crossing], str]:
    """Of each ENI whose device is in a namespace; or why that could not be looked at. "": the one that we are in."""
    found, problem = _in_child(lambda: _crossing(namespace))
    return [Crossing(**one) for one in found or ()], problem


def _crossing(namespace: str) -> list[dict[str, Any]]:
    from hyperplane.linux.forwarding import look, troubles

    _enter(namespace)
    devices, routed = look()
    enis = [one.name for one in devices if one.kind == "tun" and one.name.startswith("eni")]
    found = ((eni, troubles(eni, devices, routed, enis)) for eni in enis)
    return [
        {
            "device": eni,
            "settings": [one.setting for one in each],
            "uplinks": sorted({name for one in each for name in one.uplinks}),
            "nothing": any(one.hopeless for one in each),
            "ip_forward": number(PROC / "net/ipv4/ip_forward") == 1,
        }
        for eni, each in found
    ]


def _enter(namespace: str) -> None:
    if namespace:
        from hyperplane.linux.namespaces import CLONE_NEWNET, LIBC, open_namespace

        with open_namespace(namespace) as found:
            if LIBC.setns(found.fd, CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _forwarding(namespace: str) -> dict[str, Any]:
    _enter(namespace)
    tools = [name for name in ("nft", "iptables") if shutil.which(name, path=SYSTEM_PATH)]
    root = os.geteuid() == 0
    return {
        "strict": [one for one in ("all", "default") if number(PROC / f"net/ipv4/conf/{one}/rp_filter") == 1],
        "ip_forward": number(PROC / "net/ipv4/ip_forward") == 1,
        "tools": tools,
        "dropping": _dropping_chains(tools) if root else [],
        "unseen": "" if root or not tools else "that needs root",
    }


def _dropping_chains(tools: Sequence[str]) -> list[str]:
    """Chains of the namespace that we are in whose policy drops what is forwarded."""
    found = []
    for tool in tools:
        command = ["nft", "-j", "list", "chains"] if tool == "nft" else ["iptables", "-w", "-S", "FORWARD"]
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=DEADLINE, check=False,
                env=os.environ | {"PATH": SYSTEM_PATH},
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired):
            continue
        found += _nft_chains(done.stdout) if tool == "nft" else _iptables_chains(done.stdout)
    return found


def _nft_chains(text: str) -> list[str]:
    """From `nft -j list chains`."""
    try:
        chains = [one["chain"] for one in json.loads(text or "{}").get("nftables", ()) if "chain" in one]
    except ValueError:
        return []
    return [
        f"nft {one['family']} {one['table']} {one['name']}"
        for one in chains
        if one.get("hook") == "forward" and one.get("policy") == "drop" and one["family"] in ("ip", "inet")
    ]


def _iptables_chains(text: str) -> list[str]:
    """From `iptables -S FORWARD`."""
    return ["iptables FORWARD"] if re.search(r"^-P FORWARD DROP$", text, re.MULTILINE) else []


def _offloads() -> list[str]:
    from hyperplane.linux import tun

    isolate()
    fd = tun.open_tun("probe0")
    names = {"TSO": tun.TUN_F_CSUM | tun.TUN_F_TSO4, "USO": tun.TUN_F_CSUM | tun.TUN_F_USO4 | tun.TUN_F_USO6}
    found = []
    for name, bits in names.items():
        try:
            fcntl.ioctl(fd, tun.TUNSETOFFLOAD, bits)
            found.append(name)
        except OSError:
            continue
    return found


def _isolate_as_somebody() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # else /proc/self would be root's
    isolate()


def _in_child(probe: Callable[[], Any]) -> tuple[Any, str]:
    """What probe returns in a process of its own; or, as words, what it raised."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        answer: tuple[Any, str] = (None, "")
        try:
            answer = (probe(), "")
        except HyperplaneError as error:
            answer = (None, error.message)
        except OSError as error:
            answer = (None, error.strerror or str(error))
        except Exception as error:  # else it would look as if it had found nothing
            answer = (None, repr(error))
        finally:
            os.write(writing, json.dumps(answer).encode())
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as file:
        said: Any = json.loads(file.read() or b'[null, "the probe ended"]')
    os.waitpid(child, 0)
    return said[0], said[1]
