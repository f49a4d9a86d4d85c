"""Loader of `Image` kernels of riscv64 and arm64, whose headers are alike (Linux, Documentation/arch/,
riscv/boot-image-header.rst and arm64/booting.rst).

A file is one of: a raw Image; one compressed with gzip or zstd; an EFI zboot image, which wraps such
a payload. Compressed kernels are decompressed straight into guest memory. Nothing in the file is
trusted: what isn't a kernel, or doesn't fit the guest's memory, is refused with the reason.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass
from pathlib import Path

from crumble_common.errors import UsageError
from crumble_vmm.boot.compression import CompressionError, sniff
from crumble_vmm.boot.ram import Ram

# text_offset, image_size, flags, magic2
_IMAGE = struct.Struct("<8xQQQ24x4s4x")
# Linux, drivers/firmware/efi/libstub/zboot-header.S: offset and size of the payload, compression.
_ZBOOT = struct.Struct("<2s2x4sII8x32s4s")
_LINUX_PE_MAGIC = b"\xcd\x23\x82\x81"
# An Image is a PE file, too: where its header is, how many sections follow and how large the optional
# header before them is, and a section's size and place in the file.
_PE_OFFSET = 0x3C
_COFF = struct.Struct("<6xH12xH2x")
_SECTION = struct.Struct("<16xII16x")
_HEAD = 4096
_HINT = "Give the path of {} Image (raw, gzip, zstd or EFI zboot)."


@dataclass(frozen=True, slots=True)
class Format:
    """An architecture's header. name: with its article. align: of text_offset; RAM begins at a multiple of 2 MiB."""

    name: str
    magic: bytes
    align: int


RISCV64 = Format("a riscv64", b"RSC\x05", 2 << 20)
ARM64 = Format("an arm64", b"ARM\x64", 4096)


@dataclass(frozen=True, slots=True)
class LoadedKernel:
    """entry: guest-physical address of its first instruction. end: first byte after its .bss."""

    entry: int
    end: int


def load_kernel(path: Path, ram: Ram, form: Format = RISCV64) -> LoadedKernel:
    """Puts the kernel file `path` into `ram`.

    Raises UsageError ("vmm.kernel") when it is no kernel of `form` or needs more memory.
    """
    try:
        with path.open("rb") as file:
            source = _Source(path, file.fileno(), form)
            return _load_packed(source, ram) if source.compressed else _load_raw(source, ram)
    except OSError as error:
        raise UsageError(
            f"Cannot read kernel {path}: {error.strerror}.",
            code="vmm.kernel",
            hint=_HINT.format(form.name),
        ) from None


class _Source:
    """A kernel file and where in it the payload is."""

    def __init__(self, path: Path, fd: int, form: Format) -> None:
        self.path, self.fd, self.form = path, fd, form
        self.offset, self.size = 0, os.fstat(fd).st_size
        head = self.head(_ZBOOT.size)
        if head[:2] == b"MZ" and head[4:8] == b"zimg" and len(head) == _ZBOOT.size:
            self._enter_zboot(head)
        self.compressed = sniff(self.head(6))

    def head(self, count: int) -> bytes:
        return os.pread(self.fd, min(count, self.size), self.offset)

    def _enter_zboot(self, head: bytes) -> None:
        _, _, offset, size, compression, magic = _ZBOOT.unpack(head)
        if magic != _LINUX_PE_MAGIC or offset + size > self.size:
            raise self.bad("its EFI zboot header is damaged")
        self.offset, self.size = offset, size
        if sniff(self.head(6)) is None:
            name = compression.split(b"\0")[0].decode("ascii", "replace")
            raise self.bad(f"its EFI zboot payload is compressed with {name!r}")

    def bad(self, why: str) -> UsageError:
        return UsageError(
            f"{self.path} is not {self.form.name} Linux kernel: {why}.",
            code="vmm.kernel",
            hint=_HINT.format(self.form.name),
        )

    def check_header(self, head: bytes, ram: Ram) -> tuple[int, int]:
        """The guest-physical address and the size in memory that an Image header asks for."""
        if len(head) < _IMAGE.size:
            raise self.bad("it is too short")
        text_offset, image_size, flags, magic = _IMAGE.unpack(head)
        if magic != self.form.magic:
            raise self.bad(f"it has no {self.form.name.split()[1]} Image header")
        if flags & 1:
            raise self.bad("it is big-endian")
        if text_offset % self.form.align or image_size < _IMAGE.size:
            raise self.bad(f"its load offset is {text_offset:#x}, its size {image_size:#x}")
        if text_offset + image_size > ram.size:
            raise UsageError(
                f"Kernel {self.path} needs {_mib(text_offset + image_size)} MiB of memory, "
                f"the VM has {_mib(ram.size)} MiB.",
                code="vmm.memory",
                hint="Give the VM more memory.",
            )
        return ram.base + text_offset, image_size


