"""Decoded code follows memory: stores and fence.i, aliases, other writers, pages with code and data."""

import mmap
import struct

import pytest

from crumble_native.memory import PAGE_SIZE, Memory
from framework.rv64_asm import Assembler, encode
from framework.rv64_board import (
    A0,
    A1,
    A2,
    A3,
    CODE,
    DATA,
    RA,
    RAM,
    S0,
    SIZE,
    T0,
    T1,
    A,
    Board,
    D,
    R,
    V,
    W,
    X,
)

FULL = V | R | W | X | A | D
VA = 0x40_0000_0000 - 0x5000


def returns(value: int) -> int:
    """addi a0, zero, value."""
    return encode("addi", A0, 0, value)


def body(board: Board, at: int, value: int) -> None:
    """A function at `at` that returns `value`."""
    board.memory.write(at, struct.pack("<II", returns(value), encode("jalr", 0, RA, 0)))


def call_patch_call(fence: bool = True) -> Assembler:
    """Calls a1, stores the word in a3 through a2, calls a1 again: a0 = first << 8 | second."""
    asm = Assembler(CODE)
    asm.emit("jalr", RA, A1, 0)
    asm.emit("slli", S0, A0, 8)
    asm.emit("sw", A3, A2, 0)
    if fence:
        asm.emit("fence.i")
    asm.emit("jalr", RA, A1, 0)
    asm.emit("or", A0, A0, S0)
    Board.finish(asm)
    return asm


def test_store_then_fence_i() -> None:
    board = Board()
    body(board, DATA, 1)
    board.load(call_patch_call())
    board.start(x={A1: DATA, A2: DATA, A3: returns(2)})
    assert board.result() == 0x102


def test_store_through_another_virtual_address() -> None:
    board = Board()
    root = board.identity()
    board.map(root, VA, DATA, FULL)
    board.map(root, VA + 0x1000, DATA, V | R | W | A | D)
    body(board, DATA, 1)
    board.load(call_patch_call())
    board.start(x={A1: VA, A2: VA + 0x1000, A3: returns(2)}, satp=board.satp(root))
    assert board.result() == 0x102


def test_store_through_an_alias_mapped_writable_before_the_page_was_code() -> None:
    # The write TLB holds the alias when the page is first decoded: it must be purged then.
    board = Board()
    root = board.identity()
    board.map(root, VA, DATA, FULL)
    for alias in (1, 2):
        board.map(root, VA + 0x1000 * alias, DATA, V | R | W | A | D)
    body(board, DATA, 1)
    asm = Assembler(CODE)
    asm.li(T0, VA + 0x2000)
    asm.emit("sw", 0, A2, 64)
    asm.emit("sw", 0, T0, 64)
    asm.emit("sw", 0, A1, 64)
    for patch in (A2, T0, A1):
        asm.emit("jalr", RA, A1, 0)
        asm.emit("slli", S0, S0, 4)
        asm.emit("or", S0, S0, A0)
        asm.emit("lw", T1, A1, 0)
        asm.emit("add", T1, T1, A3)
        asm.emit("sw", T1, patch, 0)
        asm.emit("fence.i")
    asm.emit("jalr", RA, A1, 0)
    asm.emit("slli", S0, S0, 4)
    asm.emit("or", A0, A0, S0)
    board.finish(asm)
    board.load(asm)
    board.start(x={A1: VA, A2: VA + 0x1000, A3: 1 << 20}, satp=board.satp(root))
    assert board.result() == 0x1234


@pytest.mark.parametrize("name", ["sb", "sh", "sw", "sd", "amoswap.w", "sc.w", "cbo.zero"])
def test_every_kind_of_store_is_seen(name: str) -> None:
    board = Board()
    body(board, DATA, 1)
    asm = Assembler(CODE)
    asm.emit("jalr", RA, A1, 0)
    if name == "cbo.zero":
        asm.emit("cbo.zero", A1)
    elif name == "sc.w":
        asm.emit("lr.w", T0, A1)
        asm.emit("sc.w", T0, A1, A3)
    elif name == "amoswap.w":
        asm.emit("amoswap.w", T0, A1, A3)
    else:
        asm.emit(name, A3, A1, 2 if name in ("sb", "sh") else 0)
    asm.emit("fence.i")
    asm.emit("jalr", RA, A1, 0)
    board.finish(asm)
    board.load(asm)
    word = returns(0x123) | encode("jalr", 0, RA, 0) << 32
    board.start(x={A1: DATA, A3: word if name not in ("sb", "sh") else word >> 16 & 0xFFFF})
    if name == "cbo.zero":
        assert board.trap()[0] == 2
    else:
        assert board.result() == (3 if name == "sb" else 0x123)


def test_store_across_two_code_pages() -> None:
    board = Board()
    at = DATA + 0xFFE
    board.memory.write(at, struct.pack("<HH", 0x4505, 0x8082))  # c.li a0, 1; c.jr ra
    board.load(call_patch_call())
    board.start(x={A1: at, A2: at, A3: 0x8082_4509})  # c.li a0, 2; c.jr ra
    assert board.result() == 0x102


