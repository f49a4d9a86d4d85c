"""The soft CPU's exits: devices, SBI's console and reset, cancel, crash; and its counters."""

import threading

import pytest

from crumble_native import rv64
from framework.rv64_asm import Assembler
from framework.rv64_board import A0, A1, A2, A3, A6, A7, CODE, DATA, DONE, RAM, T0, Board

DEVICE = 0x1000_0000
SRST, DBCN = 0x53525354, 0x4442434E


@pytest.mark.parametrize(
    ("name", "size", "answer", "expected"),
    [
        ("lb", 1, 0x80, -0x80),
        ("lbu", 1, 0x1FF, 0xFF),
        ("lh", 2, 0x8000, -0x8000),
        ("lhu", 2, 0x8000, 0x8000),
        ("lw", 4, 0x8000_0000, -0x8000_0000),
        ("lwu", 4, 0x8000_0000, 0x8000_0000),
        ("ld", 8, 0x8123_4567_89AB_CDEF, 0x8123_4567_89AB_CDEF),
    ],
)
def test_device_load_is_completed_by_the_next_run(
    name: str, size: int, answer: int, expected: int
) -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.li(T0, DEVICE)
    asm.emit(name, A0, T0, 0x18)
    board.finish(asm)
    board.load(asm)
    board.start()
    stop = board.run()
    assert (stop.reason, stop.gpa, stop.size) == (rv64.EXIT_MMIO_READ, DEVICE + 0x18, size)
    stop = board.run(answer)
    assert stop.data == expected & (1 << 64) - 1


@pytest.mark.parametrize(("name", "size"), [("sb", 1), ("sh", 2), ("sw", 4), ("sd", 8)])
def test_device_store_carries_only_its_bytes(name: str, size: int) -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.li(T0, DEVICE)
    asm.emit(name, A1, T0, 0)
    board.finish(asm)
    board.load(asm)
    board.start(x={A1: 0x8877_6655_4433_2211, A0: 5})
    stop = board.run()
    assert (stop.reason, stop.gpa, stop.size) == (rv64.EXIT_MMIO_WRITE, DEVICE, size)
    assert stop.data == 0x8877_6655_4433_2211 & (1 << 8 * size) - 1
    assert board.result() == 5


@pytest.mark.parametrize(("name", "cause"), [("lw", 5), ("sw", 7), ("lr.w", 5), ("amoadd.w", 7)])
def test_devices_take_neither_misaligned_nor_atomic_accesses(name: str, cause: int) -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.li(T0, DEVICE)
    if name in ("lw", "sw"):
        asm.emit(name, A1, T0, 2)
    else:
        asm.emit(name, *((A1, T0) if name == "lr.w" else (A1, T0, A2)))
    board.load(asm)
    board.start()
    assert board.trap() == (cause, DEVICE + (2 if name in ("lw", "sw") else 0), asm.here - 4)


def test_console_write_is_answered_with_what_was_written() -> None:
    board = Board()
    asm = Assembler(CODE)
    for register, value in ((A7, DBCN), (A6, 0), (A0, 5), (A1, DATA), (A2, 0)):
        asm.li(register, value)
    asm.emit("ecall")
    asm.emit("slli", A0, A0, 32)
    asm.emit("add", A0, A0, A1)
    board.finish(asm)
    board.load(asm)
    board.memory.write(DATA, b"hello")
    board.start()
    stop = board.run()
    assert (stop.reason, stop.gpa, stop.size) == (rv64.EXIT_CONSOLE, DATA, 5)
    assert board.memory.read(stop.gpa, stop.size) == b"hello"
    assert board.run(3).data == 3


def test_console_refuses_what_is_no_memory() -> None:
    board = Board()
    asm = Assembler(CODE)
    for register, value in ((A7, DBCN), (A6, 0), (A0, 4096), (A1, RAM - 8), (A2, 0)):
        asm.li(register, value)
    asm.emit("ecall")
    board.finish(asm)
    board.load(asm)
    board.start()
    assert board.result() == -3 & (1 << 64) - 1


def test_reset_tells_type_and_reason() -> None:
    board = Board()
    asm = Assembler(CODE)
    for register, value in ((A7, SRST), (A6, 0), (A0, 1), (A1, 7)):
        asm.li(register, value)
    asm.emit("ecall")
    board.load(asm)
    board.start()
    stop = board.run()
    assert (stop.reason, stop.data, stop.extra) == (rv64.EXIT_RESET, 1, 7)


def test_cancel_before_and_during_a_run() -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.label("loop")
    asm.to("jal", 0, label="loop")
    board.load(asm)
    board.start()
    board.hart.cancel()
    assert board.run().reason == rv64.EXIT_CANCELED
    thread = threading.Timer(0.05, board.hart.cancel)
    thread.start()
    assert board.hart.run().reason == rv64.EXIT_CANCELED
    thread.join()
    assert board.hart.counters()["instructions"] > 1000


@pytest.mark.parametrize("stvec", [DONE, 0, 1 << 63, RAM + 0x8000])
def test_trap_loop_in_the_vector_is_a_crash(stvec: int) -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.raw(bytes(4))
    board.load(asm)
    board.start(stvec=stvec)
    stop = board.run()
    assert stop.reason == rv64.EXIT_CRASH
    assert board.hart.get_state().pc == stvec


def test_a_trap_storm_can_be_canceled() -> None:
    # The vector faults on a store whose address changes each time, so it is no fixed point.
    board = Board()
    vector = Assembler(RAM + 0x8000)
    vector.emit("addi", A3, A3, 8)
    vector.emit("sd", A3, A3, 0)
    board.load(vector)
    root = board.identity()
    board.start(pc=RAM + 0x8000, x={A3: 1 << 32}, stvec=RAM + 0x8000, satp=board.satp(root))
    assert board.run(timeout=0.05).reason == rv64.EXIT_CANCELED


def test_instret_counts_every_instruction_once() -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.li(A1, 1000)
    asm.emit("csrrs", A2, "instret", 0)
    asm.label("loop")
    asm.emit("addi", A1, A1, -1)
    asm.to("bne", A1, 0, label="loop")
    asm.emit("csrrs", A3, "instret", 0)
    asm.emit("sub", A0, A3, A2)
    board.finish(asm)
    board.load(asm)
    board.start()
    assert board.result() == 2001
