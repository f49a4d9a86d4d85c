"""The device side of a split virtqueue: what works, what is refused, what survives a crash."""

from __future__ import annotations

import mmap
import struct

import pytest

from crumble_native.memory import PAGE_SIZE, Memory
from crumble_native.vring import MAX_SIZE, Chain, MalformedRingError, Virtqueue, inflight_size
from framework.virtqueue_driver import INDIRECT, NEXT, WRITE, VirtqueueDriver

RAM = 0x8000_0000
PAGES = 64
BUFFERS = RAM + 16 * PAGE_SIZE
TABLE = RAM + 12 * PAGE_SIZE


def ram(pages: int = PAGES, gpa: int = RAM) -> Memory:
    memory = Memory()
    memory.add(gpa, mmap.mmap(-1, pages * PAGE_SIZE))
    return memory


def pair(
    size: int = 8, memory: Memory | None = None, **features: bool
) -> tuple[VirtqueueDriver, Virtqueue]:
    memory = memory or ram()
    arena = (BUFFERS, (PAGES - 16) * PAGE_SIZE)
    event_idx = features.pop("event_idx", True)
    driver = VirtqueueDriver(memory, size=size, at=RAM, arena=arena, event_idx=event_idx)
    queue = Virtqueue(
        memory, size, driver.desc, driver.avail, driver.used, event_idx=event_idx, **features
    )
    return driver, queue


def popped(queue: Virtqueue) -> Chain:
    chain = queue.pop()
    assert chain is not None
    return chain


@pytest.mark.parametrize("indirect", [False, True])
def test_a_request_goes_there_and_back(indirect: bool) -> None:
    driver, queue = pair()
    assert queue.pop() is None
    head = driver.submit([b"head", b"body" * 30], [16, 4000], indirect=indirect)
    chain = popped(queue)
    assert (chain.head, chain.readable_len, chain.writable_len) == (head, 124, 4016)
    assert chain.read(6) + chain.read(2) + chain.read() == b"head" + b"body" * 30
    assert chain.read(1) == b""
    assert chain.write(b"A" * 15) == 15
    assert chain.write(b"B" * 5) == 5
    queue.push(chain, 20)
    assert driver.collect() == [(head, 20, b"A" * 15 + b"B" * 5)]
    assert (queue.in_flight, queue.last_avail, queue.used_idx) == (0, 1, 1)


def test_write_stops_at_the_chains_end() -> None:
    driver, queue = pair()
    driver.submit([], [10, 10])
    assert popped(queue).write(b"x" * 30) == 20


def test_direct_descriptors_may_precede_an_indirect_table() -> None:
    driver, queue = pair()
    memory = driver.memory
    memory.write(BUFFERS, b"onetwo")
    memory.write(
        TABLE,
        struct.pack("<QIHHQIHH", BUFFERS + 3, 3, NEXT, 1, BUFFERS + 100, 7, WRITE, 0),
    )
    driver.set_descriptor(5, BUFFERS, 3, NEXT, 2)
    driver.set_descriptor(2, TABLE, 32, INDIRECT | WRITE, 0)  # WRITE is ignored, section 2.7.5.3.2
    driver.make_available(5)
    chain = popped(queue)
    assert (chain.read(), chain.writable_len) == (b"onetwo", 7)


def test_adjacent_buffers_become_one_view() -> None:
    driver, queue = pair()
    driver.set_descriptor(0, BUFFERS, 16, NEXT, 1)
    driver.set_descriptor(1, BUFFERS + 16, 16, NEXT, 2)
    driver.set_descriptor(2, BUFFERS + 32, 8, NEXT | WRITE, 3)
    driver.set_descriptor(3, BUFFERS + 40, 8, WRITE, 0)
    driver.make_available(0)
    chain = popped(queue)
    assert [len(view) for view in chain.readable] == [32]
    assert [len(view) for view in chain.writable] == [16]


