"""What ARM's PrimeCell peripherals say they are: the last eight words of their registers."""

from __future__ import annotations

ID_BASE = 0xFE0
_CELL = 0xB105_F00D


def identification(part: int, offset: int) -> int:
    """The register at `offset`: a byte of `part` (PeriphID0 to 3), then of the PrimeCell's own number."""
    number, value = divmod((offset - ID_BASE) // 4, 4)[1], part if offset < ID_BASE + 16 else _CELL
    return value >> 8 * number & 0xFF
