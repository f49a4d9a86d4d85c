"""Switches between address spaces without a fence: what one had cached is not seen in the other."""

from __future__ import annotations

import itertools

import pytest

from framework.rv64_asm import Assembler
from framework.rv64_board import A0, CODE, DATA, FULL, S0, S1, SUM, T0, T1, T2, Board, D, R, U, V, W
from framework.rv64_board import VA as PAGE
from framework.rv64_board import A as ACCESSED
from framework.rv64_board import G as GLOBAL

USER, SUPERVISOR = V | R | W | U | ACCESSED | D, FULL
ROUNDS = 40


def spaces(flags: int) -> tuple[Board, list[int]]:
    """Two of them, with a page each at the same address that holds 1 or 16."""
    board, satps = Board(), []
    for number, value in enumerate((1, 16)):
        root = board.identity()
        board.map(root, PAGE, DATA + 0x1000 * number, flags)
        board.memory.write(DATA + 0x1000 * number, value.to_bytes(8, "little"))
        satps.append(board.satp(root, asid=number + 1))
    return board, satps


@pytest.mark.parametrize(
    ("flags", "with_sum"),
    list(itertools.product((USER, SUPERVISOR), ((True,), (True, False), (False, True)))),
)
def test_the_supervisor_reads_what_the_space_has(flags: int, with_sum: tuple[bool, ...]) -> None:
    """With SUM, without, and one after the other."""
    wanted = [each for each in with_sum if each or flags == SUPERVISOR]
    board, satps = spaces(flags)
    asm = Assembler(CODE)
    asm.li(T0, PAGE)
    asm.li(T2, SUM)
    asm.li(S1, ROUNDS)
    asm.label("loop")
    for satp in satps:
        asm.li(T1, satp)
        asm.emit("csrrw", 0, "satp", T1)
        for each in wanted:
            asm.emit("csrrs" if each else "csrrc", 0, "sstatus", T2)
            asm.emit("ld", T1, T0, 0)
            asm.emit("add", S0, S0, T1)
    asm.emit("addi", S1, S1, -1)
    asm.to("bne", S1, 0, label="loop")
    asm.emit("addi", A0, S0, 0)
    board.finish(asm)
    board.load(asm)
    board.start(satp=satps[0])
    assert board.result() == 17 * ROUNDS * len(wanted)


@pytest.mark.parametrize("flags", [USER, SUPERVISOR])
def test_the_supervisor_writes_where_the_space_has_it(flags: int) -> None:
    board, satps = spaces(flags)
    asm = Assembler(CODE)
    asm.li(T0, PAGE)
    asm.li(T2, SUM)
    asm.emit("csrrs", 0, "sstatus", T2)
    for number, satp in enumerate((*satps, *satps)):
        asm.li(T1, satp)
        asm.emit("csrrw", 0, "satp", T1)
        asm.emit("ld", T1, T0, 0)
        asm.emit("addi", T1, T1, number + 1)
        asm.emit("sd", T1, T0, 0)
    board.finish(asm)
    board.load(asm)
    board.start(satp=satps[0])
    board.result()
    assert [board.word(DATA), board.word(DATA + 0x1000)] == [1 + 1 + 3, 16 + 2 + 4]


def test_what_is_global_may_stay() -> None:
    """It is the same in both spaces, as the specification wants (4.3.1): nothing is lost by a switch."""
    board, satps = spaces(SUPERVISOR)
    for satp in satps:
        board.map((satp & 0xFFF_FFFF_FFFF) << 12, PAGE + 0x1000, DATA + 0x2000, SUPERVISOR | GLOBAL)
    board.memory.write(DATA + 0x2000, (7).to_bytes(8, "little"))
    asm = Assembler(CODE)
    asm.li(T0, PAGE + 0x1000)
    for satp in (*satps, *satps):
        asm.li(T1, satp)
        asm.emit("csrrw", 0, "satp", T1)
        asm.emit("ld", T1, T0, 0)
        asm.emit("add", A0, A0, T1)
    board.finish(asm)
    board.load(asm)
    board.start(satp=satps[0])
    assert board.result() == 28
