"""What lies below a restored VM's memory: a snapshot's file, and over it what later captures have written.

A capture that builds on another one holds only pages written since. Where they are is its runs: (first page,
pages) as u32 pairs, rising, apart. Files are sparse images of all RAM, page n at byte n * 4096, so that every
process maps them over each other: no page is copied, and all clones share them.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from crumble_native import memory as native
from crumble_native.memory import PAGE_SIZE

# Captures over one another. Longer chains would only cost: the next capture is whole again.
MAX_LAYERS = 9
# A mapping each in every process; the kernel's limit is 65,530.
MAX_RUNS = 16_384
# Fds as services are given them: files, lowest first, and the runs of all but the lowest.
RUNS = "memory_runs"
FILES = ("memory_base", *(f"memory_base_{number}" for number in range(1, MAX_LAYERS)))
NAMES = (*FILES, RUNS)

_RUN = struct.Struct("<II")
_SIZE = struct.Struct("<I")
_FROZEN = re.compile(rb"[\x20-\x3f\x60-\x7f\xa0-\xbf\xe0-\xff]+")  # CRB_PAGE_FROZEN


def runs_of(states: bytes) -> bytes:
    """The runs of pages that a capture has just frozen; a byte of state a page."""
    found = (match.span() for match in _FROZEN.finditer(states))
    return pack_runs((start, end - start) for start, end in found)


def count_frozen(states: bytes) -> int:
    """Pages that a capture has yet to save."""
    return sum(match.end() - match.start() for match in _FROZEN.finditer(states))


def pack_runs(runs: Iterable[tuple[int, int]]) -> bytes:
    """Runs as they are stored."""
    return b"".join(_RUN.pack(*run) for run in runs)


def parse_runs(data: bytes, pages: int) -> Iterator[tuple[int, int]]:
    """(first page, pages); ValueError for what cannot be in a memory of so many."""
    if len(data) % _RUN.size:
        raise ValueError("a run is cut off")
    free = 0
    for first, count in _RUN.iter_unpack(data):
        if first < free or not 0 < count <= pages - first:
            raise ValueError("runs are not in order")
        free = first + count
        yield first, count


def count_runs(data: bytes) -> int:
    """How many there are."""
    return len(data) // _RUN.size


def pack(runs: Sequence[bytes]) -> bytes:
    """The contents of the fd RUNS."""
    return b"".join(_SIZE.pack(len(data)) + data for data in runs)


@dataclass(frozen=True)
class MemoryBase:
    """fds: files, lowest first, the caller's. runs: of all but the lowest."""

    fds: Sequence[int]
    runs: Sequence[bytes] = ()

    @classmethod
    def given(cls, fds: Mapping[str, int]) -> MemoryBase | None:
        """What a service was started with; None when its guest boots. ValueError."""
        files = [fds[name] for name in FILES if name in fds]
        if not files:
            return None
        runs = []
        if len(files) > 1:
            size, at = os.fstat(fds[RUNS]).st_size, 0
            data = os.pread(fds[RUNS], min(size, 2 * MAX_RUNS * _RUN.size), 0)
            for _ in files[1:]:
                (length,) = _SIZE.unpack_from(data.ljust(at + _SIZE.size, b"\0"), at)
                at += _SIZE.size
                runs.append(data[at : at + length])
                at += length
            if at > len(data):
                raise ValueError("the list of pages is cut off")
        return cls(files, runs)

    def map(self, size: int) -> mmap.mmap:
        """All of it as one, read-only, shared with every clone through the page cache. ValueError, OSError."""
        for fd in self.fds:
            if os.fstat(fd).st_size < size:  # a touch beyond the end is a SIGBUS
                raise ValueError("the base file is shorter than the memory")
        made = mmap.mmap(self.fds[0], size, prot=mmap.PROT_READ)
        for fd, runs in zip(self.fds[1:], self.runs, strict=True):
            for _ in parse_runs(runs, size // PAGE_SIZE):
                pass
            native.cover(made, fd, runs)
        return made

    def covered(self, size: int) -> Iterator[tuple[int, int]]:
        """Runs of pages for which a hole of the lowest file says nothing."""
        for runs in self.runs:
            yield from parse_runs(runs, size // PAGE_SIZE)
