"""Checksums of a snapshot's files; of its memory by chunks, holes not being read."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator

from crumble.snapshots.manifest import CHUNK, SUM
from crumble.snapshots.meter import UNSEEN, Meter

_HOLE = bytes(SUM)
_ZEROES = bytes(CHUNK)


def of_file(fd: int, meter: Meter = UNSEEN) -> str:
    """SHA-256 of everything, hex."""
    digest, offset = hashlib.sha256(), 0
    while data := os.pread(fd, CHUNK, offset):
        digest.update(data)
        offset += len(data)
        meter.add(len(data))
    return digest.hexdigest()


def of_memory(fd: int, size: int, meter: Meter = UNSEEN) -> bytes:
    """SUM bytes for each chunk; zeroes for a chunk that holds nothing else."""
    sums = [_HOLE] * -(-size // CHUNK)
    for index in sorted(chunks_with_data(fd, size)):
        sums[index] = _sum(fd, index)
        meter.add(CHUNK)
    return b"".join(sums)


def data_size(fd: int, size: int) -> int:
    """Bytes that `of_memory` reads."""
    return len(chunks_with_data(fd, size)) * CHUNK


def chunks_with_data(fd: int, size: int) -> set[int]:
    """The numbers of the chunks that are not all hole."""
    found: set[int] = set()
    for start, end in extents(fd, size):
        found.update(range(start // CHUNK, -(-end // CHUNK)))
    return found


def extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a sparse file has data: (start, end), rising."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        end = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        if start < end:
            yield start, end


def _sum(fd: int, index: int) -> bytes:
    data = os.pread(fd, CHUNK, index * CHUNK)
    return _HOLE if data == _ZEROES[: len(data)] else hashlib.sha256(data).digest()
