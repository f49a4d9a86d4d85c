"""Interrupts: timer, PLIC, virtio sources, doorbells, IPIs; and WFI, which each of them ends."""

import os
import threading
import time
from collections.abc import Callable

import pytest

from crumble_native import rv64
from framework.ready import readable
from framework.rv64_asm import Assembler
from framework.rv64_board import (
    A0,
    A1,
    A2,
    A3,
    A6,
    A7,
    CODE,
    S0,
    S1,
    SIE,
    T0,
    T1,
    Board,
)

PLIC = 0x0C00_0000
ENABLE, CONTEXT = PLIC + 0x2000, PLIC + 0x20_0000
VIRTIO = 0x1000_1000
STATUS, ACK, NOTIFY = VIRTIO + 0x60, VIRTIO + 0x64, VIRTIO + 0x50
SEIE, STIE, SSIE = 1 << 9, 1 << 5, 1 << 1
INTERRUPT = 1 << 63


def wait_then_finish(asm: Assembler) -> None:
    """wfi with interrupts off, then sip as the result."""
    asm.emit("wfi")
    asm.emit("csrrs", A0, "sip", 0)
    Board.finish(asm)


def store_word(asm: Assembler, address: int, value: int) -> None:
    """A 32-bit store to a device."""
    asm.li(T0, address)
    asm.li(T1, value)
    asm.emit("sw", T1, T0, 0)


def load_word(asm: Assembler, register: int, address: int) -> None:
    """A 32-bit load from a device."""
    asm.li(T0, address)
    asm.emit("lwu", register, T0, 0)


