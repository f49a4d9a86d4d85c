"""What lies below a restored VM's memory: files over one another, as if they were one."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common.guest_memory import GuestMemory, RamRegion
from crumble_common.memory_base import (
    FILES,
    RUNS,
    MemoryBase,
    pack,
    pack_runs,
    parse_runs,
    runs_of,
)

PAGES, PAGE = 16, 4096
RAM = 0x8000_0000


def layer(pages: dict[int, bytes]) -> int:
    """A file with these pages."""
    fd = os.memfd_create("layer")
    os.ftruncate(fd, PAGES * PAGE)
    for number, fill in pages.items():
        os.pwrite(fd, fill * PAGE, number * PAGE)
    return fd


@given(st.lists(st.dictionaries(st.integers(0, PAGES - 1), st.sampled_from([b"\0", b"a", b"b"]),
                                max_size=9), min_size=1, max_size=4))  # fmt: skip
def test_a_page_is_what_the_last_one_that_has_it_says(layers: list[dict[int, bytes]]) -> None:
    """Seen by reading, and by a guest that writes a page and reads the others."""
    fds = [layer(pages) for pages in layers]
    runs = [runs_of(bytes(0x35 if n in pages else 0x11 for n in range(PAGES))) for pages in layers]
    listed = os.memfd_create("runs")
    os.write(listed, pack(runs[1:]))
    given_fds = {**dict(zip(FILES, fds, strict=False)), RUNS: listed}
    base = MemoryBase.given(given_fds)
    assert base is not None
    expected = [b"\0"] * PAGES
    for pages in layers:
        for number, fill in pages.items():
            expected[number] = fill
    whole = b"".join(fill * PAGE for fill in expected)
    with base.map(PAGES * PAGE) as mapped:
        assert mapped[:] == whole
    made = GuestMemory.create(PAGES * PAGE)
    clone = GuestMemory.attach(made.fd, made.state_fd, [RamRegion(RAM, PAGES * PAGE)], base)
    clone.memory.write(RAM + 5 * PAGE, b"mine")
    assert (
        clone.memory.read(RAM, PAGES * PAGE) == whole[: 5 * PAGE] + b"mine" + whole[5 * PAGE + 4 :]
    )
    made.close()
    for fd in (*fds, listed):
        os.close(fd)


@pytest.mark.parametrize(
    "runs", [[(0, 17)], [(16, 1)], [(2, 2), (3, 1)], [(3, 1), (2, 1)], [(1, 0)]]
)
def test_runs_that_cannot_be_are_refused(runs: list[tuple[int, int]]) -> None:
    with pytest.raises(ValueError, match="not in order"):
        list(parse_runs(pack_runs(runs), PAGES))
    whole, over = layer({}), layer({})
    with pytest.raises(ValueError, match="not in order"):
        MemoryBase([whole, over], [pack_runs(runs)]).map(PAGES * PAGE)
    with pytest.raises(ValueError, match="cut off"):
        list(parse_runs(b"123", PAGES))
    listed = os.memfd_create("runs")
    os.write(listed, pack([pack_runs([(1, 1)])])[:-1])
    with pytest.raises(ValueError, match="cut off"):
        MemoryBase.given({"memory_base": whole, "memory_base_1": over, RUNS: listed})
    os.close(listed)
    os.ftruncate(over, PAGE)
    with pytest.raises(ValueError, match="shorter"):
        MemoryBase([whole, over], [b""]).map(PAGES * PAGE)
    os.close(whole)
    os.close(over)
