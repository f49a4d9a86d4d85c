"""Loader of x86-64 kernels, and their boot_params (Linux, Documentation/arch/x86/boot.rst).

A bzImage is entered in 64-bit mode behind its real-mode part. A vmlinux is put where its ELF segments say
and entered by PVH (pvh.py) when a note says where, else at its entry point as a bzImage is: it saves the guest
the decompression. Nothing in the
file is trusted: what isn't a kernel, or doesn't fit the guest's memory, is refused with the reason.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crumble_common.errors import UsageError
from crumble_vmm.boot import pvh
from crumble_vmm.boot.modules import EM_X86_64
from crumble_vmm.boot.ram import Ram

_HINT = "Give the path of an x86-64 bzImage or vmlinux."
_SECTOR = 512
# Offsets in the file and in boot_params, which begins with a copy of the header.
_HEADER, _HEADER_END = 0x1F1, 0x201
_BOOT_FLAG, _MAGIC, _VERSION, _LOADFLAGS, _XLOADFLAGS = 0x1FE, 0x202, 0x206, 0x211, 0x236
_PREF_ADDRESS, _INIT_SIZE = 0x258, 0x260
_LAST_FIELD = 0x264
_MIN_VERSION = 0x20C  # xloadflags; Linux 3.8
_LOADED_HIGH, _KERNEL_64 = 1, 1
_ENTRY_64 = 0x200
_LOADER_UNKNOWN = 0xFF
_E820_ENTRIES, _E820_TABLE, _E820_MAX = 0x1E8, 0x2D0, 128
_RSDP = 0x70
E820_RAM, E820_RESERVED = 1, 2
BOOT_PARAMS_SIZE = 4096
# struct setup_data: next, type, length; SETUP_RNG_SEED.
_SETUP_DATA = struct.Struct("<QII")
_RNG_SEED = 9
_FOUR_GIB = 1 << 32
_MIN_ADDRESS = 1 << 20
# ELF-64: type, machine, entry, program headers' offset, their size and number.
_ELF_MAGIC, _EHDR = b"\x7fELF", struct.Struct("<16xHH4xQQ14xHH6x")
# Type; offset, physical address, size in the file, size in memory.
_PHDR = struct.Struct("<I4xQ8xQQQ8x")
_ET_EXEC, _PT_LOAD, _PT_NOTE, _MAX_SEGMENTS = 2, 1, 4, 64
_MAX_NOTES = 64 << 10


def _elf_header() -> bytes:
    """The setup header that a vmlinux does not bring along: what the kernel itself looks at."""
    header = bytearray(_LAST_FIELD - _HEADER)
    for at, value in ((_BOOT_FLAG, 0xAA55), (_VERSION, _MIN_VERSION)):
        struct.pack_into("<H", header, at - _HEADER, value)
    header[_MAGIC - _HEADER : _MAGIC - _HEADER + 4] = b"HdrS"
    header[_LOADFLAGS - _HEADER] = _LOADED_HIGH
    return bytes(header)


_ELF_HEADER = _elf_header()


@dataclass(frozen=True, slots=True)
class LoadedKernel:
    """entry: of 64-bit mode, or PVH's. end: first byte it does not use before it is up. header: for boot_params."""

    entry: int
    end: int
    header: bytes
    pvh: bool = False


def load_kernel(path: Path, ram: Ram) -> LoadedKernel:
    """Puts the kernel file `path` into `ram`; raises UsageError ("vmm.kernel", "vmm.memory")."""
    try:
        with path.open("rb") as file:
            head = file.read(_SECTOR * 4)
            load = _load_elf if head[:4] == _ELF_MAGIC else _load_bzimage
            return load(path, file.fileno(), head, ram)
    except OSError as error:
        raise UsageError(
            f"Cannot read kernel {path}: {error.strerror}.", code="vmm.kernel", hint=_HINT
        ) from None


def _load_bzimage(path: Path, fd: int, head: bytes, ram: Ram) -> LoadedKernel:
    header = _Header(path, head)
    size = os.fstat(fd).st_size - header.payload
    if size <= _ENTRY_64 or size > header.init_size:
        raise header.bad(f"{size} bytes follow its header")
    end = header.address + header.init_size
    _check_room(path, end, ram)
    if ram.copy_from(fd, header.payload, size, header.address) < size:
        raise header.bad("the file became shorter while it was read")
    return LoadedKernel(header.address + _ENTRY_64, end, header.setup)


def _load_elf(path: Path, fd: int, head: bytes, ram: Ram) -> LoadedKernel:
    """A static ELF file whose segments have physical addresses."""
    if len(head) < _EHDR.size or head[4:6] != b"\2\1":
        raise _bad(path, "it is not a 64-bit little-endian ELF file")
    kind, machine, entry, table, size, count = _EHDR.unpack_from(head)
    if (kind, machine, size) != (_ET_EXEC, EM_X86_64, _PHDR.size) or not 0 < count <= _MAX_SEGMENTS:
        raise _bad(path, f"it is for ELF machine {machine}, type {kind}, {count} segments")
    data = os.pread(fd, count * size, table) if table < _FOUR_GIB else b""
    if len(data) < count * size:
        raise _bad(path, "its program headers are not in the file")
    segments = [item[1:] for item in _PHDR.iter_unpack(data) if item[0] == _PT_LOAD and item[4]]
    segments.sort(key=lambda segment: segment[1])
    for offset, address, filled, wanted in segments:
        if filled > wanted or address < _MIN_ADDRESS or offset + filled > os.fstat(fd).st_size:
            raise _bad(path, f"a segment of it is for {address:#x}, of {wanted} bytes")
        _check_room(path, address + wanted, ram)
    for (_, address, _, wanted), (_, after, _, _) in itertools.pairwise(segments):
        if address + wanted > after:
            raise _bad(path, f"its segments overlap at {after:#x}")
    by_pvh = _pvh_entry(path, fd, data)
    entry = entry if by_pvh is None else by_pvh
    if not any(at <= entry < at + filled for _, at, filled, _ in segments):
        raise _bad(path, f"its entry point {entry:#x} is in none of its segments")
    for offset, address, filled, _ in segments:
        if filled and ram.copy_from(fd, offset, filled, address) < filled:
            raise _bad(path, "the file became shorter while it was read")
    end = max(address + wanted for _, address, _, wanted in segments)
    return LoadedKernel(entry, end, _ELF_HEADER, by_pvh is not None)


