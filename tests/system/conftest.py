from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import TypeVar

import pytest

from hyperplane.attachment import Attachments
from hyperplane.dataplane import Eni
from hyperplane.linux.namespaces import Namespace, NamespaceThreads, open_namespace

from . import support
from .support import ALL, DEADLINE, ENI, SERVER, SMALL, Namespaces, Within, descriptors

T = TypeVar("T")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Root and /dev/net/tun are needed, and afterwards `ip netns list` and `ip link` are as before."""
    if os.geteuid() != 0:
        pytest.fail("system tests need root: they make network namespaces", pytrace=False)
    if not os.path.exists("/dev/net/tun"):
        pytest.fail("system tests need /dev/net/tun: modprobe tun", pytrace=False)
    nobody = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", sys.executable, "-c", ""]
    if subprocess.run(nobody, cwd="/", capture_output=True).returncode:
        message = f"system tests run programs as nobody, who may not execute {sys.executable}"
        pytest.fail(f"{message}: clone to a place that everybody may enter, such as /srv or /tmp", pytrace=False)
    support.remove_left_over()
    looks = (support.namespaces, support.devices)
    before = [look() for look in looks]
    yield
    for look, then in zip(looks, before, strict=True):
        with suppress(AssertionError):
            support.wait_until(partial(_same, look, then))
        assert look() == then, f"{look.__name__} are not as before"


@pytest.fixture(scope="module", params=["io_uring", "epoll"])
def io(request: pytest.FixtureRequest) -> str:
    """The I/O engine: what uses this fixture runs once on each."""
    return str(request.param)


@pytest.fixture
def netns_factory() -> Iterator[Namespaces]:
    """`name = netns_factory("vpc")` makes a namespace; all of them go after the test, with the processes in them."""
    with Namespaces() as made:
        yield made


@pytest.fixture
def run_in() -> Callable[..., object]:
    """`run_in(namespace, ["ping", "-c", "1", "198.19.0.80"])`: see support.run_in()."""
    return support.run_in


@pytest.fixture
def wait_until() -> Callable[..., object]:
    """`wait_until(condition, deadline)`: see support.wait_until()."""
    return support.wait_until


@pytest.fixture
def threads() -> Iterator[NamespaceThreads]:
    made = NamespaceThreads(2)
    yield made
    made.close()


@pytest.fixture
def within(threads: NamespaceThreads) -> Within:
    """`within(namespace, work)`: the result of work(open namespace) in a thread that is in it."""

    def run(name: str, work: Callable[[Namespace], T]) -> T:
        def job() -> T:
            with open_namespace(name) as namespace, threads.inside(namespace.fd):
                return work(namespace)

        return threads.submit(job).result(DEADLINE)

    return run


@pytest.fixture
def vpc(netns_factory: Namespaces) -> str:
    """A VPC with a shared segment."""
    name = netns_factory("vpc")
    netns_factory.bridge(name, f"{SERVER}/24")
    return name


@pytest.fixture
async def attachments() -> AsyncIterator[Attachments]:
    """Afterwards every descriptor and thread is gone."""
    before = descriptors()
    async with Attachments(**SMALL) as made:
        yield made
    assert descriptors() == before
    names = [one.name for one in threading.enumerate()]
    assert not [name for name in names if name.startswith(("namespace", "reaper"))]


@pytest.fixture
async def eni(attachments: Attachments, vpc: str) -> Eni:
    return await attachments.open_eni(vpc=vpc, addresses=ENI, security_groups=ALL)


def _same(look: Callable[[], set[str]], then: set[str]) -> bool:
    return look() == then
