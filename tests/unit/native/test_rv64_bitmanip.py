"""Zba, Zbb and Zbs against the specification's words written in Python."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from framework.rv64_asm import encode
from framework.rv64_opcodes import FORMS
from framework.rv64_user import UserHart
from framework.rv64_values import EDGES

MASK = (1 << 64) - 1


def signed(value: int, width: int = 64) -> int:
    value &= (1 << width) - 1
    return value - (1 << width) if value >> (width - 1) else value


def word(value: int) -> int:
    return signed(value, 32) & MASK


def rotate_right(value: int, amount: int, width: int) -> int:
    amount %= width
    value &= (1 << width) - 1
    return (value >> amount | value << (width - amount)) & ((1 << width) - 1)


def leading_zeros(value: int, width: int) -> int:
    return width - (value & ((1 << width) - 1)).bit_length()


def trailing_zeros(value: int, width: int) -> int:
    value &= (1 << width) - 1
    return (value & -value).bit_length() - 1 if value else width


def each_byte(value: int, change: Callable[[int], int]) -> int:
    return int.from_bytes(bytes(change(byte) for byte in value.to_bytes(8, "little")), "little")


TWO: dict[str, Callable[[int, int], int]] = {
    "add.uw": lambda a, b: (a & 0xFFFFFFFF) + b,
    "sh1add": lambda a, b: 2 * a + b,
    "sh2add": lambda a, b: 4 * a + b,
    "sh3add": lambda a, b: 8 * a + b,
    "sh1add.uw": lambda a, b: 2 * (a & 0xFFFFFFFF) + b,
    "sh2add.uw": lambda a, b: 4 * (a & 0xFFFFFFFF) + b,
    "sh3add.uw": lambda a, b: 8 * (a & 0xFFFFFFFF) + b,
    "andn": lambda a, b: a & ~b,
    "orn": lambda a, b: a | ~b,
    "xnor": lambda a, b: ~(a ^ b),
    "max": lambda a, b: max(signed(a), signed(b)),
    "maxu": max,
    "min": lambda a, b: min(signed(a), signed(b)),
    "minu": min,
    "rol": lambda a, b: rotate_right(a, -(b & 63), 64),
    "ror": lambda a, b: rotate_right(a, b & 63, 64),
    "rolw": lambda a, b: word(rotate_right(a, -(b & 31), 32)),
    "rorw": lambda a, b: word(rotate_right(a, b & 31, 32)),
    "bclr": lambda a, b: a & ~(1 << (b & 63)),
    "bext": lambda a, b: a >> (b & 63) & 1,
    "binv": lambda a, b: a ^ 1 << (b & 63),
    "bset": lambda a, b: a | 1 << (b & 63),
}

ONE: dict[str, Callable[[int], int]] = {
    "clz": lambda a: leading_zeros(a, 64),
    "ctz": lambda a: trailing_zeros(a, 64),
    "cpop": lambda a: a.bit_count(),
    "clzw": lambda a: leading_zeros(a, 32),
    "ctzw": lambda a: trailing_zeros(a, 32),
    "cpopw": lambda a: (a & 0xFFFFFFFF).bit_count(),
    "sext.b": lambda a: signed(a, 8),
    "sext.h": lambda a: signed(a, 16),
    "zext.h": lambda a: a & 0xFFFF,
    "orc.b": lambda a: each_byte(a, lambda byte: 0xFF if byte else 0),
    "rev8": lambda a: int.from_bytes(a.to_bytes(8, "little"), "big"),
}

SHIFT: dict[str, Callable[[int, int], int]] = {
    "slli.uw": lambda a, n: (a & 0xFFFFFFFF) << n,
    "rori": TWO["ror"],
    "roriw": TWO["rorw"],
    "bclri": TWO["bclr"],
    "bexti": TWO["bext"],
    "binvi": TWO["binv"],
    "bseti": TWO["bset"],
}

registers = st.one_of(st.sampled_from(EDGES), st.integers(0, MASK))


@cache
def hart() -> UserHart:
    return UserHart()


@cache
def installed(name: str, *operands: int) -> int:
    return hart().install(encode(name, *operands))


@pytest.mark.parametrize("name", TWO)
@settings(max_examples=30, deadline=None)
@example(a=0, b=0)
@example(a=MASK, b=MASK)
@given(a=registers, b=st.one_of(registers, st.integers(0, 64)))
def test_two_registers(name: str, a: int, b: int) -> None:
    outcome = hart().run(installed(name, 3, 1, 2), x={1: a, 2: b})
    assert outcome.x[3] == TWO[name](a, b) & MASK


@pytest.mark.parametrize("name", ONE)
@settings(max_examples=30, deadline=None)
@example(a=0)
@given(a=st.one_of(registers, st.builds(lambda bit: 1 << bit, st.integers(0, 63))))
def test_one_register(name: str, a: int) -> None:
    assert hart().run(installed(name, 3, 1), x={1: a}).x[3] == ONE[name](a) & MASK


@pytest.mark.parametrize("name", SHIFT)
@settings(max_examples=30, deadline=None)
@given(a=registers, amount=st.integers(0, 63))
def test_immediate_amounts(name: str, a: int, amount: int) -> None:
    amount &= 31 if name == "roriw" else 63
    outcome = hart().run(installed(name, 3, 1, amount), x={1: a})
    assert outcome.x[3] == SHIFT[name](a, amount) & MASK


def test_every_instruction_of_the_extensions_is_here() -> None:
    assert set(TWO) | set(ONE) | set(SHIFT) <= set(FORMS)
    assert len(TWO) + len(ONE) + len(SHIFT) == 40  # Zba 8, Zbb 24, Zbs 8
