"""Zicond, Zfh, Zfa, Zawrs, Zimop, Svinval, Svnapot and Svpbmt: the answers, against exact arithmetic."""

from __future__ import annotations

import random
import struct
from fractions import Fraction
from functools import cache

import pytest

from framework import ieee754
from framework.ieee754 import BINARY32, BINARY64, NV, NX, RNE, RTZ, Format
from framework.rv64_asm import Assembler
from framework.rv64_board import A0, A1, CODE, DATA, A, Board, D, R, U, V, W, X
from framework.rv64_more import MORE, SUPERVISOR, encode_more
from framework.rv64_user import BASE, CAUSE_ECALL_FROM_U, CAUSE_ILLEGAL, Outcome, UserHart
from framework.rv64_values import float_pattern as any_pattern
from framework.rv64_values import integer

MASK = (1 << 64) - 1
BINARY16 = Format(16, 11, 15)
FORMATS = {"h": BINARY16, "s": BINARY32, "d": BINARY64}
ROUNDS = 60
FULL = V | R | W | X | A | D
VA = 0x40_0000_0000 - 0x20000


def float_pattern(rng: random.Random, f: Format) -> int:
    """The values' exponents are wider than half precision's."""
    return any_pattern(rng, f) & (1 << f.width) - 1


@cache
def hart() -> UserHart:
    return UserHart()


@cache
def installed(name: str, rm: int) -> int:
    return hart().install(encode_more(name, 9, 1, 2, 3, rm))


def run(name: str, sources: list[int], rm: int = 0, x: int = 0) -> Outcome:
    outcome = hart().run(installed(name, rm), f=dict(enumerate(sources, 1)), x={1: x})
    assert outcome.cause == CAUSE_ECALL_FROM_U, name
    return outcome


def boxed(f: Format, bits: int) -> int:
    return bits | (MASK << f.width & MASK)


def floats(name: str, f: Format, sources: list[int], rm: int = 0) -> tuple[int, int]:
    outcome = run(name, [boxed(f, bits) for bits in sources], rm)
    return outcome.f[9], outcome.fcsr & 31


@pytest.mark.parametrize("name", ["add", "sub", "mul", "div", "sqrt", "madd", "nmsub"])
def test_half_precision_arithmetic(name: str) -> None:
    rng = random.Random(name)
    for _ in range(ROUNDS):
        a, b, c = (float_pattern(rng, BINARY16) for _ in range(3))
        rm = rng.randrange(5)
        if name == "sqrt":
            sources, expected = [a], ieee754.sqrt(BINARY16, a, rm)
        elif name in ("madd", "nmsub"):
            flip = BINARY16.sign if name == "nmsub" else 0
            sources, expected = [a, b, c], ieee754.fma(BINARY16, a ^ flip, b, c, rm)
        else:
            sources, expected = [a, b], getattr(ieee754, name)(BINARY16, a, b, rm)
        found = floats(f"f{name}.h", BINARY16, sources, rm)
        assert found == (boxed(BINARY16, expected[0]), expected[1]), [hex(n) for n in sources]


def test_half_precision_comparisons_and_extremes() -> None:
    rng = random.Random(2)
    for _ in range(ROUNDS):
        a, b = (float_pattern(rng, BINARY16) for _ in range(2))
        for name in ("eq", "lt", "le"):
            outcome = run(f"f{name}.h", [boxed(BINARY16, a), boxed(BINARY16, b)])
            assert (outcome.x[9], outcome.fcsr) == ieee754.compare(BINARY16, a, b, name)
        for name, want_max in (("min", False), ("max", True)):
            bits, flags = ieee754.minmax(BINARY16, a, b, want_max)
            assert floats(f"f{name}.h", BINARY16, [a, b]) == (boxed(BINARY16, bits), flags)
        outcome = run("fclass.h", [boxed(BINARY16, a)])
        assert outcome.x[9] == ieee754.classify(BINARY16, a)


