"""Address translation: Sv39 and Sv48, permissions, A and D, superpages, accesses across pages."""

import struct

import pytest

from framework.rv64_asm import Assembler
from framework.rv64_board import (
    A0,
    A1,
    A2,
    CODE,
    DATA,
    DONE,
    FULL,
    MXR,
    RAM,
    SIZE,
    SUM,
    T0,
    VA,
    A,
    Board,
    D,
    R,
    U,
    V,
    W,
    X,
)

MASK = (1 << 64) - 1
FETCH_PAGE, LOAD_PAGE, STORE_PAGE = 12, 13, 15


def access(name: str) -> Assembler:
    """A program that does one access at a1 and ends with what it read."""
    asm = Assembler(CODE)
    if name == "jalr":
        asm.emit("jalr", 1, A1, 0)
    elif name.startswith("s"):
        asm.emit(name, A2, A1, 0)
    else:
        asm.emit(name, A0, A1, 0)
    Board.finish(asm)
    return asm


def mapped(
    name: str, flags: int, *, va: int = VA, levels: int = 3, sstatus: int = 0, **fields: int
) -> tuple[Board, int]:
    """A board about to do the access on a page mapped with `flags`; and its entry's address."""
    board = Board()
    root = board.identity(levels=levels)
    entry = board.map(root, va, DATA, flags, levels=levels)
    board.load(access(name))
    board.set_word(DATA, 0x1122_3344_5566_7788)
    board.start(x={A1: va, A2: 77}, satp=board.satp(root, levels=levels), sstatus=sstatus, **fields)
    return board, entry


@pytest.mark.parametrize("levels", [3, 4])
@pytest.mark.parametrize("va", [VA, -0x2000 & MASK, 0x123_4000])
def test_load_and_store_through_a_page(levels: int, va: int) -> None:
    board, _ = mapped("ld", FULL, va=va, levels=levels)
    assert board.result() == 0x1122_3344_5566_7788
    board, _ = mapped("sd", FULL, va=va, levels=levels)
    board.result()
    assert board.word(DATA) == 77


@pytest.mark.parametrize(
    ("levels", "va"), [(3, 1 << 38), (3, MASK >> 1), (4, 1 << 47), (4, 1 << 63)]
)
def test_addresses_outside_the_halves_fault(levels: int, va: int) -> None:
    board, _ = mapped("ld", FULL, levels=levels)
    board.start(x={A1: va & ~7})
    assert board.trap() == (LOAD_PAGE, va & ~7, CODE)


@pytest.mark.parametrize(
    ("name", "flags", "cause"),
    [
        ("ld", 0, LOAD_PAGE),
        ("ld", V | X | A | D, LOAD_PAGE),
        ("ld", FULL | U, LOAD_PAGE),
        ("ld", FULL & ~V, LOAD_PAGE),
        ("ld", V | W | A | D, LOAD_PAGE),
        ("ld", FULL | 1 << 54, LOAD_PAGE),
        ("ld", FULL | 1 << 60, LOAD_PAGE),
        ("ld", FULL | 3 << 61, LOAD_PAGE),
        ("ld", FULL | 1 << 63, LOAD_PAGE),
        ("sd", V | R | X | A | D, STORE_PAGE),
        ("sd", FULL | U, STORE_PAGE),
        ("amoadd.d", V | R | A | D, STORE_PAGE),
        ("lr.d", FULL | U, LOAD_PAGE),
        ("sc.d", V | R | A | D, STORE_PAGE),
        ("cbo.zero", V | R | A | D, STORE_PAGE),
        ("jalr", V | R | W | A | D, FETCH_PAGE),
        ("jalr", FULL | U, FETCH_PAGE),
    ],
)
def test_forbidden_access_faults(name: str, flags: int, cause: int) -> None:
    board, _ = mapped("ld", flags)
    asm = Assembler(CODE)
    operands = {"ld": (A0, A1, 0), "sd": (A0, A1, 0), "jalr": (1, A1, 0), "lr.d": (A0, A1)}
    asm.emit(name, *operands.get(name, (A1,) if name == "cbo.zero" else (A0, A1, A2)))
    board.load(asm)
    assert board.trap() == (cause, VA, VA if name == "jalr" else CODE)


def test_sum_lets_the_supervisor_at_user_data_but_not_code() -> None:
    board, _ = mapped("ld", FULL | U, sstatus=SUM)
    assert board.result() == 0x1122_3344_5566_7788
    board, _ = mapped("jalr", FULL | U, sstatus=SUM)
    assert board.trap() == (FETCH_PAGE, VA, VA)


