"""The engine as a process of its own: adopted by a second daemon, and succeeded when it is killed."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import msgspec
import pytest

from hyperplane.daemon import supervisor as supervising
from hyperplane.daemon.supervisor import Supervisor
from hyperplane.dataplane import Reader
from hyperplane.engine import EngineOptions, engine_config
from hyperplane.errors import EngineError, HyperplaneError, InvalidValue, ProtocolMismatch, ResourceConflict
from hyperplane.ipc import conversation as conversing
from hyperplane.ipc.messages import LinkSpec
from hyperplane.ipc.remote import RemoteEngine
from hyperplane.ipc.transport import ConnectionLost
from hyperplane.linux import netlink, tun
from hyperplane.linux.eni import create_eni, withdraw_eni
from hyperplane.linux.namespaces import NamespaceThreads, open_namespace
from hyperplane.linux.reaper import Reaper
from hyperplane.resources import Problem

from .support import ENI, SERVER, SMALL, Namespaces, descriptors, devices, eventually, wait_until
from .sockets import socket_in
from .traffic import tcp_listener

INSIDE = IPv4Address("198.18.0.2")
CONNECTIONS, ENVIRONMENTS = 100, 10
OTHER_ENI = "198.19.0.6"


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """Of a name that is short enough for a socket, and for every user to enter."""
    made = Path(tempfile.mkdtemp(prefix="hpt"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@dataclass
class Lab:
    """Devices in namespaces, and how to tell an engine of them."""

    vpc: str
    namespaces: Namespaces
    threads: NamespaceThreads
    reaper: Reaper
    environments: list[str] = field(default_factory=list)
    made: list[Any] = field(default_factory=list)

    def eni(self, remote: RemoteEngine, key: str = "eni-1", address: str = ENI, **values: Any) -> LinkSpec:
        def make() -> Any:
            with open_namespace(self.vpc) as namespace, self.threads.inside(namespace.fd):
                return create_eni(namespace, device=key, addresses=(IPv4Address(address),), mtu=1500)

        made = self.threads.submit(make).result()
        self.made.append(made)
        spec = LinkSpec(kind="eni", id=key, name=key, addresses=(IPv4Address(address),), rules=("all",), **values)
        remote.add(spec, made.fd)
        return spec

    def tunnel(self, remote: RemoteEngine, key: str, *, home: str = "", eni: str = "eni-1", device: str = "eth0") -> LinkSpec:
        name = home or self.namespaces.make("env")
        self.environments.append(name)

        def make() -> int:
            with open_namespace(name) as namespace, self.threads.inside(namespace.fd):
                fd = tun.open_tun(device)
                netlink.configure(device, mtu=1500, address=INSIDE, routes=())
                if device == "eth0":
                    netlink.configure(device, mtu=1500, address=INSIDE, routes=(netlink_default(),))
                return fd

        spec = LinkSpec(kind="tunnel", id=key, name=key, eni=eni, address=INSIDE)
        remote.add(spec, self.threads.submit(make).result())
        return spec

    def end(self) -> None:
        for made in self.made:
            self.threads.submit(withdraw_eni, made, self.threads).result()
