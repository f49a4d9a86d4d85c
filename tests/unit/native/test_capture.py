"""Captures of guest memory while it is written: each page is saved once, as it was when frozen."""

import errno
import mmap
import os
import random
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_native.memory import PAGE_SIZE, STATE_HEADER_SIZE, Memory

PAGES = 256
SIZE = PAGES * PAGE_SIZE
FROZEN, COPYING, DIRTY, OVERLAY = 0x20, 0x02, 0x10, 0x01


class Ram:
    """A RAM object and its states, which other processes can map too."""

    def __init__(self, base: bytes | None = None) -> None:
        self.fd = os.memfd_create("ram")
        os.ftruncate(self.fd, SIZE)
        self.state_fd = os.memfd_create("state")
        os.ftruncate(self.state_fd, PAGE_SIZE)
        self.state = mmap.mmap(self.state_fd, PAGE_SIZE)
        self.base_fd = -1
        self.base = None
        if base is not None:
            self.base_fd = os.memfd_create("base")
            os.pwrite(self.base_fd, base, 0)
            self.base = mmap.mmap(self.base_fd, SIZE, prot=mmap.PROT_READ)
        self.file = os.memfd_create("capture")
        os.ftruncate(self.file, SIZE)
        self.memory = self.attach()

    def attach(self) -> Memory:
        memory = Memory(mmap.mmap(self.state_fd, PAGE_SIZE))
        memory.add(0, mmap.mmap(self.fd, SIZE), base=self.base)
        return memory

    def states(self) -> bytes:
        return self.state[STATE_HEADER_SIZE : STATE_HEADER_SIZE + PAGES]

    def saved(self) -> bytes:
        return os.pread(self.file, SIZE, 0)

    def freeze(self, *, dirty_only: bool = False) -> None:
        self.memory.capture_to(self.file)
        self.memory.freeze(dirty_only=dirty_only)

    def close(self) -> None:
        for fd in (self.fd, self.state_fd, self.base_fd, self.file):
            if fd >= 0:
                os.close(fd)


def content(seed: int, pages: int) -> bytes:
    """Some pages are zeroes."""
    random_ = random.Random(seed)
    return b"".join(
        bytes(PAGE_SIZE) if random_.random() < 0.3 else random_.randbytes(PAGE_SIZE)
        for _ in range(pages)
    )


@pytest.fixture(params=["booted", "restored"])
def ram(request: pytest.FixtureRequest) -> Iterator[Ram]:
    made = Ram(content(1, PAGES) if request.param == "restored" else None)
    made.memory.write(0, content(2, PAGES // 2))
    yield made
    made.close()


def test_what_is_written_meanwhile_is_not_saved(ram: Ram) -> None:
    before = ram.memory.read(0, SIZE)
    ram.freeze()
    assert {state & (FROZEN | DIRTY) for state in ram.states()} == {FROZEN}
    ram.memory.write(5 * PAGE_SIZE - 10, b"x" * 20)
    assert ram.states()[4] & (FROZEN | DIRTY) == DIRTY
    assert ram.memory.save(ram.fd) == 0
    assert ram.saved() == before
    assert not any(state & FROZEN for state in ram.states())
    assert ram.memory.read(5 * PAGE_SIZE - 10, 20) == b"x" * 20


def test_pages_of_zeroes_are_holes_and_untouched_memory_stays_untouched() -> None:
    ram = Ram()
    ram.memory.write(7 * PAGE_SIZE, b"seven")
    ram.memory.write(9 * PAGE_SIZE, bytes(4096))
    blocks = os.fstat(ram.fd).st_blocks
    ram.freeze()
    assert ram.memory.save(ram.fd) == 0
    assert ram.memory.saved_pages == 1
    assert os.lseek(ram.file, 0, os.SEEK_DATA) == 7 * PAGE_SIZE
    assert os.lseek(ram.file, 7 * PAGE_SIZE, os.SEEK_HOLE) == 8 * PAGE_SIZE
    assert os.fstat(ram.fd).st_blocks == blocks
    ram.close()


def test_a_second_capture_on_the_first_has_what_was_written_since(ram: Ram) -> None:
    ram.freeze()
    assert ram.memory.save(ram.fd) == 0
    first = ram.saved()
    ram.memory.write(3 * PAGE_SIZE, bytes(PAGE_SIZE))  # of zeroes, which must not become a hole
    ram.memory.write(9 * PAGE_SIZE + 8, b"nine")
    ram.freeze(dirty_only=True)
    ram.memory.write(9 * PAGE_SIZE + 8, b"late")
    ram.memory.write(11 * PAGE_SIZE, b"later")
    assert ram.memory.save(ram.fd) == 0
    assert ram.memory.saved_pages == 2
    expected = bytearray(first)
    expected[3 * PAGE_SIZE : 4 * PAGE_SIZE] = bytes(PAGE_SIZE)
    expected[9 * PAGE_SIZE + 8 : 9 * PAGE_SIZE + 12] = b"nine"
    assert ram.saved() == expected
    assert ram.states()[11] & DIRTY


def write_at_random(memory: Memory, seed: int, count: int) -> None:
    random_ = random.Random(seed)
    for _ in range(count):
        memory.write(random_.randrange(SIZE - 600), random_.randbytes(random_.randrange(1, 600)))


@pytest.mark.parametrize("seed", range(4))
def test_writers_in_two_processes_while_it_is_saved(ram: Ram, seed: int) -> None:
    """Every page in the file is as it was when all was frozen, whoever saved it."""
    before = ram.memory.read(0, SIZE)
    ram.freeze()
    child = os.fork()
    if child == 0:
        memory = ram.attach()
        memory.capture_to(ram.file)
        write_at_random(memory, seed, 400)
        os._exit(0)
    writer = threading.Thread(target=write_at_random, args=(ram.memory, seed + 100, 400))
    writer.start()
    assert ram.memory.save(ram.fd) == 0
    assert ram.saved() == before
    assert os.waitpid(child, 0)[1] == 0
    writer.join()
    assert ram.saved() == before
    assert not any(state & (FROZEN | COPYING) for state in ram.states())


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.sampled_from(["freeze", "more", "save", "write"]), st.integers(0, 99)))
)
def test_any_order_of_writes_and_captures(steps: list[tuple[str, int]]) -> None:
    """A chain of captures holds what memory was at the last freeze."""
    ram = Ram(content(3, PAGES))
    frozen = None
    for step, seed in steps:
        if step == "write":
            write_at_random(ram.memory, seed, 3)
        elif step == "save" and frozen is not None:
            assert ram.memory.save(ram.fd) == 0
            assert ram.saved() == frozen
        elif step == "freeze" or (step == "more" and frozen is not None):
            if frozen is not None:
                assert ram.memory.save(ram.fd) == 0
            if step == "freeze":
                os.ftruncate(ram.file, 0)
                os.ftruncate(ram.file, SIZE)
            frozen = ram.memory.read(0, SIZE)
            ram.freeze(dirty_only=step == "more")
    ram.close()


