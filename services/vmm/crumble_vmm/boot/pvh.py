"""PVH, the way of starting a kernel that an ELF note names (xenbits.xen.org/docs, "x86/HVM direct boot ABI"):
at a 32-bit entry point, without paging, with the address of a `struct hvm_start_info` in ebx.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

_MAGIC, _VERSION = 0x336E_C578, 1
# magic, version, flags, modules; addresses of modules, command line, RSDP, memory map; its entries.
_START_INFO = struct.Struct("<IIIIQQQQI4x")
# address, size, command line
_MODULE = struct.Struct("<QQQ8x")
# address, size, type (of e820)
_MEMORY = struct.Struct("<QQI4x")
# ELF: sizes of name and descriptor, type; both are padded.
_NOTE = struct.Struct("<III")
_PAD = 4
_XEN, _PHYS32_ENTRY = b"Xen\0", 18


def entry_of(notes: bytes) -> int | None:
    """The entry point that a note segment names; None when it names none, ValueError for one that cannot be."""
    at = 0
    while at + _NOTE.size <= len(notes):
        name_size, size, kind = _NOTE.unpack_from(notes, at)
        name = at + _NOTE.size
        data = name + name_size + -name_size % _PAD
        at = data + size + -size % _PAD
        if notes[name : name + name_size] == _XEN and kind == _PHYS32_ENTRY:
            if size not in (4, 8) or data + size > len(notes):
                raise ValueError(f"a note for PVH of {size} bytes")
            return int.from_bytes(notes[data : data + size], "little")
    return None


@dataclass(frozen=True, slots=True)
class StartInfo:
    """What the kernel is told. initrd: (start, end). e820: (address, size, type). Else guest-physical addresses."""

    cmdline: int
    initrd: tuple[int, int]
    rsdp: int
    e820: Sequence[tuple[int, int, int]]

    def encode(self, address: int) -> bytes:
        """All of it, to be put at `address`."""
        start, end = self.initrd
        modules = address + _START_INFO.size
        memory = modules + _MODULE.size
        places = (modules, self.cmdline, self.rsdp, memory)
        head = _START_INFO.pack(_MAGIC, _VERSION, 0, 1, *places, len(self.e820))
        entries = b"".join(_MEMORY.pack(*entry) for entry in self.e820)
        return head + _MODULE.pack(start, end - start, 0) + entries
