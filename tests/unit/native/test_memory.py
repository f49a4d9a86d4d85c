"""Guest memory: layers, bounds, page state."""

import mmap

import pytest

from crumble_native.memory import PAGE_SIZE, STATE_HEADER_SIZE, Memory


def anonymous(pages: int) -> mmap.mmap:
    return mmap.mmap(-1, pages * PAGE_SIZE)


def test_plain_region_is_contiguous_and_bounded() -> None:
    memory = Memory()
    memory.add(0x8000_0000, anonymous(4))
    memory.write(0x8000_0FFC, b"across!!")
    assert memory.read(0x8000_0FFC, 8) == b"across!!"
    assert [len(view) for view in memory.views(0x8000_0000, 4 * PAGE_SIZE, write=False)] == [
        4 * PAGE_SIZE
    ]
    for gpa, length in [
        (0x7FFF_FFFF, 2),
        (0x8000_3FFF, 2),
        (2**64 - 1, 2),
        (0, 1),
        (0x8000_0000, 2**64 - 1),
    ]:
        assert not memory.has(gpa, length)
        with pytest.raises(ValueError, match="not guest memory"):
            memory.views(gpa, length, write=True)


def test_base_is_read_through_and_never_written() -> None:
    base, overlay, state = anonymous(2), anonymous(2), mmap.mmap(-1, PAGE_SIZE)
    base[:] = b"B" * len(base)
    memory = Memory(state)
    memory.add(0, overlay, base=base)
    assert memory.read(PAGE_SIZE - 2, 4) == b"BBBB"
    memory.write(PAGE_SIZE - 1, b"w")
    assert memory.read(PAGE_SIZE - 2, 4) == b"BwBB"
    assert base[:] == b"B" * len(base)
    assert state[STATE_HEADER_SIZE] & 0x11 == 0x11
    assert state[STATE_HEADER_SIZE + 1] == 0


def test_a_flattened_memory_has_one_layer() -> None:
    base, overlay, state = anonymous(4), anonymous(4), mmap.mmap(-1, PAGE_SIZE)
    base[:] = b"B" * len(base)
    memory = Memory(state)
    memory.add(0, overlay, base=base)
    memory.write(PAGE_SIZE + 1, b"w")
    memory.flatten()
    assert overlay[:] == b"B" * (PAGE_SIZE + 1) + b"w" + b"B" * (3 * PAGE_SIZE - 2)
    assert all(state[STATE_HEADER_SIZE + page] & 1 for page in range(4))
    assert len(memory.views(0, 4 * PAGE_SIZE, write=False)) == 1
    base[:] = bytes(len(base))
    assert memory.read(0, 1) == b"B"


def test_writing_a_code_page_marks_it_stale_and_counts() -> None:
    overlay, state = anonymous(2), mmap.mmap(-1, PAGE_SIZE)
    memory = Memory(state)
    memory.add(0, overlay)
    state[STATE_HEADER_SIZE + 1] = 0x04
    memory.write(0, b"x")
    assert int.from_bytes(state[16:24], "little") == 0
    memory.write(PAGE_SIZE, b"x")
    memory.write(PAGE_SIZE, b"y")
    assert state[STATE_HEADER_SIZE + 1] & 0x08
    assert int.from_bytes(state[16:24], "little") == 1


@pytest.mark.parametrize(
    ("gpa", "offset", "size"), [(1, 0, 4096), (0, 0, 100), (0x3000, 0, 8192), (0, 0, 1 << 40)]
)
def test_bad_regions_are_refused(gpa: int, offset: int, size: int) -> None:
    memory = Memory()
    memory.add(0x4000, anonymous(1))
    with pytest.raises(ValueError, match="region"):
        memory.add(gpa, anonymous(2), offset=offset, size=size)
