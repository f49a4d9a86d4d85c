"""Where what the guest writes is kept: in memory, or in a directory (see upper_directory.py).

The tree (names, attributes) is the same Python objects for both kinds; an upper holds file data, keeps
account of space, and is told of every change so that the kind with a directory can write it down.

In memory all files share one memfd, each with a window of WINDOW bytes of its 2^63: holes, truncation
and freeing are hole punching, and the memfd's own block count says what is used. So data costs
one descriptor, and a read is one preadv wherever the file lives.
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable

from crumble_fsd import copying
from crumble_fsd.filesystem import Statfs, fail
from crumble_fsd.fuse_wire import FUSE_ROOT_ID
from crumble_fsd.inodes import BLOCK, Directory, Inode
from crumble_fsd.later import Later
from crumble_fsd.upper_record import Records
from crumble_native import files

WINDOW = 1 << 40  # the largest file of an in-memory upper; 2^23 of them fit
_WINDOWS = (1 << 23) - 1
# What one inode and one name cost this process beside data, about; so that a limit bounds all memory.
INODE_COST, NAME_COST = 1024, 256


class Record:
    """Is told of every change after the objects have changed. This one forgets."""

    def save_inode(self, inode: Inode) -> None:
        """The inode's attributes have changed."""

    def save_name(self, directory: Directory, name: bytes, inode: Inode | None) -> None:
        """`name` in the upper part of `directory` now is that inode, or a whiteout."""

    def drop_name(self, directory: Directory, name: bytes) -> None:
        """`name` is no longer in the upper part of `directory`."""

    def save_data_change(self, inode: Inode) -> None:
        """The inode was written to: size and times have changed. Frequent, so it may be put off."""

    def drop_inode(self, inode: Inode) -> None:
        """The inode is gone (no name, not known to the guest)."""

    def commit(self) -> None:
        """The changes of one request are complete: they may not be lost if this process is killed."""

    def settle(self) -> None:
        """Saves what was put off. To be called now and then."""


class Upper(Record, ABC):
    """Data and record of the upper. Sizes and offsets in bytes; methods raise OSError (ENOSPC ...)."""

    max_size: int

    def restore(self, records: Records) -> int:  # noqa: ARG002  nothing to restore in memory
        """Makes again what was kept of an earlier life; the first inode number to give next."""
        return FUSE_ROOT_ID + 1

    @abstractmethod
    def close(self) -> None:
        """Lets go of everything."""

    # Account.

    @property
    @abstractmethod
    def charged(self) -> int:
        """What is taken for all that is not data."""

    @abstractmethod
    def charge(self, cost: int, *, force: bool = False) -> None:
        """Takes (or, negative, gives back) memory for what is not data. ENOSPC unless `force`."""

    @abstractmethod
    def statfs(self) -> Statfs:
        """What `df` shows."""

    # Data of a regular file; `owned` is True for all but create.

    @abstractmethod
    def create(self, inode: Inode) -> None:
        """Gives the inode empty data: sets fd, base, owned."""

    @abstractmethod
    def free(self, inode: Inode) -> None:
        """Frees the data."""

    @abstractmethod
    def open(self, inode: Inode) -> int:
        """The descriptor of data that has fd -1."""

    @abstractmethod
    def reserve(self, inode: Inode, offset: int, length: int) -> None:
        """ENOSPC unless the range can be written."""

    @abstractmethod
    def grow(self, inode: Inode, size: int) -> None:
        """The file becomes longer; what is new reads as zeros."""

    @abstractmethod
    def truncate(self, inode: Inode, size: int) -> None:
        """Data from `size` on is dropped and reads as zeros if the file grows again."""

    @abstractmethod
    def punch(self, inode: Inode, offset: int, length: int) -> None:
        """A range becomes a hole."""

    @abstractmethod
    def allocate(self, inode: Inode, offset: int, length: int) -> None:
        """A range gets space."""

    @abstractmethod
    def blocks(self, inode: Inode) -> int:
        """512-byte blocks in use."""

    @abstractmethod
    def fsync(self, inode: Inode, *, data_only: bool) -> None:
        """Data (and record, unless data_only) reach stable storage."""

    @abstractmethod
    def syncfs(self) -> None:
        """All data and the record reach stable storage."""

    def seek(self, inode: Inode, offset: int, whence: int) -> int:
        """SEEK_DATA or SEEK_HOLE within the file's size; ENXIO past its end or its last data."""
        fd = inode.fd if inode.fd >= 0 else self.open(inode)
        return copying.seek(fd, inode.base, inode.size, offset, whence)

    def fill(self, inode: Inode, source: int, offset: int, length: int) -> None:
        """Copies `length` bytes of descriptor `source` from `offset` to the start of the data.

        A sparse file's holes stay holes. ENOSPC, EIO.
        """
        fd = inode.fd if inode.fd >= 0 else self.open(inode)
        end = offset + length
        parts = copying.extents(source, offset, end) if inode.sparse else [(offset, end)]
        for first, last in parts:
            self.reserve(inode, first - offset, last - first)
            copying.copy(source, first, fd, inode.base + first - offset, last - first)


