"""The guest's RAM as loaders see it: one run of fresh memory."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field

from crumble_native.memory import Memory


@dataclass(frozen=True, slots=True)
class Ram:
    """[base, base + size) of guest-physical memory, with no snapshot below it.

    fd: the file that is all of it, -1 when it is no file. filled: (address, size) of what was put there.
    """

    memory: Memory
    base: int
    size: int
    fd: int = -1
    filled: list[tuple[int, int]] = field(default_factory=list)

    @property
    def end(self) -> int:
        """The first address after it."""
        return self.base + self.size

    def window(self, address: int, size: int) -> memoryview:
        """Writable host memory behind [address, address + size), to be filled; ValueError when it isn't RAM."""
        view = self._window(address, size)
        self.filled.append((address, size))
        return view

    def _window(self, address: int, size: int) -> memoryview:
        if not self.base <= address <= address + size <= self.end:
            raise ValueError(f"[{address:#x}, +{size:#x}) is not in RAM")
        (view,) = self.memory.views(address, size, write=True)
        return view

    def copy_from(self, source: int, offset: int, size: int, address: int) -> int:
        """Copies file bytes into RAM at `address`; gives how many there were. The file's holes are left out: RAM is zero.

        Through RAM's file rather than its mapping where there is one: that saves zeroing and faulting
        in each page, which is half of the time a kernel of 30 MB takes to load.
        """
        target = self._window(address, size)  # checks the range, and marks its pages as written
        end = min(offset + size, os.fstat(source).st_size)
        at = offset
        while at < end and (piece := _data(source, at, end)):
            start, at = piece
            at = self._copy(source, start, at, target[start - offset :], address + start - offset)
        return max(0, min(end, os.fstat(source).st_size) - offset)  # it may have become shorter

    def _copy(self, source: int, start: int, end: int, target: memoryview, address: int) -> int:
        """Up to where it got."""
        self.filled.append((address, end - start))
        if self.fd >= 0:
            os.lseek(self.fd, address - self.base, os.SEEK_SET)
        at, count = start, 1
        while at < end and count:
            if self.fd >= 0:
                count = os.sendfile(self.fd, source, at, end - at)
            else:
                count = os.preadv(source, [target[at - start : end - start]], at)
            at += count
        return at


def _data(source: int, at: int, end: int) -> tuple[int, int] | None:
    """The file's next bytes that are none of a hole's."""
    try:
        start = os.lseek(source, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a hole up to its end
            return None
        raise
    return (start, min(end, os.lseek(source, start, os.SEEK_HOLE))) if start < end else None
