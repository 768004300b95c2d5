from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest

from hyperplane.linux.namespaces import Namespace, NamespaceThreads, open_namespace

from . import support
from .support import DEADLINE, Namespaces, Within

T = TypeVar("T")


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Root and /dev/net/tun are needed, and afterwards `ip netns list` and `ip link` are as before."""
    if os.geteuid() != 0:
        pytest.fail("system tests need root: they make network namespaces", pytrace=False)
    if not os.path.exists("/dev/net/tun"):
        pytest.fail("system tests need /dev/net/tun: modprobe tun", pytrace=False)
    support.remove_left_over()
    before = support.namespaces(), support.devices()
    yield
    support.wait_until(lambda: support.namespaces() == before[0], what=f"namespaces as before: {sorted(before[0])}")
    support.wait_until(lambda: support.devices() == before[1], what=f"devices as before: {sorted(before[1])}")


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
