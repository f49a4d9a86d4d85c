"""What of a host share the guest has open: each open is one on the host, with its rights."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from crumble_fsd.filesystem import Caller, Dirent, Filesystem, Handle, Node, fail
from crumble_fsd.fuse_wire import FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE
from crumble_fsd.share_nodes import ShareNode, ShareNodes, chmod
from crumble_native import files
from crumble_native.files import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE

# Names one open directory may hold in memory.
_MAX_NAMES = 1 << 20
# What of the guest's open flags means something to the host; the rest its kernel has dealt with.
_PASSED = os.O_ACCMODE | os.O_APPEND | os.O_SYNC | os.O_DSYNC
_ALLOCATE = (0, FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, FALLOC_ZERO_RANGE,
             FALLOC_ZERO_RANGE | FALLOC_KEEP_SIZE)  # fmt: skip


class FileHandle(Handle):
    """An open regular file of the host. fd -1: it could not be found again after a restore (ESTALE)."""

    __slots__ = ("fd", "flags")

    def __init__(self, node: Node, fd: int, flags: int) -> None:
        super().__init__(node)
        self.fd = fd
        self.flags = flags & _PASSED

    def close(self) -> None:
        """See Handle."""
        if self.fd >= 0:
            os.close(self.fd)


class DirectoryHandle(Handle):
    """An open directory: the names as of the last time it was read from the start. fd as of FileHandle."""

    __slots__ = ("fd", "names")

    def __init__(self, node: Node, fd: int) -> None:
        super().__init__(node)
        self.fd = fd
        self.names: list[tuple[bytes, int, int]] | None = None

    def close(self) -> None:
        """See Handle."""
        if self.fd >= 0:
            os.close(self.fd)

    def read(self) -> list[tuple[bytes, int, int]]:
        """Name, inode number and type (of st_mode; 0 when not known) of each entry."""
        if self.fd < 0:
            fail(errno.ESTALE)
        os.lseek(self.fd, 0, os.SEEK_SET)
        found: list[tuple[bytes, int, int]] = []
        with os.scandir(self.fd) as entries:
            for entry in entries:
                found.append((os.fsencode(entry.name), entry.inode(), _kind(entry)))
                if len(found) >= _MAX_NAMES:
                    fail(errno.ENOMEM)
        return found


class ShareFiles(Filesystem):
    """The part of a share that works on open files; see Filesystem."""

    entry_valid = attr_valid = 1
    negative_valid = 0
    nodes: ShareNodes
    _read_only: bool

    def _check_writable(self) -> None:
        if self._read_only:
            fail(errno.EROFS)

    def open(self, node: ShareNode, flags: int, *, kill: bool) -> tuple[Handle | None, int]:
        """See Filesystem. Nothing but regular files is ever opened: FIFOs and devices are the host's."""
        status = os.fstat(self.nodes.fd(node))
        if not stat.S_ISREG(status.st_mode):
            fail(errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EACCES)
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            self._check_writable()
        fd = os.open(self.nodes.path(node), flags & _PASSED | os.O_CLOEXEC | os.O_NOCTTY)
        if flags & os.O_TRUNC:
            os.ftruncate(fd, 0)
            if kill:
                self._kill_suidgid(node)
        stamp = (status.st_mtime_ns, status.st_size)
        keep = FOPEN_KEEP_CACHE if node.stamp == stamp and not flags & os.O_TRUNC else 0
        node.stamp = stamp
        return FileHandle(node, fd, flags), keep

    def create(
        self, directory: ShareNode, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Node, Handle | None, int]:
        """See Filesystem."""
        self._check_writable()
        wanted = flags & _PASSED | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        parent = self.nodes.fd(directory)
        try:
            fd = files.open_beneath(parent, name, wanted, mode & 0o777)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            found = self.nodes.find(directory, name)
            return found, *self.open(found, flags, kill=False)
        try:
            node = self.nodes.find(directory, name)
            self._own(node, os.fstat(self.nodes.fd(directory)), mode, caller)
        except BaseException:
            os.close(fd)
            raise
        return node, FileHandle(node, fd, flags), 0

    def reopen(self, node: ShareNode, flags: int) -> FileHandle:
        """A handle of a captured session again."""
        fd = -1
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.fstat(self.nodes.fd(node)).st_mode):
                fd = os.open(self.nodes.path(node), flags & _PASSED | os.O_CLOEXEC | os.O_NOCTTY)
        return FileHandle(node, fd, flags)

    def reopen_directory(
        self, node: ShareNode, names: list[tuple[bytes, int, int]] | None
    ) -> DirectoryHandle:
        """The same for a directory."""
        fd = -1
        with contextlib.suppress(OSError):
            fd = os.open(self.nodes.path(node), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        handle = DirectoryHandle(node, fd)
        handle.names = names
        return handle

    def tmpfile(
        self, directory: ShareNode, mode: int, flags: int, caller: Caller
    ) -> tuple[Node, Handle | None, int]:
        """See Filesystem."""
        self._check_writable()
        wanted = (flags & _PASSED & ~os.O_ACCMODE) | os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC
        fd = os.open(self.nodes.path(directory), wanted, mode & 0o777)
        node = self.nodes.adopt(None, b"", os.open(f"/proc/self/fd/{fd}", os.O_PATH | os.O_CLOEXEC))
        self.nodes.pin(node)
        self._own(node, os.fstat(self.nodes.fd(directory)), mode, caller)
        return node, FileHandle(node, fd, flags), 0

    def _own(
        self, node: ShareNode, parent: os.stat_result, mode: int | None, caller: Caller
    ) -> None:
        raise NotImplementedError

    def _kill_suidgid(self, node: ShareNode) -> None:
        """As a write by someone without CAP_FSETID does; the host's kernel does it only for such."""
        mode = os.fstat(self.nodes.fd(node)).st_mode
        drop = stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0)
        if mode & drop:
            chmod(self.nodes.path(node), stat.S_IMODE(mode) & ~drop)

    def _truncate(self, node: ShareNode, handle: Handle | None, size: int) -> None:
        if isinstance(handle, FileHandle):
            os.ftruncate(_fd(node, handle), size)
        elif stat.S_ISREG(node.mode):
            os.truncate(self.nodes.path(node), size)
        else:
            fail(errno.EISDIR if stat.S_ISDIR(node.mode) else errno.EINVAL)

    def read(
        self,
        node: ShareNode,
        handle: Handle | None,
        offset: int,
        views: list[memoryview],
        size: int,  # noqa: ARG002  the views' length
    ) -> int:
        """See Filesystem."""
        return os.preadv(_fd(node, handle), views, offset)

    def write(
        self,
        node: ShareNode,
        handle: Handle | None,
        offset: int,
        views: list[memoryview],
        size: int,  # noqa: ARG002  the views' length
        *,
        kill: bool,
    ) -> int:
        """See Filesystem."""
        done = os.pwritev(_fd(node, handle), views, offset)
        if kill:
            self._kill_suidgid(node)
        return done

    def fallocate(
        self, node: ShareNode, handle: Handle | None, mode: int, offset: int, length: int
    ) -> None:
        """See Filesystem."""
        if mode not in _ALLOCATE:
            fail(errno.EOPNOTSUPP)
        files.fallocate(_fd(node, handle), mode, offset, length)

    def lseek(self, node: ShareNode, handle: Handle | None, offset: int, whence: int) -> int:
        """See Filesystem."""
        return os.lseek(_fd(node, handle), offset, whence)

    def copy_range(
        self,
        node: ShareNode,
        handle: Handle | None,
        offset: int,
        to: ShareNode,
        to_handle: Handle | None,
        to_offset: int,
        length: int,
    ) -> int:
        """See Filesystem. At most 16 MiB a request, so that others get their turn."""
        source, target = _fd(node, handle), _fd(to, to_handle)
        return os.copy_file_range(source, target, min(length, 16 << 20), offset, to_offset)

    def flush(self, node: ShareNode, handle: Handle | None) -> None:
        """See Filesystem. Closing a duplicate brings up errors a network file system kept back."""
        os.close(os.dup(_fd(node, handle)))

    def fsync(self, node: ShareNode, handle: Handle | None, *, data_only: bool) -> None:  # noqa: ARG002
        """See Filesystem."""
        if not isinstance(handle, FileHandle | DirectoryHandle):
            fail(errno.EBADF)
        fd = handle.fd
        if fd < 0:
            fail(errno.ESTALE)
        os.fdatasync(fd) if data_only else os.fsync(fd)

    def syncfs(self) -> None:
        """See Filesystem."""
        if self._read_only:
            return
        flags = os.O_RDONLY | os.O_CLOEXEC
        fd = os.open(self.nodes.path(self.nodes.root), flags)
        try:
            files.syncfs(fd)
        finally:
            os.close(fd)

    # Directories.

    def opendir(self, node: ShareNode) -> tuple[Handle | None, int]:
        """See Filesystem."""
        fd = os.open(self.nodes.path(node), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        return DirectoryHandle(node, fd), FOPEN_CACHE_DIR

    def entries(
        self, node: ShareNode, handle: Handle | None, cookie: int, *, nodes: bool
    ) -> Iterator[Dirent]:
        """See Filesystem."""
        if not isinstance(handle, DirectoryHandle):
            fail(errno.EBADF)
        if cookie == 0 or handle.names is None:
            handle.names = handle.read()
        if cookie == 0:
            yield Dirent(1, b".", self._ino(node), stat.S_IFDIR, None)
        if cookie <= 1:
            yield Dirent(2, b"..", self._ino(node.parent or node), stat.S_IFDIR, None)
        for at in range(max(cookie - 2, 0), len(handle.names)):
            name, inode, kind = handle.names[at]
            child: Node | None = None
            if nodes:
                child = self.lookup(node, name)
                if child is None:
                    continue
                kind = child.mode
            yield Dirent(at + 3, name, self.nodes.ino(node.key[0], inode), kind, child)

    def _ino(self, node: ShareNode) -> int:
        return self.nodes.ino(*node.key[:2])


def _fd(node: ShareNode, handle: Handle | None) -> int:
    if not isinstance(handle, FileHandle):
        fail(errno.EISDIR if stat.S_ISDIR(node.mode) else errno.EBADF)
    if handle.fd < 0:
        fail(errno.ESTALE)
    return handle.fd


def _kind(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else 0
