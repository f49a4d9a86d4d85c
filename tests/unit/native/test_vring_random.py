"""The device side of a split virtqueue, over rings of random and of almost right bytes."""

from __future__ import annotations

import struct
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_native.memory import PAGE_SIZE, Memory
from crumble_native.vring import Chain, MalformedRingError, Virtqueue


class Bytes(bytearray):
    """Heap memory instead of a mapping, so that the sanitizer sees an access one byte outside."""


def check_chain(memory: Memory, chain: Chain) -> None:
    assert sum(map(len, chain.readable)) == chain.readable_len
    assert sum(map(len, chain.writable)) == chain.writable_len
    assert chain.readable_len + chain.writable_len > 0
    for view in chain.readable:
        assert len(bytes(view)) == len(view)
    for view in chain.writable:
        view[:1] = view[:1]
        view[-1:] = view[-1:]


def drain(memory: Memory, queue: Virtqueue, size: int) -> None:
    """Invariant: a ring of any bytes gives at most `size` chains inside memory, or MalformedRingError."""
    seen: set[int] = set()
    try:
        while (chain := queue.pop()) is not None:
            assert chain.head not in seen
            assert chain.head < size
            seen.add(chain.head)
            check_chain(memory, chain)
    except MalformedRingError as fault:
        assert fault.code.startswith("ring.")
    assert queue.in_flight == len(seen)


def hostile(size: int, content: bytes) -> tuple[Any, Memory]:
    heap = Bytes(2 * PAGE_SIZE)
    heap[: len(content)] = content
    memory = Memory()
    memory.add(0, heap)  # type: ignore[arg-type]  # any buffer will do
    return heap, memory


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([1, 2, 8, 64]), st.binary(max_size=2 * PAGE_SIZE), st.booleans(), st.booleans()
)
def test_random_bytes_as_a_ring(size: int, content: bytes, event: bool, indirect: bool) -> None:
    _, memory = hostile(size, content)
    avail, used = 16 * size, 16 * size + 6 + 2 * size
    used += -used % 4
    queue = Virtqueue(memory, size, 0, avail, used, event_idx=event, indirect=indirect)
    drain(memory, queue, size)


near_ram = st.one_of(st.integers(0, 2 * PAGE_SIZE + 32), st.integers(2**64 - 64, 2**64 - 1))
lengths = st.one_of(st.integers(0, 64), st.sampled_from([16, 32, 4096, 8192, 2**32 - 1]))
rows_of = st.lists(
    st.tuples(near_ram, lengths, st.integers(0, 7), st.integers(0, 9)), min_size=8, max_size=8
)


@settings(max_examples=300, deadline=None)
@given(rows_of, rows_of, st.lists(st.integers(0, 9), max_size=8), st.integers(0, 12))
def test_almost_right_rings(
    rows: list[tuple[int, int, int, int]],
    nested: list[tuple[int, int, int, int]],
    heads: list[int],
    idx: int,
) -> None:
    """Descriptors that are mostly plausible reach the deep checks that random bytes never do."""
    pack = b"".join(struct.pack("<QIHH", *row) for row in rows)
    ring = pack + struct.pack("<HH8H", 0, idx, *(heads + [0] * 8)[:8])
    heap, memory = hostile(8, ring)
    heap[1024 : 1024 + 128] = b"".join(struct.pack("<QIHH", *row) for row in nested)
    queue = Virtqueue(memory, 8, 0, 128, 152, event_idx=True)
    drain(memory, queue, 8)
