"""What the daemon keeps of an engine in another process: whatever a successor would have to be given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice

from msgspec.structs import replace

from hyperplane.errors import EngineError
from hyperplane.ipc import transport
from hyperplane.ipc.conversation import Conversation
from hyperplane.ipc.messages import Config, LinkResult, Links, LinkSpec, LinksReply, LinkState
from hyperplane.ipc.state import Item
from hyperplane.resources import Problem


@dataclass(frozen=True, slots=True)
class Link:
    """A link of the engine. fd belongs to the mirror, until remove() or sync() gives it away; so does more: the
    descriptors of an ENI's further queues and its steering, which the mirror closes."""

    spec: LinkSpec
    number: int
    fd: int
    more: tuple[int, ...] = ()

    @property
    def fds(self) -> tuple[int, ...]:
        return (self.fd, *self.more)


class NoMemory(EngineError):
    """The engine is a successor that has not inherited."""


class Mirror:
    """An engine's links by id, ENIs before their tunnels, with their descriptors; and its memory, by name.

    draining: tunnels that drain, and whether by resets. on_memory() is called when config and regions are new,
    on_link(number, name) for each link that has come. Whoever has it sees to it that one thread at a time calls.
    """

    def __init__(self) -> None:
        self.on_memory: Callable[[], None] = lambda: None
        self.on_link: Callable[[int, str], None] = lambda number, name: None
        self.config: Config = {}
        self.regions: dict[str, int] = {}
        self.links: dict[str, Link] = {}
        self.draining: dict[str, bool] = {}

    def learn(self, conversation: Conversation) -> None:
        """From an engine that nothing is known of. Raises NoMemory, EngineError, ConnectionLost; then nothing is."""
        if not conversation.welcome.regions:
            raise NoMemory(f"engine {conversation.pid} waits for the memory of a dead one", remedy="end it")
        found: list[tuple[LinkState, tuple[int, ...]]] = []
        try:
            more = conversation.welcome.links > 0
            while more:
                reply, fds = conversation.ask(Links(offset=len(found)), LinksReply)
                if len(fds) != sum(state.spec.descriptors for state in reply.links):
                    transport.close_all(fds)
                    raise EngineError(f"{len(fds)} descriptors came for {len(reply.links)} links")
                came = iter(fds)
                found += [(state, tuple(islice(came, state.spec.descriptors))) for state in reply.links]
                more = reply.more and bool(fds)
            self.take_memory(conversation)
        except BaseException:
            transport.close_all(fd for _, fds in found for fd in fds)
            raise
        for state, own in found:
            self.keep(state.spec, state.number, own[0], own[1:])

    def take_memory(self, conversation: Conversation) -> None:
        transport.close_all(self.regions.values())
        self.config = conversation.welcome.config
        self.regions = dict(zip(conversation.welcome.regions, conversation.regions, strict=True))
        conversation.regions = []
        self.on_memory()

    def keep(self, spec: LinkSpec, number: int, fd: int, more: tuple[int, ...]) -> None:
        known = self.links.get(spec.id)
        self.links[spec.id] = Link(spec, number, fd, more)
        if known is None or known.number != number:
            self.on_link(number, spec.name)

    def forget(self, key: str) -> int:
        """The link's descriptor, which is the caller's; -1 when there is no such link."""
        self.draining.pop(key, None)
        link = self.links.pop(key, None)
        if link is None:
            return -1
        transport.close_all(link.more)
        return link.fd

    def items(self, *, numbered: bool) -> list[Item]:
        """For a successor; numbered: the links exist in its memory."""
        return [
            (replace(link.spec, number=link.number if numbered else None, has_fd=True), link.fds)
            for link in self.links.values()
        ]

    def forget_refused(self, results: Mapping[str, LinkResult]) -> list[tuple[Link, Problem]]:
        """Those that a successor did not take, which are the caller's, and why."""
        refused = [(self.links[key], result.error) for key, result in results.items() if result.error]
        for link, _ in refused:
            self.forget(link.spec.id)
        return refused

    def renumber(self, results: Mapping[str, LinkResult]) -> None:
        links, self.links = self.links, {}
        for key, link in links.items():
            self.keep(link.spec, results[key].number, link.fd, link.more)

    def close(self) -> None:
        transport.close_all([*self.regions.values(), *(fd for link in self.links.values() for fd in link.fds)])
        self.regions = {}
        self.links.clear()
