"""An upper in a host directory: what the guest writes stays after the VM has gone.

    DIR/lock          held while a VM uses it
    DIR/journal       names and attributes: see journal.py and upper_record.py
    DIR/data/<id>     contents of each regular file that is not a layer's any more

Everything a guest was told is done survives this process being killed: a request's changes are one frame
of the journal, written before the answer. Only the times and size of written files are put off (sizes
are the data files' own). Stable storage is reached by the guest's fsync. An ordinary user can have
one as well: owners, modes and device nodes are records, not the host's.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack

from crumble_common.errors import HostError, UsageError
from crumble_fsd.filesystem import Statfs, fail
from crumble_fsd.inodes import Directory, Inode
from crumble_fsd.journal import Journal
from crumble_fsd.upper import Upper
from crumble_fsd.upper_record import Records, inode_record, restore
from crumble_native import files

_MAX_OPEN = 512  # data files kept open
_MAX_OTHER = 2 << 30  # what inodes and names may take of this process's memory
_COMPACT_AT = 8 << 20  # no journal smaller than this is worth rewriting
_BATCH = 1000  # records a frame of a rewritten journal


class DirectoryUpper(Upper):
    """See the module. layers: what the layers below are called, lowest first."""

    max_size = (1 << 63) - 1 - (1 << 20)

    def __init__(self, path: str, layers: list[str]) -> None:
        """Opens or makes it; UsageError when another VM has it or it belongs to other layers."""
        self._root = _open_directory(path)
        try:
            self._lock = _take_lock(self._root, path)
        except BaseException:
            os.close(self._root)
            raise
        with contextlib.suppress(FileExistsError):
            os.mkdir("data", 0o700, dir_fd=self._root)
        self._data = os.open("data", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root)
        self._journal = Journal(self._root, "journal")
        self._layers = layers
        self._path = path
        self._open: OrderedDict[int, Inode] = OrderedDict()
        self._kept: dict[int, Inode] = {}  # every inode the journal knows
        self._changed: dict[int, Inode] = {}
        self._late: dict[int, Inode] = {}  # written to since: saved with the next change
        self._records: list[list[Any]] = []
        self._dead: set[int] = set()  # data to remove once the journal says so
        self._other = 0
        self._compacted = 0
        self._next_id = 0

    # Record.

    def save_inode(self, inode: Inode) -> None:
        """See Record. A directory's ancestors are kept with it, so that all parents are known."""
        self._changed[inode.nodeid] = inode
        while isinstance(inode, Directory) and inode.parent is not inode:
            inode = inode.parent
            if inode.nodeid in self._kept or inode.nodeid in self._changed:
                return
            self._changed[inode.nodeid] = inode

    def save_name(self, directory: Directory, name: bytes, inode: Inode | None) -> None:
        """See Record."""
        self._records.append(["n", directory.nodeid, name, inode.nodeid if inode else 0])

    def drop_name(self, directory: Directory, name: bytes) -> None:
        """See Record."""
        self._records.append(["x", directory.nodeid, name])

    def save_data_change(self, inode: Inode) -> None:
        """See Record."""
        self._late[inode.nodeid] = inode

    def drop_inode(self, inode: Inode) -> None:
        """See Record."""
        for pending in (self._changed, self._late, self._kept):
            pending.pop(inode.nodeid, None)
        self._records.append(["d", inode.nodeid])

    def commit(self) -> None:
        """See Record. When the journal cannot be written, the changes wait for the next commit."""
        if self._changed or self._records:
            self.settle()

    def settle(self) -> None:
        """See Record."""
        self._changed.update(self._late)
        if not self._changed and not self._records:
            return
        inodes = [inode_record(inode) for inode in self._changed.values()]
        self._journal.append(msgpack.packb([*inodes, *self._records]))
        self._kept.update(self._changed)
        self._next_id = max(self._next_id, *self._changed, 0)
        self._changed.clear()
        self._records.clear()
        self._late.clear()
        for number in self._dead:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(_data_name(number), dir_fd=self._data)
        self._dead.clear()
        if self._journal.size > max(_COMPACT_AT, 4 * self._compacted):
            self._compact()

    def _compact(self) -> None:
        self._journal.rewrite(self._snapshot())
        self._compacted = self._journal.size

    def _snapshot(self) -> Iterator[bytes]:
        """All that is kept, as frames."""
        batch: list[list[Any]] = [["v", 1, self._layers], ["m", self._next_id]]
        for inode in self._kept.values():
            batch.append(inode_record(inode))
            if isinstance(inode, Directory):
                for name, child in (inode.children or {}).items():
                    batch.append(
                        ["n", inode.nodeid, name, child.nodeid if isinstance(child, Inode) else 0]
                    )
            if len(batch) > _BATCH:
                yield msgpack.packb(batch)
                batch = []
        yield msgpack.packb(batch)

    def restore(self, records: Records) -> int:
        """See Upper."""
        payloads = self._journal.read()
        try:
            state = restore(payloads, self._layers, records, self._attach)
        except (ValueError, TypeError, KeyError, IndexError, msgpack.UnpackException) as error:
            raise HostError(
                f"The upper directory {self._path} is damaged: {error}.",
                code="upper.corrupt",
                hint="Restore it from a copy, or use an empty directory.",
            ) from error
        if state is None:
            raise UsageError(
                f"The upper directory {self._path} was made over another image.",
                code="upper.image",
                hint="Use it with the image it was made with, or use an empty directory.",
            )
        self._kept, self._next_id = state
        for inode in self._kept.values():
            self.charge(inode.charged, force=True)
        self._remove_orphans()
        self._compact()
        return self._next_id + 1

    def _attach(self, inode: Inode) -> None:
        """Finds the data of a restored file; its length is the truth."""
        inode.owned, inode.fd, inode.base = True, -1, 0
        try:
            found = os.stat(_data_name(inode.nodeid), dir_fd=self._data, follow_symlinks=False)
        except FileNotFoundError as error:
            raise ValueError(f"the data of inode {inode.nodeid} is missing") from error
        inode.size = found.st_size

    def _remove_orphans(self) -> None:
        """Data of files that had no name left, or were being made, when this ended."""
        wanted = {_data_name(number) for number, inode in self._kept.items() if inode.owned}
        for name in os.listdir(self._data):  # noqa: PTH208
            if name not in wanted:
                os.unlink(name, dir_fd=self._data)

    def close(self) -> None:
        """See Upper."""
        self.settle()
        for inode in self._open.values():
            os.close(inode.fd)
            inode.fd = -1
        self._open.clear()
        self._journal.close()
        for fd in (self._data, self._root, self._lock):
            os.close(fd)

    # Account.

    @property
    def charged(self) -> int:
        """See Upper."""
        return self._other

    def charge(self, cost: int, *, force: bool = False) -> None:
        """See Upper."""
        if cost > 0 and not force and self._other + cost > _MAX_OTHER:
            fail(errno.ENOSPC)
        self._other += cost

    def statfs(self) -> Statfs:
        """See Upper."""
        have = os.fstatvfs(self._root)
        return Statfs(
            have.f_blocks,
            have.f_bfree,
            have.f_bavail,
            have.f_files,
            have.f_ffree,
            have.f_frsize,
            255,
        )

    def reserve(self, inode: Inode, offset: int, length: int) -> None:
        """See Upper. The host's file system says when it is full."""

    # Data.

    def create(self, inode: Inode) -> None:
        """See Upper."""
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(_data_name(inode.nodeid), flags, 0o600, dir_fd=self._data)
        self._dead.discard(inode.nodeid)
        self._keep_open(inode, fd)
        inode.base, inode.owned = 0, True

    def free(self, inode: Inode) -> None:
        """See Upper. The file goes after the journal has said so."""
        if self._open.pop(inode.nodeid, None) is not None:
            os.close(inode.fd)
        inode.fd, inode.owned = -1, False
        self._dead.add(inode.nodeid)

    def open(self, inode: Inode) -> int:
        """See Upper."""
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(_data_name(inode.nodeid), flags, dir_fd=self._data)
        self._keep_open(inode, fd)
        return fd

    def _keep_open(self, inode: Inode, fd: int) -> None:
        inode.fd = fd
        self._open[inode.nodeid] = inode
        if len(self._open) > _MAX_OPEN:
            _, oldest = self._open.popitem(last=False)
            os.close(oldest.fd)
            oldest.fd = -1

    def _fd(self, inode: Inode) -> int:
        return inode.fd if inode.fd >= 0 else self.open(inode)

    def grow(self, inode: Inode, size: int) -> None:
        """See Upper."""
        os.ftruncate(self._fd(inode), size)

    def truncate(self, inode: Inode, size: int) -> None:
        """See Upper."""
        os.ftruncate(self._fd(inode), size)

    def punch(self, inode: Inode, offset: int, length: int) -> None:
        """See Upper."""
        files.punch(self._fd(inode), offset, length)

    def allocate(self, inode: Inode, offset: int, length: int) -> None:
        """See Upper."""
        files.allocate(self._fd(inode), offset, length)

    def blocks(self, inode: Inode) -> int:
        """See Upper."""
        return os.fstat(self._fd(inode)).st_blocks

    def fsync(self, inode: Inode, *, data_only: bool) -> None:
        """See Upper."""
        if inode.owned and stat.S_ISREG(inode.mode):
            fd = self._fd(inode)
            os.fdatasync(fd) if data_only else os.fsync(fd)
        if not data_only or inode.nodeid in self._late:
            self.settle()
        os.fsync(self._data)
        self._journal.sync()

    def syncfs(self) -> None:
        """See Upper."""
        self.settle()
        files.syncfs(self._root)


def _data_name(number: int) -> str:
    return f"{number:x}"


def _unusable(path: str, error: OSError) -> HostError:
    return HostError(
        f"Cannot use {path} for what the guest writes: {error.strerror}.",
        code="upper.open",
        hint="Choose a directory of yours on a disk with space.",
    )


def _open_directory(path: str) -> int:
    try:
        Path(path).mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unusable(path, error) from error


def _take_lock(directory: int, path: str) -> int:
    try:
        lock = os.open("lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise UsageError(
            f"The upper directory {path} is in use by another VM.",
            code="upper.busy",
            hint="Stop that VM, or use another directory.",
        ) from error
    return lock
