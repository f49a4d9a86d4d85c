"""The bzImage loader: a kernel where it wants to be, and everything that is not a kernel."""

import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crumble_common.errors import UsageError
from crumble_native.memory import Memory
from crumble_vmm.boot import pvh
from crumble_vmm.boot.kernel_x86 import BootParams, load_kernel, page_tables, seed_data
from crumble_vmm.boot.ram import Ram

MIB = 1 << 20
BODY = bytes(i * 7 & 0xFF for i in range(100_000))


_opened: list[int] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    """The files that RAM is."""
    yield
    while _opened:
        os.close(_opened.pop())


def ram(size: int = 32 * MIB) -> Ram:
    memory = Memory()
    fd = os.memfd_create("ram")
    _opened.append(fd)
    os.ftruncate(fd, size)
    memory.add(0, mmap.mmap(fd, size))
    return Ram(memory, 0, size, fd)


def image(
    *,
    sectors: int = 4,
    version: int = 0x20F,
    loadflags: int = 1,
    xloadflags: int = 0x3F,
    address: int = 16 * MIB,
    init_size: int = 2 * MIB,
    magic: bytes = b"HdrS",
    flag: int = 0xAA55,
    jump: int = 0x6A,
    body: bytes = BODY,
) -> bytes:
    head = bytearray(((sectors or 4) + 1) * 512)
    head[0x1F1] = sectors
    struct.pack_into("<H", head, 0x1FE, flag)
    head[0x200:0x202] = bytes((0xEB, jump))
    head[0x202:0x206] = magic
    struct.pack_into("<H", head, 0x206, version)
    head[0x211] = loadflags
    struct.pack_into("<H", head, 0x236, xloadflags)
    struct.pack_into("<Q", head, 0x258, address)
    struct.pack_into("<I", head, 0x260, init_size)
    return bytes(head) + body


@pytest.mark.parametrize("sectors", [0, 4, 39])
def test_a_kernel_is_put_where_it_wants(tmp_path: Path, sectors: int) -> None:
    path, memory = tmp_path / "bzImage", ram()
    path.write_bytes(image(sectors=sectors))
    kernel = load_kernel(path, memory)
    assert (kernel.entry, kernel.end) == (16 * MIB + 0x200, 18 * MIB)
    assert memory.memory.read(16 * MIB, len(BODY)) == BODY
    assert kernel.header[0x202 - 0x1F1 :][:4] == b"HdrS"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"magic": b"HdrX"}, "no setup header"),
        ({"flag": 0}, "no setup header"),
        ({"version": 0x20B}, "boot protocol is 2.11"),
        ({"loadflags": 0}, "no 64-bit entry"),
        ({"xloadflags": 0}, "no 64-bit entry"),
        ({"address": 0x1000}, "wants to be at 0x1000"),
        ({"address": 16 * MIB + 1}, "wants to be at"),
        ({"address": 1 << 63}, "wants to be at"),
        ({"init_size": 100}, "bytes follow its header"),
        ({"body": b""}, "bytes follow its header"),
        ({"jump": 0}, "setup header is too short"),
    ],
)
def test_what_is_not_a_kernel(tmp_path: Path, wrong: dict[str, Any], words: str) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(image(**wrong))
    with pytest.raises(UsageError, match=words) as caught:
        load_kernel(path, ram())
    assert caught.value.code == "vmm.kernel"


def test_too_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(image())
    with pytest.raises(UsageError, match="needs 18 MiB") as caught:
        load_kernel(path, ram(16 * MIB))
    assert caught.value.code == "vmm.memory"


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file"):
        load_kernel(tmp_path / "none", ram())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.lists(st.tuples(st.integers(0x1F1, 0x263), st.integers(0, 255)), max_size=6), st.data())