def test_instruction_across_pages_follows_both_pages() -> None:
    board = Board()
    root = board.identity()
    board.map(root, VA, DATA, FULL)
    second = board.map(root, VA + 0x1000, DATA + 0x3000, FULL)
    at = VA + 0xFFE
    word = struct.pack("<I", returns(1))
    board.memory.write(DATA + 0xFFE, word[:2])
    board.memory.write(DATA + 0x3000, word[2:] + struct.pack("<H", 0x8082))
    other = struct.pack("<I", returns(7))
    board.memory.write(DATA + 0x5000, other[2:] + struct.pack("<H", 0x8082))
    asm = Assembler(CODE)
    asm.emit("jalr", RA, A1, 0)
    asm.emit("slli", S0, A0, 8)
    asm.emit("lhu", T0, A2, 0)
    asm.emit("addi", T0, T0, 0x20)  # imm += 2, in the second page
    asm.emit("sh", T0, A2, 0)
    asm.emit("fence.i")
    asm.emit("jalr", RA, A1, 0)
    asm.emit("or", S0, S0, A0)
    asm.emit("slli", S0, S0, 8)
    asm.li(T0, second)
    asm.emit("sd", A3, T0, 0)
    asm.emit("sfence.vma", 0, 0)
    asm.emit("jalr", RA, A1, 0)
    asm.emit("or", A0, A0, S0)
    board.finish(asm)
    board.load(asm)
    new = DATA + 0x5000 >> 12 << 10 | FULL
    board.start(x={A1: at, A2: VA + 0x1000, A3: new}, satp=board.satp(root))
    assert board.result() == 0x1_03_07


def test_instruction_across_into_a_missing_page_faults_there() -> None:
    board = Board()
    root = board.identity()
    board.map(root, VA, DATA, FULL)
    board.memory.write(DATA + 0xFFE, struct.pack("<I", returns(1))[:2])
    board.start(pc=VA + 0xFFE, satp=board.satp(root))
    assert board.trap() == (12, VA + 0x1000, VA + 0xFFE)


def test_branch_and_call_across_the_end_of_a_page() -> None:
    board = Board()
    asm = Assembler(DATA + 0xFFE)
    asm.emit("jal", RA, 6)
    asm.raw(b"\1\0")  # c.nop, jumped over
    asm.label("after")
    asm.emit("addi", A0, RA, 0)
    board.finish(asm)
    board.load(asm)
    board.start(pc=DATA + 0xFFE)
    assert board.result() == DATA + 0x1002


def test_a_block_may_overwrite_itself() -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.to("la", A1, label="patched")
    asm.emit("sw", A3, A1, 0)
    asm.emit("fence.i")
    asm.label("patched")
    asm.emit("addi", A0, 0, 1)
    board.finish(asm)
    board.load(asm)
    board.start(x={A3: returns(9)})
    assert board.result() == 9


def test_loop_that_patches_itself_every_time() -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.to("la", A1, label="patched")
    asm.label("loop")
    asm.label("patched")
    asm.emit("addi", A0, A0, 1)
    asm.emit("lw", T0, A1, 0)
    asm.emit("add", T0, T0, A3)
    asm.emit("sw", T0, A1, 0)
    asm.emit("fence.i")
    asm.emit("addi", A2, A2, -1)
    asm.to("bne", A2, 0, label="loop")
    board.finish(asm)
    board.load(asm)
    board.start(x={A0: 0, A2: 100, A3: 1 << 20})
    assert board.result() == sum(range(1, 101))


@pytest.mark.parametrize("nops", [1, 2, 3])
def test_patched_nop_runs_where_a_chained_branch_leads(nops: int) -> None:
    """As a kernel's tracer does: a NOP becomes an instruction and a NOP again."""
    board = Board()
    asm = Assembler(CODE)
    asm.to("la", A1, label="nops")
    asm.label("loop")
    asm.emit("addi", S0, S0, 1)
    asm.to("jal", 0, label="nops")
    asm.raw(bytes(128))  # so that patching does not drop the branch too
    asm.label("nops")
    for _ in range(nops):
        asm.emit("addi", 0, 0, 0)
    asm.emit("andi", T0, S0, 1)
    asm.to("la", T1, label="words")
    asm.emit("sh3add", T0, T0, T1)
    asm.emit("lw", T0, T0, 0)
    asm.emit("sw", T0, A1, 4 * nops - 4)
    asm.emit("fence.i")
    asm.emit("addi", A2, A2, -1)
    asm.to("bne", A2, 0, label="loop")
    board.finish(asm)
    asm.align(8)
    asm.label("words")
    asm.raw(struct.pack("<QQ", encode("addi", 0, 0, 0), encode("addi", A0, A0, 1)))
    board.load(asm)
    board.start(x={A0: 0, A2: 100, S0: 1})
    assert board.result() == 49


