"""Locks of a share's files, taken on the host too, so that other VMs and host processes see them.

Each owner in the guest gets an open file of its own on the host, since the host counts OFD and flock
locks by open file; closing it drops whatever the owner holds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from crumble_fsd.filesystem import fail
from crumble_fsd.locks import LAST, READ, UNLOCK, Lock
from crumble_fsd.share_nodes import ShareNode, ShareNodes

_F_OFD_GETLK, _F_OFD_SETLK = 36, 37
_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, len, pid
# Owners that hold locks at once, each with a descriptor.
_MAX_OWNERS = 1_024

Key = tuple[int, int, bool]
"""nodeid, owner, True for flock."""


class ShareLocks:
    """The open files that hold locks."""

    def __init__(self, nodes: ShareNodes) -> None:
        self._nodes = nodes
        self._files: dict[Key, int] = {}

    def set(self, node: ShareNode, lock: Lock, *, flock: bool) -> None:
        """Takes or drops a range on the host. EAGAIN, ENOLCK, EBADF."""
        key = (node.nodeid, lock.owner, flock)
        if lock.kind == UNLOCK and key not in self._files:
            return
        fd = self._files.get(key, -1)
        if fd < 0:
            fd = self._open(node, key)
        if flock:
            fcntl.flock(fd, _flock_operation(lock.kind) | fcntl.LOCK_NB)
        else:
            fcntl.fcntl(fd, _F_OFD_SETLK, _pack(lock))

    def conflict(self, node: ShareNode, lock: Lock, *, flock: bool) -> Lock | None:
        """A lock held outside this guest. flock(2) has no such question."""
        if flock or lock.kind == UNLOCK:
            return None
        key = (node.nodeid, lock.owner, flock)
        fd = self._files[key] if key in self._files else self._open(node, key)
        kind, _, start, length, _ = _FLOCK.unpack(fcntl.fcntl(fd, _F_OFD_GETLK, _pack(lock)))
        if kind == UNLOCK:
            return None
        return Lock(start, start + length - 1 if length else LAST, kind, 0, 0)

    def drop(self, node: ShareNode, owner: int, *, flock: bool) -> None:
        """The owner holds nothing on the file any more."""
        fd = self._files.pop((node.nodeid, owner, flock), -1)
        if fd >= 0:
            os.close(fd)

    def clear(self) -> None:
        """Nobody holds anything."""
        for fd in self._files.values():
            os.close(fd)
        self._files.clear()

    def _open(self, node: ShareNode, key: Key) -> int:
        if len(self._files) >= _MAX_OWNERS:
            fail(errno.ENOLCK)
        path = self._nodes.path(node)
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:  # a file that can only be read can only be locked for reading
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        self._files[key] = fd
        return fd


def _pack(lock: Lock) -> bytes:
    length = 0 if lock.end >= LAST else lock.end - lock.start + 1
    return _FLOCK.pack(lock.kind, os.SEEK_SET, lock.start, length, 0)


def _flock_operation(kind: int) -> int:
    if kind == UNLOCK:
        return fcntl.LOCK_UN
    return fcntl.LOCK_SH if kind == READ else fcntl.LOCK_EX
