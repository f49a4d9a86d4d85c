"""What verbs print for people."""

from __future__ import annotations

import time
from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints columns, as wide as they must be."""
    lines = [head, *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    for line in lines:
        text = "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print(text.rstrip())


def clean(text: str) -> str:
    """A text from an image or a guest, without what would steer the terminal."""
    return "".join(mark if mark.isprintable() else "?" for mark in text)


def size(number: float) -> str:
    """Bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return (
                f"{number:.0f} {unit}" if number >= 100 or unit == "B" else f"{number:.1f} {unit}"
            )
        number /= 1000
    return f"{number:.1f} TB"


def memory(number: int) -> str:
    """Memory for people, in the units it is given in."""
    return f"{number >> 20} MB" if number % (1 << 30) else f"{number >> 30} GB"


def age(then: float) -> str:
    """How long ago, roughly."""
    seconds = max(0, int(time.time() - then))
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            number = seconds // length
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return f"{seconds} s ago"


def short_id(digest: str) -> str:
    """The first twelve digits of a digest."""
    return digest.partition(":")[2][:12] or digest[:12]
