"""The ways from an environment to a server that take part in a contest: ours, the kernel's own NAT over veth, and the
bare forwarder, which is the ceiling for ours. Those of user space are in bench/usermode.py."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from bench.lab import NETNS, PATIENCE, Lab, answer, shell
from hyperplane.linux import rtnl

INSIDE: Final = "198.18.0.2"
BYSTANDER: Final = "198.18.1.2"
ENI_ADDRESS: Final = "198.19.0.10"
SERVER: Final = "198.19.0.2"
LATENCY_PORT: Final = 7001
SERVERS_LIVE: Final = 3000  # seconds after which a server that was forgotten ends

KERNEL: Final = "kernel nft over veth"
BARE: Final = "bare multishot forwarder"
PASTA: Final = "pasta, MTU {}"
SLIRP: Final = "slirp4netns, MTU {}"
PASTA_1500, SLIRP_1500 = PASTA.format(1500), SLIRP.format(1500)

# A blaster is faster than any NAT: what does not fit a queue is lost, and says nothing against anybody.
HARMLESS_DROPS: Final = frozenset({"output_full", "unsupported_ipv6"})


@dataclass
class Rival:
    """A client's namespace, a server's, and what lies between them; tcp_latency serves in the latter.

    bystander: the namespace of another environment that is served by the same, "" when there is none. process: what
    carries the packets, unless the kernel does. engine: whether that is ours.
    """

    name: str
    client: str
    server: str
    bystander: str = ""
    process: subprocess.Popen[str] | None = None
    engine: bool = False
    before: dict[str, int] = field(default_factory=dict)

    def counted(self) -> dict[str, Any]:
        """What the engine counted so far; nothing when another one carries the packets."""
        if not self.engine:
            return {"drops": {}, "status": {}}
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write("count\n")
        counted: dict[str, Any] = json.loads(answer(self.process))
        return counted

    def check(self) -> None:
        """Fails when packets were dropped since the last call for a reason that no load explains, or it has ended."""
        assert self.process is None or self.process.poll() is None, f"{self.name} has ended: the measurement is void"
        drops: dict[str, int] = self.counted()["drops"]
        new = {reason: count - self.before.get(reason, 0) for reason, count in drops.items()}
        self.before = drops
        bad = {reason: count for reason, count in new.items() if count and reason not in HARMLESS_DROPS}
        assert not bad, f"{self.name} dropped packets: {bad}: the measurement is void"

    def serve(self, lab: Lab) -> None:
        lab.start(self.server, lab.tool("tcp_latency"), "serve", SERVER, str(LATENCY_PORT), str(SERVERS_LIVE))


@contextmanager
def kernel_nft(lab: Lab, name: str = "kernel") -> Iterator[Rival]:
    """client -- veth -- NAT (nft masquerade) -- veth -- server. name: of its namespaces."""
    client, bystander, nat, server = (
        lab.namespace(f"{name}-{role}") for role in ("client", "bystander", "nat", "server")
    )
    for number, (environment, address) in enumerate(((client, INSIDE), (bystander, BYSTANDER))):
        gateway = f"198.18.{number}.1"
        veth(environment, "eth0", f"{address}/24", nat, f"inside{number}", f"{gateway}/24")
        shell("ip", "-n", environment, "route", "add", "default", "via", gateway)
    veth(server, "eth0", f"{SERVER}/24", nat, "outside", f"{ENI_ADDRESS}/24")
    shell("ip", "netns", "exec", nat, "sysctl", "-qw", "net.ipv4.ip_forward=1")
    rules = "table ip nat { chain post { type nat hook postrouting priority srcnat; oifname outside masquerade; }; }"
    shell("ip", "netns", "exec", nat, "nft", rules)
    rival = Rival(KERNEL, client, server, bystander)
    rival.serve(lab)
    yield rival


@contextmanager
def bare_forwarder(lab: Lab) -> Iterator[Rival]:
    """client -- TUN -- bare forwarder -- TUN -- server; the bystander has TUNs of its own, so nothing is looked up."""
    client, bystander, server = (lab.namespace(f"bare-{role}") for role in ("client", "bystander", "server"))
    shell("ip", "-n", server, "address", "add", f"{SERVER}/32", "dev", "lo")
    ends = (client, server, bystander, server)
    process = lab.start("", lab.tool("bare_forwarder", "-luring"), *(str(NETNS / end) for end in ends))
    routes = ((SERVER, INSIDE), (INSIDE, SERVER), (SERVER, BYSTANDER), (BYSTANDER, SERVER))
    for number, (namespace, (destination, source)) in enumerate(zip(ends, routes, strict=True)):
        device = f"bare{number}"
        if namespace != server:
            shell("ip", "-n", namespace, "address", "add", f"{source}/32", "dev", device)
        queue = rtnl.ENI_QUEUE if namespace == server else rtnl.TUN_QUEUE  # as ours have them
        shell("ip", "-n", namespace, "link", "set", device, "up", "txqueuelen", str(queue))
        shell("ip", "-n", namespace, "route", "add", f"{destination}/32", "dev", device, "src", source)
    rival = Rival(BARE, client, server, bystander, process)
    rival.serve(lab)
    yield rival


@contextmanager
def hyperplane(lab: Lab, io: str, **options: Any) -> Iterator[Rival]:
    """client -- TUN -- engine -- TUN in the server's namespace. The engine ends with the context.

    options: those of `Engine` besides io.
    """
    name = "-".join((io, *(f"{option}{value}" for option, value in options.items())))
    client, bystander, server = (lab.namespace(f"{name}-{role}") for role in ("client", "bystander", "server"))
    shell("ip", "-n", server, "address", "add", f"{SERVER}/32", "dev", "lo")
    settings = json.dumps({"io": io, **options})
    command = (sys.executable, "-m", "bench.engine_process", server, ENI_ADDRESS, settings, client, bystander)
    process = lab.start("", *command)
    rival = Rival("hyperplane-nat", client, server, bystander, process, engine=True)
    used = rival.counted()["status"]["io"]
    assert io in ("auto", used), f"the engine runs on {used}, not on {io}"
    rival.name += f" ({used})"
    rival.serve(lab)
    yield rival
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(PATIENCE) == 0, "the engine's process ended with an error"


def veth(here: str, device: str, address: str, there: str, peer: str, peer_address: str) -> None:
    """A pair between two namespaces, both ends up; an end whose address is "" has none."""
    shell("ip", "-n", here, "link", "add", device, "type", "veth", "peer", "name", peer, "netns", there)
    for namespace, name, own in ((here, device, address), (there, peer, peer_address)):
        if own:
            shell("ip", "-n", namespace, "address", "add", own, "dev", name)
        shell("ip", "-n", namespace, "link", "set", name, "up")
