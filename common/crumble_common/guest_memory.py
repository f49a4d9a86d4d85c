"""One VM's memory: the objects that hold it, and how a process maps them.

Two shared-memory objects: the RAM itself, and a byte of state a page (native/include/crumble/memory.h)
that says which layer holds the page, whether it is dirty, and whether code was decoded from it. The
supervisor creates both and passes them on as fds; `vmm` attaches them at the guest's addresses; back ends
find them through vhost-user. A restored VM has a third, read-only: the snapshot's memory file, the base.

The state of the page at offset n of the RAM object is byte 64 + n / 4096 of the state object.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from crumble_common import shared_memory
from crumble_common.errors import InternalError, UsageError
from crumble_common.memory_base import MemoryBase
from crumble_native.memory import PAGE_SHIFT, PAGE_SIZE, STATE_HEADER_SIZE, Memory

STATE_MAGIC = b"CRBPAGES"
_STATE_HEADER = struct.Struct("<8sQ")  # magic, pages; counters and zeroes follow


@dataclass(frozen=True)
class RamRegion:
    """`size` bytes of the RAM object from `offset`, at guest-physical `gpa`. Page aligned."""

    gpa: int
    size: int
    offset: int = 0


class GuestMemory:
    """A VM's memory in this process. `memory` is what devices and CPUs translate through.

    fd, state_fd: for passing on; owned by this object until `detach`. size: bytes. regions: where it is.
    """

    def __init__(
        self, fd: int, state_fd: int, regions: Sequence[RamRegion], base: mmap.mmap | None
    ) -> None:
        self.fd = fd
        self.state_fd = state_fd
        self.size = os.fstat(fd).st_size
        self.regions = tuple(regions)
        self.state = mmap.mmap(state_fd, os.fstat(state_fd).st_size)
        self.memory = Memory(self.state)
        if regions:
            self._map(base)

    @classmethod
    def create(cls, size: int) -> GuestMemory:
        """New, zeroed memory of `size` bytes, a multiple of 4096, at no guest address yet.

        Nothing of it is used before it is touched. Raises UsageError for impossible sizes, HostError.
        """
        _check_size(size)
        pages = size >> PAGE_SHIFT
        fd = shared_memory.create(size, "memory")
        try:
            length = -(-(STATE_HEADER_SIZE + pages) // PAGE_SIZE) * PAGE_SIZE
            state_fd = shared_memory.create(length, "page-state")
        except BaseException:
            os.close(fd)
            raise
        os.pwrite(state_fd, _STATE_HEADER.pack(STATE_MAGIC, pages), 0)
        return cls(fd, state_fd, (), None)

    @classmethod
    def attach(
        cls,
        fd: int,
        state_fd: int,
        regions: Sequence[RamRegion],
        base: MemoryBase | None = None,
    ) -> GuestMemory:
        """Maps memory made elsewhere at `regions`; takes over both fds.

        base: the snapshot's memory, whose byte n lies below byte n of the RAM object.
        Raises InternalError when the objects do not belong together or the regions do not fit; the
        fds then stay the caller's.
        """
        try:
            _check_state(fd, state_fd)
            if base is None:
                return cls(fd, state_fd, regions, None)
            made = cls(fd, state_fd, regions, base.map(os.fstat(fd).st_size))
            made.memory.skip_holes(base.fds[0])
            for first, count in base.covered(made.size):
                start = STATE_HEADER_SIZE + first
                made.state[start : start + count] = bytes(count)  # nothing runs yet
            return made
        except (OSError, ValueError) as error:
            raise InternalError(
                f"The guest memory cannot be mapped: {error}.", code="memory.attach"
            ) from error

    def _map(self, base: mmap.mmap | None) -> None:
        mapping = mmap.mmap(self.fd, self.size)
        if shared_memory.huge_pages():
            with contextlib.suppress(OSError):
                mapping.madvise(mmap.MADV_HUGEPAGE)
        for region in self.regions:
            if region.offset + region.size > self.size:
                raise ValueError(f"the region at {region.gpa:#x} is larger than the memory")
            self.memory.add(
                region.gpa,
                mapping,
                offset=region.offset,
                size=region.size,
                base=base,
                state_page=region.offset >> PAGE_SHIFT,
            )

    def detach(self) -> dict[str, int]:
        """The fds by the names services know them by, now the caller's to close."""
        fds = {"memory": self.fd, "page_state": self.state_fd}
        self.fd = self.state_fd = -1
        return fds

    def close(self) -> None:
        """Closes the fds. The mappings stay as long as something uses `memory`."""
        for fd in self.detach().values():
            if fd >= 0:
                os.close(fd)


def _check_size(size: int) -> None:
    if size <= 0 or size % PAGE_SIZE:
        raise UsageError(
            f"A VM cannot have {size} bytes of memory.",
            code="memory.size",
            hint="Give a positive number of MiB, like --memory 512M.",
        )
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > host:
        raise UsageError(
            f"A VM cannot have {size >> 20} MiB of memory: this machine has {host >> 20} MiB.",
            code="memory.size",
            hint="Ask for less with --memory.",
        )


def _check_state(fd: int, state_fd: int) -> None:
    size, length = os.fstat(fd).st_size, os.fstat(state_fd).st_size
    magic, pages = _STATE_HEADER.unpack(os.pread(state_fd, _STATE_HEADER.size, 0).ljust(16, b"\0"))
    if magic != STATE_MAGIC:
        raise ValueError("the page-state object is not one")
    if size == 0 or pages != size >> PAGE_SHIFT or length < STATE_HEADER_SIZE + pages:
        raise ValueError(f"the page-state object is for {pages} pages, the memory has {size} bytes")