def test_indices_wrap() -> None:
    driver, queue = pair(size=8)
    for number in range(70_000 // 4):
        heads = [driver.submit([b"%d" % number], [8]) for _ in range(4)]
        for _ in heads:
            chain = popped(queue)
            chain.write(chain.read())
            queue.push(chain, chain.readable_len)
        assert [(head, data) for head, _, data in driver.collect()] == [
            (head, b"%d" % number) for head in heads
        ]
    assert queue.used_idx == 70_000 % 65_536


def test_layered_memory_splits_buffers_and_writes_go_to_the_overlay() -> None:
    size = PAGES * PAGE_SIZE
    base, overlay, state = (mmap.mmap(-1, size) for _ in range(3))
    memory = Memory(state)
    memory.add(RAM, overlay, base=base)
    base[20 * PAGE_SIZE : 24 * PAGE_SIZE] = b"b" * (4 * PAGE_SIZE)
    driver, queue = pair(memory=memory)
    memory.write(RAM + 21 * PAGE_SIZE, b"w")
    driver.set_descriptor(0, RAM + 20 * PAGE_SIZE + 10, 3 * PAGE_SIZE, NEXT, 1)
    driver.set_descriptor(1, RAM + 30 * PAGE_SIZE + 4000, 200, WRITE, 0)
    driver.make_available(0)
    chain = popped(queue)
    pieces = [PAGE_SIZE - 10, PAGE_SIZE, PAGE_SIZE + 10]
    assert [len(view) for view in chain.readable] == pieces
    assert chain.read(3 * PAGE_SIZE) == b"b" * pieces[0] + b"w" + b"b" * (PAGE_SIZE * 2 + 9)
    chain.write(b"z" * 200)
    assert memory.read(RAM + 30 * PAGE_SIZE + 4000, 200) == b"z" * 200
    assert base[30 * PAGE_SIZE :].count(b"z") == 0
    queue.push(chain, 200)
    assert driver.used_idx() == 1


def test_a_buffer_may_cross_two_regions() -> None:
    memory = ram()
    memory.add(RAM + PAGES * PAGE_SIZE, mmap.mmap(-1, PAGE_SIZE))
    driver, queue = pair(memory=memory)
    driver.set_descriptor(0, RAM + PAGES * PAGE_SIZE - 5, 10, 0, 0)
    driver.make_available(0)
    assert sum(len(view) for view in popped(queue).readable) == 10


Row = tuple[int, int, int, int, int]  # index, addr, len, flags, next
END = RAM + PAGES * PAGE_SIZE

BROKEN: list[tuple[str, list[Row]]] = [
    ("next", [(0, BUFFERS, 4, NEXT, 8)]),
    ("next", [(0, BUFFERS, 4, NEXT, 0xFFFF)]),
    ("loop", [(0, BUFFERS, 4, NEXT, 0)]),
    ("loop", [(0, BUFFERS, 4, NEXT, 1), (1, BUFFERS, 4, NEXT, 0)]),
    ("order", [(0, BUFFERS, 4, NEXT | WRITE, 1), (1, BUFFERS, 4, 0, 0)]),
    ("empty_buffer", [(0, BUFFERS, 0, 0, 0)]),
    ("address", [(0, END, 1, 0, 0)]),
    ("address", [(0, END - 1, 2, 0, 0)]),
    ("address", [(0, RAM - 1, 2, WRITE, 0)]),
    ("address", [(0, 0, 4, 0, 0)]),
    ("address", [(0, BUFFERS, 0xFFFF_FFFF, 0, 0)]),
    ("address", [(0, 2**64 - 1, 2, 0, 0)]),
    ("address", [(0, 2**64 - 4, 4, WRITE, 0)]),
    ("indirect_size", [(0, TABLE, 0, INDIRECT, 0)]),
    ("indirect_size", [(0, TABLE, 17, INDIRECT, 0)]),
    ("indirect_size", [(0, TABLE, 16 * 1025, INDIRECT, 0)]),
    ("indirect_size", [(0, TABLE, 0xFFFF_FFF0, INDIRECT, 0)]),
    ("indirect_next", [(0, TABLE, 32, INDIRECT | NEXT, 1)]),
    ("address", [(0, END, 16, INDIRECT, 0)]),
    ("address", [(0, 2**64 - 16, 32, INDIRECT, 0)]),
]


@pytest.mark.parametrize(("code", "rows"), BROKEN)
def test_a_malformed_chain_breaks_the_ring_for_good(code: str, rows: list[Row]) -> None:
    driver, queue = pair()
    for row in rows:
        driver.set_descriptor(*row)
    driver.make_available(0)
    for _ in range(2):
        with pytest.raises(MalformedRingError, match="Broken virtqueue") as caught:
            queue.pop()
        assert caught.value.code == f"ring.{code}"
    assert (queue.in_flight, queue.last_avail) == (0, 0)


@pytest.mark.parametrize(
    ("code", "table"),
    [
        ("indirect_nested", [(TABLE, 16, INDIRECT, 0)]),
        ("next", [(BUFFERS, 4, NEXT, 2), (BUFFERS, 4, 0, 0)]),
        ("loop", [(BUFFERS, 4, NEXT, 1), (BUFFERS, 4, NEXT, 0)]),
        ("empty_buffer", [(BUFFERS, 4, NEXT, 1), (BUFFERS, 0, 0, 0)]),
        ("order", [(BUFFERS, 4, NEXT | WRITE, 1), (BUFFERS, 1, 0, 0)]),
    ],
)
def test_a_malformed_indirect_table(code: str, table: list[tuple[int, int, int, int]]) -> None:
    driver, queue = pair()
    driver.memory.write(TABLE, b"".join(struct.pack("<QIHH", *row) for row in table))
    driver.set_descriptor(0, TABLE, 16 * len(table), INDIRECT, 0)
    driver.make_available(0)
    with pytest.raises(MalformedRingError) as caught:
        queue.pop()
    assert caught.value.code == f"ring.{code}"


def test_caps_on_descriptors_and_bytes() -> None:
    driver, queue = pair(size=2048)
    for index in range(1025):
        driver.set_descriptor(index, BUFFERS + 2 * index, 1, NEXT if index < 1024 else 0, index + 1)
    driver.make_available(1)
    assert popped(queue).readable_len == 1024
    driver.make_available(0)
    with pytest.raises(MalformedRingError, match="too long"):
        queue.pop()


def test_a_chain_holds_less_than_4_gib() -> None:
    big, length = Memory(), 1 << 28
    big.add(0, mmap.mmap(-1, length))
    driver = VirtqueueDriver(big, size=32, at=0, arena=(1 << 20, 1 << 20))
    queue = Virtqueue(big, 32, driver.desc, driver.avail, driver.used, event_idx=True)
    for index in range(16):
        driver.set_descriptor(index, 0, length, NEXT if index < 15 else 0, index + 1)
    driver.make_available(1)
    assert popped(queue).readable_len == 15 * length
    driver.make_available(0)
    with pytest.raises(MalformedRingError, match="too long"):
        queue.pop()


def test_too_many_pieces_of_layered_memory_are_refused() -> None:
    size = 16_384 * PAGE_SIZE
    base, overlay, state = (mmap.mmap(-1, size) for _ in range(3))
    memory = Memory(state)
    memory.add(RAM, overlay, base=base)
    for page in range(200, 9000, 2):
        memory.write(RAM + page * PAGE_SIZE, b"x")
    driver, queue = pair(memory=memory)
    driver.set_descriptor(0, RAM + 200 * PAGE_SIZE, 8800 * PAGE_SIZE, 0, 0)
    driver.make_available(0)
    with pytest.raises(MalformedRingError, match="too long"):
        queue.pop()


def test_indirect_must_be_negotiated() -> None:
    driver, queue = pair(indirect=False)
    driver.submit([b"x"], [], indirect=True)
    with pytest.raises(MalformedRingError, match="without being negotiated"):
        queue.pop()


def test_heads_and_avail_index_are_checked() -> None:
    for code, poke in [
        ("head", lambda d: d.make_available(8)),
        ("avail_jump", lambda d: d.set_avail_idx(9)),
        ("avail_jump", lambda d: d.set_avail_idx(0xFFFF)),
    ]:
        driver, queue = pair()
        poke(driver)
        with pytest.raises(MalformedRingError) as caught:
            queue.pop()
        assert caught.value.code == f"ring.{code}"


def test_a_head_in_flight_cannot_be_made_available_again() -> None:
    driver, queue = pair()
    head = driver.submit([b"x"], [])
    driver.make_available(head)
    popped(queue)
    with pytest.raises(MalformedRingError, match="again"):
        queue.pop()


def test_push_checks_its_caller() -> None:
    driver, queue = pair()
    driver.submit([b"x"], [4])
    chain = popped(queue)
    with pytest.raises(ValueError, match="do not fit"):
        queue.push(chain, 5)
    queue.push(chain, 4)
    with pytest.raises(ValueError, match="not in flight"):
        queue.push(chain, 4)


@pytest.mark.parametrize(
    ("size", "desc", "avail", "used"),
    [
        (0, RAM, RAM + 4096, RAM + 8192),
        (3, RAM, RAM + 4096, RAM + 8192),
        (2 * MAX_SIZE, RAM, RAM + 4096, RAM + 8192),
        (8, RAM + 8, RAM + 4096, RAM + 8192),
        (8, RAM, RAM + 4097, RAM + 8192),
        (8, RAM, RAM + 4096, RAM + 8194),
        (8, RAM, RAM + 4096, END - 4),
        (8, END, RAM + 4096, RAM + 8192),
        (8, RAM, 2**64 - 4, RAM + 8192),
        (8, 2**64, RAM, RAM + 8192),
        (-1, RAM, RAM + 4096, RAM + 8192),
    ],
)
def test_bad_rings_are_refused(size: int, desc: int, avail: int, used: int) -> None:
    with pytest.raises(ValueError):
        Virtqueue(ram(), size, desc, avail, used, event_idx=True)


def test_a_ring_across_two_mappings_is_refused() -> None:
    memory = ram()
    memory.add(END, mmap.mmap(-1, PAGE_SIZE))
    with pytest.raises(ValueError, match="Bad address"):
        Virtqueue(memory, 256, END - 16, RAM, RAM + 4096, event_idx=True)


def test_event_idx_notifies_only_when_the_event_is_passed() -> None:
    driver, queue = pair()
    for _ in range(4):
        driver.submit([b"x"], [])
    driver._avail[2 + 8] = 1  # used_event: after the second
    queue.push(popped(queue), 0)
    assert not queue.should_notify()
    queue.push(popped(queue), 0)
    assert queue.should_notify()
    assert not queue.should_notify()
    driver.interrupts(wanted=False)
    queue.push(popped(queue), 0)
    assert not queue.should_notify()


def test_without_event_idx_flags_rule_both_ways() -> None:
    driver, queue = pair(event_idx=False)
    driver.submit([b"x"], [])
    assert driver.kick_wanted()
    queue.disable_kicks()
    driver.submit([b"x"], [])
    assert not driver.kick_wanted()
    assert queue.enable_kicks()
    queue.push(popped(queue), 0)
    assert queue.should_notify()
    driver.interrupts(wanted=False)
    queue.push(popped(queue), 0)
    assert not queue.should_notify()
    assert not queue.enable_kicks()


def test_kicks_with_event_idx_come_only_when_asked_for() -> None:
    driver, queue = pair()
    driver.submit([b"x"], [])
    assert driver.kick_wanted()
    driver.submit([b"x"], [])
    assert not driver.kick_wanted()
    assert queue.enable_kicks()
    popped(queue), popped(queue)
    assert not queue.enable_kicks()
    driver.submit([b"x"], [])
    assert driver.kick_wanted()
    assert queue.pending()


def test_a_successor_resubmits_what_was_in_flight_in_order() -> None:
    driver, queue = pair(size=16)
    region = mmap.mmap(-1, PAGE_SIZE)
    queue.track(region)
    heads = [driver.submit([b"%d" % i], [4]) for i in range(6)]
    chains = [popped(queue) for _ in range(5)]
    queue.push(chains[1], 0)
    queue.push(chains[3], 0)
    del queue  # the process died here
    again = Virtqueue(
        driver.memory, 16, driver.desc, driver.avail, driver.used, event_idx=True, base=99
    )
    again.track(region)
    assert again.pending()
    assert [popped(again).head for _ in range(4)] == [heads[i] for i in (0, 2, 4, 5)]
    assert again.pop() is None
    assert again.last_avail == 6


def test_death_between_publishing_and_recording_is_told_apart() -> None:
    driver, queue = pair()
    region = mmap.mmap(-1, PAGE_SIZE)
    queue.track(region)
    first, second = driver.submit([b"1"], []), driver.submit([b"2"], [])
    queue.push(popped(queue), 0)
    popped(queue)
    # Put the record back to what it was just after used->idx was published for `first`.
    region[16 + 16 * first] = 1
    struct.pack_into("<H", region, 14, 0)
    again = Virtqueue(driver.memory, 8, driver.desc, driver.avail, driver.used, event_idx=True)
    again.track(region)
    assert popped(again).head == second
    assert again.pop() is None


def test_foreign_in_flight_regions_are_refused() -> None:
    _, queue = pair()
    for version, count, last, used in [(2, 8, 0, 0), (1, 16, 0, 0), (1, 8, 8, 1)]:
        region = mmap.mmap(-1, PAGE_SIZE)
        struct.pack_into("<HHHH", region, 8, version, count, last, used)
        with pytest.raises(ValueError, match="not one of this queue"):
            queue.track(region)
    for offset in (-8, 4, PAGE_SIZE - 8):
        with pytest.raises(ValueError, match="does not fit"):
            queue.track(mmap.mmap(-1, PAGE_SIZE), offset)
    assert inflight_size(8) == 16 + 8 * 16
