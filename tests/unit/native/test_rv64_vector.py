"""Vectors beyond what a peer can tell: conversions by exact arithmetic, faults in the middle, states."""

from __future__ import annotations

import dataclasses
import random
import struct

import pytest

from crumble_native import rv64
from framework import ieee754
from framework.ieee754 import BINARY32, BINARY64, RTZ, Format
from framework.rv64_asm import Assembler
from framework.rv64_board import A0, A1, A2, CODE, DATA, FS_DIRTY, T0, A, Board, D, R, V, W
from framework.rv64_user import BASE, CAUSE_ECALL_FROM_U, CAUSE_ILLEGAL, ECALL, UserHart
from framework.rv64_values import float_pattern
from framework.rv64_vector_base import FVV, IVV, MVV, vtype, word

ILL = 1 << 63
VS_INITIAL, VS_CLEAN, VS = 1 << 9, 2 << 9, 3 << 9
VA = 0x40_0000_0000 - 0x10000
LOAD_PAGE, STORE_PAGE = 13, 15


def vsetvli(rd: int, rs1: int, sew: int, lmul: int) -> int:
    return vtype(sew, lmul) << 20 | rs1 << 15 | 7 << 12 | rd << 7 | 0x57


def unit(opcode: int, width: int, vd: int, rs1: int, *, lumop: int = 0, fields: int = 1) -> int:
    return fields - 1 << 29 | 1 << 25 | lumop << 20 | rs1 << 15 | width << 12 | vd << 7 | opcode


def words(*code: int) -> bytes:
    return struct.pack(f"<{len(code)}I", *code)


class VectorHart:
    """Runs words in user mode from given vector registers."""

    def __init__(self, vlen: int = 128) -> None:
        self.inner = UserHart(vlen=vlen)
        self.hart = self.inner.hart
        self.vlenb = vlen // 8

    def run(self, *code: int, v: dict[int, bytes] | None = None, **fields: int) -> rv64.HartState:
        at = self.inner.install(*code)
        lanes = bytearray(32 * self.vlenb)
        for register, value in (v or {}).items():
            lanes[register * self.vlenb : register * self.vlenb + len(value)] = value
        state = dataclasses.replace(self.hart.get_state(), pc=at, fcsr=0, v=bytes(lanes), **fields)
        self.hart.set_state(state)
        self.cause = self.hart.run().data
        return self.hart.get_state()


@pytest.fixture
def hart() -> VectorHart:
    return VectorHart()


def test_vl_is_the_least_of_what_is_asked_and_what_there_is() -> None:
    for vlen in (128, 256):
        hart = VectorHart(vlen)
        for sew in range(4):
            for lmul in range(-4, 4):
                most = vlen * 2**lmul // (8 << sew)
                state = hart.run(vsetvli(5, 6, sew, lmul), x=[0] * 6 + [1000] + [0] * 25)
                if lmul == -4 or lmul < sew - 3:
                    assert (state.vl, state.vtype) == (0, ILL)
                else:
                    assert (state.vl, state.x[5], state.vtype) == (most, most, vtype(sew, lmul))
                    kept = hart.run(vsetvli(5, 0, sew, lmul), vl=0, vtype=vtype(sew, lmul))
                    assert kept.vl == most


def test_what_needs_a_type_is_illegal_without_one(hart: VectorHart) -> None:
    for one in (word(0, 1, 1, 2, IVV, 3), unit(0x07, 0, 1, 10), word(0, 1, 1, 2, FVV, 3)):
        hart.run(one, vtype=ILL, vl=0)
        assert hart.cause == CAUSE_ILLEGAL
    hart.run(unit(0x07, 0, 8, 10, lumop=8), vtype=ILL, vl=0, x=[0] * 10 + [BASE] + [0] * 21)
    assert hart.cause == CAUSE_ECALL_FROM_U


def test_groups_must_be_aligned_and_not_masked_onto_v0(hart: VectorHart) -> None:
    wide = {"vtype": vtype(0, 1), "vl": 4}
    for one in (
        word(0, 1, 1, 2, IVV, 4), word(0, 1, 2, 1, IVV, 4), word(0, 1, 2, 4, IVV, 5), word(0, 0, 2, 4, IVV, 0),
        word(0x30, 1, 4, 6, MVV, 4), word(0x2C, 1, 6, 2, IVV, 8),
    ):  # fmt: skip
        hart.run(one, **wide)
        assert hart.cause == CAUSE_ILLEGAL, hex(one)


