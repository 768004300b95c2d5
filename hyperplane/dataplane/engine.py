"""The engine as Python sees it. It validates, calls, raises; all that happens to packets happens in C (csrc/)."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from operator import add
from typing import Any, Self

from hyperplane._native import ffi, lib
from hyperplane.dataplane import checks, native
from hyperplane.dataplane.claims import Linked, eni_config, tunnel_config
from hyperplane.dataplane.config import EngineConfig
from hyperplane.dataplane.handle import given
from hyperplane.dataplane.links import Eni, Link, Translated, Tunnel
from hyperplane.errors import EngineError, InvalidValue
from hyperplane.model import Counters, Flow, Io, SecurityGroup, Timers, UdpMapping

SPARE = 640  # bytes after a packet in memory: an ICMP error quotes up to 548 bytes (RFC 1812 section 4.3.2.3)
UINT64 = 0xFFFFFFFFFFFFFFFF


class Engine(Linked):
    """A translation engine: its tables, its links and, once started, its worker threads.

    Every method may be called from any thread. Changes are carried out when the call returns, whether the workers
    run or not. Errors: InvalidValue for a value that cannot be right, EngineError and its relatives for what the
    engine or the kernel refuses. A context manager: leaving it closes the engine.

    Sizes are fixed for its life. max_flows: flows at the same time; max_mappings: UDP and ICMP mappings (0: as many
    as there can be); max_links: tunnels and ENIs; max_addresses: ENI addresses in all; buffers: receive buffers per
    kind of link, a power of two; drop_records: length of the drop ring; refusal_rate: RSTs and ICMP errors that the
    engine sends per second and link; port_quarantine: seconds before the port of an ended mapping is given out again;
    spin: microseconds that a worker looks for the next packet before it sleeps, while single packets come that soon and
    there are more CPUs than workers (0: none); seed: not 0 makes hash keys and ports reproducible, for tests only;
    workers: threads that translate, each with its share of max_flows, of the tunnels and of each ENI's ports; pin: the
    CPUs they run on, such as "0,2-3", one after the other, "" for wherever the kernel puts them.
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
        spin: int = 50,
        seed: int = 0,
        workers: int = 1,
        pin: str = "",
    ) -> None:
        self._begin(
            EngineConfig(
                max_flows=max_flows,
                max_mappings=max_mappings,
                max_links=max_links,
                max_addresses=max_addresses,
                io=io,
                buffers=buffers,
                drop_records=drop_records,
                refusal_rate=refusal_rate,
                port_quarantine=port_quarantine,
                huge_pages=huge_pages,
                spin=spin,
                seed=seed,
                workers=workers,
                pin=pin,
            ),
            lib.hp_engine_new,
        )

    @classmethod
    def inherit(cls, config: EngineConfig, regions: Mapping[str, int]) -> Self:
        """A stopped engine that goes on with the memory of one whose process is dead.

        config and regions are the predecessor's (`Engine.config`, `Engine.regions()`); the descriptors are duplicated.
        Whatever the predecessor was doing when it died is put right: at most the one flow that it was making or ending
        is lost. Flows, their ids and ports, link numbers, counters and the drop ring go on. The links await
        claim_eni(), claim_tunnel() or abandon_unclaimed(); unclaimed ones carry no packet. Two engines at work on the
        same regions ruin both: be sure that the process is dead. Raises InvalidValue, and EngineError when the regions
        are not those of such an engine.
        """
        table, count = given(regions)
        engine = cls.__new__(cls)
        engine._begin(config, lambda block, error: lib.hp_engine_inherit(block, table, count, error))
        return engine

    def _begin(self, config: EngineConfig, make: Callable[[Any, Any], Any]) -> None:
        self._latest = 0  # the latest time that translate() or sweep() was given
        super().__init__(config, make)

    def regions(self) -> dict[str, int]:
        """The memfds that hold the engine's state, by name, for a successor or a Reader; they stay the engine's."""
        with self._open() as engine:
            table = ffi.new("hp_region_fd[]", lib.HP_MAX_REGIONS)
            count = lib.hp_engine_regions(engine, table, lib.HP_MAX_REGIONS)
            return {ffi.string(table[i].name).decode(): table[i].fd for i in range(count)}

    # Life

    def start(self) -> None:
        """Starts the workers: they translate between the links' devices until stop(). Raises EngineError."""
        with self._open() as engine:
            if lib.hp_engine_start(engine, self._error):
                native.fail(self._error, "engine")

    def stop(self) -> None:
        """Ends the workers; flows, links and counters stay. Does nothing when they do not run."""
        with self._open() as engine:
            lib.hp_engine_stop(engine)

    def close(self) -> None:
        """Ends the workers and frees everything; descriptors stay the caller's to close. May be called twice."""
        with self._lock:
            if self._engine is None:
                return
            self._links.clear()
            self._taken.clear()
            lib.hp_engine_stop(self._engine)
            super().close()

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
        queues: Sequence[int] = (),
        steering: int = -1,
    ) -> Eni:
        """Adds a shared interface with 1 to 8 addresses; without a rule in security_groups it refuses everything.

        fd: a TUN with IFF_VNET_HDR, which stays the caller's to close after remove(); -1: no device, for translate().
        queues: further descriptors of a multi-queue device, in the order of its queues, one for each further worker;
        without them one reads for all. steering: the array of the program that brings packets to the right queue
        (hyperplane.linux.steering). mtu: of the path into the VPC as far as known. silent: refusals are not told to the
        sender. The same address on two ENIs is allowed: VPCs overlap. Raises InvalidValue, NotATunnel, DeviceError,
        EngineError.
        """
        what, config, checked = eni_config(name, addresses, fd, mtu, timers, udp_mapping, silent, queues, steering)
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
        self,
        eni: Eni,
        *,
        name: str,
        address: str | IPv4Address,
        fd: int = -1,
        mtu: int = 1500,
        max_flows: int = 0,
        trusted: bool = False,
    ) -> Tunnel:
        """Adds an execution environment's link; its packets must come from address, which need not be unique.

        name must be unique among the tunnels of the ENI. max_flows: its own limit of flows, 0 for none. fd: as in
        add_eni(); a worker hears of it with its first packet, and is not disturbed before. trusted: it is what
        hyperplane.linux.device made, and nobody else has had it: it is not checked. Raises InvalidValue, AddressInUse
        (the ENI's own address), NotATunnel, DeviceError, EngineError.
        """
        what, config, checked = tunnel_config(name, address, fd, mtu, max_flows, trusted)
        with self._open() as engine:
            config.eni = self._free_for(eni, name, checked)
            number = lib.hp_tunnel_add(engine, config, fd, self._error)
            if number < 0:
                native.fail(self._error, what, device=fd >= 0)
            tunnel = Tunnel(number, name, eni, checked, mtu, max_flows)
            self._add(tunnel)
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

    # Packets in memory

    def translate(
        self, packets: Iterable[tuple[Link, bytes]], *, now: int | None = None, vnet: bool = False, spare: int = SPARE
    ) -> list[Translated]:
        """Runs packets through the code that the workers run; only while the engine is not started.

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

    def worker_of(self, link: Link, packet: bytes) -> int:
        """The number of the worker that an IPv4 packet from a link is for; 0 also when it is for none."""
        with self._open() as engine:
            number = self._known(link, (Eni, Tunnel)).number
            data = ffi.new("uint8_t[]", bytes(lib.HP_VNET_HEADER) + bytes(packet))
            length = lib.HP_VNET_HEADER + len(packet)
            return lib.hp_packet_worker(
                engine, ffi.new("hp_packet *", {"data": data, "length": length, "link": number})
            )

    def sweep(self, now: int | None = None) -> int:
        """Ends every flow that is idle at that time (CLOCK_BOOTTIME ms); returns how many ended."""
        with self._open() as engine:
            ended = lib.hp_sweep(engine, self._time(now), self._error)
            if ended < 0:
                native.fail(self._error, "engine")
            return ended

    # Looking: never stops a worker

    def flows(self, *, tunnel: Tunnel | None = None) -> list[Flow]:
        """All flows, or those of one tunnel."""
        with self._open():
            number = -1 if tunnel is None else self._known(tunnel, Tunnel).number
        return self._flows(number)

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

    # Within

    def _tunnels_of(self, eni: Eni) -> Iterator[Tunnel]:
        return (link for link in self._links.values() if isinstance(link, Tunnel) and link.eni is eni)

    def _time(self, now: int | None) -> int:
        time = lib.hp_now() if now is None else checks.integer("now", now, 0, UINT64 >> 1)
        if time < self._latest:
            remedy = "give a time that does not go back"
            raise InvalidValue(f"now is {time} after {self._latest}", resource="now", remedy=remedy)
        self._latest = time
        return time