def _mib(size: int) -> int:
    return -(-size >> 20)


def _declared_size(head: bytes) -> int:
    """How long the file must be by its PE sections (PE format, COFF header); 0 where it has none."""
    if head[:2] != b"MZ" or len(head) < _IMAGE.size:
        return 0
    (at,) = struct.unpack_from("<I", head, _PE_OFFSET)
    if head[at : at + 4] != b"PE\0\0" or len(head) < at + _COFF.size:
        return 0
    count, optional = _COFF.unpack_from(head, at)
    table = at + _COFF.size + optional
    sections = [table + number * _SECTION.size for number in range(count)]
    inside = (place for place in sections if place + _SECTION.size <= len(head))
    return max((sum(_SECTION.unpack_from(head, place)) for place in inside), default=0)


def _load_raw(source: _Source, ram: Ram) -> LoadedKernel:
    head = source.head(_HEAD)
    address, size = source.check_header(head[: _IMAGE.size], ram)
    if source.size < (declared := _declared_size(head)):
        raise source.bad(f"it is cut off: it has {source.size} of {declared} bytes")
    if source.size > size:
        # image_size covers .bss, so a longer file is damaged or has something appended.
        raise source.bad(f"the file has {source.size} bytes, its header says {size}")
    if ram.copy_from(source.fd, source.offset, source.size, address) < source.size:
        raise source.bad("the file became shorter while it was read")
    return LoadedKernel(address, address + size)


def _load_packed(source: _Source, ram: Ram) -> LoadedKernel:
    assert source.compressed is not None
    _, decompress = source.compressed
    # Never closed by hand: a decompressor's error keeps views of it alive for a while.
    mapped = mmap.mmap(source.fd, 0, access=mmap.ACCESS_READ)
    packed = memoryview(mapped)[source.offset : source.offset + source.size]
    placer = _Placer(source, ram)
    try:
        for chunk in filter(None, decompress(packed)):
            placer.take(chunk)
    except CompressionError as error:
        raise source.bad(str(error)) from None
    return placer.finish()


class _Placer:
    """Takes a decompressed kernel chunk by chunk: its header first, which says where it goes."""

    def __init__(self, source: _Source, ram: Ram) -> None:
        self._source, self._ram = source, ram
        self._head = b""
        self._address = self._size = self._done = 0

    def take(self, chunk: bytes) -> None:
        if not self._size:
            chunk = self._head = self._head + chunk
            if len(chunk) < _IMAGE.size:
                return
            self._locate()
        if self._done + len(chunk) > self._size:
            raise self._source.bad(f"it unpacks to more than the {self._size} bytes it declares")
        self._ram.window(self._address + self._done, len(chunk))[:] = chunk
        self._done += len(chunk)

    def _locate(self) -> None:
        head = self._head[: _IMAGE.size]
        self._address, self._size = self._source.check_header(head, self._ram)

    def finish(self) -> LoadedKernel:
        if not self._size:
            self._locate()
        return LoadedKernel(self._address, self._address + self._size)
