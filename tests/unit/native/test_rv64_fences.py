"""SFENCE.VMA and address spaces: what a hart still translates by, and what no longer."""

import pytest

from framework.rv64_asm import Assembler
from framework.rv64_board import (
    A0,
    A1,
    A2,
    A3,
    CODE,
    DATA,
    FULL,
    RAM,
    SUM,
    T0,
    TABLES,
    VA,
    Board,
    G,
    U,
)


def remap(board: Board, root: int, fence: tuple[int, int] | None) -> Assembler:
    """Loads from VA, rewrites its entry (address in a2, value in a3), fences, loads again."""
    asm = Assembler(CODE)
    asm.emit("ld", A0, A1, 0)
    asm.emit("sd", A3, A2, 0)
    if fence is not None:
        asm.emit("sfence.vma", *fence)
    asm.emit("ld", A0, A1, 0)
    board.finish(asm)
    return asm


@pytest.mark.parametrize("fence", [(0, 0), (A1, 0), (0, T0), (A1, T0)])
def test_sfence_shows_the_new_mapping(fence: tuple[int, int]) -> None:
    board = Board()
    root = board.identity()
    entry = board.map(root, VA, DATA, FULL)
    board.map(root, VA + 0x1000, TABLES, FULL)
    board.set_word(DATA, 1)
    board.set_word(DATA + 0x1000, 2)
    board.load(remap(board, root, fence))
    new = DATA + 0x1000 >> 12 << 10 | FULL
    board.start(x={A1: VA, A2: entry, A3: new}, satp=board.satp(root, asid=1))
    assert board.result() == 2


def test_sfence_of_one_address_drops_the_whole_superpage() -> None:
    board = Board()
    root = board.identity()
    va = 0x20_0000_0000
    entry = board.map(root, va, RAM, FULL, leaf=1)
    board.set_word(DATA, 1)
    board.set_word(DATA + 0x20_0000, 2)
    asm = Assembler(CODE)
    asm.emit("ld", A0, A1, 0)
    asm.emit("sd", A3, A2, 0)
    asm.li(T0, va)
    asm.emit("sfence.vma", T0, 0)
    asm.emit("ld", A0, A1, 0)
    board.finish(asm)
    board.load(asm)
    new = RAM + 0x20_0000 >> 12 << 10 | FULL
    board.start(x={A1: va + DATA - RAM, A2: entry, A3: new}, satp=board.satp(root))
    assert board.result() == 2


def test_sfence_of_a_code_page_runs_the_new_code() -> None:
    board = Board()
    root = board.identity()
    entry = board.map(root, VA, DATA, FULL)
    for page, value in ((DATA, 1), (DATA + 0x1000, 2)):
        body = Assembler(page)
        body.emit("addi", A0, 0, value)
        body.emit("jalr", 0, 1, 0)
        board.load(body)
    asm = Assembler(CODE)
    asm.emit("jalr", 1, A1, 0)
    asm.emit("sd", A3, A2, 0)
    asm.emit("sfence.vma", A1, 0)
    asm.emit("jalr", 1, A1, 0)
    board.finish(asm)
    board.load(asm)
    new = DATA + 0x1000 >> 12 << 10 | FULL
    board.start(x={A1: VA, A2: entry, A3: new}, satp=board.satp(root))
    assert board.result() == 2


def test_address_spaces_have_their_own_pages_and_share_global_ones() -> None:
    board = Board()
    one, two = board.identity(), board.identity()
    for root, value in ((one, 1), (two, 2)):
        board.map(root, VA, DATA + value * 0x1000, FULL | U)
        board.map(root, VA + 0x1000, DATA, FULL | G)
        board.set_word(DATA + value * 0x1000, value)
    asm = Assembler(CODE)
    asm.li(T0, SUM)
    asm.emit("csrrs", 0, "sstatus", T0)
    for root, asid in ((one, 1), (two, 2), (one, 1)):
        asm.li(T0, board.satp(root, asid=asid))
        asm.emit("csrrw", 0, "satp", T0)
        asm.emit("ld", A2, A1, 0)
        asm.emit("slli", A0, A0, 4)
        asm.emit("add", A0, A0, A2)
    board.finish(asm)
    board.load(asm)
    board.start(x={A0: 0, A1: VA})
    assert board.result() == 0x121


def test_nonglobal_supervisor_pages_change_with_the_address_space() -> None:
    board = Board()
    one, two = board.identity(), board.identity()
    for root, value in ((one, 1), (two, 2)):
        board.map(root, VA, DATA + value * 0x1000, FULL)
        board.set_word(DATA + value * 0x1000, value)
    asm = Assembler(CODE)
    for root, asid in ((one, 1), (two, 2)):
        asm.li(T0, board.satp(root, asid=asid))
        asm.emit("csrrw", 0, "satp", T0)
        asm.emit("ld", A0, A1, 0)
    board.finish(asm)
    board.load(asm)
    board.start(x={A1: VA})
    assert board.result() == 2
