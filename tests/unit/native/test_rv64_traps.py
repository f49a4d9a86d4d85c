"""Traps into S-mode and back: causes, values, privilege, vectors, and CSRs' legal values."""

import struct
from typing import Any

import pytest

from crumble_native import rv64
from framework.rv64_asm import Assembler, encode
from framework.rv64_board import (
    A0,
    A1,
    A2,
    CODE,
    DATA,
    DONE,
    FS_DIRTY,
    RAM,
    SIE,
    SPIE,
    SPP,
    SUM,
    T0,
    T1,
    TRAP_VECTOR,
    Board,
)  # fmt: skip

MASK = (1 << 64) - 1


def one(*instruction: Any) -> Board:
    """A board whose CODE holds one instruction, run in S-mode with FS off."""
    board = Board()
    asm = Assembler(CODE)
    asm.emit(*instruction)
    board.finish(asm)
    board.load(asm)
    board.start()
    return board


@pytest.mark.parametrize(
    "instruction",
    [
        ("csrrw", 0, "cycle", A0),
        ("csrrs", A0, 0x7C0, 0),
        ("csrrs", A0, 0x300, 0),
        ("csrrs", A0, "fcsr", 0),
        ("fadd.d", 1, 2, 3),
    ],
)
def test_illegal_instruction_leaves_itself_in_stval(instruction: tuple[Any, ...]) -> None:
    assert one(*instruction).trap() == (2, encode(*instruction), CODE)


@pytest.mark.parametrize("raw", [b"\0\0", b"\x02\x90\x00\x00"[2:], b"\x00\x9c"])
def test_illegal_compressed_instruction(raw: bytes) -> None:
    board = Board()
    board.memory.write(CODE, raw)
    board.start()
    assert board.trap() == (2, int.from_bytes(raw, "little"), CODE)


@pytest.mark.parametrize("name", ["sret", "wfi", "sfence.vma", "csrrs"])
def test_supervisor_instructions_are_illegal_in_user_mode(name: str) -> None:
    board = Board()
    asm = Assembler(CODE)
    operands = {"sfence.vma": (0, 0), "csrrs": (A0, "sstatus", 0)}.get(name, ())
    asm.emit(name, *operands)
    board.load(asm)
    board.start(privilege=0)
    assert board.trap()[0] == 2


def test_ecall_and_ebreak() -> None:
    board = one("ecall")
    board.start(privilege=0)
    assert board.trap() == (8, 0, CODE)
    assert one("ebreak").trap() == (3, CODE, CODE)
    compressed = Board()
    compressed.memory.write(CODE, struct.pack("<H", 0x9002))
    compressed.start()
    assert compressed.trap() == (3, CODE, CODE)


@pytest.mark.parametrize(
    ("name", "cause"), [("lr.d", 4), ("sc.d", 6), ("amoadd.d", 6), ("amoswap.w", 6)]
)
def test_atomics_trap_when_misaligned(name: str, cause: int) -> None:
    operands = (A0, A1) if name == "lr.d" else (A0, A1, A2)
    board = one(name, *operands)
    board.start(x={A1: DATA + 1})
    assert board.trap() == (cause, DATA + 1, CODE)


def test_fetch_from_a_device_is_an_access_fault() -> None:
    board = Board()
    board.start(pc=DONE)
    assert board.trap() == (1, DONE, DONE)


def test_trap_saves_and_sret_restores_the_interrupt_state() -> None:
    board = one("ecall")
    board.start(privilege=0, sstatus=SIE)
    board.trap()
    state = board.hart.get_state()
    assert state.privilege == 1
    assert state.sstatus & (SIE | SPIE | SPP) == SPIE
    asm = Assembler(CODE)
    asm.emit("sret")
    board.load(asm)
    board.memory.write(CODE + 0x100, struct.pack("<I", encode("ecall")))
    board.start(privilege=1, sstatus=SPIE, sepc=CODE + 0x100)
    assert board.trap() == (8, 0, CODE + 0x100)
    assert board.hart.get_state().sstatus & SPIE


