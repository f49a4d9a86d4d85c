"""The front end's memory as a back end maps it, and the front end's addresses translated.

Everything comes from the peer: sizes are checked against the files, regions against each other, and
a table that is refused leaves the old one in place.
"""

from __future__ import annotations

import mmap
import os
import stat

from crumble_common.vhost_user.wire import MAX_REGIONS, Region, VhostUserError
from crumble_native.memory import PAGE_SHIFT, PAGE_SIZE, Memory

_LIMIT = 1 << 64


class MemoryTable:
    """Up to 8 regions and the `Memory` over them.

    page_state: the VM's page-state object, when the front end is ours: region pages are then numbered by
    their place in the memory file. base: the snapshot's memory file below it, mapped whole.
    `memory` is another object after `replace` and `remove`, the same one after `add`.
    """

    def __init__(self, page_state: mmap.mmap | None = None, base: mmap.mmap | None = None) -> None:
        self._page_state = page_state
        self._base = base
        self._mapped: list[tuple[Region, mmap.mmap]] = []
        self._capture = -1
        self.memory = Memory(page_state)

    def capture_to(self, fd: int) -> None:
        """Saves frozen pages to `fd` from now on, which this object owns; -1: nowhere."""
        if self._capture >= 0:
            os.close(self._capture)
        self._capture = fd
        self.memory.capture_to(fd)

    def __len__(self) -> int:
        return len(self._mapped)

    def replace(self, regions: list[Region], fds: list[int]) -> None:
        """Maps another table (SET_MEM_TABLE); raises VhostUserError. The fds stay the caller's."""
        for index, region in enumerate(regions):
            _check(region, regions[:index])
        mapped = [(region, _map(region, fd)) for region, fd in zip(regions, fds, strict=True)]
        self._rebuild(mapped)

    def add(self, region: Region, fd: int) -> None:
        """Maps one more region (ADD_MEM_REG); raises VhostUserError."""
        if len(self._mapped) == MAX_REGIONS:
            raise VhostUserError(f"There is no room for more than {MAX_REGIONS} memory regions.")
        _check(region, [other for other, _ in self._mapped])
        mapping = _map(region, fd)
        self._put(self.memory, region, mapping)
        self._mapped.append((region, mapping))

    def remove(self, region: Region) -> None:
        """Forgets a region (REM_MEM_REG), named by its addresses and size; raises VhostUserError."""
        key = (region.gpa, region.size, region.user)
        left = [(r, m) for r, m in self._mapped if (r.gpa, r.size, r.user) != key]
        if len(left) == len(self._mapped):
            raise VhostUserError(f"There is no memory region at {region.gpa:#x} to remove.")
        self._rebuild(left)

    def to_gpa(self, user: int) -> int:
        """The guest-physical address of a front-end address; raises VhostUserError."""
        for region, _ in self._mapped:
            if region.user <= user < region.user + region.size:
                return region.gpa + (user - region.user)
        raise VhostUserError(f"The ring address {user:#x} is outside the memory regions.")

    def _rebuild(self, mapped: list[tuple[Region, mmap.mmap]]) -> None:
        memory = Memory(self._page_state)
        memory.capture_to(self._capture)
        for region, mapping in mapped:
            self._put(memory, region, mapping)
        self.memory, self._mapped = memory, mapped

    def _put(self, memory: Memory, region: Region, mapping: mmap.mmap) -> None:
        try:
            memory.add(
                region.gpa,
                mapping,
                offset=region.offset,
                size=region.size,
                base=self._base,
                state_page=region.offset >> PAGE_SHIFT,
            )
        except ValueError as error:
            raise VhostUserError(f"A memory region cannot be used: {error}.") from error


def _check(region: Region, others: list[Region]) -> None:
    if region.size == 0 or any(
        value % PAGE_SIZE for value in (region.gpa, region.size, region.offset)
    ):
        raise VhostUserError(f"The memory region at {region.gpa:#x} is empty or misaligned.")
    if region.gpa + region.size > _LIMIT or region.user + region.size > _LIMIT:
        raise VhostUserError(f"The memory region at {region.gpa:#x} wraps around.")
    if any(region.overlaps(other) for other in others):
        raise VhostUserError(f"The memory region at {region.gpa:#x} overlaps another.")


def _map(region: Region, fd: int) -> mmap.mmap:
    """Maps the file from its start: hugetlbfs wants aligned offsets. Checked against its size, since a
    touch beyond the end would be a SIGBUS."""
    end = region.offset + region.size
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_size < end:
            raise VhostUserError(
                f"The memory region at {region.gpa:#x} needs {end} bytes; its file has {info.st_size}."
            )
        return mmap.mmap(fd, end)
    except (OSError, ValueError, OverflowError) as error:
        raise VhostUserError(
            f"The memory region at {region.gpa:#x} cannot be mapped: {error}."
        ) from error
