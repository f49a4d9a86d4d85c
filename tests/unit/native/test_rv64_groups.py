"""Loads and stores by one base register, which the translator looks up together: each for itself all the same."""

from __future__ import annotations

import pytest

from framework.rv64_asm import Assembler
from framework.rv64_board import A0, A1, A2, A3, CODE, DATA, S0, T0, A, Board, D, R, V, W, X

LOAD_PAGE, STORE_PAGE = 13, 15
VA = 0x40_0000_0000 - 0x5000
READABLE = V | R | A | D
FULL = READABLE | W | X


def board_of(asm: Assembler, flags: int, second: int = 0, *, base: int = VA) -> tuple[Board, int]:
    """A board whose a1 is `base`, a page with `flags`, the next one with `second`; and its page's entry's address."""
    board = Board()
    root = board.identity()
    entry = board.map(root, VA, DATA, flags)
    board.map(root, VA + 4096, DATA + 4096, second)
    board.load(asm)
    for offset in range(0, 8192, 8):
        board.set_word(DATA + offset, 100 + offset)
    board.start(x={A1: base, A2: 7, A3: 5}, satp=board.satp(root))
    return board, entry


def increments(*, skipped: bool = False, offset: int = 0) -> Assembler:
    """Five times: what is at a1, one more, stored there again; the last is the result."""
    asm = Assembler(CODE)
    # In a block of its own, so that the TLB knows the page, to be read, when the group begins.
    asm.emit("lbu", S0, A1, offset)
    asm.emit("auipc", T0, 0)
    asm.emit("jalr", 0, T0, 8)
    asm.label("loop")
    asm.emit("ld", S0, A1, offset)
    asm.emit("addi", S0, S0, 1)
    if skipped:
        asm.to("bne", A3, 0, label="next")
    asm.label("store")
    asm.emit("sd", S0, A1, offset)
    asm.label("next")
    asm.emit("addi", A3, A3, -1)
    asm.to("bne", A3, 0, label="loop")
    Board.finish(asm, S0)
    return asm


def test_a_load_and_a_store_of_one_word() -> None:
    board, _ = board_of(increments(), FULL)
    assert board.result() == 105
    assert board.word(DATA) == 105


def test_what_may_only_be_read_is_read_before_its_store_faults() -> None:
    asm = increments()
    board, entry = board_of(asm, READABLE)
    assert board.trap() == (STORE_PAGE, VA, asm.address("store"))
    assert board.hart.get_state().x[S0] == 101
    assert board.word(entry) & 0x3FF == READABLE


def test_a_page_that_is_never_written_stays_clean() -> None:
    board, entry = board_of(increments(skipped=True), V | R | W)
    assert board.result() == 101
    assert board.word(entry) & 0x3FF == V | R | W | A
    assert board.word(DATA) == 100


def test_a_store_before_its_load() -> None:
    asm = Assembler(CODE)
    asm.label("loop")
    asm.emit("sd", A3, A1, 8)
    asm.emit("ld", A0, A1, 8)
    asm.emit("lw", A2, A1, 16)
    asm.emit("add", A0, A0, A2)
    asm.emit("addi", A3, A3, -1)
    asm.to("bne", A3, 0, label="loop")
    Board.finish(asm)
    board, _ = board_of(asm, FULL)
    assert board.result() == 1 + 116


@pytest.mark.parametrize(("second", "cause"), [(0, LOAD_PAGE), (READABLE, STORE_PAGE), (FULL, 0)])
def test_a_word_across_two_pages(second: int, cause: int) -> None:
    asm = increments()
    board, _ = board_of(asm, FULL, second, base=VA + 4092)
    if not cause:
        before = 4188 >> 32 | (4196 & 0xFFFFFFFF) << 32
        assert board.result() == before + 5
        assert board.word(DATA + 4096) == 4196
        return
    where = "loop" if cause == LOAD_PAGE else "store"
    assert board.trap() == (cause, VA + 4096, asm.address(where))
    assert board.word(DATA + 4088) == 4188


def test_words_on_both_sides_of_a_page() -> None:
    asm = Assembler(CODE)
    asm.label("loop")
    asm.emit("ld", A0, A1, 0)
    asm.emit("ld", A2, A1, -8)
    asm.emit("add", A0, A0, A2)
    asm.emit("sd", A0, A1, -8)
    asm.emit("addi", A3, A3, -1)
    asm.to("bne", A3, 0, label="loop")
    Board.finish(asm)
    board, _ = board_of(asm, FULL, READABLE, base=VA + 4096)
    assert board.result() == 4188 + 5 * 4196