def test_data_beside_code_does_not_undo_decoding() -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.li(A2, 10_000)
    asm.label("loop")
    asm.emit("sd", A2, A1, 0)
    asm.emit("addi", A2, A2, -1)
    asm.to("bne", A2, 0, label="loop")
    asm.emit("ld", A0, A1, 0)
    board.finish(asm)
    board.load(asm)
    board.start(x={A1: CODE + 0x800})
    assert board.result() == 1
    assert board.hart.counters()["blocks_decoded"] < 20


def test_writes_through_the_memory_table_are_seen_at_the_next_fence_i() -> None:
    board = Board()
    body(board, DATA, 1)
    asm = Assembler(CODE)
    for _ in range(2):
        asm.emit("jalr", RA, A1, 0)
        board.finish(asm)
        asm.emit("fence.i")
    board.load(asm)
    board.start(x={A1: DATA})
    assert board.result() == 1
    body(board, DATA, 2)
    assert board.result() == 2


def test_a_page_that_is_no_longer_code_is_stored_to_fast_again() -> None:
    board = Board()
    body(board, DATA, 1)
    asm = Assembler(CODE)
    asm.emit("jalr", RA, A1, 0)
    asm.emit("sd", 0, A1, 0)
    asm.li(A2, 1000)
    asm.label("loop")
    asm.emit("sd", A2, A1, 0)
    asm.emit("addi", A2, A2, -1)
    asm.to("bne", A2, 0, label="loop")
    asm.emit("ld", A0, A1, 0)
    board.finish(asm)
    board.load(asm)
    board.start(x={A1: DATA})
    assert board.result() == 1


def test_code_cache_survives_more_code_than_it_holds() -> None:
    # Every halfword offset of many pages starts a block of its own.
    board = Board()
    asm = Assembler(CODE)
    asm.label("outer")
    asm.emit("addi", T0, A1, 0)
    asm.label("loop")
    asm.emit("jalr", RA, T0, 0)
    asm.emit("addi", T0, T0, 2)
    asm.to("bltu", T0, A2, label="loop")
    asm.emit("addi", A3, A3, -1)
    asm.to("bne", A3, 0, label="outer")
    board.finish(asm)
    board.load(asm)
    size = 0x30_000
    board.memory.write(DATA, struct.pack("<HH", 0x0505, 0x8082) * (size // 4))  # c.addi a0, 1; ret
    board.start(x={A1: DATA, A2: DATA + size, A3: 3, A0: 0})
    assert board.result() == 3 * size // 4
    assert board.hart.counters()["block_flushes"] > 0


# ---- Layers: a base below the overlay


def layered(base: bytes) -> tuple[Board, mmap.mmap]:
    """A board whose RAM lies over a read-only base."""
    under, over = mmap.mmap(-1, SIZE), mmap.mmap(-1, SIZE)
    state = mmap.mmap(-1, PAGE_SIZE + SIZE // PAGE_SIZE)
    under[DATA - RAM : DATA - RAM + len(base)] = base
    memory = Memory(state)
    memory.add(RAM, over, base=under)
    return Board(memory=memory), under


def test_first_store_moves_a_page_that_was_read_from_the_base() -> None:
    board, under = layered(struct.pack("<QQ", 5, 6))
    asm = Assembler(CODE)
    asm.emit("ld", A0, A1, 0)
    asm.emit("sd", A2, A1, 0)
    asm.emit("ld", A2, A1, 0)
    asm.emit("slli", A0, A0, 8)
    asm.emit("add", A0, A0, A2)
    asm.emit("ld", A2, A1, 8)
    asm.emit("slli", A0, A0, 8)
    asm.emit("add", A0, A0, A2)
    board.finish(asm)
    board.load(asm)
    board.start(x={A1: DATA, A2: 7})
    assert board.result() == 0x05_07_06
    assert under[DATA - RAM : DATA - RAM + 8] == struct.pack("<Q", 5)


def test_a_page_another_writer_moved_is_seen_behind_a_fence() -> None:
    board, _ = layered(struct.pack("<Q", 5))
    asm = Assembler(CODE)
    asm.emit("ld", A0, A1, 0)
    board.finish(asm)
    asm.raw(struct.pack("<I", 0x0220_000F))  # fence r, r
    asm.emit("ld", A0, A1, 0)
    board.finish(asm)
    board.load(asm)
    board.start(x={A1: DATA})
    assert board.result() == 5
    board.set_word(DATA, 9)
    assert board.result() == 9


def test_code_in_the_base_runs_and_can_be_patched() -> None:
    board, _ = layered(struct.pack("<II", returns(1), encode("jalr", 0, RA, 0)))
    board.load(call_patch_call())
    board.start(x={A1: DATA, A2: DATA, A3: returns(2)})
    assert board.result() == 0x102
