"""The ways from an environment to a server that take part in a contest: ours, and the kernel's own NAT over veth."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from bench.lab import PATIENCE, Lab, answer, shell

INSIDE: Final = "198.18.0.2"
ENI_ADDRESS: Final = "198.19.0.10"
SERVER: Final = "198.19.0.2"
LATENCY_PORT: Final = 7001
SERVERS_LIVE: Final = 3000  # seconds after which a server that was forgotten ends

# A blaster is faster than any NAT: what does not fit a queue is lost, and says nothing against anybody.
HARMLESS_DROPS: Final = frozenset({"output_full", "unsupported_ipv6"})


@dataclass
class Rival:
    """A client's namespace, a server's, and what lies between them; tcp_latency serves in the latter."""

    name: str
    client: str
    server: str
    process: subprocess.Popen[str] | None = None
    before: dict[str, int] = field(default_factory=dict)

    def counted(self) -> dict[str, Any]:
        """What the engine counted so far; nothing when the kernel is the NAT."""
        if self.process is None or self.process.stdin is None:
            return {"drops": {}, "status": {}}
        self.process.stdin.write("count\n")
        counted: dict[str, Any] = json.loads(answer(self.process))
        return counted

    def check(self) -> None:
        """Fails when packets were dropped since the last call for a reason that no load explains."""
        drops: dict[str, int] = self.counted()["drops"]
        new = {reason: count - self.before.get(reason, 0) for reason, count in drops.items()}
        self.before = drops
        bad = {reason: count for reason, count in new.items() if count and reason not in HARMLESS_DROPS}
        assert not bad, f"{self.name} dropped packets: {bad}: the measurement is void"


def kernel_nft(lab: Lab) -> Rival:
    """client -- veth -- NAT (nft masquerade) -- veth -- server."""
    client, nat, server = (lab.namespace(f"kernel-{role}") for role in ("client", "nat", "server"))
    _veth(client, "eth0", f"{INSIDE}/24", nat, "inside", "198.18.0.1/24")
    _veth(server, "eth0", f"{SERVER}/24", nat, "outside", f"{ENI_ADDRESS}/24")
    shell("ip", "-n", client, "route", "add", "default", "via", "198.18.0.1")
    shell("ip", "netns", "exec", nat, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    rules = "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname outside masquerade; }; }"
    shell("ip", "netns", "exec", nat, "nft", rules)
    return _with_server(lab, Rival("kernel nft over veth", client, server))


@contextmanager
def hyperplane(lab: Lab, io: str) -> Iterator[Rival]:
    """client -- TUN -- engine -- TUN in the server's namespace. The engine ends with the context."""
    client, server = (lab.namespace(f"{io}-{role}") for role in ("client", "server"))
    shell("ip", "-n", server, "address", "add", f"{SERVER}/32", "dev", "lo")
    command = (sys.executable, "-m", "bench.engine_process", server, client, ENI_ADDRESS, io)
    process = lab.start("", *command)
    rival = _with_server(lab, Rival("hyperplane-nat", client, server, process))
    used = rival.counted()["status"]["io"]
    rival.name += f" ({used})"
    assert io in ("auto", used), f"the engine runs on {used}, not on {io}"
    yield rival
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(PATIENCE) == 0, "the engine's process ended with an error"


def _veth(here: str, device: str, address: str, there: str, peer: str, peer_address: str) -> None:
    shell("ip", "-n", here, "link", "add", device, "type", "veth", "peer", "name", peer, "netns", there)
    for namespace, name, own in ((here, device, address), (there, peer, peer_address)):
        shell("ip", "-n", namespace, "address", "add", own, "dev", name)
        shell("ip", "-n", namespace, "link", "set", name, "up")


def _with_server(lab: Lab, rival: Rival) -> Rival:
    lab.start(rival.server, lab.tool("tcp_latency"), "serve", SERVER, str(LATENCY_PORT), str(SERVERS_LIVE))
    return rival
