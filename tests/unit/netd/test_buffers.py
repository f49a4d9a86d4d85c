"""The ring that keeps a stream's bytes: what is read is what was written, and a successor finds it."""

from __future__ import annotations

import random

import pytest

from crumble_netd.tcp.buffers import START, SendBuffer
from crumble_netd.tcp.sequence import MASK, add


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_peeked_is_what_was_appended(seed: int, own: bool) -> None:
    chance = random.Random(seed)
    memory = None if own else memoryview(bytearray(16 * START))
    start = chance.choice([0, 12345, MASK - 70_000])
    ring, expected = SendBuffer(start, memory), bytearray()
    for _ in range(300):
        what = chance.random()
        if what < 0.5 and len(expected) < 8 * START:
            data = chance.randbytes(chance.choice([1, 700, 40_000]))
            ring.append(data)
            expected += data
        elif what < 0.8:
            count = chance.randrange(len(expected) + 1)
            assert ring.discard(add(ring.start, count)) == count
            del expected[:count]
        else:
            skip = chance.randrange(len(expected) + 1)
            count = chance.randrange(1, 100_000)
            found = b"".join(ring.peek(add(ring.start, skip), count))
            assert found == expected[skip : skip + count]
    assert (ring.size, ring.end) == (len(expected), add(ring.start, len(expected)))


def test_who_dies_while_a_ring_grows_leaves_one_that_can_be_read() -> None:
    memory = memoryview(bytearray(4 * START))
    found: list[tuple[bytes, bytes]] = []

    def enlarged(room: int) -> None:
        by_old = SendBuffer(ring.start, memory, room=room // 2, size=ring.size)
        by_new = SendBuffer(ring.start, memory, room=room, size=ring.size)
        found.append(tuple(b"".join(r.peek(r.start, r.size)) for r in (by_old, by_new)))  # type: ignore[arg-type]

    ring = SendBuffer(3 * START - 1000, memory, enlarged)
    data = random.Random(1).randbytes(START)
    ring.append(data[:30_000])
    ring.discard(add(ring.start, 20_000))
    ring.append(data[30_000:])
    ring.enlarge(4 * START)
    assert found == [(data[20_000:], data[20_000:])] * 2


def test_bytes_that_were_read_into_it_are_in_it() -> None:
    ring = SendBuffer(START - 3)
    for piece, text in zip(ring.space(6), (b"abc", b"def"), strict=True):
        piece[:] = text
    ring.filled(6)
    assert b"".join(ring.peek(ring.start, 6)) == b"abcdef"


def test_memory_that_is_given_is_all_there_is() -> None:
    ring = SendBuffer(0, memoryview(bytearray(START)))
    ring.append(bytes(START))
    with pytest.raises(MemoryError):
        ring.append(b"x")
