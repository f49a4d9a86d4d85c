"""Arithmetic of sequence numbers, modulo 2**32 (RFC 9293 §3.4)."""

from __future__ import annotations

MASK = 0xFFFFFFFF
_HALF = 1 << 31


def add(number: int, count: int) -> int:
    """`count` after `number`; `count` may be negative."""
    return (number + count) & MASK


def distance(start: int, end: int) -> int:
    """How far `end` is after `start`, negative when it is before it."""
    return ((end - start + _HALF) & MASK) - _HALF


def before(one: int, other: int) -> bool:
    """one < other."""
    return (one - other) & MASK >= _HALF


def at_most(one: int, other: int) -> bool:
    """one ≤ other."""
    return one == other or (one - other) & MASK >= _HALF


def latest(one: int, other: int) -> int:
    """The later of the two."""
    return other if before(one, other) else one
