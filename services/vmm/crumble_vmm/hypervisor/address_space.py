"""The guest-physical address space: who owns which addresses (H5).

RAM and devices the guest's boot protocol expects at known places are fixed; others are placed in
windows, at the alignment they ask for. An overlap is refused, whoever asks.
"""

from __future__ import annotations

import bisect
import enum
from dataclasses import dataclass

from crumble_common.errors import InternalError

# Beyond this no supported guest can address physical memory (RISC-V Sv48 and arm64 reach 56 bits).
ADDRESS_LIMIT = 1 << 56


class Kind(enum.Enum):
    """What answers at an address."""

    RAM = "ram"
    MMIO = "mmio"
    WINDOW = "window"


@dataclass(frozen=True, slots=True)
class Region:
    """[base, base + size), and whose it is."""

    name: str
    base: int
    size: int
    kind: Kind

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.base + self.size

    def __str__(self) -> str:
        """As in /proc/iomem."""
        return f"{self.base:#014x}-{self.end - 1:#014x} : {self.name} ({self.kind.value})"


class AddressSpace:
    """The map of one machine. `regions` is sorted by address."""

    def __init__(self, limit: int = ADDRESS_LIMIT) -> None:
        self._limit = limit
        self._regions: list[Region] = []
        self._windows: dict[str, Region] = {}
        self._placed: dict[str, list[Region]] = {}

    @property
    def regions(self) -> tuple[Region, ...]:
        """RAM, fixed MMIO and windows, by address."""
        return tuple(self._regions)

    def add_ram(self, name: str, base: int, size: int) -> Region:
        """Claims RAM."""
        return self._insert(self._regions, Region(name, base, size, Kind.RAM))

    def add_mmio(self, name: str, base: int, size: int) -> Region:
        """Claims a device's registers at a fixed place."""
        return self._insert(self._regions, Region(name, base, size, Kind.MMIO))

    def add_window(self, name: str, base: int, size: int) -> Region:
        """Sets a range aside for `allocate_mmio`."""
        window = self._insert(self._regions, Region(name, base, size, Kind.WINDOW))
        self._windows[name] = window
        self._placed[name] = []
        return window

    def allocate_mmio(self, window: str, name: str, size: int, align: int = 4096) -> Region:
        """Places a device's registers at the lowest free multiple of `align` in a window."""
        if window not in self._windows:
            raise _refused(f"there is no window {window!r}")
        if size <= 0 or align <= 0 or align & (align - 1):
            raise _refused(f"{name}: size {size:#x} or alignment {align:#x} cannot be")
        space, placed = self._windows[window], self._placed[window]
        base = _align_up(space.base, align)
        for other in placed:
            if base + size <= other.base:
                break
            base = max(base, _align_up(other.end, align))
        if base + size > space.end:
            raise _refused(f"{name}: window {window} has no {size:#x} bytes left")
        return self._insert(placed, Region(name, base, size, Kind.MMIO))

    def find(self, address: int) -> Region | None:
        """Who owns an address: the device inside a window rather than the window."""
        found = _lookup(self._regions, address)
        if found is not None and found.kind is Kind.WINDOW:
            return _lookup(self._placed[found.name], address)
        return found

    def _insert(self, regions: list[Region], new: Region) -> Region:
        if new.size <= 0 or new.base < 0 or new.end > self._limit:
            raise _refused(f"{new} is empty or outside the address space")
        at = bisect.bisect_left(regions, new.base, key=lambda region: region.base)
        for other in regions[max(at - 1, 0) : at + 1]:
            if new.base < other.end and other.base < new.end:
                raise _refused(f"{new} overlaps {other}")
        regions.insert(at, new)
        return new


def _lookup(regions: list[Region], address: int) -> Region | None:
    at = bisect.bisect_right(regions, address, key=lambda region: region.base) - 1
    return regions[at] if at >= 0 and address < regions[at].end else None


def _align_up(value: int, align: int) -> int:
    return (value + align - 1) & -align


def _refused(why: str) -> InternalError:
    return InternalError(f"The machine's memory map is wrong: {why}.", code="vmm.address_space")