def test_any_header_is_taken_or_refused(
    tmp_path: Path, changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Whatever the file says, it is loaded inside RAM or refused as a usage error."""
    kernel = bytearray(image(init_size=MIB))
    for at, value in changes:
        kernel[at] = value
    path, memory = tmp_path / "bzImage", ram(24 * MIB)
    path.write_bytes(kernel[: data.draw(st.integers(0, len(kernel)))])
    try:
        loaded = load_kernel(path, memory)
    except UsageError:
        return
    assert MIB <= loaded.entry < loaded.end <= memory.end


def note(name: bytes, kind: int, data: bytes) -> bytes:
    """An ELF note, padded."""
    padded = [part + bytes(-len(part) % 4) for part in (name, data)]
    return struct.pack("<III", len(name), len(data), kind) + b"".join(padded)


def pvh_note(entry: int) -> bytes:
    return note(b"Xen\0", 18, struct.pack("<Q", entry))


NOTES = note(b"GNU\0", 3, b"build id") + note(b"Xen\0", 6, b"linux\0") + pvh_note(16 * MIB + 0x30)


def elf(
    segments: list[tuple[int, bytes, int]] | None = None,
    *,
    notes: bytes | None = None,
    entry: int = 16 * MIB + 8,
    kind: int = 2,
    machine: int = 62,
    count: int | None = None,
) -> bytes:
    """segments: (physical address, content, size in memory)."""
    if segments is None:
        segments = [(16 * MIB, BODY, len(BODY)), (17 * MIB, b"data", MIB)]
    offset = 64 + 56 * (len(segments) + (notes is not None))
    headers, body = b"", b""
    for address, content, size in segments:
        at = offset + len(body)
        headers += struct.pack("<IIQQQQQQ", 1, 5, at, 0, address, len(content), size, 4096)
        body += content
    if notes is not None:
        at = offset + len(body)
        headers += struct.pack("<IIQQQQQQ", 4, 4, at, 0, 0, len(notes), len(notes), 4)
        body += notes
    head = struct.pack(
        "<16sHHIQQQIHHHHHH", b"\x7fELF\2\1\1", kind, machine, 1, entry, 64, 0, 0, 64, 56,
        len(headers) // 56 if count is None else count, 0, 0, 0,
    )  # fmt: skip
    return head + headers + body


def test_a_vmlinux_is_put_where_its_segments_say(tmp_path: Path) -> None:
    path, memory = tmp_path / "vmlinux", ram()
    path.write_bytes(elf())
    kernel = load_kernel(path, memory)
    assert (kernel.entry, kernel.end) == (16 * MIB + 8, 18 * MIB)
    assert memory.memory.read(16 * MIB, len(BODY)) == BODY
    assert memory.memory.read(17 * MIB, 5) == b"data\0"
    assert kernel.header[0x202 - 0x1F1 :][:4] == b"HdrS"


def test_a_vmlinux_says_where_pvh_enters_it(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(elf(notes=NOTES))
    kernel = load_kernel(path, ram())
    assert (kernel.pvh, kernel.entry) == (True, 16 * MIB + 0x30)
    for notes in (b"", NOTES[:40], note(b"XenX", 18, bytes(8)), b"\xff" * 12):
        path.write_bytes(elf(notes=notes))
        assert not load_kernel(path, ram()).pvh


@given(st.binary(max_size=200))
def test_any_notes_name_an_entry_or_not(notes: bytes) -> None:
    """Whatever follows and precedes it, a note for PVH is found or refused as a ValueError."""
    try:
        entry = pvh.entry_of(notes)
    except ValueError:
        return
    assert entry is None or 0 <= entry < 1 << 64


def test_what_pvh_tells_a_kernel() -> None:
    e820 = [(0, 0x9FC00, 1), (0xE_0000, 0x2_0000, 2), (MIB, 31 * MIB, 1)]
    blob = pvh.StartInfo(0x2_0000, (18 * MIB, 19 * MIB), 0xE_0000, e820).encode(0x7000)
    magic, version, flags, modules, *places, entries = struct.unpack_from("<IIIIQQQQI", blob)
    assert (magic, version, flags, modules, entries) == (0x336E_C578, 1, 0, 1, 3)
    module, cmdline, rsdp, memory = places
    assert (cmdline, rsdp) == (0x2_0000, 0xE_0000)
    assert struct.unpack_from("<QQQQ", blob, module - 0x7000) == (18 * MIB, MIB, 0, 0)
    found = struct.iter_unpack("<QQII", blob[memory - 0x7000 :])
    assert [entry[:3] for entry in found] == e820


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (elf(kind=3), "type 3"),
        (elf(machine=243), "machine 243"),
        (elf(count=0), "0 segments"),
        (elf(count=65), "65 segments"),
        (elf()[:100], "program headers are not in the file"),
        (elf()[:20], "not a 64-bit"),
        (elf()[:5000], "a segment of it is for"),
        (elf(entry=MIB), "in none of its segments"),
        (elf([(0x1000, b"x", 1)], entry=0x1000), "a segment of it is for 0x1000"),
        (elf([(16 * MIB, b"xy", 1)], entry=16 * MIB), "a segment of it is for"),
        (elf([]), "0 segments"),
        (elf([(16 * MIB, BODY, MIB), (16 * MIB + 4096, b"x", 1)]), "segments overlap at 0x1001000"),
        (elf([(17 * MIB, b"x", 1), (16 * MIB, BODY, MIB + 1)]), "segments overlap at 0x1100000"),
        (elf(notes=pvh_note(MIB)), "entry point 0x100000 is in none"),
        (elf(notes=pvh_note(1 << 63)), "entry point 0x8000000000000000 is in none"),
        (elf(notes=note(b"Xen\0", 18, b"xy")), "a note for PVH of 2 bytes"),
        (elf(notes=NOTES[:-1]), "a note for PVH of 8 bytes"),
        (elf(notes=NOTES)[:-9], "its notes, 72 bytes at 0x1878c, are not in the file"),
        (elf(notes=bytes((64 << 10) + 1)), "its notes, 65537 bytes"),
    ],
)
def test_what_is_no_vmlinux(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=words) as caught:
        load_kernel(path, ram())
    assert caught.value.code == "vmm.kernel"


def test_a_vmlinux_that_is_too_large(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    for size in (17 * MIB, (1 << 64) - 1):
        path.write_bytes(elf([(16 * MIB, BODY, size)]))
        with pytest.raises(UsageError) as caught:
            load_kernel(path, ram())
        assert caught.value.code == "vmm.memory"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 64 + 168), st.integers(0, 255)), max_size=8))
def test_any_elf_header_is_taken_or_refused(tmp_path: Path, changes: list[tuple[int, int]]) -> None:
    """Whatever the file says, it is loaded inside RAM or refused as a usage error."""
    kernel = bytearray(elf(notes=NOTES))
    for at, value in changes:
        kernel[at] = value
    path, memory = tmp_path / "vmlinux", ram(24 * MIB)
    path.write_bytes(kernel)
    try:
        loaded = load_kernel(path, memory)
    except UsageError:
        return
    assert MIB <= loaded.entry < loaded.end <= memory.end


def test_boot_params() -> None:
    e820 = [(0, 0x9FC00, 1), (MIB, 31 * MIB, 1)]
    header = image()[0x1F1:0x268]
    page = BootParams(header, 0x2_0000, (18 * MIB, 19 * MIB), 0xE_0000, 0x8000, e820).encode()
    assert len(page) == 4096
    assert page[0x202:0x206] == b"HdrS" and page[0x210] == 0xFF
    assert struct.unpack_from("<II", page, 0x218) == (18 * MIB, MIB)
    assert struct.unpack_from("<I", page, 0x228) == (0x2_0000,)
    assert struct.unpack_from("<Q", page, 0x70) == (0xE_0000,)
    assert struct.unpack_from("<Q", page, 0x250) == (0x8000,)
    assert page[0x1E8] == 2
    assert struct.unpack_from("<QQIQQI", page, 0x2D0) == (*e820[0], *e820[1])


def test_a_seed() -> None:
    assert struct.unpack_from("<QII", seed_data(b"x" * 64)) == (0, 9, 64)


@pytest.mark.parametrize("address", [0, 0x1234, MIB, (4 << 30) - 1])
def test_memory_is_mapped_as_it_is(address: int) -> None:
    """Walked as a CPU does (SDM volume 3, 4.5)."""
    base = 0x9000
    data = page_tables(base)
    table, at = base, 0
    for shift in (39, 30, 21):
        (entry,) = struct.unpack_from("<Q", data, table - base + 8 * (address >> shift & 511))
        assert entry & 3 == 3
        table = at = entry & ~0xFFF
    assert entry & 0x80
    assert (at & ~((1 << 21) - 1)) | address & (1 << 21) - 1 == address
