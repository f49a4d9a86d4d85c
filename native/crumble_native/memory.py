"""Guest memory as Python sees it: regions added from mapped objects, then translated in C.

See native/include/crumble/memory.h. A `Memory` keeps the mappings it was given alive.
"""

from __future__ import annotations

import mmap
import os
from typing import Any

from crumble_native._core import ffi, lib

PAGE_SIZE: int = lib.CRB_PAGE_SIZE
PAGE_SHIFT: int = lib.CRB_PAGE_SHIFT
STATE_HEADER_SIZE = 64


def cover(base: mmap.mmap, fd: int, runs: bytes) -> None:
    """Maps pages of a file over a base's, in place; OSError. runs: (first page, pages) as u32 pairs, valid."""
    error = lib.crb_base_cover(
        ffi.from_buffer(base),
        fd,
        ffi.cast("const uint32_t *", ffi.from_buffer(runs)),
        len(runs) // 8,
    )
    if error:
        raise OSError(error, os.strerror(error))


class Memory:
    """A table of RAM regions. `handle` is the `crb_memory *` that other faces of native/ take."""

    def __init__(self, state: mmap.mmap | None = None) -> None:
        self.handle: Any = ffi.new("crb_memory *", {"capture_fd": -1})
        self._kept: list[Any] = []
        self._state = ffi.from_buffer(state) if state is not None else ffi.NULL
        self._state_used = STATE_HEADER_SIZE
        if state is not None:
            self._kept.append(state)
            self.handle.header = ffi.cast("crb_page_state_header *", self._state)

    def add(
        self,
        gpa: int,
        overlay: mmap.mmap,
        *,
        offset: int = 0,
        size: int = 0,
        base: mmap.mmap | None = None,
        state_page: int | None = None,
    ) -> None:
        """Adds RAM at `gpa`: `size` bytes of `overlay` from `offset`, over those of `base` if there is one.

        state_page: index of the region's first page in the page-state object; the page after the last
        region's when not given.

        Raises ValueError when the region is misaligned, overlaps another, does not fit its mapping or
        the page-state object, or when there are too many.
        """
        size = size or len(overlay) - offset
        if offset < 0 or size <= 0 or offset + size > len(overlay):
            raise ValueError(f"region of {size} bytes at {offset} is outside its mapping")
        if base is not None and len(base) < offset + size:
            raise ValueError("the base is smaller than the region")
        state, state_end = ffi.NULL, self._state_used
        if self._state != ffi.NULL:
            start = self._state_used if state_page is None else STATE_HEADER_SIZE + state_page
            state_end = start + (size >> PAGE_SHIFT)
            if start < STATE_HEADER_SIZE or state_end > len(self._state):
                raise ValueError("the page-state object is too small")
            state = ffi.cast("uint8_t *", self._state) + start
        over = ffi.from_buffer(overlay)
        under = ffi.from_buffer(base) if base is not None else ffi.NULL
        below = ffi.cast("uint8_t *", under) + offset if base is not None else ffi.NULL
        ok = lib.crb_memory_add(
            self.handle,
            gpa,
            size,
            ffi.cast("uint8_t *", over) + offset,
            below,
            state,
        )
        if ok != 0:
            raise ValueError(
                f"region of {size} bytes at {gpa:#x} is misaligned, overlaps or is one too many"
            )
        self._state_used = state_end
        self._kept += [overlay, base, over, under]

    # Captures (memory.h). All need page state.

    def capture_to(self, fd: int) -> None:
        """Where this process saves frozen pages from now on; -1: nowhere. The fd stays the caller's."""
        self.handle.capture_fd = fd

    def freeze(self, *, dirty_only: bool = False) -> None:
        """Puts all pages, or those written since the last freeze, into a capture.

        No process may be writing guest memory, and who caches translations must forget those for writing.
        """
        lib.crb_memory_freeze(self.handle, dirty_only)

    def save(self, ram_fd: int) -> int:
        """Saves what is frozen; returns 0 when nothing is, or the errno the capture failed with.

        ram_fd: the RAM object. Long; for a thread of its own. ECANCELED after `abandon`.
        """
        return int(lib.crb_memory_save(self.handle, ram_fd))

    def release(self) -> None:
        """Gives the capture up: nothing is frozen any more."""
        lib.crb_memory_release(self.handle)

    def abandon(self) -> None:
        """The VM ends: no thread of this process waits any longer for a page that another one works on."""
        self.handle.abandoned = True

    @property
    def saved_pages(self) -> int:
        """Pages written to the capture's file so far, by all processes."""
        return int(self.handle.header.saved_count)

    def skip_holes(self, base_fd: int) -> None:
        """Has what is a hole in the base's file read from the overlay, where it is zeroes as well."""
        lib.crb_memory_skip_holes(self.handle, base_fd)

    def flatten(self) -> None:
        """Moves all of the base to the overlay, for a guest that reaches it without translating.

        For the first process that maps, while it is the only one.
        """
        lib.crb_memory_flatten(self.handle)

    def has(self, gpa: int, length: int) -> bool:
        """True when [gpa, gpa + length) is RAM."""
        return bool(lib.crb_memory_has(self.handle, gpa, length))

    def read(self, gpa: int, length: int) -> bytes:
        """Copies out `length` bytes; raises ValueError when any is not RAM."""
        out = bytearray(length)
        if not lib.crb_memory_read(self.handle, gpa, ffi.from_buffer(out), length):
            raise ValueError(f"[{gpa:#x}, +{length:#x}) is not guest memory")
        return bytes(out)

    def write(self, gpa: int, data: bytes | bytearray | memoryview) -> None:
        """Copies `data` in; raises ValueError when any byte is not RAM (then nothing is written)."""
        if not lib.crb_memory_write(self.handle, gpa, ffi.from_buffer(data), len(data)):
            raise ValueError(f"[{gpa:#x}, +{len(data):#x}) is not guest memory")

    def views(self, gpa: int, length: int, *, write: bool) -> list[memoryview]:
        """The host memory behind [gpa, gpa + length): one view for each contiguous run.

        With `write` the pages are moved to the overlay and marked first. Raises ValueError.
        """
        if not self.has(gpa, length):
            raise ValueError(f"[{gpa:#x}, +{length:#x}) is not guest memory")
        found: list[memoryview] = []
        run = ffi.new("uint64_t *")
        while length > 0:
            run[0] = length
            at = lib.crb_translate(self.handle, gpa, run, write)
            found.append(memoryview(ffi.buffer(at, run[0])))
            gpa += run[0]
            length -= run[0]
        return found
