"""IEEE 754 arithmetic in exact rational numbers, with RISC-V's choices: what an FPU must answer.

Numbers are bit patterns of a `Format`. Each operation gives `(bits, flags)`. Written to be obviously
right, not fast: a value is a `Fraction`, and `round_value` is the only place that rounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

RNE, RTZ, RDN, RUP, RMM = range(5)
NX, UF, OF, DZ, NV = 1, 2, 4, 8, 16


@dataclass(frozen=True)
class Format:
    """A binary interchange format: `precision` counts the hidden bit."""

    width: int
    precision: int
    emax: int

    @property
    def emin(self) -> int:
        return 1 - self.emax

    @property
    def sign(self) -> int:
        return 1 << (self.width - 1)

    @property
    def infinity(self) -> int:
        return (2 * self.emax + 1) << (self.precision - 1)

    @property
    def nan(self) -> int:
        """The canonical quiet NaN."""
        return self.infinity | 1 << (self.precision - 2)

    def is_nan(self, bits: int) -> bool:
        return bits & ~self.sign > self.infinity

    def is_signalling(self, bits: int) -> bool:
        return self.is_nan(bits) and not bits >> (self.precision - 2) & 1

    def is_infinite(self, bits: int) -> bool:
        return bits & ~self.sign == self.infinity

    def is_zero(self, bits: int) -> bool:
        return bits & ~self.sign == 0

    def is_negative(self, bits: int) -> bool:
        return bool(bits & self.sign)

    def value(self, bits: int) -> Fraction:
        """The value of a finite pattern."""
        fraction = bits & ((1 << (self.precision - 1)) - 1)
        biased = bits >> (self.precision - 1) & (2 * self.emax + 1)
        if biased:
            fraction |= 1 << (self.precision - 1)
        exponent = max(biased, 1) - self.emax - (self.precision - 1)
        magnitude = fraction * Fraction(2) ** exponent
        return -magnitude if self.is_negative(bits) else magnitude

    def signed(self, bits: int, negative: bool) -> int:
        return bits | self.sign if negative else bits


BINARY32 = Format(32, 24, 127)
BINARY64 = Format(64, 53, 1023)
Answer = tuple[int, int]


def round_integer(value: Fraction, rm: int) -> int:
    """Rounds to an integer; `value` may be negative."""
    low = math.floor(value)
    rest = value - low
    if rm == RDN or rest == 0:
        return low
    if rm == RUP:
        return low + 1
    if rm == RTZ:
        return low if value > 0 else low + 1
    if rest != Fraction(1, 2):
        return low + (rest > Fraction(1, 2))
    return low + (low % 2 if rm == RNE else value > 0)


def binade(value: Fraction) -> int:
    """The e with 2^e <= |value| < 2^(e + 1)."""
    numerator, denominator = abs(value.numerator), value.denominator
    guess = numerator.bit_length() - denominator.bit_length()
    return guess if abs(value) >= Fraction(2) ** guess else guess - 1


def round_to_unit(value: Fraction, unit: int, rm: int) -> Fraction:
    """Rounds to a multiple of 2^unit."""
    return round_integer(value / Fraction(2) ** unit, rm) * Fraction(2) ** unit


def encode(f: Format, value: Fraction) -> int:
    """The pattern of a representable, non-zero value."""
    exponent = max(binade(value), f.emin)
    fraction = abs(value) / Fraction(2) ** (exponent - (f.precision - 1))
    assert fraction.denominator == 1
    biased = exponent + f.emax if fraction >= 1 << (f.precision - 1) else 0
    fraction_bits = int(fraction) & ((1 << (f.precision - 1)) - 1)
    return f.signed(biased << (f.precision - 1) | fraction_bits, value < 0)


def round_value(f: Format, value: Fraction, rm: int) -> Answer:
    """Rounds a non-zero value; tininess is detected after rounding."""
    exponent = binade(value)
    rounded = round_to_unit(value, max(exponent, f.emin) - (f.precision - 1), rm)
    unbounded = round_to_unit(value, exponent - (f.precision - 1), rm)
    negative = value < 0
    if abs(rounded) >= Fraction(2) ** (f.emax + 1):
        outward = rm in (RNE, RMM) or rm == (RDN if negative else RUP)
        return f.signed(f.infinity if outward else f.infinity - 1, negative), OF | NX
    flags = 0
    if rounded != value:
        flags = NX | (UF if abs(unbounded) < Fraction(2) ** f.emin else 0)
    return (encode(f, rounded) if rounded else f.signed(0, negative)), flags


def nan_answer(f: Format, *operands: int) -> Answer:
    return f.nan, NV if any(f.is_signalling(bits) for bits in operands) else 0


def zero_sum(f: Format, first: bool, second: bool, rm: int) -> Answer:
    """An exact zero from summands of these signs."""
    return f.signed(0, first if first == second else rm == RDN), 0


def fma(f: Format, a: int, b: int, c: int, rm: int) -> Answer:
    """a * b + c."""
    infinite = f.is_infinite(a) or f.is_infinite(b)
    negative = f.is_negative(a) != f.is_negative(b)
    if infinite and (f.is_zero(a) or f.is_zero(b)):
        return f.nan, NV
    if any(f.is_nan(bits) for bits in (a, b, c)):
        return nan_answer(f, a, b, c)
    if infinite:
        if f.is_infinite(c) and f.is_negative(c) != negative:
            return f.nan, NV
        return f.signed(f.infinity, negative), 0
    if f.is_infinite(c):
        return c, 0
    value = f.value(a) * f.value(b) + f.value(c)
    if value == 0:
        return zero_sum(f, negative, f.is_negative(c), rm)
    return round_value(f, value, rm)


def add(f: Format, a: int, b: int, rm: int) -> Answer:
    if f.is_nan(a) or f.is_nan(b):
        return nan_answer(f, a, b)
    return fma(f, a, encode(f, Fraction(1)), b, rm)


def sub(f: Format, a: int, b: int, rm: int) -> Answer:
    return add(f, a, b ^ f.sign, rm)


def mul(f: Format, a: int, b: int, rm: int) -> Answer:
    negative_zero = f.signed(0, f.is_negative(a) != f.is_negative(b))
    return fma(f, a, b, negative_zero, rm)


def div(f: Format, a: int, b: int, rm: int) -> Answer:
    negative = f.is_negative(a) != f.is_negative(b)
    if f.is_nan(a) or f.is_nan(b):
        return nan_answer(f, a, b)
    if (f.is_zero(a) and f.is_zero(b)) or (f.is_infinite(a) and f.is_infinite(b)):
        return f.nan, NV
    if f.is_infinite(a):
        return f.signed(f.infinity, negative), 0
    if f.is_zero(b):
        return f.signed(f.infinity, negative), DZ
    if f.is_zero(a) or f.is_infinite(b):
        return f.signed(0, negative), 0
    return round_value(f, f.value(a) / f.value(b), rm)


def sqrt(f: Format, a: int, rm: int) -> Answer:
    if f.is_nan(a):
        return nan_answer(f, a)
    if f.is_zero(a):
        return a, 0
    if f.is_negative(a):
        return f.nan, NV
    if f.is_infinite(a):
        return a, 0
    scale = 1200  # bits below the point: far more than any result has
    square = f.value(a) * 4**scale
    root = math.isqrt(int(square))
    exact = root * root == square
    # Any value strictly between the two integers rounds as the root does.
    return round_value(f, Fraction(2 * root + (not exact), 2 ** (scale + 1)), rm)


def minmax(f: Format, a: int, b: int, want_max: bool) -> Answer:
    """minimumNumber and maximumNumber."""
    flags = nan_answer(f, a, b)[1]
    if f.is_nan(a) or f.is_nan(b):
        return (f.nan if f.is_nan(b) else b) if f.is_nan(a) else a, flags
    return (max if want_max else min)(a, b, key=lambda bits: order(f, bits)), flags


def order(f: Format, bits: int) -> tuple[Fraction, bool]:
    """Sorts numbers, -0 before +0."""
    if f.is_infinite(bits):
        return (-1 if f.is_negative(bits) else 1) * Fraction(2) ** 2000, True
    return f.value(bits), not f.is_negative(bits)


def compare(f: Format, a: int, b: int, relation: str) -> Answer:
    """`eq` is quiet; `lt` and `le` signal for any NaN."""
    if f.is_nan(a) or f.is_nan(b):
        return 0, NV if relation != "eq" else nan_answer(f, a, b)[1]
    left, right = order(f, a)[0], order(f, b)[0]
    return int({"eq": left == right, "lt": left < right, "le": left <= right}[relation]), 0


def to_integer(f: Format, a: int, low: int, high: int, rm: int) -> Answer:
    """Saturating; NaN gives `high`. The result is a Python integer in [low, high]."""
    if f.is_nan(a):
        return high, NV
    if f.is_infinite(a):
        return (low if f.is_negative(a) else high), NV
    value = f.value(a)
    rounded = round_integer(value, rm)
    if not low <= rounded <= high:
        return (low if rounded < low else high), NV
    return rounded, NX if rounded != value else 0


def from_integer(f: Format, value: int, rm: int) -> Answer:
    return round_value(f, Fraction(value), rm) if value else (0, 0)


def convert(to: Format, f: Format, a: int, rm: int) -> Answer:
    if f.is_nan(a):
        return nan_answer(to, 0)[0], nan_answer(f, a)[1]
    if f.is_infinite(a) or f.is_zero(a):
        return to.signed(to.infinity if f.is_infinite(a) else 0, f.is_negative(a)), 0
    return round_value(to, f.value(a), rm)


def classify(f: Format, a: int) -> int:
    """fclass's one-hot answer."""
    if f.is_nan(a):
        return 1 << (8 if f.is_signalling(a) else 9)
    if f.is_infinite(a):
        size = 3
    elif f.is_zero(a):
        size = 0
    else:
        size = 1 if abs(f.value(a)) < Fraction(2) ** f.emin else 2
    return 1 << (3 - size if f.is_negative(a) else 4 + size)
