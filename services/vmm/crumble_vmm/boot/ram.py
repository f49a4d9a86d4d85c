"""The guest's RAM as loaders see it: one run of fresh memory."""

from __future__ import annotations

import os
from dataclasses import dataclass

from crumble_native.memory import Memory


@dataclass(frozen=True, slots=True)
class Ram:
    """[base, base + size) of guest-physical memory, with no snapshot below it.

    fd: the file that is all of it, -1 when it is no file.
    """

    memory: Memory
    base: int
    size: int
    fd: int = -1

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

    def copy_from(self, source: int, offset: int, size: int, address: int) -> int:
        """Copies file bytes into RAM at `address`; gives how many there were.

        Through RAM's file rather than its mapping where there is one: that saves zeroing and faulting
        in each page, which is half of the time a kernel of 30 MB takes to load.
        """
        target = self.window(address, size)  # checks the range, and marks its pages as written
        if self.fd >= 0:
            os.lseek(self.fd, address - self.base, os.SEEK_SET)
        done, count = 0, 1
        while done < size and count:
            if self.fd >= 0:
                count = os.sendfile(self.fd, source, offset + done, size - done)
            else:
                count = os.preadv(source, [target[done:]], offset + done)
            done += count
        return done
