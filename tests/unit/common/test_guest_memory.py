"""Guest memory as objects: made, passed on, attached, limited; and arenas."""

from __future__ import annotations

import os
import resource
import struct
from pathlib import Path

import pytest

from crumble_common import shared_memory
from crumble_common.arena import MAX_SECTIONS, Arena
from crumble_common.errors import HostError, InternalError, UsageError
from crumble_common.guest_memory import GuestMemory, RamRegion
from crumble_common.memory_base import MemoryBase

RAM = 0x8000_0000
MIB = 1 << 20


def attached(made: GuestMemory, *regions: RamRegion, base: MemoryBase | None = None) -> GuestMemory:
    """A second process's view: by duplicates of the fds."""
    chosen = regions or (RamRegion(RAM, made.size),)
    return GuestMemory.attach(os.dup(made.fd), os.dup(made.state_fd), chosen, base)


def test_what_one_process_writes_the_other_reads() -> None:
    made = GuestMemory.create(4 * MIB)
    assert str(Path(f"/proc/self/fd/{made.fd}").readlink()).endswith(" (deleted)")  # it has no name
    first, second = attached(made), attached(made)
    first.memory.write(RAM + MIB, b"shared")
    assert second.memory.read(RAM + MIB, 6) == b"shared"
    assert second.state[64 + MIB // 4096] & 0x10  # dirty, for everyone
    assert not os.get_inheritable(made.fd)
    for memory in (made, first, second):
        memory.close()
        memory.close()


def test_pages_are_numbered_by_their_place_in_the_object() -> None:
    made = GuestMemory.create(4 * MIB)
    high = RamRegion(1 << 32, MIB, 3 * MIB)
    memory = attached(made, high, RamRegion(0, 3 * MIB))
    memory.memory.write((1 << 32) + 4096, b"x")
    assert os.pread(memory.fd, 1, 3 * MIB + 4096) == b"x"
    assert memory.state[64 + 3 * 256 + 1] & 0x10
    made.close()
    memory.close()


def test_a_base_file_shows_through_until_written(tmp_path: Path) -> None:
    snapshot = tmp_path / "memory"
    snapshot.write_bytes(b"base" * (MIB // 4))
    base_fd = os.open(snapshot, os.O_RDONLY)
    made = GuestMemory.create(MIB)
    clone = attached(made, base=MemoryBase([base_fd]))
    os.close(base_fd)
    assert clone.memory.read(RAM + 4096, 8) == b"basebase"
    clone.memory.write(RAM + 4100, b"mine")
    assert clone.memory.read(RAM + 4096, 12) == b"baseminebase"
    assert snapshot.read_bytes() == b"base" * (MIB // 4)
    bare = attached(made)  # without the base there is only what was written
    assert bare.memory.read(RAM + 4096, 4) == b"base"
    assert bare.memory.read(RAM, 4) == bytes(4)
    for memory in (made, clone, bare):
        memory.close()


def test_detached_fds_are_the_callers() -> None:
    made = GuestMemory.create(MIB)
    fds = made.detach()
    made.close()
    again = GuestMemory.attach(fds["memory"], fds["page_state"], [RamRegion(0, MIB)])
    assert again.memory.has(MIB - 1, 1)
    again.close()


@pytest.mark.parametrize("size", [0, -4096, 100, 4097, 1 << 50, 1 << 62])
def test_impossible_sizes_are_refused_with_a_sentence(size: int) -> None:
    with pytest.raises(UsageError, match="A VM cannot have") as caught:
        GuestMemory.create(size)
    assert caught.value.code == "memory.size"
    assert "--memory" in caught.value.hint


@pytest.mark.parametrize(
    "regions",
    [
        [RamRegion(RAM, 2 * MIB)],
        [RamRegion(RAM, MIB, 4096)],
        [RamRegion(RAM + 1, 4096)],
        [RamRegion(RAM, 4096), RamRegion(RAM, 4096, 4096)],
        [RamRegion(RAM, 0, 1 << 40)],
        [RamRegion(index << 20, 4096, 0) for index in range(9)],
    ],
)
def test_regions_that_do_not_fit_are_refused(regions: list[RamRegion]) -> None:
    made = GuestMemory.create(MIB)
    with pytest.raises(InternalError, match="cannot be mapped"):
        GuestMemory.attach(made.fd, made.state_fd, regions)
    made.close()


def test_objects_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    made, other = GuestMemory.create(MIB), GuestMemory.create(2 * MIB)
    short = os.open(tmp_path / "short", os.O_RDWR | os.O_CREAT)
    for fd, state, base in [
        (made.fd, other.state_fd, None),
        (made.fd, made.fd, None),
        (made.fd, short, None),
        (short, made.state_fd, None),
        (made.fd, made.state_fd, MemoryBase([short])),
    ]:
        with pytest.raises(InternalError, match="cannot be mapped"):
            GuestMemory.attach(fd, state, [RamRegion(RAM, MIB)], base)
    os.close(short)
    made.close()
    other.close()


def test_without_a_roomy_dev_shm_a_memfd_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    for place in ("/nowhere", "/proc"):
        monkeypatch.setattr(shared_memory, "_SHM", place)
        fd = shared_memory.create(MIB, "test")
        assert "/memfd:crumble-test" in str(Path(f"/proc/self/fd/{fd}").readlink())
        assert os.fstat(fd).st_size == MIB
        os.close(fd)


def test_what_the_host_refuses_is_a_host_error() -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, limits[1]))
    try:
        with pytest.raises(HostError, match=r"Cannot make 1 MiB of shared memory: .*files open"):
            shared_memory.create(MIB, "test")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_arena_sections_outlive_their_maker() -> None:
    arena = Arena.create("fsd-nodes", 3, 100_000)
    nodes, names = arena.section("nodes", 50_000), arena.section("names", 10)
    nodes[49_999], names[0] = 7, 8
    again = Arena.attach(os.dup(arena.fd), "fsd-nodes", 3)
    assert again.section("names", 10)[0] == 8
    assert again.section("nodes", 50_000)[49_999] == 7
    assert again.section("more", 64)[0] == 0
    arena.close()
    again.close()


def test_arena_limits() -> None:
    arena = Arena.create("test", 1, 8192)
    arena.section("a", 64)
    for name, size in [("a", 65), ("b", 0), ("b", 8192), ("b", -1)]:
        with pytest.raises(InternalError, match="An arena cannot be used"):
            arena.section(name, size)
    for name in ("", "seventeen letters"):
        with pytest.raises(ValueError, match="name"):
            arena.section(name, 64)
    for number in range(MAX_SECTIONS - 1):
        arena.section(f"{number}", 1)
    with pytest.raises(InternalError, match="no room"):
        arena.section("last", 1)
    arena.close()


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0, b"NOTARENA"),
        (8, struct.pack("<I", 2)),
        (12, struct.pack("<I", 2)),  # a section more than there is
        (12, struct.pack("<I", 0xFFFF_FFFF)),
        (16, b"other"),
        (32, struct.pack("<Q", 1 << 40)),
        (40, struct.pack("<Q", 1 << 40)),
        (64 + 16, struct.pack("<Q", 0)),
        (64 + 16, struct.pack("<Q", 1 << 63)),
        (64 + 24, struct.pack("<Q", 1 << 20)),
    ],
)
def test_damaged_arenas_are_refused(offset: int, data: bytes) -> None:
    arena = Arena.create("test", 1, 8192)
    arena.section("a", 64)
    os.pwrite(arena.fd, data, offset)
    with pytest.raises(InternalError, match="An arena cannot be used"):
        Arena.attach(arena.fd, "test", 1)
    os.ftruncate(arena.fd, 100)
    with pytest.raises(InternalError, match="too short"):
        Arena.attach(arena.fd, "test", 1)
    arena.close()
