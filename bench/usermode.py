"""NATs that run without privileges, by a process per environment: pasta and slirp4netns.

They end connections and open their own, from the namespace that they run in: so that is the server's. Both take what
they need of the network there from a default route, which leads nowhere.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from bench.lab import NETNS, Lab, shell, wait_until
from bench.rivals import INSIDE, PASTA, SERVER, SLIRP, Rival, veth

GATEWAY: Final = "198.18.0.1"
NETWORK: Final = "198.18.0.0/24"
DEVICE: Final = "tap0"


@contextmanager
def pasta(lab: Lab, mtu: int) -> Iterator[Rival]:
    """Stays root, since the namespaces are root's; forwards nothing inwards."""
    words = f"--foreground --quiet --runas 0 --config-net --ipv4-only --mtu {mtu} --ns-ifname {DEVICE}"
    inside = f"--address {INSIDE} --netmask 24 --gateway {GATEWAY} --tcp-ports none --udp-ports none"
    with _user_mode(
        lab, PASTA.format(mtu), f"pasta-{mtu}",
        lambda path: ["pasta", *words.split(), *inside.split(), "--netns", path],
    ) as rival:  # fmt: skip
        yield rival


@contextmanager
def slirp4netns(lab: Lab, mtu: int) -> Iterator[Rival]:
    words = f"--configure --mtu={mtu} --cidr={NETWORK} --netns-type=path"
    with _user_mode(
        lab, SLIRP.format(mtu), f"slirp-{mtu}", lambda path: ["slirp4netns", *words.split(), path, DEVICE]
    ) as rival:
        yield rival


@contextmanager
def _user_mode(lab: Lab, name: str, short: str, command: Callable[[str], list[str]]) -> Iterator[Rival]:
    client, server, nowhere = (lab.namespace(f"{short}-{role}") for role in ("client", "server", "nowhere"))
    veth(server, "eth0", f"{SERVER}/24", nowhere, "eth0", "")
    shell("ip", "-n", server, "route", "add", "default", "via", "198.19.0.1")
    process = lab.start(server, *command(str(NETNS / client)), says=False)
    wait_until(lambda: _configured(client, process, name), f"{name} configures its device")
    rival = Rival(name, client, server, process=process)
    rival.serve(lab)
    yield rival


def _configured(client: str, process: subprocess.Popen[str], name: str) -> bool:
    assert process.poll() is None, f"{name} ended with {process.returncode} before it was ready"
    addresses = shell("ip", "-n", client, "-oneline", "-4", "address", "show", "up")
    return f": {DEVICE} " in addresses and bool(shell("ip", "-n", client, "route", "show", "default"))