def test_clearing_sum_closes_user_pages_at_once() -> None:
    board, _ = mapped("ld", FULL | U)
    asm = Assembler(CODE)
    asm.li(T0, SUM)
    asm.emit("csrrs", 0, "sstatus", T0)
    asm.emit("ld", A0, A1, 0)
    asm.emit("csrrc", 0, "sstatus", T0)
    asm.label("closed")
    asm.emit("ld", A0, A1, 0)
    board.load(asm)
    assert board.trap() == (LOAD_PAGE, VA, asm.address("closed"))


def test_mxr_makes_execute_only_pages_readable() -> None:
    board, _ = mapped("ld", V | X | A | D, sstatus=MXR)
    assert board.result() == 0x1122_3344_5566_7788


def test_user_mode_sees_only_user_pages() -> None:
    board = Board()
    root = board.identity()
    board.map(root, VA, CODE, V | R | X | U | A | D)
    asm = Assembler(CODE)
    asm.emit("ld", A0, A1, 0)
    board.load(asm)
    board.start(pc=VA, x={A1: DATA}, privilege=0, satp=board.satp(root))
    assert board.trap() == (LOAD_PAGE, DATA, VA)
    board.start(pc=CODE, privilege=0, satp=board.satp(root))
    assert board.trap() == (FETCH_PAGE, CODE, CODE)


@pytest.mark.parametrize(
    ("name", "after"),
    [("ld", V | R | W | X | A), ("sd", FULL), ("amoadd.d", FULL), ("lr.d", V | R | W | X | A)],
)
def test_accessed_and_dirty_are_set_by_the_walk(name: str, after: int) -> None:
    board, entry = mapped("ld", V | R | W | X)
    asm = Assembler(CODE)
    operands = {"ld": (A0, A1, 0), "sd": (A2, A1, 0), "lr.d": (A0, A1)}
    asm.emit(name, *operands.get(name, (A0, A1, A2)))
    board.finish(asm)
    board.load(asm)
    board.result()
    assert board.word(entry) & 0x3FF == after


def test_a_read_then_a_write_sets_dirty() -> None:
    board, entry = mapped("ld", V | R | W)
    asm = Assembler(CODE)
    asm.emit("ld", A0, A1, 0)
    asm.emit("sd", A2, A1, 0)
    board.finish(asm)
    board.load(asm)
    board.result()
    assert board.word(entry) & 0x3FF == V | R | W | A | D


@pytest.mark.parametrize("leaf", [1, 2])
def test_superpages(leaf: int) -> None:
    board = Board()
    root = board.identity()
    size = 1 << 12 + 9 * leaf
    va = 0x20_0000_0000
    board.map(root, va, RAM, FULL, leaf=leaf)
    board.load(access("ld"))
    board.set_word(RAM + 0x12_3458, 99)
    board.start(x={A1: va + 0x12_3458}, satp=board.satp(root))
    assert board.result() == 99
    if leaf == 1:
        board.map(root, va + size, RAM + 0x1000, FULL, leaf=leaf)  # misaligned
        board.start(x={A1: va + size}, satp=board.satp(root))
        assert board.trap() == (LOAD_PAGE, va + size, CODE)


@pytest.mark.parametrize("flags", [A, D, U])
def test_tables_with_leaf_bits_fault(flags: int) -> None:
    board = Board()
    root = board.identity()
    board.map(root, VA, DATA, FULL)
    entry = root + (VA >> 30 & 511) * 8
    board.set_word(entry, board.word(entry) | flags)
    board.load(access("ld"))
    board.start(x={A1: VA}, satp=board.satp(root))
    assert board.trap() == (LOAD_PAGE, VA, CODE)


def test_a_table_that_points_to_itself_ends() -> None:
    board = Board()
    root = board.identity()
    board.set_word(root + (VA >> 30 & 511) * 8, root >> 12 << 10 | V)
    board.load(access("ld"))
    board.start(x={A1: VA}, satp=board.satp(root))
    assert board.trap()[0] == LOAD_PAGE


@pytest.mark.parametrize("root", [0, DONE, (1 << 56) - 0x1000, RAM + SIZE])
def test_tables_outside_memory_are_access_faults(root: int) -> None:
    board = Board()
    board.load(access("ld"))
    inner = board.identity()
    board.set_word(inner + (VA >> 30 & 511) * 8, root >> 12 << 10 | V)
    board.start(x={A1: VA}, satp=board.satp(inner))
    assert board.trap() == (5, VA, CODE)