def _pvh_entry(path: Path, fd: int, headers: bytes) -> int | None:
    """What a note of the file says, if one does."""
    for kind, offset, _, size, _ in _PHDR.iter_unpack(headers):
        if kind != _PT_NOTE:
            continue
        notes = os.pread(fd, size, offset) if size <= _MAX_NOTES and offset < _FOUR_GIB else b""
        if len(notes) < size:
            raise _bad(path, f"its notes, {size} bytes at {offset:#x}, are not in the file")
        try:
            entry = pvh.entry_of(notes)
        except ValueError as error:
            raise _bad(path, f"it has {error}") from None
        if entry is not None:
            return entry
    return None


def _check_room(path: Path, end: int, ram: Ram) -> None:
    if end > ram.end:
        raise UsageError(
            f"Kernel {path} needs {-(-end >> 20)} MiB of memory, the VM has {ram.size >> 20} MiB.",
            code="vmm.memory",
            hint="Give the VM more memory.",
        )


def _bad(path: Path, why: str) -> UsageError:
    return UsageError(
        f"{path} is not an x86-64 Linux kernel: {why}.", code="vmm.kernel", hint=_HINT
    )


class _Header:
    """A setup header, checked. payload: offset in the file of what is loaded at `address`."""

    def __init__(self, path: Path, head: bytes) -> None:
        self._path = path
        if len(head) < _LAST_FIELD:
            raise self.bad("it is too short")
        (flag,) = struct.unpack_from("<H", head, _BOOT_FLAG)
        if flag != 0xAA55 or head[_MAGIC : _MAGIC + 4] != b"HdrS":
            raise self.bad("it has no setup header")
        (version,) = struct.unpack_from("<H", head, _VERSION)
        if version < _MIN_VERSION:
            raise self.bad(f"its boot protocol is {version >> 8}.{version & 0xFF:02}")
        (xloadflags,) = struct.unpack_from("<H", head, _XLOADFLAGS)
        if not head[_LOADFLAGS] & _LOADED_HIGH or not xloadflags & _KERNEL_64:
            raise self.bad("it has no 64-bit entry")
        (self.address,) = struct.unpack_from("<Q", head, _PREF_ADDRESS)
        (self.init_size,) = struct.unpack_from("<I", head, _INIT_SIZE)
        if self.address < 1 << 20 or self.address % 4096 or self.address >= _FOUR_GIB:
            raise self.bad(f"it wants to be at {self.address:#x}")
        self.payload = ((head[_HEADER] or 4) + 1) * _SECTOR
        self.setup = head[_HEADER : min(_MAGIC + head[_HEADER_END], 0x290)]
        if len(self.setup) < _LAST_FIELD - _HEADER:
            raise self.bad("its setup header is too short")

    def bad(self, why: str) -> UsageError:
        return _bad(self._path, why)


@dataclass(frozen=True, slots=True)
class BootParams:
    """The "zero page". e820: (address, size, type). cmdline, rsdp, setup_data: guest-physical addresses."""

    header: bytes
    cmdline: int
    initrd: tuple[int, int]
    rsdp: int
    setup_data: int
    e820: Sequence[tuple[int, int, int]]

    def encode(self) -> bytes:
        """boot_params (Documentation/arch/x86/zero-page.rst)."""
        page = bytearray(BOOT_PARAMS_SIZE)
        page[_HEADER : _HEADER + len(self.header)] = self.header
        start, end = self.initrd
        assert end <= _FOUR_GIB and len(self.e820) <= _E820_MAX
        page[0x210] = _LOADER_UNKNOWN
        struct.pack_into("<H", page, 0x1FA, 0xFFFF)  # vid_mode: normal
        struct.pack_into("<II", page, 0x218, start, end - start)
        struct.pack_into("<I", page, 0x228, self.cmdline)
        struct.pack_into("<Q", page, 0x250, self.setup_data)
        struct.pack_into("<Q", page, _RSDP, self.rsdp)
        page[_E820_ENTRIES] = len(self.e820)
        for number, entry in enumerate(self.e820):
            struct.pack_into("<QQI", page, _E820_TABLE + 20 * number, *entry)
        return bytes(page)


def seed_data(seed: bytes) -> bytes:
    """A setup_data node with entropy for the guest's random pool."""
    return _SETUP_DATA.pack(0, _RNG_SEED, len(seed)) + seed


def page_tables(address: int, gigabytes: int = 4) -> bytes:
    """Identity-mapped pages of 2 MiB for the lowest memory, to be put at `address`: PML4, PDPT, PDs."""
    present, large = 0b11, 1 << 7
    pml4 = struct.pack("<Q", address + 4096 | present).ljust(4096, b"\0")
    directories = [address + 8192 + 4096 * n for n in range(gigabytes)]
    pdpt = b"".join(struct.pack("<Q", at | present) for at in directories).ljust(4096, b"\0")
    pages = (struct.pack("<Q", n << 21 | present | large) for n in range(512 * gigabytes))
    return pml4 + pdpt + b"".join(pages)
