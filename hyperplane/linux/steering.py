"""The program that brings an ENI's packets to the queue of the worker that has their outside port.

A socket filter on a multi-queue TUN (TUNSETSTEERINGEBPF): the kernel runs it for each packet that leaves by the device,
and what it returns is the queue. It decides as hp_steer_slot() in csrc/steer.c does, and looks the worker up in an
array, which the engine maps and writes. It is assembled here, instruction by instruction: no compiler is needed.

Loading it needs CAP_BPF or root. Where that is refused, packets arrive at any queue, and workers hand them over.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address
from typing import Final

from hyperplane.linux.namespaces import LIBC

ADDRESSES, SLICES = 8, 64  # of an ENI, of an address: HP_STEER_SLOTS in csrc/steer.h
FIRST_PORT, SLICE_BITS = 1024, 10

TUNSETSTEERINGEBPF: Final = 0x800454E0  # linux/if_tun.h
BPF_CALLS: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}  # asm/unistd.h
# linux/bpf.h
MAP_CREATE, MAP_UPDATE, PROG_LOAD, PROG_TEST_RUN = 0, 2, 5, 10
MAP_TYPE_ARRAY, PROG_TYPE_SOCKET_FILTER, F_MMAPABLE = 2, 1, 1 << 10
LD_MAP_FD, HELPER_MAP_LOOKUP = 1, 1
# linux/ip.h, linux/icmp.h
TCP, UDP, ICMP = 6, 17, 1
ECHO_REPLY, UNREACHABLE, TIME_EXCEEDED, PARAMETER_PROBLEM = 0, 3, 11, 12
FRAGMENT: Final = 0x3FFF  # more fragments, or an offset

# Operation, destination, source, offset or the label to jump to, immediate; or a label.
Line = tuple[int, int, int, int | str, int] | str

R0, R1, R2, R6, R7, R8, R9, R10 = 0, 1, 2, 6, 7, 8, 9, 10
LD_ABS_W, LD_ABS_H, LD_ABS_B, LD_IND_H, LD_IND_B = 0x20, 0x28, 0x30, 0x48, 0x50
MOV_IMM, MOV, ADD_IMM, ADD, AND_IMM, LSH_IMM, RSH_IMM = 0xB7, 0xBF, 0x07, 0x0F, 0x57, 0x67, 0x77
JA, JEQ, JNE, JLT, CALL, EXIT = 0x05, 0x15, 0x55, 0xA5, 0x85, 0x95
STORE_W, LOAD_W, LD_IMM64, MOV32_IMM, JEQ_REGISTER = 0x63, 0x61, 0x18, 0xB4, 0x1D


def load(addresses: Sequence[IPv4Address]) -> tuple[int, int]:
    """Descriptors of the program for an ENI with these addresses, and of its array. Raises OSError."""
    table = _bpf(MAP_CREATE, struct.pack("IIIII", MAP_TYPE_ARRAY, 4, 8, ADDRESSES * SLICES, F_MMAPABLE))
    try:
        code = assemble(addresses, table)
        license_ = ctypes.create_string_buffer(b"Apache-2.0")
        block = ctypes.create_string_buffer(code, len(code))
        attributes = struct.pack(
            "IIQQIIQ",
            PROG_TYPE_SOCKET_FILTER,
            len(code) // 8,
            ctypes.addressof(block),
            ctypes.addressof(license_),
            0,
            0,
            0,
        )
        return _bpf(PROG_LOAD, attributes), table
    except BaseException:
        os.close(table)
        raise


def steer(fd: int, addresses: Sequence[IPv4Address]) -> int:
    """Has the packets of a multi-queue TUN steered; the descriptor of the array, or -1 where that is refused."""
    try:
        program, table = load(addresses)
    except OSError:
        return -1
    try:
        fcntl.ioctl(fd, TUNSETSTEERINGEBPF, struct.pack("i", program))
    except OSError:
        os.close(table)
        return -1
    finally:
        os.close(program)  # the device holds it
    return table


def assemble(addresses: Sequence[IPv4Address], table: int) -> bytes:
    """The program's bytes. A read beyond the packet ends it with 0: the first queue."""
    lines: list[Line] = [
        (MOV, R6, R1, 0, 0),  # where LD_ABS and LD_IND look for the packet
        (LD_ABS_B, 0, 0, 0, 0),
        (MOV, R9, R0, 0, 0),
        (RSH_IMM, R0, 0, 0, 4),
        (JNE, R0, 0, "none", 4),  # the IP version
        (LD_ABS_H, 0, 0, 0, 6),
        (AND_IMM, R0, 0, 0, FRAGMENT),
        (JNE, R0, 0, "none", 0),
        (LD_ABS_W, 0, 0, 0, 16),
        *_address_index(addresses),
        "known",
        (AND_IMM, R9, 0, 0, 15),
        (LSH_IMM, R9, 0, 0, 2),  # R9: where the transport header begins
        (LD_ABS_B, 0, 0, 0, 9),
        (JEQ, R0, 0, "destination port", TCP),
        (JEQ, R0, 0, "destination port", UDP),
        (JNE, R0, 0, "none", ICMP),
        (LD_IND_B, 0, R9, 0, 0),
        (JEQ, R0, 0, "id", ECHO_REPLY),
        (JEQ, R0, 0, "quoted", UNREACHABLE),
        (JEQ, R0, 0, "quoted", TIME_EXCEEDED),
        (JNE, R0, 0, "none", PARAMETER_PROBLEM),
        "quoted",
        (ADD_IMM, R9, 0, 0, 8),
        (LD_IND_B, 0, R9, 0, 0),
        (AND_IMM, R0, 0, 0, 15),
        (LSH_IMM, R0, 0, 0, 2),
        (MOV, R8, R0, 0, 0),
        (LD_IND_B, 0, R9, 0, 9),
        (ADD, R9, R8, 0, 0),
        (JEQ, R0, 0, "source port", TCP),
        (JEQ, R0, 0, "source port", UDP),
        (JNE, R0, 0, "none", ICMP),
        "id",
        (LD_IND_H, 0, R9, 0, 4),
        (JA, 0, 0, "slice", 0),
        "source port",
        (LD_IND_H, 0, R9, 0, 0),
        (JA, 0, 0, "slice", 0),
        "destination port",
        (LD_IND_H, 0, R9, 0, 2),
        "slice",
        (JLT, R0, 0, "none", FIRST_PORT),
        (ADD_IMM, R0, 0, 0, -FIRST_PORT),
        (RSH_IMM, R0, 0, 0, SLICE_BITS),
        (ADD, R7, R0, 0, 0),
        (STORE_W, R10, R7, -4, 0),
        (MOV, R2, R10, 0, 0),
        (ADD_IMM, R2, 0, 0, -4),
        (LD_IMM64, R1, LD_MAP_FD, 0, table),
        (0, 0, 0, 0, 0),  # its second half
        (CALL, 0, 0, 0, HELPER_MAP_LOOKUP),
        (JEQ, R0, 0, "none", 0),
        (LOAD_W, R0, R0, 0, 0),
        (EXIT, 0, 0, 0, 0),
        "none",
        (MOV_IMM, R0, 0, 0, 0),
        (EXIT, 0, 0, 0, 0),
    ]
    return _link(lines)