def test_sret_to_supervisor() -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.to("la", T0, label="after")
    asm.emit("csrrw", 0, "sepc", T0)
    asm.emit("sret")
    asm.label("after")
    asm.emit("csrrs", A0, "sstatus", 0)
    board.finish(asm)
    board.load(asm)
    board.start(sstatus=SPP | SPIE)
    assert board.result() & (SIE | SPIE | SPP) == SIE | SPIE


@pytest.mark.parametrize(
    ("csr", "written", "read"),
    [
        ("sstatus", MASK, 2 << 32 | 1 << 63 | SUM | 1 << 19 | FS_DIRTY | 3 << 9 | SPP | SPIE | SIE),
        ("sie", MASK, 0x222),
        ("stvec", TRAP_VECTOR | 1, TRAP_VECTOR | 1),
        ("stvec", TRAP_VECTOR | 2, TRAP_VECTOR),
        ("scounteren", MASK, 7),
        ("senvcfg", MASK, 0xF1),
        ("sepc", MASK, MASK - 1),
        ("scause", MASK, MASK),
        ("stval", MASK, MASK),
        ("sscratch", MASK, MASK),
        ("satp", 10 << 60 | 1, 0),
        ("satp", 0 << 60 | 0x1234, 0),
        ("stimecmp", 12345, 12345),
    ],
)
def test_csr_legal_values(csr: str, written: int, read: int) -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.emit("csrrw", T1, csr, A0)
    asm.emit("csrrs", A0, csr, 0)
    board.finish(asm)
    board.load(asm)
    board.start(x={A0: written})
    assert board.result() == read


def test_csr_set_and_clear_return_the_old_value() -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.emit("csrrwi", 0, "sscratch", 0b10101)
    asm.emit("csrrsi", A0, "sscratch", 0b01010)
    asm.emit("csrrci", A1, "sscratch", 0b00110)
    asm.emit("csrrs", A2, "sscratch", 0)
    board.finish(asm)
    board.load(asm)
    board.start()
    assert board.result() == 0b10101
    assert board.hart.get_state().x[A1 : A2 + 1] == [0b11111, 0b11001]


def test_counters_obey_scounteren_in_user_mode() -> None:
    board = one("csrrs", A0, "time", 0)
    board.start(privilege=0, scounteren=5)
    assert board.trap()[0] == 2
    board.start(privilege=0, scounteren=2)
    assert board.result() < 1 << 40
    assert Board().hart.get_state().scounteren == 7  # as firmware leaves it


def test_vectored_interrupt_goes_to_its_slot() -> None:
    board = Board()
    vector = Assembler(RAM + 0x8000)
    vector.raw(struct.pack("<I", encode("ebreak")))
    vector.emit("csrrs", A0, "scause", 0)
    board.finish(vector)
    board.load(vector)
    asm = Assembler(CODE)
    asm.emit("csrrsi", 0, "sip", 2)
    asm.emit("csrrsi", 0, "sie", 2)
    asm.emit("csrrsi", 0, "sstatus", 2)
    board.load(asm)
    board.start(stvec=RAM + 0x8001)
    assert board.result() == 1 << 63 | 1
    assert board.hart.get_state().sepc == CODE + 12


def test_x0_stays_zero_but_a_load_to_it_still_faults() -> None:
    board = one("ld", 0, A1, 0)
    board.start(x={A1: 8})
    stop = board.run()
    assert (stop.reason, stop.gpa) == (rv64.EXIT_MMIO_READ, 8)
    assert board.run(99).data == 0
    assert board.hart.get_state().x[0] == 0
    board = one("amoadd.d", 0, A1, A2)
    board.start(x={A1: 8})
    assert board.trap() == (7, 8, CODE)