@pytest.mark.parametrize(
    ("name", "to", "source"),
    [("fcvt.h.s", BINARY16, BINARY32), ("fcvt.h.d", BINARY16, BINARY64),
     ("fcvt.s.h", BINARY32, BINARY16), ("fcvt.d.h", BINARY64, BINARY16)],
)  # fmt: skip
def test_half_precision_conversions(name: str, to: Format, source: Format) -> None:
    rng = random.Random(name)
    for _ in range(2 * ROUNDS):
        a = float_pattern(rng, source)
        if source is not BINARY16 and rng.random() < 0.7:  # where half precision is
            near, _ = ieee754.convert(source, BINARY16, float_pattern(rng, BINARY16), RNE)
            a = near + rng.randrange(-1, 2) & (1 << source.width) - 1
        rm = rng.randrange(5)
        bits, flags = ieee754.convert(to, source, a, rm)
        assert floats(name, source, [a], rm) == (boxed(to, bits), flags), hex(a)


@pytest.mark.parametrize("kind", ["w", "wu", "l", "lu"])
def test_half_precision_and_integers(kind: str) -> None:
    bits = 32 if kind[0] == "w" else 64
    low, high = (0, (1 << bits) - 1) if kind[-1] == "u" else (-(1 << bits - 1), (1 << bits - 1) - 1)
    rng = random.Random(kind)
    for _ in range(ROUNDS):
        rm = rng.randrange(5)
        value = max(low, min(high, rng.randrange(-70000, 70000) >> rng.randrange(16)))
        outcome = run(f"fcvt.h.{kind}", [], rm, value & MASK)
        expected = ieee754.from_integer(BINARY16, value, rm)
        assert (outcome.f[9], outcome.fcsr) == (boxed(BINARY16, expected[0]), expected[1])
        a = float_pattern(rng, BINARY16)
        found = run(f"fcvt.{kind}.h", [boxed(BINARY16, a)], rm)
        answer, flags = ieee754.to_integer(BINARY16, a, low, high, rm)
        answer &= (1 << bits) - 1
        extended = answer | (MASK << 32 & MASK if bits == 32 and answer >> 31 else 0)
        assert (found.x[9], found.fcsr) == (extended, flags), hex(a)


def test_half_precision_moves_loads_and_stores() -> None:
    for value in (0x1234, 0xFEDC):
        assert run("fmv.h.x", [], x=0xABCD0000 | value).f[9] == boxed(BINARY16, value)
        moved = run("fmv.x.h", [value]).x[9]
        assert moved == value | (MASK << 16 & MASK if value >> 15 else 0)
        data = 0x8_0000
        hart().ram[data : data + 2] = struct.pack("<H", value)
        loaded = hart().run(hart().install(encode_more("flh", 9, 1)), x={1: BASE + data})
        assert loaded.f[9] == boxed(BINARY16, value)
        word = encode_more("fsh", 0, 1, 9)
        hart().run(hart().install(word), x={1: BASE + data + 8}, f={9: value})
        assert hart().ram[data + 8 : data + 12] == struct.pack("<I", value)
    one = 0x3C00
    assert floats("fadd.h", BINARY64, [one, boxed(BINARY16, one)])[0] == boxed(BINARY16, 0x7E00)


CONSTANTS = [
    -1, None, Fraction(1, 1 << 16), Fraction(1, 1 << 15), Fraction(1, 256), Fraction(1, 128), Fraction(1, 16),
    Fraction(1, 8), Fraction(1, 4), Fraction(5, 16), Fraction(3, 8), Fraction(7, 16), Fraction(1, 2), Fraction(5, 8),
    Fraction(3, 4), Fraction(7, 8), 1, Fraction(5, 4), Fraction(3, 2), Fraction(7, 4), 2, Fraction(5, 2), 3, 4, 8, 16,
    128, 256, 1 << 15, 1 << 16,
]  # fmt: skip