class MemoryUpper(Upper):
    """In memory, at most `limit` bytes of data, inodes and names together."""

    max_size = WINDOW - BLOCK

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._fd = os.memfd_create("crumble-upper", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, (1 << 63) - 1)
        self._used = 0  # data: at least what the memfd holds; exact after _measure
        self._other = 0
        self._free: list[int] = []
        self._next = 0
        self._later: Later | None = None

    def copy_later(self, target: int, failed: Callable[[OSError], None]) -> Later:
        """Data that is captured to a file while it may change; instead of what was to be before."""
        if self._later is not None:
            self._later.give_up()
        self._later = Later(target, self._fd, WINDOW, failed)
        return self._later

    def _before_change(self, inode: Inode, offset: int, length: int) -> None:
        if self._later is not None:
            self._later.before_change(inode.base + offset, length)

    def close(self) -> None:
        """Frees all memory."""
        os.close(self._fd)

    @property
    def charged(self) -> int:
        """See Upper."""
        return self._other

    def charge(self, cost: int, *, force: bool = False) -> None:
        """See Upper."""
        if cost > 0 and not force and self._used + self._other + cost > self._limit:
            self._measure()
            if self._used + self._other + cost > self._limit:
                fail(errno.ENOSPC)
        self._other += cost

    def create(self, inode: Inode) -> None:
        """See Upper."""
        if self._free:
            slot = self._free.pop()
        elif self._next < _WINDOWS:
            slot = self._next
            self._next += 1
        else:
            fail(errno.ENOSPC)
        inode.fd, inode.base, inode.owned = self._fd, slot * WINDOW, True

    def free(self, inode: Inode) -> None:
        """See Upper."""
        self._before_change(inode, 0, WINDOW)
        files.punch(self._fd, inode.base, WINDOW - 1)
        self._free.append(inode.base // WINDOW)
        inode.fd, inode.base, inode.owned = -1, 0, False

    def open(self, inode: Inode) -> int:  # noqa: ARG002  data in memory is never closed
        """See Upper."""
        return self._fd

    def reserve(self, inode: Inode, offset: int, length: int) -> None:
        """See Upper. Counts pages as if all were new; looks closer only where the limit is near."""
        self._before_change(inode, offset, length)
        need = ((offset % BLOCK) + length + BLOCK - 1) // BLOCK * BLOCK
        if self._used + self._other + need > self._limit:
            self._measure()
            if self._used + self._other + need > self._limit:
                if not self._is_allocated(inode, offset, length):
                    fail(errno.ENOSPC)
                return
        self._used += need

    def grow(self, inode: Inode, size: int) -> None:
        """Nothing: a window is zeros past the end."""

    def truncate(self, inode: Inode, size: int) -> None:
        """See Upper."""
        if size < inode.size or inode.sparse:
            self._before_change(inode, size, WINDOW - size)
            files.punch(self._fd, inode.base + size, WINDOW - 1 - size)

    def punch(self, inode: Inode, offset: int, length: int) -> None:
        """See Upper."""
        self._before_change(inode, offset, length)
        files.punch(self._fd, inode.base + offset, length)

    def allocate(self, inode: Inode, offset: int, length: int) -> None:
        """See Upper."""
        self._before_change(inode, offset, length)
        if length > self._limit and not self._is_allocated(inode, offset, length):
            fail(errno.ENOSPC)
        self.reserve(inode, offset, length)
        files.allocate(self._fd, inode.base + offset, length)

    def blocks(self, inode: Inode) -> int:
        """See Upper."""
        return copying.data_blocks(self._fd, inode.base, inode.base + inode.size)

    def fsync(self, inode: Inode, *, data_only: bool) -> None:
        """There is no stable storage."""

    def syncfs(self) -> None:
        """There is no stable storage."""

    def statfs(self) -> Statfs:
        """See Upper."""
        self._measure()
        blocks = self._limit // BLOCK
        free = max(0, self._limit - self._used - self._other) // BLOCK
        inodes = self._limit // INODE_COST
        return Statfs(blocks, free, free, inodes, free * BLOCK // INODE_COST, BLOCK, 255)

    def _measure(self) -> None:
        self._used = os.fstat(self._fd).st_blocks * 512

    def _is_allocated(self, inode: Inode, offset: int, length: int) -> bool:
        at = inode.base + offset // BLOCK * BLOCK
        try:
            if os.lseek(self._fd, at, os.SEEK_DATA) != at:
                return False
            return os.lseek(self._fd, at, os.SEEK_HOLE) >= inode.base + offset + length
        except OSError:
            return False
