"""Copying file data between descriptors: holes stay holes, bytes stay in the kernel where it can.

A file of the tree is a range of some descriptor, so all offsets here are the descriptor's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

from crumble_common.layer_index import CONTENTS_ALIGNMENT
from crumble_fsd.filesystem import fail

if TYPE_CHECKING:
    from crumble_fsd.later import Later

BLOCK = 4096
_CHUNK = 64 << 20
_SMALL = 64 << 10  # files up to this size are gathered in memory
_FLUSH = 1 << 20
# What a way of copying says when it is not for these two files.
_NOT_FOR_THESE = (
    errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EPERM, errno.EOVERFLOW,
)  # fmt: skip


def extents(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The ranges of [start, end) that are not holes, in order."""
    at = start
    while at < end:
        try:
            data = os.lseek(fd, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return
            raise
        if data >= end:
            return
        at = min(os.lseek(fd, data, os.SEEK_HOLE), end)
        yield data, at


def data_blocks(fd: int, start: int, end: int) -> int:
    """512-byte blocks the range uses. Of a file in very many pieces, only the first are counted."""
    total = 0
    for count, (first, last) in enumerate(extents(fd, start, end)):
        total += (last + BLOCK - 1) // BLOCK - first // BLOCK
        if count == 255:
            break
    return total * (BLOCK // 512)


def seek(fd: int, base: int, size: int, offset: int, whence: int) -> int:
    """SEEK_DATA or SEEK_HOLE within a file of `size` bytes at `base`; ENXIO past its end or last data."""
    if not 0 <= offset < size:
        fail(errno.ENXIO)
    try:
        found = os.lseek(fd, base + offset, whence) - base
    except OSError as error:
        if error.errno != errno.ENXIO or whence == os.SEEK_DATA:
            raise
        return size
    if found >= size:
        if whence == os.SEEK_DATA:
            fail(errno.ENXIO)
        return size
    return found


def copy(source: int, at: int, target: int, to: int, length: int) -> None:
    """Copies bytes, without a look for holes. EIO when the source ends early."""
    ways = [_by_reference, _by_kernel, _by_hand]
    while length > 0:
        try:
            done = ways[0](source, at, target, to, min(length, _CHUNK))
        except OSError as error:
            if error.errno not in _NOT_FOR_THESE or len(ways) == 1:
                raise
            del ways[0]
            continue
        if done == 0:
            fail(errno.EIO)
        at, to, length = at + done, to + done, length - done


def _by_reference(source: int, at: int, target: int, to: int, length: int) -> int:
    return os.copy_file_range(source, target, length, at, to)


def _by_kernel(source: int, at: int, target: int, to: int, length: int) -> int:
    """Knows no offsets larger than the other's file system does (EOVERFLOW)."""
    os.lseek(target, to, os.SEEK_SET)
    return os.sendfile(target, source, at, length)


def _by_hand(source: int, at: int, target: int, to: int, length: int) -> int:
    data = os.pread(source, min(length, _FLUSH), at)
    write_at(target, data, to)
    return len(data)


def copy_sparse(source: int, at: int, target: int, to: int, length: int) -> None:
    """Copies what is not a hole; the target has holes there already."""
    for first, last in extents(source, at, at + length):
        copy(source, first, target, to + first - at, last - first)


class Contents:
    """A layer's contents file being written (see crumble_common.layer_index): `size` bytes so far."""

    def __init__(self, fd: int, later: Later | None = None) -> None:
        """later: takes large files over."""
        self.size = 0
        self._later = later
        self._fd = fd
        self._waiting = bytearray()  # goes at the end of what is written

    def add(self, source: int, at: int, size: int, *, holes: bool) -> int:
        """Adds a file of `size` bytes found at `at` of descriptor `source`; returns its offset.

        holes: it may have some; they are kept, so it starts on a page.
        """
        if size >= CONTENTS_ALIGNMENT or holes:
            self._pad(-self.size % CONTENTS_ALIGNMENT)
        offset = self.size
        if size <= _SMALL and not holes:
            data = os.pread(source, size, at)
            if len(data) != size:
                fail(errno.EIO)
            self._waiting += data
        else:
            self._flush()
            if self._later is not None:
                self._later.add(source, at, size, offset, holes=holes)
            else:
                take = copy_sparse if holes else copy
                take(source, at, self._fd, offset, size)
        self.size += size
        if len(self._waiting) >= _FLUSH:
            self._flush()
        return offset

    def finish(self) -> None:
        """Everything is in the file, which has `size` bytes."""
        self._flush()
        os.ftruncate(self._fd, self.size)

    def _pad(self, count: int) -> None:
        self._waiting += bytes(count) if self._waiting else b""
        self.size += count

    def _flush(self) -> None:
        write_at(self._fd, self._waiting, self.size - len(self._waiting))
        self._waiting.clear()


def write_at(fd: int, data: bytes | bytearray, at: int) -> None:
    """Writes all of it; ENOSPC when the disk takes only some."""
    left = memoryview(data)
    try:
        while left:
            done = os.pwrite(fd, left, at)
            if done == 0:
                fail(errno.ENOSPC)
            left, at = left[done:], at + done
    finally:
        left.release()