def test_a_file_that_takes_nothing_ends_the_capture_and_nothing_else(ram: Ram) -> None:
    closed = os.open("/dev/null", os.O_RDONLY)
    ram.memory.capture_to(closed)
    ram.memory.freeze()
    ram.memory.write(0, b"goes on")
    assert ram.memory.save(ram.fd) == errno.EBADF
    assert not any(state & (FROZEN | COPYING) for state in ram.states())
    assert ram.memory.read(0, 7) == b"goes on"
    os.close(closed)
    ram.freeze()  # and the next one is a new one
    before = ram.memory.read(0, SIZE)
    assert ram.memory.save(ram.fd) == 0
    assert ram.saved() == before


def test_a_full_disk(tmp_path: Path) -> None:
    """What a child sees of a file that cannot grow, the saver here tells."""
    ram = Ram()
    ram.memory.write(0, content(5, PAGES))
    ram.memory.freeze()
    child = os.fork()
    if child == 0:
        import resource

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE_SIZE, PAGE_SIZE))
        memory = ram.attach()
        memory.capture_to(os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT))
        memory.write(20 * PAGE_SIZE, b"goes on")
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    ram.memory.capture_to(ram.file)
    assert ram.memory.save(ram.fd) == errno.EFBIG
    assert ram.memory.read(20 * PAGE_SIZE, 7) == b"goes on"
    ram.close()


def test_a_process_that_was_not_told_of_the_capture_fails_it(ram: Ram) -> None:
    ram.freeze()
    ram.attach().write(0, b"x")
    assert ram.memory.save(ram.fd) == errno.EBADF


def test_who_waits_for_a_page_of_a_dead_process_can_be_let_go(ram: Ram) -> None:
    """kill -9 in the middle of a page leaves its lock."""
    ram.freeze()
    ram.state[STATE_HEADER_SIZE + 3] |= COPYING
    results: list[int] = []
    saver = threading.Thread(target=lambda: results.append(ram.memory.save(ram.fd)))
    writer = threading.Thread(target=lambda: ram.memory.write(3 * PAGE_SIZE, b"x"))
    saver.start()
    writer.start()
    ram.memory.abandon()
    saver.join(10)
    writer.join(10)
    assert not saver.is_alive()
    assert not writer.is_alive()
    assert results == [errno.ECANCELED]


def test_giving_a_capture_up(ram: Ram) -> None:
    ram.freeze()
    ram.memory.release()
    assert not any(state & FROZEN for state in ram.states())
    ram.memory.write(0, b"x")
    assert ram.saved() == bytes(SIZE)


def test_holes_of_the_base_are_not_copied_before_they_are_written() -> None:
    base = bytearray(content(7, PAGES))
    ram = Ram(bytes(base))
    os.close(os.dup(ram.base_fd))
    hole = os.memfd_create("sparse")
    os.ftruncate(hole, SIZE)
    os.pwrite(hole, b"five", 5 * PAGE_SIZE)
    memory = Memory(ram.state)
    memory.add(0, mmap.mmap(ram.fd, SIZE), base=mmap.mmap(hole, SIZE, prot=mmap.PROT_READ))
    memory.skip_holes(hole)
    assert ram.states() == bytes(0 if page == 5 else OVERLAY for page in range(PAGES))
    assert memory.read(5 * PAGE_SIZE, 4) == b"five"
    assert memory.read(6 * PAGE_SIZE, 4) == bytes(4)
    memory.write(6 * PAGE_SIZE, b"six")
    assert int.from_bytes(ram.state[24:32], "little") == 0  # moved_count
    os.close(hole)
    ram.close()
