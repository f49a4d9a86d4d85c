"""The guest's RAM as loaders see it: one run of fresh memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crumble_native.memory import Memory


@dataclass(frozen=True, slots=True)
class Ram:
    """[base, base + size) of guest-physical memory, with no snapshot below it."""

    memory: Memory
    base: int
    size: int

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.base + self.size

    def window(self, address: int, size: int) -> memoryview:
        """Writable host memory behind [address, address + size); ValueError when it isn't RAM."""
        if not self.base <= address <= address + size <= self.end:
            raise ValueError(f"[{address:#x}, +{size:#x}) is not in RAM")
        (view,) = self.memory.views(address, size, write=True)
        return view