def lanes(f: Format, values: list[int]) -> bytes:
    return b"".join(value.to_bytes(f.width // 8, "little") for value in values)


def signed(value: int, bits: int) -> int:
    return value & (1 << bits) - 1


@pytest.mark.parametrize(("sew", "f"), [(2, BINARY32), (3, BINARY64)])
def test_conversions_towards_zero(hart: VectorHart, sew: int, f: Format) -> None:
    rng, bits = random.Random(sew), 8 << sew
    for _ in range(60):
        values = [float_pattern(rng, f) for _ in range(128 // bits)]
        for which, low, high in (
            (6, 0, (1 << bits) - 1),
            (7, -(1 << bits - 1), (1 << bits - 1) - 1),
        ):
            code = word(0x12, 1, 2, which, FVV, 3)
            state = hart.run(code, v={2: lanes(f, values)}, vtype=vtype(sew, 0), vl=len(values))
            answers = [ieee754.to_integer(f, value, low, high, RTZ) for value in values]
            assert state.v[48:64] == lanes(f, [signed(value, bits) for value, _ in answers])
            flags = 0
            for _, raised in answers:
                flags |= raised
            assert state.fcsr == flags


def test_narrowing_to_odd_keeps_what_a_second_rounding_needs(hart: VectorHart) -> None:
    rng = random.Random(5)
    for _ in range(100):
        near, _ = ieee754.convert(BINARY64, BINARY32, float_pattern(rng, BINARY32), 0)
        values = [
            (near + rng.randrange(-1 << 20, 1 << 20)) & (1 << 64) - 1,
            float_pattern(rng, BINARY64),
        ]
        code = word(0x12, 1, 2, 0x15, FVV, 4)
        state = hart.run(code, v={2: lanes(BINARY64, values)}, vtype=vtype(2, 0), vl=2)
        for value, found in zip(values, struct.unpack("<2I", state.v[64:72]), strict=True):
            cut, flags = ieee754.convert(BINARY32, BINARY64, value, RTZ)
            assert found == (cut | 1 if flags & ieee754.NX else cut), hex(value)


def test_estimates_of_special_numbers(hart: VectorHart) -> None:
    inf, nan, sign = BINARY32.infinity, BINARY32.nan, BINARY32.sign
    cases = {4: [(0, inf, 8), (sign, sign | inf, 8), (inf, 0, 0), (sign | 1, nan, 16), (nan, nan, 0), (nan ^ 0x600001, nan, 16)],
             5: [(0, inf, 8), (inf, 0, 0), (sign | inf, sign, 0), (1, inf, 5), (nan, nan, 0)]}  # fmt: skip
    for which, rows in cases.items():
        for value, answer, flags in rows:
            code = word(0x13, 1, 2, which, FVV, 3)
            state = hart.run(code, v={2: lanes(BINARY32, [value])}, vtype=vtype(2, 0), vl=1)
            assert struct.unpack_from("<I", state.v, 48)[0] == answer, hex(value)
            assert state.fcsr == flags, hex(value)


# ---- With an operating system below


def board(code: bytes, *, status: int = VS | FS_DIRTY, pages: int = 1, **fields: int) -> Board:
    """Maps `pages` pages at VA; a1 is 24 bytes before their end, a2 is 100."""
    made = Board()
    root = made.identity()
    for page in range(pages):
        made.map(root, VA + page * 0x1000, DATA + page * 0x1000, V | R | W | A | D)
    made.memory.write(DATA, bytes(range(256)) * 32)
    asm = Assembler(CODE)
    asm.raw(code)
    Board.finish(asm, A2)
    made.load(asm)
    made.start(
        x={A1: VA + pages * 0x1000 - 24, A2: 100}, satp=made.satp(root), sstatus=status, **fields
    )
    return made


@pytest.mark.parametrize(("opcode", "cause"), [(0x07, LOAD_PAGE), (0x27, STORE_PAGE)])
def test_a_fault_leaves_vstart_where_to_go_on(opcode: int, cause: int) -> None:
    made = board(words(vsetvli(A0, A2, 0, 1), unit(opcode, 0, 8, A1)), pages=1)
    assert made.trap() == (cause, VA + 0x1000, CODE + 4)
    state = made.hart.get_state()
    assert (state.vstart, state.vl) == (24, 32)
    root = (state.satp & (1 << 44) - 1) << 12
    made.map(root, VA + 0x1000, DATA + 0x1000, V | R | W | A | D)
    lanes_before = bytes(200 + n % 50 for n in range(512))
    state = dataclasses.replace(state, pc=CODE + 4, v=lanes_before if opcode == 0x27 else state.v)
    made.memory.write(DATA + 0x1000, b"\xee" * 8)
    state.x[A1], state.x[A2] = VA + 0x1000 - 24, 7
    made.hart.set_state(state)
    assert made.result() == 7
    after = made.hart.get_state()
    assert after.vstart == 0
    if opcode == 0x07:
        assert after.v[128:160] == bytes(range(232, 256)) + b"\xee" * 8
    else:  # only what was left is stored
        assert made.memory.read(DATA + 0x1000, 8) == lanes_before[152:160]


def test_fault_only_first_shortens_vl() -> None:
    made = board(words(vsetvli(A0, A2, 0, 1), unit(0x07, 0, 8, A1, lumop=16)))
    made.result()
    state = made.hart.get_state()
    assert (state.vl, state.vstart, state.v[128:152]) == (24, 0, bytes(range(232, 256)))
    made = board(words(vsetvli(A0, A2, 0, 1), 0x01858593, unit(0x07, 0, 8, A1, lumop=16)))
    assert made.trap()[0] == LOAD_PAGE


def test_segments_across_pages() -> None:
    made = board(words(vsetvli(A0, A2, 0, 0), unit(0x07, 0, 8, A1, fields=3)), pages=2)
    made.start(x={A1: VA + 0x1000 - 24, A2: 100}, satp=made.hart.get_state().satp, sstatus=VS)
    made.result()
    state = made.hart.get_state()
    data = (bytes(range(256)) * 32)[0x1000 - 24 :]
    for field in range(3):
        assert state.v[128 + 16 * field : 144 + 16 * field] == data[field:48:3]


@pytest.mark.parametrize(("before", "after"), [(VS_INITIAL, VS), (VS_CLEAN, VS), (VS, VS)])
def test_vectors_become_dirty(before: int, after: int) -> None:
    made = board(words(vsetvli(A0, A2, 0, 0)), status=before)
    made.result()
    assert made.hart.get_state().sstatus & VS == after


def test_vectors_are_illegal_while_they_are_off() -> None:
    for code in (vsetvli(A0, A2, 0, 0), 0xC2202573, 0x00801073, unit(0x07, 0, 8, A1, lumop=8)):
        made = board(words(code), status=FS_DIRTY)
        assert made.trap()[0] == CAUSE_ILLEGAL, hex(code)


def test_devices_take_no_vectors() -> None:
    made = board(words(vsetvli(A0, A2, 3, 0), unit(0x27, 7, 8, T0)))
    state = made.hart.get_state()
    state.x[T0] = 0x10_0000
    made.hart.set_state(state)
    assert made.trap()[:2] == (7, 0x10_0000)


def test_stores_to_code_are_seen() -> None:
    """A vector store over an instruction that ran: it is another one afterwards."""
    code = Assembler(CODE)
    code.to("la", T0, label="patched")
    code.raw(words(vsetvli(A0, A2, 2, -1)))
    code.raw(words(0x5E003457 | 0x13 << 15))  # vmv.v.i v8, -13: replaced below by data from memory
    code.label("patched")
    code.emit("addi", A2, A2, 1)
    Board.finish(code, A2)
    made = board(b"")
    made.load(code)
    made.result()
    patched = made.memory.read(CODE, len(code.code())).index(struct.pack("<I", 0x00160613)) + CODE
    made.memory.write(DATA, struct.pack("<I", 0x00260613))
    patcher = Assembler(CODE + 0x800)
    patcher.li(T0, patched)
    patcher.li(A1, DATA)
    patcher.li(A2, 1)
    patcher.raw(words(vsetvli(A0, A2, 2, 0), unit(0x07, 6, 8, A1), unit(0x27, 6, 8, T0)))
    patcher.emit("jalr", 0, T0, 0)
    made.load(patcher)
    made.start(pc=CODE + 0x800, sstatus=VS)
    assert made.result() == 3


def test_states_round_trip_and_are_checked() -> None:
    hart = VectorHart().hart
    state = hart.get_state()
    full = dataclasses.replace(
        state, v=bytes(range(256)) * 2, vtype=vtype(1, 2), vl=32, vstart=5, vcsr=7
    )
    hart.set_state(full)
    assert hart.get_state() == full
    for fields in (
        {"vl": 33},
        {"vtype": 0x100},
        {"vtype": ILL},
        {"vstart": 128},
        {"vcsr": 8},
        {"vlenb": 32},
        {"v": bytes(1025)},
    ):
        with pytest.raises(ValueError, match="not a hart state"):
            hart.set_state(dataclasses.replace(full, **fields))
    older = dataclasses.replace(state, v=b"", vtype=0, vlenb=0)
    hart.set_state(older)
    assert hart.get_state().vtype == ILL
    assert ECALL
