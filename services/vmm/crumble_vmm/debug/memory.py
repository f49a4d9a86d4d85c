"""A stopped guest's memory as a debugger sees it: virtual addresses by a hart's page tables, no permissions."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

_V, _R, _X = 1, 2, 8
_LEVELS = {8: 3, 9: 4}  # satp's mode: Sv39, Sv48
_PAGE = 4096

ReadPhysical = Callable[[int, int], bytes]


def translate(state: dict[str, Any], va: int, read: ReadPhysical) -> int | None:
    """The guest-physical address, None when nothing is mapped (privileged ISA, section 12.3.2)."""
    satp = state["satp"]
    levels = _LEVELS.get(satp >> 60)
    if levels is None:
        return va
    unused = 64 - 12 - 9 * levels
    if va >> 63 - unused not in (0, (1 << unused + 1) - 1):
        return None
    table = (satp & (1 << 44) - 1) * _PAGE
    for level in range(levels - 1, -1, -1):
        shift = 12 + 9 * level
        try:
            (entry,) = struct.unpack("<Q", read(table + (va >> shift & 511) * 8, 8))
        except (ValueError, IndexError, OSError):
            return None
        table = (entry >> 10 & (1 << 44) - 1) * _PAGE
        if not entry & _V:
            return None
        if entry & (_R | _X):
            within = 0xFFFF if entry >> 63 else (1 << shift) - 1
            return int(table & ~within | va & within)
    return None


def pieces(
    state: dict[str, Any], va: int, length: int, read: ReadPhysical
) -> list[tuple[int, int]]:
    """(guest-physical address, length) of what is mapped from `va` on, up to the first hole."""
    found = []
    while length > 0:
        at = translate(state, va & (1 << 64) - 1, read)
        if at is None:
            break
        size = min(length, _PAGE - va % _PAGE)
        found.append((at, size))
        va, length = va + size, length - size
    return found
