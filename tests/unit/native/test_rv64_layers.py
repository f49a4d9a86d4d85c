"""Harts over a base that others move pages away from, and harts whose memory is captured.

What may be seen when: native/src/rv64/README.md, "Layers".
"""

import mmap
import os
import struct
import threading
from collections.abc import Callable, Iterator

import pytest

from crumble_native.memory import PAGE_SIZE, STATE_HEADER_SIZE, Memory
from framework.rv64_asm import Assembler, encode
from framework.rv64_board import (
    A0,
    A1,
    A2,
    A3,
    A4,
    A5,
    CODE,
    DATA,
    DONE,
    RA,
    RAM,
    SIZE,
    T0,
    T1,
    ZERO,
    Board,
)

PAGES = 64
FLAG = DATA - PAGE_SIZE
FENCE_R_R = struct.pack("<I", 0x0220_000F)
FENCE_I = struct.pack("<I", 0x0000_100F)


class Layers:
    """RAM over a base, in objects that another process can map too."""

    def __init__(self, base: bytes = b"") -> None:
        self.fds = [os.memfd_create(name) for name in ("ram", "state", "base")]
        for fd, size in zip(self.fds, (SIZE, 2 * PAGE_SIZE, SIZE), strict=True):
            os.ftruncate(fd, size)
        os.pwrite(self.fds[2], base, DATA - RAM)
        self.state = mmap.mmap(self.fds[1], 2 * PAGE_SIZE)
        self.memory = self.attach()

    def attach(self) -> Memory:
        memory = Memory(mmap.mmap(self.fds[1], 2 * PAGE_SIZE))
        base = mmap.mmap(self.fds[2], SIZE, prot=mmap.PROT_READ)
        memory.add(RAM, mmap.mmap(self.fds[0], SIZE), base=base)
        return memory

    def page_state(self, gpa: int) -> int:
        return self.state[STATE_HEADER_SIZE + (gpa - RAM) // PAGE_SIZE]

    def in_child(self, work: Callable[[Memory], None]) -> int:
        child = os.fork()
        if child == 0:
            try:
                work(self.attach())
            finally:
                os._exit(0)
        return child

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


@pytest.fixture
def layers() -> Iterator[Layers]:
    made = Layers(b"".join(struct.pack("<Q", 7).ljust(PAGE_SIZE, b"\0") for _ in range(PAGES)))
    yield made
    made.close()


def word(memory: Memory, gpa: int, value: int) -> None:
    memory.write(gpa, struct.pack("<Q", value))


def test_a_store_is_read_back_from_a_page_that_another_one_moved(layers: Layers) -> None:
    """Without a fence: the store and the load are the same hart's."""
    board = Board(memory=layers.memory)
    asm = Assembler(CODE)
    asm.emit("ld", A0, A1, 0)
    board.finish(asm)
    asm.emit("sd", A2, A1, 0)
    asm.emit("ld", A0, A1, 0)
    board.finish(asm)
    board.load(asm)
    board.start(x={A1: DATA, A2: 9})
    assert board.result() == 7
    word(layers.attach(), DATA + 2048, 1)  # beside what the hart stores to
    assert board.result() == 9


def reader(board: Board, fence: bytes = FENCE_R_R) -> None:
    """Reads all pages, then waits for FLAG to be n and reads page n, for every n; sums up."""
    asm = Assembler(CODE)
    asm.li(T1, PAGE_SIZE)
    asm.li(A2, DATA)
    asm.li(A3, DATA + PAGES * PAGE_SIZE)
    asm.label("warm")
    asm.emit("ld", T0, A2, 0)
    asm.emit("add", A2, A2, T1)
    asm.to("bltu", A2, A3, label="warm")
    board.finish(asm, T0)
    asm.li(A0, 0)
    asm.li(A1, FLAG)
    asm.li(A2, DATA)
    asm.li(A4, 1)
    asm.label("wait")
    asm.emit("ld", T0, A1, 0)
    asm.to("bltu", T0, A4, label="wait")
    asm.raw(fence)
    asm.emit("ld", T0, A2, 0)
    asm.emit("add", A0, A0, T0)
    asm.emit("addi", A4, A4, 1)
    asm.emit("add", A2, A2, T1)
    asm.to("bltu", A2, A3, label="wait")
    board.finish(asm)
    board.load(asm)


@pytest.mark.parametrize("round_", range(3))
def test_what_another_process_publishes_is_seen_behind_a_fence(layers: Layers, round_: int) -> None:
    board = Board(memory=layers.memory)
    word(layers.memory, FLAG, 0)
    reader(board)
    board.start()
    assert board.result() == 7

    def publish(memory: Memory) -> None:
        for page in range(PAGES):
            word(memory, DATA + page * PAGE_SIZE, 1000 + page)
            word(memory, FLAG, page + 1)

    child = layers.in_child(publish)
    assert board.result() == sum(1000 + page for page in range(PAGES))
    assert os.waitpid(child, 0)[1] == 0


def test_another_harts_store_is_seen_without_a_fence(layers: Layers) -> None:
    """A reader that follows a pointer has no fence (RCU): with several harts the base is never mapped."""
    board = Board(2, memory=layers.memory)
    word(layers.memory, FLAG, 0)
    reader(board, struct.pack("<I", encode("addi", ZERO, ZERO, 0)))
    board.start()
    assert board.result() == 7
    assert layers.page_state(DATA) & 0x11 == 0x01  # moved by the read, not dirty
    writer = Assembler(CODE + 0x800)
    writer.li(T1, PAGE_SIZE)
    writer.li(A1, FLAG)
    writer.li(A2, DATA)
    writer.li(A3, DATA + PAGES * PAGE_SIZE)
    writer.li(A4, 1)
    writer.li(A5, 1000)
    writer.label("next")
    writer.emit("sd", A5, A2, 0)
    writer.emit("sd", A4, A1, 0)
    writer.emit("addi", A5, A5, 1)
    writer.emit("addi", A4, A4, 1)
    writer.emit("add", A2, A2, T1)
    writer.to("bltu", A2, A3, label="next")
    board.finish(writer)
    board.load(writer)
    other = board.machine.hart(1)
    state = other.get_state()
    state.pc, state.hsm = CODE + 0x800, 0
    other.set_state(state)
    thread = threading.Thread(target=other.run)
    thread.start()
    assert board.result() == sum(1000 + page for page in range(PAGES))
    thread.join()


def function(value: int) -> bytes:
    return struct.pack("<II", encode("addi", A0, ZERO, value), encode("jalr", ZERO, RA, 0))


@pytest.mark.parametrize("round_", range(3))
def test_code_that_another_process_replaces_while_it_is_decoded(round_: int) -> None:
    """FLAG says which pages' functions are new: behind fence.i the new ones run."""
    layers = Layers(b"".join(function(7).ljust(PAGE_SIZE, b"\0") for _ in range(PAGES)))
    board = Board(memory=layers.memory)
    word(layers.memory, FLAG, 0)
    asm = Assembler(CODE)
    asm.li(A1, FLAG)
    asm.li(A2, DATA)
    asm.li(A3, 0)  # sum
    asm.li(A4, 1)
    asm.li(A5, DATA + PAGES * PAGE_SIZE)
    asm.li(T1, PAGE_SIZE)
    asm.label("wait")
    asm.emit("jalr", RA, A2, 0)  # old or new; decoded while it changes
    asm.emit("ld", T0, A1, 0)
    asm.to("bltu", T0, A4, label="wait")
    asm.raw(FENCE_I)
    asm.emit("jalr", RA, A2, 0)
    asm.emit("add", A3, A3, A0)
    asm.emit("addi", A4, A4, 1)
    asm.emit("add", A2, A2, T1)
    asm.to("bltu", A2, A5, label="wait")
    board.finish(asm, A3)
    board.load(asm)
    board.start()

    def replace(memory: Memory) -> None:
        for page in range(PAGES):
            memory.write(DATA + page * PAGE_SIZE, function(100 + page))
            word(memory, FLAG, page + 1)

    child = layers.in_child(replace)
    assert board.result() == sum(100 + page for page in range(PAGES))
    assert os.waitpid(child, 0)[1] == 0
    layers.close()


@pytest.mark.parametrize("harts", [1, 2])
def test_memory_is_captured_as_it_was_while_the_guest_writes_all_of_it(
    layers: Layers, harts: int
) -> None:
    board = Board(harts, memory=layers.memory)
    asm = Assembler(CODE)
    asm.li(T1, PAGE_SIZE)
    asm.li(A3, DATA + PAGES * PAGE_SIZE)
    asm.label("again")
    asm.li(A2, DATA)
    asm.label("next")
    asm.emit("ld", T0, A2, 0)
    asm.emit("addi", T0, T0, 1)
    asm.emit("sd", T0, A2, 0)
    asm.emit("add", A2, A2, T1)
    asm.to("bltu", A2, A3, label="next")
    asm.to("jal", ZERO, label="again")
    board.load(asm)
    board.start()
    for _ in range(4):
        stopped = threading.Thread(target=lambda: board.hart.run())
        stopped.start()
        threading.Event().wait(0.005)  # somewhere
        board.hart.cancel()
        stopped.join()
        before = layers.memory.read(RAM, SIZE)
        capture = os.memfd_create("capture")
        os.ftruncate(capture, SIZE)
        layers.memory.capture_to(capture)
        board.machine.settle()
        layers.memory.freeze()
        running = threading.Thread(target=lambda: board.hart.run())
        running.start()
        assert layers.memory.save(layers.fds[0]) == 0
        board.hart.cancel()
        running.join()
        assert os.pread(capture, SIZE, 0) == before
        os.close(capture)
    assert layers.memory.read(DATA, 8) != struct.pack("<Q", 7)


def test_settle_takes_interrupts_that_wait_in_eventfds() -> None:
    machine = Board().machine
    machine.add_virtio_irq(1, DONE, DONE + 4)
    bell = os.eventfd(1, os.EFD_NONBLOCK)
    machine.add_call_fd(1, bell)
    machine.settle()
    assert machine.virtio_status(1) == 1
    os.close(bell)
