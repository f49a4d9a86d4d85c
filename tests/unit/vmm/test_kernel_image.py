"""The loader of Images: every wrapping, and everything that is not a kernel."""

import gzip
import mmap
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crumble_common.errors import UsageError
from crumble_native.memory import Memory
from crumble_vmm.boot.kernel_image import ARM64, load_kernel
from crumble_vmm.boot.ram import Ram

BASE = 0x8000_0000
MIB = 1 << 20


def packed(data: bytes, level: int = 9) -> bytes:
    """gzip without a time stamp: parameters of tests must be the same in every process."""
    return gzip.compress(data, level, mtime=0)


_opened: list[int] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """The files that RAM is."""
    yield
    while _opened:
        os.close(_opened.pop())


def ram(size: int = 8 * MIB, *, file: bool = True) -> Ram:
    memory = Memory()
    fd = os.memfd_create("ram")
    _opened.append(fd)
    os.ftruncate(fd, size)
    memory.add(BASE, mmap.mmap(fd, size))
    return Ram(memory, BASE, size, fd if file else -1)


def image(
    body: int = 100_000,
    *,
    text_offset: int = 2 * MIB,
    size: int = 3 * MIB,
    flags: int = 0,
    magic: bytes = b"RISCV\0\0\0",
    magic2: bytes = b"RSC\x05",
) -> bytes:
    head = struct.pack(
        "<4s4sQQQIIQ8s4sI", b"MZ\0\0", b"code", text_offset, size, flags, 2, 0, 0, magic, magic2, 0
    )
    return head + bytes(i * 7 & 0xFF for i in range(body))


def zboot(payload: bytes, name: bytes) -> bytes:
    head = struct.pack(
        "<2s2x4sII8x32s4sI", b"MZ", b"zimg", 512, len(payload), name, b"\xcd\x23\x82\x81", 0
    )
    return head.ljust(512, b"\0") + payload + b"\0\0\0\0"


WRAPPINGS = {
    "raw": lambda data: data,
    "gzip": packed,
    "zstd": zstandard.compress,
    "zstd without size": lambda data: zstandard.ZstdCompressor(write_content_size=False).compress(
        data
    ),
    "zboot gzip": lambda data: zboot(packed(data), b"gzip"),
    "zboot zstd": lambda data: zboot(zstandard.compress(data), b"zstd"),
    "several gzip chunks": lambda data: packed(data, 0),
}


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("file", [True, False])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_kernel_is_placed_where_its_header_says(tmp_path: Path, wrapping: str, file: bool) -> None:
    data = image(2_500_000)
    guest = ram(file=file)
    loaded = load_kernel(write(tmp_path / "k", WRAPPINGS[wrapping](data)), guest)
    assert loaded.entry == BASE + 2 * MIB
    assert loaded.end == BASE + 5 * MIB
    assert guest.memory.read(loaded.entry, len(data)) == data
    assert guest.memory.read(BASE, 2 * MIB) == bytes(2 * MIB)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "too short"),
        (b"#!/bin/sh\n" * 40, "no riscv64 Image header"),
        (image()[:60], "too short"),
        (packed(b"hello"), "too short"),
        (packed(b""), "too short"),
        (image(magic2=b"ARM\x64"), "no riscv64 Image header"),
        (image(flags=1), "big-endian"),
        (image(text_offset=4096), "load offset"),
        (image(size=0), "its size 0x0"),
        (image(size=4096), "its header says 4096"),
        (packed(image(size=4096)), "unpacks to more than the 4096"),
        (packed(image())[:-20], "ends too early"),
        (packed(image())[:20] + b"junk" * 20, "damaged"),
        (zstandard.compress(image())[:-20], "ends too early"),
        (zstandard.compress(image())[:30] + b"junk" * 20, "zstd data"),
        (zboot(b"\x5d\0\0" * 30, b"lzma"), "'lzma'"),
        (zboot(packed(image()), b"gzip")[:700], "zboot header is damaged"),
    ],
)
def test_what_is_no_kernel_is_refused_in_a_sentence(tmp_path: Path, data: bytes, why: str) -> None:
    path = write(tmp_path / "k", data)
    with pytest.raises(UsageError, match=why) as caught:
        load_kernel(path, ram())
    assert caught.value.code == "vmm.kernel"
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_missing_file_and_directory(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(UsageError, match="Cannot read kernel"):
            load_kernel(path, ram())


@pytest.mark.parametrize("pack", [lambda data: data, packed])
def test_a_kernel_larger_than_memory(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    path = write(tmp_path / "k", pack(image(size=7 * MIB)))
    with pytest.raises(UsageError, match="needs 9 MiB of memory, the VM has 8 MiB") as caught:
        load_kernel(path, ram())
    assert caught.value.code == "vmm.memory"
    load_kernel(path, ram(9 * MIB))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=96), st.sampled_from(sorted(WRAPPINGS)), st.integers(0, 600))
