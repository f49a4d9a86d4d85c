"""F and D, one instruction at a time, against exact rational arithmetic: results and flags."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from framework import ieee754
from framework.ieee754 import BINARY32, BINARY64, DZ, NV, NX, OF, UF, Answer, Format
from framework.rv64_asm import encode
from framework.rv64_user import CAUSE_ECALL_FROM_U, CAUSE_ILLEGAL, UserHart

MASK = (1 << 64) - 1
BOX = 0xFFFFFFFF << 32
FORMATS = {"s": BINARY32, "d": BINARY64}
RANGES = {
    "w": (-(1 << 31), (1 << 31) - 1), "wu": (0, (1 << 32) - 1),
    "l": (-(1 << 63), (1 << 63) - 1), "lu": (0, MASK),
}  # fmt: skip
ROUNDING = st.integers(0, 4)


@cache
def hart() -> UserHart:
    return UserHart()


@cache
def installed(name: str, operands: tuple[int, ...], rm: int | None) -> int:
    return hart().install(encode(name, *operands, **({} if rm is None else {"rm": rm})))


def patterns(f: Format) -> st.SearchStrategy[int]:
    """Bit patterns: special ones, edges of every range, fields chosen apart, anything."""
    point = f.precision - 1
    ones = (1 << point) - 1
    special = [0, 1, ones, 1 << point, f.infinity - 1, f.infinity, f.infinity | 1, f.nan]
    fractions = st.one_of(st.sampled_from([0, 1, ones, 1 << (point - 1)]), st.integers(0, ones))
    near_one = st.integers(f.emax - 70, f.emax + 70)
    exponents = st.one_of(near_one, st.integers(0, 60), st.integers(0, 2 * f.emax))
    built = st.builds(lambda e, fraction: e << point | fraction, exponents, fractions)
    magnitude = st.one_of(st.sampled_from(special), built)
    return st.builds(f.signed, magnitude, st.booleans())


def boxed(f: Format, bits: int) -> int:
    return bits | BOX if f is BINARY32 else bits


def run_float(name: str, sources: list[int], rm: int | None, dynamic: bool) -> tuple[int, int]:
    """rd = f9 from f1, f2, f3; (bits, flags). A dynamic rm comes from fcsr."""
    static = None if rm is None else 7 if dynamic else rm
    operands = (9, *range(1, len(sources) + 1))
    address = installed(name, operands, static)
    outcome = hart().run(address, f=dict(enumerate(sources, 1)), fcsr=(rm or 0) << 5)
    assert outcome.cause == CAUSE_ECALL_FROM_U
    return outcome.f[9], outcome.fcsr & 31


def check_float(name: str, f: Format, sources: list[int], rm: int, expected: Answer) -> None:
    registers = [boxed(f, bits) for bits in sources]
    for dynamic in (False, True):
        bits, flags = run_float(name, registers, rm, dynamic)
        assert (bits, flags) == (boxed(f, expected[0]), expected[1]), [hex(n) for n in registers]


def each_format(*names: str) -> Callable[..., object]:
    return pytest.mark.parametrize(
        ("name", "suffix"), [(name, suffix) for name in names for suffix in FORMATS]
    )


@each_format("add", "sub", "mul", "div")
@settings(max_examples=25, deadline=None)
@given(data=st.data(), rm=ROUNDING)
def test_two_operands(name: str, suffix: str, data: st.DataObject, rm: int) -> None:
    f = FORMATS[suffix]
    a, b = data.draw(patterns(f)), data.draw(patterns(f))
    check_float(f"f{name}.{suffix}", f, [a, b], rm, getattr(ieee754, name)(f, a, b, rm))


@each_format("sqrt")
@settings(max_examples=25, deadline=None)
@given(data=st.data(), rm=ROUNDING)
def test_square_root(name: str, suffix: str, data: st.DataObject, rm: int) -> None:
    f = FORMATS[suffix]
    a = data.draw(patterns(f))
    check_float(f"f{name}.{suffix}", f, [a], rm, ieee754.sqrt(f, a, rm))


@each_format("madd", "msub", "nmsub", "nmadd")
@settings(max_examples=25, deadline=None)
@given(data=st.data(), rm=ROUNDING, near=st.integers(-2, 2))
def test_fused(name: str, suffix: str, data: st.DataObject, rm: int, near: int) -> None:
    f = FORMATS[suffix]
    a, b, c = (data.draw(patterns(f)) for _ in range(3))
    if data.draw(st.booleans()):  # an addend that cancels the product, but for a little
        c = (ieee754.mul(f, a, b, 0)[0] ^ f.sign) + near & 2 * f.sign - 1
    flip_product = f.sign if name[0] == "n" else 0
    flip_addend = f.sign if name in ("msub", "nmadd") else 0
    expected = ieee754.fma(f, a ^ flip_product, b, c ^ flip_addend, rm)
    check_float(f"f{name}.{suffix}", f, [a, b, c], rm, expected)


@each_format("min", "max")
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_minimum_and_maximum(name: str, suffix: str, data: st.DataObject) -> None:
    f = FORMATS[suffix]
    a, b = data.draw(patterns(f)), data.draw(patterns(f))
    bits, flags = run_float(f"f{name}.{suffix}", [boxed(f, a), boxed(f, b)], None, False)
    expected = ieee754.minmax(f, a, b, name == "max")
    assert (bits, flags) == (boxed(f, expected[0]), expected[1])


def run_to_integer(name: str, sources: list[int], rm: int | None) -> tuple[int, int]:
    """rd = x9 from f1, f2."""
    address = installed(name, (9, *range(1, len(sources) + 1)), rm)
    outcome = hart().run(address, f=dict(enumerate(sources, 1)))
    assert outcome.cause == CAUSE_ECALL_FROM_U
    return outcome.x[9], outcome.fcsr & 31


@each_format("eq", "lt", "le")
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_comparisons(name: str, suffix: str, data: st.DataObject) -> None:
    f = FORMATS[suffix]
    a, b = data.draw(patterns(f)), data.draw(patterns(f))
    b = data.draw(st.sampled_from([b, a, a ^ f.sign]))
    found = run_to_integer(f"f{name}.{suffix}", [boxed(f, a), boxed(f, b)], None)
    assert found == ieee754.compare(f, a, b, name)


@pytest.mark.parametrize("suffix", FORMATS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_classes(suffix: str, data: st.DataObject) -> None:
    f = FORMATS[suffix]
    a = data.draw(patterns(f))
    assert run_to_integer(f"fclass.{suffix}", [boxed(f, a)], None) == (ieee754.classify(f, a), 0)


def register(kind: str, value: int) -> int:
    """How a .w, .wu, .l or .lu result lies in an x register."""
    if kind[0] == "l":
        return value & MASK
    value &= 0xFFFFFFFF
    return (value - (1 << 32) if value >> 31 else value) & MASK


@each_format("w", "wu", "l", "lu")
@settings(max_examples=25, deadline=None)
@given(data=st.data(), rm=ROUNDING)
def test_to_integers(name: str, suffix: str, data: st.DataObject, rm: int) -> None:
    f = FORMATS[suffix]
    low, high = RANGES[name]
    edge = st.builds(
        lambda base, step: (ieee754.from_integer(f, base, 0)[0] + step) & 2 * f.sign - 1,
        st.sampled_from([low, high, 1, -1]), st.integers(-2, 2),
    )  # fmt: skip
    a = data.draw(st.one_of(patterns(f), edge))
    value, flags = ieee754.to_integer(f, a, low, high, rm)
    found = run_to_integer(f"fcvt.{name}.{suffix}", [boxed(f, a)], rm)
    assert found == (register(name, value), flags)


@each_format("w", "wu", "l", "lu")
@settings(max_examples=25, deadline=None)
@given(data=st.data(), rm=ROUNDING)
def test_from_integers(name: str, suffix: str, data: st.DataObject, rm: int) -> None:
    f = FORMATS[suffix]
    low, high = RANGES[name]
    halfway = st.builds(lambda n, m, shift: n + m << shift, st.just(1 << 54), st.integers(0, 7), st.integers(0, 9))  # fmt: skip
    value = data.draw(st.one_of(st.integers(low, high), st.integers(low // 2**20, 2**20), halfway))
    value = max(low, min(high, value))
    address = installed(f"fcvt.{suffix}.{name}", (9, 1), rm)
    outcome = hart().run(address, x={1: value & MASK})
    expected = ieee754.from_integer(f, value, rm)
    assert (outcome.f[9], outcome.fcsr & 31) == (boxed(f, expected[0]), expected[1])


@settings(max_examples=25, deadline=None)
@given(a=patterns(BINARY64), b=patterns(BINARY32), step=st.integers(-1, 1), rm=ROUNDING)
def test_between_formats(a: int, b: int, step: int, rm: int) -> None:
    wide = ieee754.convert(BINARY64, BINARY32, b, rm)
    assert run_float("fcvt.d.s", [b | BOX], rm, False) == wide
    for value in (a, wide[0] + step & MASK, wide[0] + (1 << 28) + step & MASK):
        narrow = ieee754.convert(BINARY32, BINARY64, value, rm)
        assert run_float("fcvt.s.d", [value], rm, False) == (narrow[0] | BOX, narrow[1])


@settings(max_examples=25, deadline=None)
@given(a=st.integers(0, MASK), b=st.integers(0, MASK))
def test_signs_and_moves(a: int, b: int) -> None:
    for suffix, f in FORMATS.items():
        x, y = (unboxed(f, bits) for bits in (a, b))
        signs = {"fsgnj": y, "fsgnjn": ~y, "fsgnjx": x ^ y}
        for name, sign in signs.items():
            expected = boxed(f, x & ~f.sign | sign & f.sign)
            assert run_float(f"{name}.{suffix}", [a, b], None, False) == (expected, 0)
    assert run_to_integer("fmv.x.d", [a], None) == (a, 0)
    assert run_to_integer("fmv.x.w", [a], None) == (register("w", a), 0)
    assert hart().run(installed("fmv.d.x", (9, 1), None), x={1: a}).f[9] == a
    assert hart().run(installed("fmv.w.x", (9, 1), None), x={1: a}).f[9] == a & 0xFFFFFFFF | BOX


def unboxed(f: Format, reg: int) -> int:
    if f is BINARY64:
        return reg
    return reg & 0xFFFFFFFF if reg >> 32 == 0xFFFFFFFF else f.nan


def test_a_single_outside_a_valid_box_is_nan() -> None:
    one = 0x3F800000
    assert run_float("fadd.s", [one, one | BOX], 0, False) == (BINARY32.nan | BOX, 0)
    assert run_to_integer("fclass.s", [one | 0xFFFFFFFE << 32], None) == (1 << 9, 0)


def test_flags_are_sticky_and_separate() -> None:
    big, tiny, one = BINARY64.infinity - 1, 1, 0x3FF << 52
    for name, sources, flags in (
        ("fmul.d", [big, big], OF | NX), ("fmul.d", [tiny, tiny], UF | NX),
        ("fdiv.d", [one, 0], DZ), ("fsub.d", [BINARY64.infinity] * 2, NV),
        ("fadd.d", [one, tiny], NX), ("fadd.d", [one, one], 0),
    ):  # fmt: skip
        address = installed(name, (9, 1, 2), 0)
        for before in (0, NX, 31):
            outcome = hart().run(address, f={1: sources[0], 2: sources[1]}, fcsr=before)
            assert outcome.fcsr == before | flags


@pytest.mark.parametrize("suffix", FORMATS)
def test_tininess_is_judged_after_rounding(suffix: str) -> None:
    """Products next to the smallest normal number: some round up to it and are not tiny."""
    f = FORMATS[suffix]
    point = f.precision - 1
    seeded = random.Random(1)
    rounded_up = 0
    for _ in range(500):
        rm = seeded.randrange(5)
        a = f.emax << point | seeded.getrandbits(point)
        b = ieee754.div(f, 1 << point, a, 0)[0] + seeded.randrange(-1, 2)
        expected = ieee754.mul(f, a, b, rm)
        below = f.value(a) * f.value(b) < f.value(1 << point)
        rounded_up += below and expected == (1 << point, NX)
        check_float(f"fmul.{suffix}", f, [a, b], rm, expected)
    assert rounded_up > 5


def test_infinity_times_zero_plus_quiet_nan_is_invalid() -> None:
    for f, suffix in ((BINARY32, "s"), (BINARY64, "d")):
        check_float(f"fmadd.{suffix}", f, [f.infinity, 0, f.nan], 0, (f.nan, NV))


@pytest.mark.parametrize("rm", [5, 6])
def test_reserved_rounding_modes_are_illegal(rm: int) -> None:
    static = installed("fadd.d", (9, 1, 2), rm)
    assert hart().run(static).cause == CAUSE_ILLEGAL
    dynamic = installed("fadd.d", (9, 1, 2), 7)
    for frm in (5, 6, 7):
        assert hart().run(dynamic, fcsr=frm << 5).cause == CAUSE_ILLEGAL
    # What does not round does not care.
    assert hart().run(installed("fsgnj.d", (9, 1, 2), None), fcsr=5 << 5).cause != CAUSE_ILLEGAL


def test_every_flag_and_mode_of_fcsr_reads_back() -> None:
    for fcsr in range(256):
        read = hart().run(installed("csrrs", (9, 3, 0), None), fcsr=fcsr)
        assert (read.x[9], read.fcsr) == (fcsr, fcsr)
        fflags = hart().run(installed("csrrs", (9, 1, 0), None), fcsr=fcsr)
        assert fflags.x[9] == fcsr & 31
        frm = hart().run(installed("csrrs", (9, 2, 0), None), fcsr=fcsr)
        assert frm.x[9] == fcsr >> 5
        written = hart().run(installed("csrrw", (9, 3, 1), None), x={1: MASK ^ fcsr})
        assert written.fcsr == 255 ^ fcsr
