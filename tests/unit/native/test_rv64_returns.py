"""Calls and returns, in pairs and otherwise: what the translator keeps of calls (jit_translate.c) is never believed."""

import pytest

from framework.rv64_asm import Assembler, encode
from framework.rv64_board import (
    A0,
    A1,
    A2,
    A3,
    CODE,
    DATA,
    FULL,
    RA,
    S0,
    S1,
    SP,
    T0,
    T1,
    T2,
    VA,
    Board,
)

TOP = DATA + 0xF_0000
ROUNDS = 100  # so that everything is translated


def ret(asm: Assembler, link: int = RA) -> None:
    asm.emit("jalr", 0, link, 0)


def again(asm: Assembler) -> None:
    """The end of a loop over S1, and of the program."""
    asm.emit("addi", S1, S1, -1)
    asm.to("bne", S1, 0, label="loop")
    asm.emit("addi", A0, S0, 0)
    Board.finish(asm)


def result(asm: Assembler, rounds: int = ROUNDS, **registers: int) -> int:
    board = Board()
    board.load(asm)
    named = {"a1": A1, "a2": A2, "a3": A3}
    x = {named[name]: value for name, value in registers.items()}
    board.start(x={SP: TOP, S1: rounds, **x})
    return board.result()


@pytest.mark.parametrize("link", [RA, T0])
@pytest.mark.parametrize("depth", [1, 17, 30_000])
def test_recursion_also_deeper_than_a_time_slice(depth: int, link: int) -> None:
    asm = Assembler(CODE)
    asm.li(A1, depth)
    asm.to("jal", link, label="count")
    Board.finish(asm)
    asm.label("count")
    asm.emit("addi", SP, SP, -16)
    asm.emit("sd", link, SP, 0)
    asm.emit("addi", A1, A1, -1)
    asm.to("beq", A1, 0, label="last")
    asm.to("jal", link, label="count")
    asm.label("last")
    asm.emit("addi", A0, A0, 1)
    asm.emit("ld", link, SP, 0)
    asm.emit("addi", SP, SP, 16)
    ret(asm, link)
    assert result(asm) == depth


def test_a_return_to_another_place_than_behind_the_call() -> None:
    asm = Assembler(CODE)
    asm.label("loop")
    asm.to("jal", RA, label="skip")
    asm.emit("addi", S0, S0, 1000)  # never
    asm.emit("addi", S0, S0, 1)
    again(asm)
    asm.label("skip")
    asm.emit("addi", RA, RA, 4)
    ret(asm)
    assert result(asm) == ROUNDS


def test_a_return_that_alternates() -> None:
    asm = Assembler(CODE)
    asm.label("loop")
    asm.to("jal", RA, label="either")
    asm.emit("addi", S0, S0, 16)
    asm.emit("addi", S0, S0, 1)
    again(asm)
    asm.label("either")
    asm.emit("andi", T1, S1, 1)
    asm.emit("slli", T1, T1, 2)
    asm.emit("add", RA, RA, T1)
    ret(asm)
    assert result(asm) == ROUNDS + ROUNDS // 2 * 16


@pytest.mark.parametrize("depth", [1, 5, 200])
def test_a_jump_out_of_many_calls(depth: int) -> None:
    asm = Assembler(CODE)
    asm.label("loop")
    asm.to("jal", RA, label="catch")
    asm.emit("addi", S0, S0, 1)
    again(asm)
    asm.label("catch")
    asm.emit("addi", T2, RA, 0)
    asm.li(A1, depth)
    asm.label("deeper")
    asm.emit("addi", A1, A1, -1)
    asm.to("bne", A1, 0, label="call")
    ret(asm, T2)  # all the way
    asm.label("call")
    asm.to("jal", RA, label="deeper")
    asm.emit("addi", S0, S0, 1000)  # never
    assert result(asm) == ROUNDS


def test_more_returns_than_calls() -> None:
    asm = Assembler(CODE)
    asm.label("loop")
    for number in range(5):
        asm.to("la", RA, label=f"next{number}")
        ret(asm)
        asm.emit("addi", S0, S0, 1000)  # never
        asm.label(f"next{number}")
        asm.emit("addi", S0, S0, 1)
    again(asm)
    assert result(asm) == 5 * ROUNDS


@pytest.mark.parametrize(("here", "there"), [(T0, T0), (RA, T0), (RA, RA)])
def test_coroutines(here: int, there: int) -> None:
    asm = Assembler(CODE)
    asm.to("la", there, label="other")
    asm.label("loop")
    asm.emit("jalr", here, there, 0)
    if here != there:
        asm.emit("addi", there, T2, 0)
    asm.emit("addi", S0, S0, 1)
    again(asm)
    asm.label("other")
    for _ in range(3):
        asm.emit("addi", S0, S0, 16)
        asm.emit("jalr", T2 if here != there else there, here, 0)
    asm.emit("addi", S0, S0, 16)
    asm.to("la", T2, label="other")
    if here == there:
        asm.emit("addi", T1, here, 0)
        asm.emit("addi", there, T2, 0)
        asm.emit("jalr", 0, T1, 0)
    else:
        asm.emit("jalr", 0, here, 0)
    assert result(asm) == 17 * ROUNDS


def test_the_caller_is_rewritten_meanwhile() -> None:
    asm = Assembler(CODE)
    asm.label("loop")
    asm.to("jal", RA, label="rewrite")
    asm.emit("addi", S0, S0, 0)  # becomes S0 += round % 4
    again(asm)
    asm.label("rewrite")
    asm.emit("andi", T1, S1, 3)
    asm.emit("slli", T1, T1, 20)
    asm.emit("or", T1, T1, A1)
    asm.emit("sw", T1, RA, 0)
    asm.emit("fence.i")
    ret(asm)
    assert result(asm, a1=encode("addi", S0, S0, 0)) == ROUNDS // 4 * 6


def test_the_callers_page_is_another_one_meanwhile() -> None:
    """Two pages with the same code but for what they add; each call returns into the other one."""
    board = Board()
    root = board.identity()
    table_entry = board.map(root, VA, DATA, FULL)
    other = board.word(table_entry) + (0x1000 >> 12 << 10)
    caller = Assembler(VA)
    for amount in (1, 16):
        caller = Assembler(VA)
        caller.label("loop")
        caller.emit("jalr", RA, A2, 0)
        caller.emit("addi", S0, S0, amount)
        caller.emit("addi", S1, S1, -1)
        caller.to("bne", S1, 0, label="loop")
        caller.emit("jalr", 0, A3, 0)
        board.memory.write(DATA if amount == 1 else DATA + 0x1000, caller.code())
    asm = Assembler(CODE)
    asm.li(A1, VA)
    asm.to("la", A2, label="swap")
    asm.to("la", A3, label="end")
    asm.emit("jalr", 0, A1, 0)
    asm.label("end")
    asm.emit("addi", A0, S0, 0)
    Board.finish(asm)
    asm.label("swap")
    asm.li(T1, table_entry)
    asm.li(T2, other ^ board.word(table_entry))
    asm.emit("ld", A0, T1, 0)
    asm.emit("xor", A0, A0, T2)
    asm.emit("sd", A0, T1, 0)
    asm.emit("sfence.vma", A1, 0)
    ret(asm)
    board.load(asm)
    board.start(x={S1: ROUNDS}, satp=board.satp(root))
    assert board.result() == ROUNDS // 2 * 17
