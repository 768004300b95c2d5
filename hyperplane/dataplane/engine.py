"""The engine as Python sees it. It validates, calls, raises; all that happens to packets happens in C (csrc/)."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from operator import add
from types import TracebackType
from typing import Any, Self, get_args

from hyperplane._native import ffi, lib
from hyperplane.dataplane import checks, native
from hyperplane.dataplane.links import Eni, Link, Translated, Tunnel
from hyperplane.errors import AddressInUse, EngineError, InvalidValue
from hyperplane.model import (
    LONGEST_TIMER,
    Counters,
    Drop,
    Flow,
    Io,
    Memory,
    SecurityGroup,
    Status,
    Timers,
    UdpMapping,
)

ROOM = 1024  # records read at once
SPARE = 640  # bytes after a packet in memory: an ICMP error quotes up to 548 bytes (RFC 1812 section 4.3.2.3)
UINT32 = 0xFFFFFFFF
UINT64 = 0xFFFFFFFFFFFFFFFF
# RFC 791 section 3.1: every host takes 576 bytes; a link of less would make nonsense of the MSS clamp.
LEAST_MTU, LARGEST_MTU = 576, 65535


class Engine:
    """A translation engine: its tables, its links and, once started, its worker thread.

    Every method may be called from any thread. Changes are carried out when the call returns, whether the worker
    runs or not. Errors: InvalidValue for a value that cannot be right, EngineError and its relatives for what the
    engine or the kernel refuses. A context manager: leaving it closes the engine.

    Sizes are fixed for its life. max_flows: flows at the same time; max_mappings: UDP and ICMP mappings (0: as
    max_flows); max_links: tunnels and ENIs; max_addresses: ENI addresses in all; buffers: receive buffers per kind of
    link, a power of two; drop_records: length of the drop ring; refusal_rate: RSTs and ICMP errors that the engine
    sends per second and link; port_quarantine: seconds before the port of an ended mapping is given out again; seed:
    not 0 makes hash keys and ports reproducible, for tests only.
    """

    def __init__(
        self,
        *,
        max_flows: int = 262_144,
        max_mappings: int = 0,
        max_links: int = 16_384,
        max_addresses: int = 256,
        io: Io = "auto",
        buffers: int = 256,
        drop_records: int = 4096,
        refusal_rate: int = 100,
        port_quarantine: float = 30.0,
        huge_pages: bool = True,
        seed: int = 0,
    ) -> None:
        config = ffi.new("hp_config *")
        config.max_flows = checks.integer("max_flows", max_flows, 1, lib.HP_MAX_FLOWS)
        config.max_mappings = checks.integer("max_mappings", max_mappings, 0, lib.HP_MAX_FLOWS)
        config.max_links = checks.integer("max_links", max_links, 2, lib.HP_MAX_LINKS)
        config.max_addresses = checks.integer("max_addresses", max_addresses, 1, 65_536)
        config.drop_records = checks.integer("drop_records", drop_records, 1, 1 << 24)
        config.buffers = checks.power_of_two("buffers", buffers, 64, 32_768)
        config.io = native.IO[checks.choice("io", io, native.IO)]
        config.refusal_rate = checks.integer("refusal_rate", refusal_rate, 1, 1_000_000)
        config.port_quarantine = checks.milliseconds("port_quarantine", port_quarantine, LONGEST_TIMER)
        config.huge_pages = checks.instance("huge_pages", huge_pages, bool)
        config.seed = checks.integer("seed", seed, 0, UINT64)
        self._lock = threading.RLock()
        self._links: dict[int, Link] = {}
        self._taken: set[tuple[Eni, str]] = set()  # names of tunnels: attaching takes as long with 10,000 as with one
        self._names = native.Names()
        self._latest = 0  # the latest time that translate() or sweep() was given
        self._engine: Any = None
        self._error = ffi.new("hp_error *")
        engine = lib.hp_engine_new(config, self._error)
        if not engine:
            native.fail(self._error, "engine")
        self._engine = ffi.gc(engine, lib.hp_engine_free)

    # Life

    def start(self) -> None:
        """Starts the worker: it translates between the links' devices until stop(). Raises EngineError."""
        with self._open() as engine:
            if lib.hp_engine_start(engine, self._error):
                native.fail(self._error, "engine")

    def stop(self) -> None:
        """Ends the worker; flows, links and counters stay. Does nothing when it does not run."""
        with self._open() as engine:
            lib.hp_engine_stop(engine)

    def close(self) -> None:
        """Ends the worker and frees everything; descriptors stay the caller's to close. May be called twice."""
        with self._lock:
            if self._engine is None:
                return
            engine, self._engine = self._engine, None
            self._links.clear()
            self._taken.clear()
            lib.hp_engine_stop(engine)
            ffi.release(engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Links

    def add_eni(
        self,
        addresses: str | IPv4Address | Iterable[str | IPv4Address],
        *,
        name: str,
        fd: int = -1,
        mtu: int = 1500,
        security_groups: Iterable[SecurityGroup] = (),
        timers: Timers = Timers(),
        udp_mapping: UdpMapping = "endpoint-independent",
        silent: bool = False,
    ) -> Eni:
        """Adds a shared interface with 1 to 8 addresses; without a rule in security_groups it refuses everything.

        fd: a TUN with IFF_VNET_HDR, which stays the caller's to close after remove(); -1: no device, for translate().
        mtu: of the path into the VPC as far as known. silent: refusals are not told to the sender. The same address
        on two ENIs is allowed: VPCs overlap. Raises InvalidValue, NotATunnel, DeviceError, EngineError.
        """
        checks.name("ENI name", name)
        what = f"ENI {name}"
        config = ffi.new("hp_eni_config *")
        checked = checks.addresses(f"address of {what}", addresses)
        config.addresses = [int(address) for address in checked] + [0] * (lib.HP_ENI_ADDRESSES - len(checked))
        config.address_count = len(checked)
        config.mtu = checks.integer(f"MTU of {what}", mtu, LEAST_MTU, LARGEST_MTU)
        config.udp_mapping = native.UDP_MAPPINGS[
            checks.choice(f"UDP mapping of {what}", udp_mapping, get_args(UdpMapping))
        ]
        config.silent = checks.instance(f"silent of {what}", silent, bool)
        native.set_timers(config.timers, checks.instance(f"timers of {what}", timers, Timers))
        checks.integer(f"descriptor of {what}", fd, -1, 0x7FFFFFFF)
        groups = checks.groups(f"security groups of {what}", security_groups)
        with self._open() as engine:
            number = lib.hp_eni_add(engine, config, fd, self._error)
            if number < 0:
                native.fail(self._error, what, device=fd >= 0)
            eni = Eni(number, name, checked, mtu, timers, udp_mapping, silent, [])
            self._add(eni)
            try:
                self.set_security_groups(eni, groups)
            except EngineError:
                self.remove(eni)
                raise
        return eni

    def add_tunnel(
        self, eni: Eni, *, name: str, address: str | IPv4Address, fd: int = -1, mtu: int = 1500, max_flows: int = 0
    ) -> Tunnel:
        """Adds an execution environment's link; its packets must come from address, which need not be unique.

        name must be unique among the tunnels of the ENI. max_flows: its own limit of flows, 0 for none. fd: as in
        add_eni(). Raises InvalidValue, AddressInUse (the ENI's own address), NotATunnel, DeviceError, EngineError.
        """
        checks.name("tunnel name", name)
        what = f"tunnel {name}"
        checked = checks.unicast(f"address of {what}", address)
        config = ffi.new("hp_tunnel_config *")
        config.address = int(checked)
        config.mtu = checks.integer(f"MTU of {what}", mtu, LEAST_MTU, LARGEST_MTU)
        config.max_flows = checks.integer(f"max_flows of {what}", max_flows, 0, lib.HP_MAX_FLOWS)
        checks.integer(f"descriptor of {what}", fd, -1, 0x7FFFFFFF)
        with self._open() as engine:
            config.eni = self._known(eni, Eni).number
            if checked in eni.addresses:
                remedy = "give the environment another inside address"
                raise AddressInUse(f"{what}: {checked} is an address of ENI {eni.name}", resource=what, remedy=remedy)
            if (eni, name) in self._taken:
                remedy = "give each tunnel of an ENI its own name"
                raise InvalidValue(f"{what}: ENI {eni.name} has one of that name", resource=what, remedy=remedy)
            number = lib.hp_tunnel_add(engine, config, fd, self._error)
            if number < 0:
                native.fail(self._error, what, device=fd >= 0)
            tunnel = Tunnel(number, name, eni, checked, mtu, max_flows)
            self._add(tunnel)
            self._taken.add((eni, name))
        return tunnel

    def remove(self, link: Link) -> None:
        """Removes a tunnel with its flows, or an ENI that has no tunnels left. Afterwards its fd may be closed."""
        with self._open() as engine:
            self._known(link, (Eni, Tunnel))
            if isinstance(link, Eni) and (held := [tunnel.name for tunnel in self._tunnels_of(link)]):
                names = ", ".join(held[:5]) + (f" and {len(held) - 5} more" if len(held) > 5 else "")
                what = f"ENI {link.name}"
                remedy = "remove them first"
                raise EngineError(f"{what} is in use by tunnels: {names}", resource=what, remedy=remedy)
            if lib.hp_link_remove(engine, link.number, self._error):
                native.fail(self._error, link.name)
            del self._links[link.number]
            if isinstance(link, Tunnel):
                self._taken.discard((link.eni, link.name))

    def drain(self, tunnel: Tunnel, *, reset: bool) -> None:
        """Prepares the end of a tunnel: it takes no new flow any more. It stays until remove(); there is no way back.

        Who tries is told at once (`link_detached`). reset=False: flows that exist go on in both directions. reset=True:
        no packet passes any more, and all flows end within 0.3 seconds or so, longer when they are tens of thousands;
        both sides of each TCP connection get an RST. `counters(tunnel).flows` says how many are left. Raises
        InvalidValue.
        """
        checks.instance("reset", reset, bool)
        with self._open() as engine:
            self._known(tunnel, Tunnel)
            how = lib.HP_DRAIN_RESET if reset else lib.HP_DRAIN_CLOSE
            if lib.hp_link_drain(engine, tunnel.number, how, self._error):
                native.fail(self._error, tunnel.name)

    def set_security_groups(self, eni: Eni, groups: Iterable[SecurityGroup]) -> None:
        """Replaces the ENI's rules at once. They are evaluated when a flow begins: flows that exist go on."""
        with self._open() as engine:
            self._known(eni, Eni)
            checked = checks.groups(f"security groups of ENI {eni.name}", groups)
            table, count = native.rule_table(rule for group in checked for rule in group.rules)
            if lib.hp_eni_rules(engine, eni.number, table, count, self._error):
                native.fail(self._error, f"ENI {eni.name}")
            eni._groups[:] = checked

    @property
    def enis(self) -> tuple[Eni, ...]:
        with self._lock:
            return tuple(link for link in self._links.values() if isinstance(link, Eni))

    @property
    def tunnels(self) -> tuple[Tunnel, ...]:
        with self._lock:
            return tuple(link for link in self._links.values() if isinstance(link, Tunnel))

    # Packets in memory

    def translate(
        self, packets: Iterable[tuple[Link, bytes]], *, now: int | None = None, vnet: bool = False, spare: int = SPARE
    ) -> list[Translated]:
        """Runs packets through the code that the worker runs; only while the engine is not started.

        packets: (link that it arrives from, bytes), the bytes an IPv4 packet, or with vnet=True a struct virtio_net_hdr
        (10 bytes) and an IPv4 packet. now: CLOCK_BOOTTIME ms, the present by default; never goes back. spare: bytes of
        room after each packet; an answer quotes what fits. Raises InvalidValue, EngineError.
        """
        header = b"" if vnet else bytes(lib.HP_VNET_HEADER)
        checks.integer("spare", spare, 0, lib.HP_BUFFER)
        with self._open() as engine:
            given = [(self._known(link, (Eni, Tunnel)), header + bytes(data)) for link, data in packets]
            rows = ffi.new("hp_packet[]", max(len(given), 1))
            buffers = []  # one each, no larger than said: a sanitizer sees what reads or writes beyond it
            for row, (link, data) in zip(rows, given, strict=False):
                checks.integer("length of a packet, its virtio_net_hdr included", len(data), 0, lib.HP_BUFFER)
                row.capacity = max(min(len(data) + spare, lib.HP_BUFFER), 1)
                row.length = len(data)
                row.link = link.number
                row.data = buffer = ffi.new("uint8_t[]", row.capacity)
                ffi.memmove(buffer, data, len(data))
                buffers.append(buffer)
            if lib.hp_translate(engine, rows, len(given), self._time(now), self._error):
                native.fail(self._error, "engine")
            return [self._translated(row, link) for row, (link, _) in zip(rows, given, strict=False)]

    def _translated(self, row: Any, arrived: Link) -> Translated:
        verdict, reason = native.VERDICTS[row.verdict], native.REASONS[row.reason]
        if row.verdict == lib.HP_DROP:
            return Translated(verdict, arrived, reason, b"", b"")
        data = bytes(ffi.buffer(row.data, row.length))
        header = lib.HP_VNET_HEADER
        return Translated(verdict, self._links[row.link], reason, data[header:], data[:header])

    def sweep(self, now: int | None = None) -> int:
        """Ends every flow that is idle at that time (CLOCK_BOOTTIME ms); returns how many ended."""
        with self._open() as engine:
            ended = lib.hp_sweep(engine, self._time(now), self._error)
            if ended < 0:
                native.fail(self._error, "engine")
            return ended

    # Looking: never stops the worker

    def flows(self, *, tunnel: Tunnel | None = None) -> list[Flow]:
        """All flows, or those of one tunnel."""
        with self._open():
            number = -1 if tunnel is None else self._known(tunnel, Tunnel).number
        records = ffi.new("hp_flow_info[]", ROOM)
        return [
            native.flow(records[i], self._names)
            for count in self._read(lib.hp_flows, ffi.new("uint32_t *"), records)
            for i in range(count)
            if number in (-1, records[i].tunnel)
        ]

    def drops(self, *, after: int = 0) -> list[Drop]:
        """Records of the drop ring, oldest first, from the one numbered after + 1 on."""
        cursor = ffi.new("uint64_t *", checks.integer("after", after, 0, UINT64 >> 1))
        records = ffi.new("hp_drop[]", ROOM)
        return [
            native.drop(records[i], self._names)
            for count in self._read(lib.hp_drops, cursor, records)
            for i in range(count)
        ]

    def counters(self, link: Link | None = None) -> Counters:
        """Counters of one link, or the sum over the links that exist, in which every flow counts once."""
        with self._open():
            links: list[Link] = list(self._links.values()) if link is None else [self._known(link, (Eni, Tunnel))]
        block = ffi.new("hp_counters *")
        words = memoryview(ffi.buffer(block)).cast("B").cast("Q")  # all of it is 64-bit counts
        total = [0] * len(words)
        for one in links:
            with self._open() as engine:
                if self._links.get(one.number) is not one:
                    continue  # removed meanwhile
                if lib.hp_link_counters(engine, one.number, block, self._error):
                    native.fail(self._error, one.name)
            if link is None and isinstance(one, Tunnel):
                block.flows_created = block.flows_ended = block.flows = 0  # its ENI has counted them too
            total = list(map(add, total, words))
        words[:] = memoryview(array("Q", total))
        return native.counters(block)

    def status(self) -> Status:
        with self._open() as engine:
            block = ffi.new("hp_status *")
            lib.hp_engine_status(engine, block)
            return native.status(block)

    def memory(self) -> Memory:
        with self._open() as engine:
            block = ffi.new("hp_memory *")
            lib.hp_engine_memory(engine, block)
            return native.memory(block)

    # Within

    @contextmanager
    def _open(self) -> Iterator[Any]:
        """The C engine, which cannot be closed meanwhile: calls take turns. The worker waits for nobody."""
        with self._lock:
            if self._engine is None:
                raise EngineError("the engine is closed", resource="engine", remedy="make a new Engine")
            yield self._engine

    def _read(self, read: Callable[[Any, Any, Any, int], int], cursor: Any, records: Any) -> Iterator[int]:
        """Fills records again and again; gives how many. Others may call meanwhile: a million flows take their time."""
        while True:
            with self._open() as engine:
                count = read(engine, cursor, records, ROOM)
            if not count:
                return
            yield count

    def _known(self, link: Any, kinds: Any) -> Any:
        if not isinstance(link, kinds):
            raise InvalidValue(
                f"{link!r} is no link of the kind needed here", remedy="give what add_eni or add_tunnel gave"
            )
        if self._links.get(link.number) is not link:
            remedy = "it has been removed, or belongs to another engine"
            raise InvalidValue(f"{link.name} is not a link of this engine", resource=link.name, remedy=remedy)
        return link

    def _tunnels_of(self, eni: Eni) -> Iterator[Tunnel]:
        return (link for link in self._links.values() if isinstance(link, Tunnel) and link.eni is eni)

    def _add(self, link: Link) -> None:
        self._links[link.number] = link
        self._names.note(link.number, max(self._latest, lib.hp_now()), link.name)

    def _time(self, now: int | None) -> int:
        time = lib.hp_now() if now is None else checks.integer("now", now, 0, UINT64 >> 1)
        if time < self._latest:
            remedy = "give a time that does not go back"
            raise InvalidValue(f"now is {time} after {self._latest}", resource="now", remedy=remedy)
        self._latest = time
        return time