@pytest.mark.parametrize("suffix", FORMATS)
def test_constants(suffix: str) -> None:
    f = FORMATS[suffix]
    for index in range(32):
        word = encode_more(f"fli.{suffix}", 9, index)
        found = hart().run(hart().install(word))
        value = CONSTANTS[index] if index < len(CONSTANTS) else None
        if index == 1:
            expected = 1 << f.precision - 1
        elif value is None:
            expected = f.infinity if index == 30 else f.nan
        else:
            expected = ieee754.round_value(f, Fraction(value), RNE)[0]
        assert (found.f[9], found.fcsr) == (boxed(f, expected), 0), index


def rounded(f: Format, a: int, rm: int) -> tuple[int, int]:
    """frint of the exact value, and froundnx's flags."""
    if f.is_nan(a):
        return f.nan, NV if f.is_signalling(a) else 0
    if f.is_infinite(a) or f.is_zero(a):
        return a, 0
    whole = ieee754.round_integer(f.value(a), rm)
    flags = NX if whole != f.value(a) else 0
    if whole == 0:
        return f.signed(0, f.is_negative(a)), flags
    return ieee754.round_value(f, Fraction(whole), rm)[0], flags


@pytest.mark.parametrize("suffix", FORMATS)
def test_rounding_to_integral_values(suffix: str) -> None:
    f = FORMATS[suffix]
    rng = random.Random(suffix)
    for _ in range(2 * ROUNDS):
        a, rm = float_pattern(rng, f), rng.randrange(5)
        bits, flags = rounded(f, a, rm)
        assert floats(f"froundnx.{suffix}", f, [a], rm) == (boxed(f, bits), flags), hex(a)
        assert floats(f"fround.{suffix}", f, [a], rm) == (boxed(f, bits), flags & NV), hex(a)


@pytest.mark.parametrize("suffix", FORMATS)
def test_quiet_comparisons_and_nan_extremes(suffix: str) -> None:
    f = FORMATS[suffix]
    rng = random.Random(suffix)
    for _ in range(ROUNDS):
        a, b = float_pattern(rng, f), float_pattern(rng, f)
        invalid = NV if f.is_signalling(a) or f.is_signalling(b) else 0
        nan = f.is_nan(a) or f.is_nan(b)
        for name in ("le", "lt"):
            outcome = run(f"f{name}q.{suffix}", [boxed(f, a), boxed(f, b)])
            assert outcome.x[9] == ieee754.compare(f, a, b, name)[0]
            assert outcome.fcsr == invalid
        for name, want_max in (("fminm", False), ("fmaxm", True)):
            bits = f.nan if nan else ieee754.minmax(f, a, b, want_max)[0]
            assert floats(f"{name}.{suffix}", f, [a, b]) == (boxed(f, bits), invalid)


def test_modular_conversion() -> None:
    rng = random.Random(5)
    for _ in range(4 * ROUNDS):
        a = float_pattern(rng, BINARY64)
        outcome = run("fcvtmod.w.d", [a])
        flags = ieee754.to_integer(BINARY64, a, -(1 << 31), (1 << 31) - 1, RTZ)[1]
        special = BINARY64.is_nan(a) or BINARY64.is_infinite(a)
        whole = 0 if special else ieee754.round_integer(BINARY64.value(a), RTZ) & 0xFFFFFFFF
        extended = whole | (MASK << 32 & MASK if whole >> 31 else 0)
        assert (outcome.x[9], outcome.fcsr) == (extended, flags), hex(a)


def test_conditional_zero() -> None:
    rng = random.Random(6)
    for _ in range(ROUNDS):
        value, condition = integer(rng), rng.choice((0, 1, 1 << 63, integer(rng)))
        for name, zero in (("czero.eqz", condition == 0), ("czero.nez", condition != 0)):
            outcome = hart().run(installed(name, 0), x={1: value, 2: condition})
            assert outcome.x[9] == (0 if zero else value)


