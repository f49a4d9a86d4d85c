"""Changing inodes of the union: attributes, contents, extended attributes.

A lower inode's attributes change without its data being copied: the inode goes on reading from its
layer until something is written to it (copy-up), and then only what is kept of it is copied.
"""

from __future__ import annotations

import errno
import os
import stat

from crumble_fsd import copying
from crumble_fsd.clock import CLOCK
from crumble_fsd.filesystem import Changes, Handle, Node, fail
from crumble_fsd.fuse_wire import XATTR_CREATE, XATTR_REPLACE
from crumble_fsd.inodes import Directory, Inode
from crumble_fsd.union_names import UnionNames
from crumble_native.files import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE

_COPY_CHUNK = 1 << 20
# Linux's own bounds: XATTR_SIZE_MAX, XATTR_LIST_MAX.
_MAX_XATTR, _MAX_XATTR_LIST = 65_536, 65_536
_CAPABILITY = b"security.capability"


class UnionData(UnionNames):
    """Operations on one inode; see Filesystem for each."""

    # Attributes.

    def setattr(self, node: Inode, handle: Handle | None, changes: Changes) -> None:  # noqa: ARG002
        """See Filesystem."""
        now = CLOCK.now()
        if changes.size is not None:
            self._check_regular(node)
            self._resize(node, changes.size)
            node.mtime = now
            self._drop_privileges(node, suidgid=changes.kill_suidgid)
        if changes.mode is not None:
            node.mode = stat.S_IFMT(node.mode) | stat.S_IMODE(changes.mode)
        if changes.uid is not None or changes.gid is not None:
            node.uid = node.uid if changes.uid is None else changes.uid
            node.gid = node.gid if changes.gid is None else changes.gid
            if not isinstance(node, Directory):
                self._drop_privileges(node, suidgid=True)
        node.atime = node.atime if changes.atime is None else changes.atime
        node.mtime = node.mtime if changes.mtime is None else changes.mtime
        node.ctime = now if changes.ctime is None else changes.ctime
        self._changed(node)

    def _drop_privileges(self, node: Inode, *, suidgid: bool) -> None:
        """What a write or a change of owner takes away (FUSE_HANDLE_KILLPRIV_V2)."""
        if suidgid and node.mode & (stat.S_ISUID | stat.S_ISGID):
            drop = stat.S_ISUID | (stat.S_ISGID if node.mode & stat.S_IXGRP else 0)
            node.mode &= ~drop
        if node.xattrs is not None and _CAPABILITY in node.xattrs:
            self._set_xattrs(node, {k: v for k, v in node.xattrs.items() if k != _CAPABILITY})

    # Contents.

    def write(
        self,
        node: Inode,
        handle: Handle | None,  # noqa: ARG002  of Filesystem
        offset: int,
        views: list[memoryview],
        size: int,
        *,
        kill: bool,
    ) -> int:
        """See Filesystem."""
        end = offset + size
        self._prepare_write(node, end)
        upper = self._upper
        upper.reserve(node, offset, size)
        fd = node.fd if node.fd >= 0 else upper.open(node)
        done = os.pwritev(fd, views, node.base + offset)
        if node.mode & (stat.S_ISUID | stat.S_ISGID) or node.xattrs is not None:
            self._drop_privileges(node, suidgid=kill)
        if offset + done > node.size:
            if offset > node.size:
                node.sparse = True
            node.size = offset + done
        node.mtime = node.ctime = CLOCK.now()
        node.packed = None
        upper.save_data_change(node)
        return done

    def _prepare_write(self, node: Inode, end: int) -> None:
        """The inode is regular, its data is in the upper, and may reach `end`."""
        if not node.owned:
            self._check_regular(node)
            self._copy_up(node, node.size)
        if end > self._upper.max_size:
            fail(errno.EFBIG)

    def _copy_up(self, node: Inode, length: int) -> None:
        """Moves a lower file's data to the upper; only its first `length` bytes are kept."""
        source, offset = node.fd, node.base
        self._upper.create(node)
        try:
            self._upper.fill(node, source, offset, length)
        except OSError:
            self._upper.free(node)
            node.fd, node.base = source, offset
            raise
        node.size = length
        self._changed(node)

    def _resize(self, node: Inode, size: int) -> None:
        if size > self._upper.max_size:
            fail(errno.EFBIG)
        if not node.owned:
            self._copy_up(node, min(size, node.size))
        if size < node.size:
            self._upper.truncate(node, size)
        elif size > node.size:
            self._upper.grow(node, size)
            node.sparse = True
        node.size = size

    def fallocate(
        self,
        node: Inode,
        handle: Handle | None,  # noqa: ARG002  of Filesystem
        mode: int,
        offset: int,
        length: int,
    ) -> None:
        """See Filesystem."""
        self._check_regular(node)
        keep = mode & FALLOC_KEEP_SIZE
        kind = mode & ~FALLOC_KEEP_SIZE
        if length == 0:
            fail(errno.EINVAL)
        if kind not in (0, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE) or (kind == 2 and not keep):
            fail(errno.EOPNOTSUPP)
        end = offset + length
        self._prepare_write(node, end)
        if kind:
            self._upper.punch(node, offset, length)
        if kind != FALLOC_PUNCH_HOLE:
            self._upper.allocate(node, offset, length)
        if not keep and end > node.size:
            self._upper.grow(node, end)
            node.size = end
        node.sparse = True
        node.mtime = node.ctime = CLOCK.now()
        self._drop_privileges(node, suidgid=False)
        self._changed(node)

    def lseek(self, node: Inode, handle: Handle | None, offset: int, whence: int) -> int:  # noqa: ARG002
        """See Filesystem. An image layer's file has no holes but the one at its end."""
        self._check_regular(node)
        if whence not in (os.SEEK_DATA, os.SEEK_HOLE):
            fail(errno.EINVAL)
        if node.owned:
            return self._upper.seek(node, offset, whence)
        if node.sparse:
            return copying.seek(node.fd, node.base, node.size, offset, whence)
        if not 0 <= offset < node.size:
            fail(errno.ENXIO)
        return offset if whence == os.SEEK_DATA else node.size

    def copy_range(
        self,
        node: Inode,
        handle: Handle | None,  # noqa: ARG002  of Filesystem
        offset: int,
        to: Inode,
        to_handle: Handle | None,
        to_offset: int,
        length: int,
    ) -> int:
        """See Filesystem. At most 16 MiB a request, so that others get their turn."""
        self._check_regular(node)
        self._check_regular(to)
        length = min(length, max(0, node.size - offset), 16 * _COPY_CHUNK)
        if node is to and offset < to_offset + length and to_offset < offset + length:
            fail(errno.EINVAL)
        buffer = memoryview(bytearray(min(length, _COPY_CHUNK)))
        done = 0
        while done < length:
            chunk = min(length - done, _COPY_CHUNK)
            self.read(node, None, offset + done, [buffer[:chunk]], chunk)
            try:
                at = to_offset + done
                count = self.write(to, to_handle, at, [buffer[:chunk]], chunk, kill=False)
            except OSError:
                if done:
                    break
                raise
            done += count
        return done

    def flush(self, node: Inode, handle: Handle | None) -> None:
        """See Filesystem. Nothing: what was acknowledged is in the upper."""

    def fsync(self, node: Inode, handle: Handle | None, *, data_only: bool) -> None:  # noqa: ARG002
        """See Filesystem."""
        self._upper.fsync(node, data_only=data_only)

    def syncfs(self) -> None:
        """See Filesystem."""
        self._upper.syncfs()

    def _check_regular(self, node: Node) -> None:
        if not stat.S_ISREG(node.mode):
            fail(errno.EISDIR if stat.S_ISDIR(node.mode) else errno.EINVAL)

    # Extended attributes.

    def getxattr(self, node: Inode, name: bytes) -> bytes:
        """See Filesystem."""
        _check_namespace(name)
        if node.xattrs is None or name not in node.xattrs:
            fail(errno.ENODATA)
        return node.xattrs[name]

    def setxattr(self, node: Inode, name: bytes, value: bytes, flags: int) -> None:
        """See Filesystem."""
        _check_namespace(name)
        known = node.xattrs or {}
        if flags & XATTR_CREATE and name in known:
            fail(errno.EEXIST)
        if flags & XATTR_REPLACE and name not in known:
            fail(errno.ENODATA)
        if len(value) > _MAX_XATTR:
            fail(errno.E2BIG)
        if sum(map(len, known)) + len(known) + len(name) + 1 > _MAX_XATTR_LIST:
            fail(errno.ENOSPC)
        self._set_xattrs(node, {**known, name: value})
        node.ctime = CLOCK.now()
        self._changed(node)

    def listxattr(self, node: Inode) -> list[bytes]:
        """See Filesystem."""
        return list(node.xattrs or ())

    def removexattr(self, node: Inode, name: bytes) -> None:
        """See Filesystem."""
        self.getxattr(node, name)
        self._set_xattrs(node, {k: v for k, v in (node.xattrs or {}).items() if k != name})
        node.ctime = CLOCK.now()
        self._changed(node)

    def _set_xattrs(self, node: Inode, xattrs: dict[bytes, bytes]) -> None:
        """Replaces all; the upper's account follows. Never changes a dict in place: layers share."""
        change = _weight(xattrs) - _weight(node.xattrs or {})
        self._upper.charge(change)
        node.charged += change
        node.xattrs = xattrs or None


def _weight(xattrs: dict[bytes, bytes]) -> int:
    return sum(len(key) + len(value) for key, value in xattrs.items())


def _check_namespace(name: bytes) -> None:
    """Attributes outside Linux's namespaces, and ACLs (not negotiated), do not exist here."""
    if name.startswith(b"system.") or b"." not in name:
        fail(errno.EOPNOTSUPP)