def test_any_bytes_load_or_are_refused(
    tmp_path: Path, noise: bytes, wrapping: str, at: int
) -> None:
    """Whatever the file holds: a kernel inside RAM, or a UsageError; nothing else."""
    data = bytearray(WRAPPINGS[wrapping](image(1000)))
    data[at : at + len(noise)] = noise
    guest = ram(6 * MIB)
    try:
        loaded = load_kernel(write(tmp_path / "k", bytes(data)), guest)
    except UsageError:
        return
    assert BASE <= loaded.entry < loaded.end <= guest.end


def with_sections(data: bytes, *sections: tuple[int, int]) -> bytes:
    """The image with a PE header of sections (size, place in the file) behind its own header."""
    coff = struct.pack("<4s2xH12xH2x", b"PE\0\0", len(sections), 8) + bytes(8)
    table = b"".join(struct.pack("<16xII16x", size, at) for size, at in sections)
    head = data[:0x3C] + struct.pack("<I", 64) + coff + table
    return head + data[len(head) :]


@pytest.mark.parametrize("missing", [0, 1, 50_000])
def test_a_raw_image_must_be_as_long_as_its_sections(tmp_path: Path, missing: int) -> None:
    whole = with_sections(image(), (4096, 0), (96_064, 4000))
    assert len(whole) == 100_064
    path = tmp_path / "kernel"
    path.write_bytes(whole[: len(whole) - missing])
    if not missing:
        load_kernel(path, ram())
        return
    with pytest.raises(UsageError, match=r"cut off: it has \d+ of 100064 bytes"):
        load_kernel(path, ram())


@given(st.binary(max_size=300), st.integers(0, 0xFFFF_FFFF))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_pe_header_is_read_within_bounds(tmp_path: Path, pe: bytes, at: int) -> None:
    """It loads or is refused with a sentence, whatever its PE header says."""
    data = image()
    path = tmp_path / "kernel"
    path.write_bytes(data[:0x3C] + struct.pack("<I", at % 400) + b"PE\0\0" + pe + data[72:])
    try:
        load_kernel(path, ram())
    except UsageError as error:
        assert error.code == "vmm.kernel"


def test_each_architecture_takes_its_own(tmp_path: Path) -> None:
    """arm64's header is at the same place; its kernels may lie anywhere by the page."""
    data = image(magic=bytes(8), magic2=b"ARM\x64", text_offset=0x8_0000)
    path = write(tmp_path / "k", data)
    guest = ram()
    assert load_kernel(path, guest, ARM64).entry == BASE + 0x8_0000
    assert bytes(guest.window(BASE + 0x8_0000, len(data))) == data
    with pytest.raises(UsageError, match="not a riscv64 Linux kernel: it has no riscv64"):
        load_kernel(path, guest)
    with pytest.raises(UsageError, match="not an arm64 Linux kernel: it has no arm64"):
        load_kernel(write(tmp_path / "r", image()), guest, ARM64)
