"""The MMIO bus: from a guest-physical address to the device that answers there.

The table is made once and never changes, so vCPU threads read it without a lock. An access that no
device claims, or that runs over a device's end, reads as zero and writes nothing: a guest probing
for hardware that isn't there must not be able to stop the machine.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from crumble_common.errors import InternalError
from crumble_vmm.hypervisor.address_space import Region


class Registers(Protocol):
    """A block of device registers. Called from vCPU threads, any of them at once."""

    def mmio_read(self, offset: int, size: int, /) -> int:
        """The value of `size` (1, 2, 4, 8) bytes at `offset` in the block."""

    def mmio_write(self, offset: int, size: int, value: int, /) -> None:
        """Stores `size` bytes at `offset`."""


@dataclass(frozen=True, slots=True)
class Mapping:
    """Registers and where they appear."""

    region: Region
    registers: Registers


class Bus:
    """Routes accesses; implements hypervisor.base.MmioHandler."""

    def __init__(self, mappings: Iterable[Mapping]) -> None:
        self._mappings = sorted(mappings, key=lambda mapping: mapping.region.base)
        self._bases = [mapping.region.base for mapping in self._mappings]
        for below, above in zip(self._mappings, self._mappings[1:], strict=False):
            if below.region.end > above.region.base:
                raise InternalError(f"{below.region} overlaps {above.region}.", code="vmm.bus")
        self.unclaimed = 0

    def _route(self, address: int, size: int) -> Mapping | None:
        at = bisect.bisect_right(self._bases, address) - 1
        if at >= 0:
            mapping = self._mappings[at]
            if address + size <= mapping.region.end:
                return mapping
        self.unclaimed += 1
        return None

    def read(self, address: int, size: int) -> int:
        """A guest's load."""
        mapping = self._route(address, size)
        if mapping is None:
            return 0
        return mapping.registers.mmio_read(address - mapping.region.base, size)

    def write(self, address: int, size: int, value: int) -> None:
        """A guest's store."""
        mapping = self._route(address, size)
        if mapping is not None:
            mapping.registers.mmio_write(address - mapping.region.base, size, value)