def enable(asm: Assembler, source: int, priority: int = 1) -> None:
    """Enables a PLIC source for context 0."""
    store_word(asm, PLIC + 4 * source, priority)
    store_word(asm, ENABLE + source // 32 * 4, 1 << source % 32)


# ---- Timer


def test_timer_interrupt_is_taken_while_the_guest_runs() -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.emit("csrrs", T0, "time", 0)
    asm.emit("addi", T0, T0, 2000)
    asm.emit("csrrw", 0, "stimecmp", T0)
    asm.emit("csrrsi", 0, "sstatus", 2)
    asm.label("loop")
    asm.to("jal", 0, label="loop")
    board.load(asm)
    board.start(sie=STIE)
    cause, tval, pc = board.trap()
    assert (cause, tval, pc) == (INTERRUPT | 5, 0, asm.address("loop"))


@pytest.mark.parametrize("sbi", [False, True])
def test_wfi_sleeps_until_the_timer(sbi: bool) -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.emit("csrrs", S0, "time", 0)
    asm.li(T0, 200_000)  # 20 ms
    asm.emit("add", A0, S0, T0)
    if sbi:
        asm.li(A7, 0x54494D45)
        asm.li(A6, 0)
        asm.emit("ecall")
    else:
        asm.emit("csrrw", 0, "stimecmp", A0)
    asm.emit("wfi")
    asm.emit("csrrs", A0, "time", 0)
    asm.emit("sub", A0, A0, S0)
    board.finish(asm)
    board.load(asm)
    board.start(sie=STIE)
    before = time.thread_time()
    assert board.result() >= 200_000
    assert time.thread_time() - before < 0.015
    assert board.hart.counters()["wfi_ns"] >= 15_000_000


def test_wfi_goes_on_at_once_when_something_is_pending() -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.emit("csrrsi", 0, "sip", 2)
    wait_then_finish(asm)
    board.load(asm)
    board.start(sie=SSIE)
    assert board.result() == SSIE


def test_wfi_is_canceled_and_resumed() -> None:
    board = Board()
    asm = Assembler(CODE)
    enable(asm, 7)
    wait_then_finish(asm)
    board.load(asm)
    board.start(sie=SEIE)
    assert board.run(timeout=0.05).reason == rv64.EXIT_CANCELED
    state = board.hart.get_state()
    assert state.waiting == 1
    board.hart.set_state(state)
    board.machine.set_line(7, True)
    assert board.result() == SEIE


# ---- Waking from other threads


def soon(action: Callable[[], None]) -> threading.Timer:
    """Does it a little later, in another thread."""
    timer = threading.Timer(0.02, action)
    timer.start()
    return timer


def test_line_wakes_a_sleeping_hart() -> None:
    board = Board()
    asm = Assembler(CODE)
    enable(asm, 40)
    wait_then_finish(asm)
    board.load(asm)
    board.start(sie=SEIE)
    timer = soon(lambda: board.machine.set_line(40, True))
    assert board.result() == SEIE
    timer.join()


def test_line_interrupts_a_running_hart() -> None:
    board = Board()
    asm = Assembler(CODE)
    enable(asm, 1)
    asm.label("loop")
    asm.to("jal", 0, label="loop")
    board.load(asm)
    board.start(sie=SEIE, sstatus=SIE)
    timer = soon(lambda: board.machine.set_line(1, True))
    assert board.trap() == (INTERRUPT | 9, 0, asm.address("loop"))
    timer.join()


@pytest.mark.parametrize("sleeping", [False, True])
def test_call_eventfd_is_a_used_buffer_interrupt(sleeping: bool) -> None:
    board = Board()
    board.machine.add_virtio_irq(3, STATUS, ACK)
    fd = os.eventfd(0)
    board.machine.add_call_fd(3, fd)
    asm = Assembler(CODE)
    enable(asm, 3)
    asm.label("again")
    if sleeping:
        asm.emit("wfi")
    asm.emit("csrrs", A0, "sip", 0)
    asm.to("beq", A0, 0, label="again")
    load_word(asm, A1, STATUS)
    store_word(asm, ACK, 1)
    load_word(asm, A2, STATUS)
    load_word(asm, A3, CONTEXT + 4)
    asm.emit("csrrs", A0, "sip", 0)
    board.finish(asm)
    board.load(asm)
    board.start(sie=SEIE)
    timer = soon(lambda: os.eventfd_write(fd, 1))
    assert board.result() == 0
    timer.join()
    assert board.hart.get_state().x[A1 : A3 + 1] == [1, 0, 0]
    assert board.machine.virtio_status(3) == 0
    board.machine.remove_call_fd(3, fd)
    with pytest.raises(OSError, match="No such file"):
        board.machine.remove_call_fd(3, fd)
    os.close(fd)


def test_virtio_status_bits_are_set_acknowledged_and_read() -> None:
    board = Board()
    board.machine.add_virtio_irq(3, STATUS, ACK)
    board.machine.virtio_raise(3, 3)
    board.machine.virtio_acknowledge(3, 1)
    assert board.machine.virtio_status(3) == 2
    asm = Assembler(CODE)
    load_word(asm, A0, STATUS)
    store_word(asm, ACK, 2)
    board.finish(asm)
    board.load(asm)
    board.start()
    assert board.result() == 2
    assert board.machine.virtio_status(3) == 0


# ---- PLIC


def test_claim_gives_the_highest_priority_and_complete_rearms() -> None:
    board = Board()
    asm = Assembler(CODE)
    store_word(asm, PLIC + 4 * 5, 2)
    store_word(asm, PLIC + 4 * 9, 7)
    store_word(asm, PLIC + 4 * 40, 7)
    store_word(asm, ENABLE, 1 << 5 | 1 << 9)
    store_word(asm, ENABLE + 4, 1 << 8)
    for shift in (0, 8, 16, 24):  # 9, 40, 5, none
        load_word(asm, T1, CONTEXT + 4)
        asm.emit("slli", T1, T1, shift)
        asm.emit("or", S0, S0, T1)
    asm.emit("csrrs", S1, "sip", 0)
    store_word(asm, CONTEXT + 4, 9)  # its line is still high
    load_word(asm, T1, CONTEXT + 4)
    asm.emit("slli", T1, T1, 32)
    asm.emit("or", A0, S0, T1)
    board.finish(asm)
    board.load(asm)
    for source in (5, 9, 40):
        board.machine.set_line(source, True)
    board.start(sie=SEIE)
    assert board.result() == 0x09_00_05_28_09
    assert board.hart.get_state().x[S1] == 0


def test_threshold_masks_and_unmasks() -> None:
    board = Board()
    board.machine.set_line(4, True)
    asm = Assembler(CODE)
    store_word(asm, CONTEXT, 3)
    enable(asm, 4, 3)
    asm.emit("csrrs", S0, "sip", 0)
    store_word(asm, CONTEXT, 2)
    asm.emit("csrrs", A0, "sip", 0)
    asm.emit("slli", S0, S0, 16)
    asm.emit("or", A0, A0, S0)
    board.finish(asm)
    board.load(asm)
    board.start()
    assert board.result() == SEIE


def test_lowered_line_takes_its_request_back() -> None:
    board = Board()
    asm = Assembler(CODE)
    enable(asm, 4)
    asm.emit("csrrs", A0, "sip", 0)
    board.finish(asm)
    asm.emit("csrrs", A0, "sip", 0)
    board.finish(asm)
    board.load(asm)
    board.machine.set_line(4, True)
    board.start()
    assert board.result() == SEIE
    board.machine.set_line(4, False)
    assert board.result() == 0


@pytest.mark.parametrize("source", [0, 96, 1 << 31])
def test_lines_that_do_not_exist_are_ignored(source: int) -> None:
    Board().machine.set_line(source, True)


def test_hostile_plic_accesses() -> None:
    board = Board()
    asm = Assembler(CODE)
    for offset in (0, 0xFFC, 0x1000, 0x100C, 0x1FFC, 0x2080, 0x1F_2000, 0x20_1004, 0x3FF_FFFC):
        store_word(asm, PLIC + offset, -1)
        load_word(asm, A1, PLIC + offset)
    store_word(asm, CONTEXT + 4, 0xFFFF_FFFF)
    board.finish(asm)
    board.load(asm)
    board.start()
    board.result()
    asm = Assembler(CODE)
    asm.li(T0, PLIC)
    asm.emit("ld", A0, T0, 0)
    board.load(asm)
    board.start()
    assert board.run().reason == rv64.EXIT_MMIO_READ


# ---- Doorbells


def signaled(fd: int) -> int:
    """Takes an eventfd's count, 0 when there is none."""
    return os.eventfd_read(fd) if readable(fd, timeout=0) else 0


def test_doorbell_rings_and_never_exits() -> None:
    board = Board()
    bells = [os.eventfd(0), os.eventfd(0), os.eventfd(0)]
    board.machine.add_doorbell(NOTIFY, 4, bells[0], 0)
    board.machine.add_doorbell(NOTIFY, 4, bells[1], 1)
    board.machine.add_doorbell(NOTIFY + 0x1000, 4, bells[2])
    asm = Assembler(CODE)
    for address, value in ((NOTIFY, 1), (NOTIFY, 1), (NOTIFY + 0x1000, 77), (NOTIFY + 0x1000, 0)):
        store_word(asm, address, value)
    board.finish(asm)
    board.load(asm)
    board.start()
    board.result()
    assert [signaled(fd) for fd in bells] == [0, 2, 2]
    board.machine.remove_doorbell(NOTIFY, 1)
    board.start()
    stop = board.run()
    assert (stop.reason, stop.gpa, stop.data) == (rv64.EXIT_MMIO_WRITE, NOTIFY, 1)
    for fd in bells:
        os.close(fd)


def test_doorbell_of_another_width_is_an_exit() -> None:
    board = Board()
    fd = os.eventfd(0)
    board.machine.add_doorbell(NOTIFY, 4, fd)
    asm = Assembler(CODE)
    asm.li(T0, NOTIFY)
    asm.emit("sh", A1, T0, 0)
    board.load(asm)
    board.start()
    assert board.run().reason == rv64.EXIT_MMIO_WRITE
    os.close(fd)


@pytest.mark.parametrize(("size", "fd"), [(3, 1), (0, 1), (16, 1), (4, -1)])
def test_bad_doorbells_are_refused(size: int, fd: int) -> None:
    with pytest.raises(OSError, match="Invalid"):
        Board().machine.add_doorbell(NOTIFY, size, fd)


def test_bad_interrupt_sources_are_refused() -> None:
    machine = Board().machine
    for source in (0, rv64.PLIC_SOURCES):
        with pytest.raises(OSError, match="Invalid"):
            machine.add_virtio_irq(source, STATUS, ACK)
    machine.add_virtio_irq(1, STATUS, ACK)
    with pytest.raises(OSError, match="exists"):
        machine.add_virtio_irq(1, STATUS, ACK)
    with pytest.raises(OSError, match="No such"):
        machine.add_call_fd(2, 0)
    with pytest.raises(OSError, match="Bad file"):
        machine.add_call_fd(1, 9999)


def test_a_long_sleep_gives_back_what_was_decoded_and_goes_on() -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.li(S1, 7)
    for _ in range(35_000):
        asm.emit("addi", S1, S1, 1)
    asm.emit("csrrs", S0, "time", 0)
    asm.li(T0, 22_000_000)  # 2.2 s
    asm.emit("add", A0, S0, T0)
    asm.emit("csrrw", 0, "stimecmp", A0)
    asm.emit("wfi")
    asm.emit("addi", A0, S1, 0)
    board.finish(asm)
    board.load(asm)
    board.start(sie=STIE)
    stop = board.hart.run()
    assert stop.reason == rv64.EXIT_CANCELED
    assert board.hart.counters()["block_flushes"] == 0
    before = anonymous()
    assert board.result() == 35_007
    assert board.hart.counters()["block_flushes"] == 1
    assert anonymous() < before - 500 * 1024


def anonymous() -> int:
    """Bytes of this process's own memory."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon:")) * 1024