def _address_index(addresses: Sequence[IPv4Address]) -> list[Line]:
    """R7: 64 times the index of the address in R0."""
    lines: list[Line] = []
    for index, address in enumerate(addresses):
        # A compare would take its immediate with its sign; a 32-bit move clears the upper half of the register.
        lines += [
            (MOV_IMM, R7, 0, 0, index * SLICES),
            (MOV32_IMM, R8, 0, 0, _signed(int(address))),
            (JEQ_REGISTER, R0, R8, "known", 0),
        ]
    return [*lines, (JA, 0, 0, "none", 0)]


def _link(lines: Sequence[Line]) -> bytes:
    """Labels become distances."""
    places: dict[str, int] = {}
    instructions: list[tuple[int, int, int, int | str, int]] = []
    for line in lines:
        if isinstance(line, str):
            places[line] = len(instructions)
        else:
            instructions.append(line)
    code = b""
    for at, (operation, destination, source, offset, immediate) in enumerate(instructions):
        distance = places[offset] - at - 1 if isinstance(offset, str) else offset
        code += struct.pack("BBhi", operation, destination | source << 4, distance, immediate)
    return code


def _signed(number: int) -> int:
    return number - (1 << 32) if number >= 1 << 31 else number


def _bpf(command: int, attributes: bytes) -> int:
    """bpf(2). Raises OSError."""
    number = BPF_CALLS.get(os.uname().machine)
    if number is None:
        raise OSError(38, "bpf(2) is not known here")
    block = ctypes.create_string_buffer(attributes, max(len(attributes), 128))
    result = LIBC.syscall(ctypes.c_long(number), ctypes.c_int(command), block, ctypes.c_uint(len(block)))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(result)


def decide(program: int, packet: bytes) -> int:
    """What the program returns for an IPv4 packet (BPF_PROG_TEST_RUN). Raises OSError."""
    frame = bytes(14) + packet  # the kernel takes an Ethernet header off before a socket filter sees it
    data = ctypes.create_string_buffer(frame, len(frame))
    attributes = struct.pack("IIIIQQII", program, 0, len(frame), 0, ctypes.addressof(data), 0, 1, 0)
    block = ctypes.create_string_buffer(attributes, 128)
    number = BPF_CALLS[os.uname().machine]
    if LIBC.syscall(ctypes.c_long(number), ctypes.c_int(PROG_TEST_RUN), block, ctypes.c_uint(128)) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return int(struct.unpack_from("I", block.raw, 4)[0])


__all__ = ["assemble", "decide", "load", "steer"]