def test_hints_and_operations_that_may_be() -> None:
    for name in ("wrs.nto", "wrs.sto"):
        assert hart().run(hart().install(MORE[name].match)).cause == CAUSE_ECALL_FROM_U
    for name in ("mop.r", "mop.rr"):
        word = MORE[name].match | 9 << 7 | 1 << 15 | 0x4C000000
        assert hart().run(hart().install(word), x={9: 5, 1: 7}).x[9] == 0
    for word in SUPERVISOR.values():
        assert hart().run(hart().install(word)).cause == CAUSE_ILLEGAL


# ---- Memory types, pages of 64 KiB, fences in pieces


def words(*numbers: int) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


@pytest.mark.parametrize("kind", [1, 2])
def test_memory_types_change_nothing(kind: int) -> None:
    board = Board()
    root = board.identity()
    board.map(root, VA, DATA, FULL | kind << 61)
    board.set_word(DATA, 42)
    asm = Assembler(CODE)
    asm.emit("ld", A0, A1, 0)
    Board.finish(asm)
    board.load(asm)
    board.start(x={A1: VA}, satp=board.satp(root))
    assert board.result() == 42


def napot(board: Board, root: int, flags: int = FULL | 1 << 63) -> None:
    for piece in range(16):
        board.map(root, VA + piece * 0x1000, DATA + 0x8000, flags)


def test_a_page_of_64_kib_is_contiguous() -> None:
    board = Board()
    root = board.identity()
    napot(board, root)
    asm = Assembler(CODE)
    asm.emit("lui", 5, 1)
    asm.emit("addi", A0, 0, 0)
    for _ in range(16):
        asm.emit("ld", 6, A1, 8)
        asm.emit("add", A0, A0, 6)
        asm.emit("add", A1, A1, 5)
    Board.finish(asm)
    board.load(asm)
    for piece in range(16):
        board.set_word(DATA + piece * 0x1000 + 8, 1 << piece)
    board.start(x={A1: VA}, satp=board.satp(root))
    assert board.result() == 0xFFFF


def test_invalidating_one_piece_invalidates_the_page() -> None:
    board = Board()
    root = board.identity()
    napot(board, root)
    asm = Assembler(CODE)
    asm.emit("lui", 5, 1)
    asm.emit("add", 5, A1, 5)
    asm.emit("ld", 6, 5, 0)
    asm.li(7, board.map(root, VA + 0x1000, DATA + 0x8000, FULL | 1 << 63))
    asm.emit("sd", 0, 7, 0)
    asm.raw(
        words(
            SUPERVISOR["sfence.w.inval"],
            SUPERVISOR["sinval.vma"] | A1 << 15,
            SUPERVISOR["sfence.inval.ir"],
        )
    )
    asm.emit("ld", A0, 5, 0)
    board.load(asm)
    board.start(x={A1: VA}, satp=board.satp(root))
    assert board.trap()[:2] == (13, VA + 0x1000)


@pytest.mark.parametrize("low", [0, 0x4, 0xC, 0x18])
def test_only_64_kib_is_a_size(low: int) -> None:
    board = Board()
    root = board.identity()
    bad = 0 if low & 15 == 8 else 1
    board.map(root, VA, DATA + low * 0x1000, FULL | 1 << 63)
    asm = Assembler(CODE)
    asm.emit("ld", A0, A1, 0)
    Board.finish(asm)
    board.load(asm)
    board.start(x={A1: VA}, satp=board.satp(root))
    if bad:
        assert board.trap()[:2] == (13, VA)
    else:
        board.result()


def test_svinval_from_user_mode_is_illegal() -> None:
    board = Board()
    root = board.identity()
    board.map(root, VA, CODE, FULL | U)
    for word in SUPERVISOR.values():
        board.memory.write(CODE, words(word))
        board.start(pc=VA, satp=board.satp(root), privilege=0)
        assert board.trap()[0] == CAUSE_ILLEGAL
