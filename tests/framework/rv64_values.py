"""Operand values that find mistakes: edges of the integers, and every kind of float."""

from __future__ import annotations

import random

from framework.ieee754 import BINARY32, BINARY64, Format

MASK = (1 << 64) - 1
BOX = 0xFFFFFFFF << 32
EDGES = [0, 1, 2, 3, MASK, MASK - 1, 1 << 63, (1 << 63) - 1, (1 << 63) + 1, 1 << 31, (1 << 31) - 1,
         MASK << 31 & MASK, 1 << 32, (1 << 32) - 1, 0xFF, 0x80, 0xFFFF, 0x8000, 0x5555555555555555]  # fmt: skip


def integer(rng: random.Random) -> int:
    """A 64-bit pattern."""
    kind = rng.randrange(5)
    if kind == 0:
        return rng.choice(EDGES)
    if kind == 1:
        return (1 << rng.randrange(64)) + rng.randrange(-2, 3) & MASK
    if kind == 2:
        return -(rng.getrandbits(64) >> rng.randrange(64)) & MASK
    if kind == 3:
        return rng.getrandbits(64) >> rng.randrange(64)
    return rng.getrandbits(64)


def float_pattern(rng: random.Random, f: Format) -> int:
    """A number or NaN of the format: special, subnormal, near the ends, near one, anything."""
    point = f.precision - 1
    ones = (1 << point) - 1
    fraction = rng.choice((0, 1, ones, ones - 1, 1 << (point - 1), rng.getrandbits(point)))
    if rng.random() < 0.3:
        fraction &= ~((1 << rng.randrange(point)) - 1)
    kind = rng.randrange(9)
    if kind == 0:
        payload = rng.getrandbits(point)
        special = (0, f.infinity, f.nan, f.infinity | 1, f.infinity | payload, f.infinity - 1)
        return f.signed(rng.choice(special), rng.random() < 0.5)
    if kind == 1:
        return f.signed(rng.getrandbits(point) >> rng.randrange(point), rng.random() < 0.5)
    if kind == 2:
        return rng.getrandbits(f.width)
    biased = {
        3: rng.randrange(0, point + 4),
        4: 2 * f.emax - rng.randrange(0, point + 4),
        5: f.emax // 2 + rng.randrange(-point, point),
        6: f.emax + rng.randrange(-2, 68),
    }.get(kind, f.emax + rng.randrange(-point - 2, point + 2))
    return f.signed(biased << point | fraction, rng.random() < 0.5)


def float_register(rng: random.Random) -> int:
    """What an f register may hold: a double, a boxed single, or a single in no valid box."""
    kind = rng.randrange(20)
    if kind == 0:
        return float_pattern(rng, BINARY32) | rng.getrandbits(32) << 32
    return float_pattern(rng, BINARY64) if kind < 11 else float_pattern(rng, BINARY32) | BOX