@pytest.mark.parametrize("ppn", [0, (1 << 44) - 1, DONE >> 12])
def test_wild_satp_crashes_and_does_no_harm(ppn: int) -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.emit("csrrw", 0, "satp", A0)
    board.load(asm)
    board.start(x={A0: 8 << 60 | ppn})
    stop = board.run()
    assert (stop.data, board.hart.get_state().pc) == (1, board.hart.get_state().stvec)


# ---- Across pages


@pytest.mark.parametrize("name", ["lh", "lw", "ld", "lwu", "lhu", "sh", "sw", "sd", "fld", "fsd"])
@pytest.mark.parametrize("back", [1, 2, 3, 5, 7])
def test_misaligned_across_pages_that_are_apart(name: str, back: int) -> None:
    size = {"h": 2, "w": 4, "d": 8}[name.rstrip("u")[-1]]
    back = min(back, size - 1)
    board = Board()
    root = board.identity()
    board.map(root, VA, DATA + 0x3000, FULL)
    board.map(root, VA + 0x1000, DATA, FULL)
    board.memory.write(DATA + 0x3FF0, bytes(range(0xF0, 0x100)))
    board.memory.write(DATA, bytes(range(0x10)))
    asm = Assembler(CODE)
    asm.emit(name, *((A0 if name[0] == "l" else 0), A1, 0) if name[0] in "lf" else (A2, A1, 0))
    asm.emit("fmv.x.d" if name == "fld" else "addi", A0, *((0,) if name == "fld" else (A0, 0)))
    board.finish(asm)
    board.load(asm)
    at = VA + 0x1000 - back
    value = 0x8877_6655_4433_2211
    board.start(x={A1: at, A2: value}, satp=board.satp(root), sstatus=3 << 13)
    state = board.hart.get_state()
    state.f[0] = value
    board.hart.set_state(state)
    result = board.result()
    want = bytes(range(0x100 - back, 0x100)) + bytes(range(size - back))
    if "s" in name:
        want = struct.pack("<Q", value)[:size]
    found = board.memory.read(DATA + 0x4000 - back, back) + board.memory.read(DATA, size - back)
    assert found == want
    if "l" in name:
        signed = name[-1] != "u"
        assert result == int.from_bytes(want, "little", signed=signed) & MASK


@pytest.mark.parametrize(("name", "cause"), [("ld", LOAD_PAGE), ("sd", STORE_PAGE)])
@pytest.mark.parametrize("missing", [0, 1])
def test_fault_across_pages_names_the_page_and_changes_nothing(
    name: str, cause: int, missing: int
) -> None:
    board = Board()
    root = board.identity()
    board.map(root, VA + 0x1000 * (1 - missing), DATA, FULL)
    before = board.memory.read(DATA, 0x1000)
    board.load(access(name))
    at = VA + 0xFFC
    board.start(x={A1: at, A2: MASK}, satp=board.satp(root))
    assert board.trap() == (cause, VA + 0x1000 if missing else at, CODE)
    assert board.memory.read(DATA, 0x1000) == before


def test_access_across_the_end_of_memory_faults() -> None:
    board = Board()
    board.load(access("ld"))
    board.start(x={A1: RAM + SIZE - 4})
    assert board.trap() == (5, RAM + SIZE, CODE)


# ---- Cache blocks


def test_cbo_zero_clears_its_block_only() -> None:
    board, _ = mapped("ld", FULL)
    asm = Assembler(CODE)
    asm.emit("cbo.zero", A1)
    board.finish(asm)
    board.load(asm)
    board.memory.write(DATA, b"\xff" * 256)
    board.start(x={A1: VA + 64 + 13, A0: 0})
    board.result()
    assert board.memory.read(DATA, 256) == b"\xff" * 64 + bytes(64) + b"\xff" * 128


@pytest.mark.parametrize(
    ("name", "enable"), [("cbo.zero", 1 << 7), ("cbo.clean", 1 << 6), ("cbo.inval", 3 << 4)]
)
def test_user_cache_operations_need_senvcfg(name: str, enable: int) -> None:
    board = Board()
    asm = Assembler(CODE)
    asm.emit(name, A1)
    asm.emit("ecall")
    board.load(asm)
    board.start(x={A1: DATA}, privilege=0)
    assert board.trap()[0] == 2
    board.start(x={A1: DATA}, privilege=0, senvcfg=enable)
    assert board.trap()[0] == 8
