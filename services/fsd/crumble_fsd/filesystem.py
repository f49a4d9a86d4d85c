"""What the session asks of a file system: the union of layers and upper, or a host share.

A node is one inode the guest may name by nodeid. Every method raises OSError with the errno the guest
is to see. Names were checked by the session (1 to 255 bytes, no '/' or NUL, not '.' or '..').
"""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

if TYPE_CHECKING:
    from crumble_fsd.locks import Lock


class Node:
    """One inode. `lookups` is how many times the guest was told of it and has not forgotten it."""

    __slots__ = ("fs", "lookups", "mode", "nodeid")

    def __init__(self, fs: Filesystem, nodeid: int, mode: int) -> None:
        self.fs = fs
        self.nodeid = nodeid
        self.mode = mode
        self.lookups = 0


class Handle:
    """Something a guest has open that needs more than its nodeid: a share's file, or locks.

    owners: who has locked through it (owner, True for flock). Linux says when a process's locks go (FLUSH),
    and flock's (RELEASE), but of OFD locks only that their open file is gone.
    """

    __slots__ = ("node", "owners")

    def __init__(self, node: Node) -> None:
        self.node = node
        self.owners: set[tuple[int, bool]] = set()

    def close(self) -> None:
        """Lets go of what the handle holds."""


class Caller(NamedTuple):
    """Who in the guest asks: owner of what is made."""

    uid: int
    gid: int


class Dirent(NamedTuple):
    """One directory entry: `cookie` resumes after it; `node` only when asked for and not . or .. ."""

    cookie: int
    name: bytes
    ino: int
    mode: int
    node: Node | None


@dataclass(slots=True)
class Changes:
    """What SETATTR changes; None: leave alone. Times in ns since the epoch."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime: int | None = None
    mtime: int | None = None
    ctime: int | None = None
    kill_suidgid: bool = False


class Statfs(NamedTuple):
    """Sizes in blocks of `bsize` bytes."""

    blocks: int
    bfree: int
    bavail: int
    files: int
    ffree: int
    bsize: int
    namelen: int


def fail(number: int) -> NoReturn:
    """Raises the OSError the guest is to see."""
    raise OSError(number, os.strerror(number))


class OwnLocks:
    """Locks against others than this guest: here there are none, so there is nothing to do."""

    def lock(self, node: Any, lock: Lock, *, flock: bool) -> None:
        """Takes or drops a lock that does not meet another of the guest's own. EAGAIN."""

    def lock_conflict(self, node: Any, lock: Lock, *, flock: bool) -> Lock | None:  # noqa: ARG002
        """A lock of others in the way."""
        return None

    def drop_locks(self, node: Any, owner: int, *, flock: bool) -> None:
        """An owner holds nothing on the inode any more."""

    def clear_locks(self) -> None:
        """Nobody in the guest holds anything any more."""


class Filesystem(OwnLocks, ABC):
    """One of the file systems grafted into the tree. `entry_out` and `attr_out` are the cache times.

    entry_valid, attr_valid, negative_valid: seconds the guest may keep names, attributes, and
    the knowledge that a name is not there.
    """

    entry_valid: int
    attr_valid: int
    negative_valid: int
    submounts = False  # the guest mounts shared directories as file systems of their own

    # Names.

    @abstractmethod
    def lookup(self, directory: Any, name: bytes) -> Node | None:
        """The node `name` leads to, None when there is none. ENOTDIR."""

    @abstractmethod
    def remember(self, node: Any) -> None:
        """The guest is told of the node once more."""

    @abstractmethod
    def forget(self, node: Any, count: int) -> None:
        """The guest drops `count` of the times it was told."""

    @abstractmethod
    def mknod(self, directory: Any, name: bytes, mode: int, rdev: int, caller: Caller) -> Node:
        """A regular file, FIFO, socket or device node."""

    @abstractmethod
    def mkdir(self, directory: Any, name: bytes, mode: int, caller: Caller) -> Node:
        """A new directory."""

    @abstractmethod
    def symlink(self, directory: Any, name: bytes, target: bytes, caller: Caller) -> Node:
        """A new symbolic link."""

    @abstractmethod
    def create(
        self, directory: Any, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Node, Handle | None, int]:
        """Creates and opens; an existing file is opened unless O_EXCL. Node, handle, FOPEN flags."""

    @abstractmethod
    def tmpfile(
        self, directory: Any, mode: int, flags: int, caller: Caller
    ) -> tuple[Node, Handle | None, int]:
        """An open file without a name."""

    @abstractmethod
    def unlink(self, directory: Any, name: bytes) -> None:
        """Removes a name that is not a directory."""

    @abstractmethod
    def rmdir(self, directory: Any, name: bytes) -> None:
        """Removes an empty directory."""

    @abstractmethod
    def rename(self, old: Any, name: bytes, new: Any, new_name: bytes, flags: int) -> None:
        """Moves or exchanges names; flags: RENAME_NOREPLACE, RENAME_EXCHANGE."""

    @abstractmethod
    def link(self, node: Any, directory: Any, name: bytes) -> None:
        """Another name for a file."""

    # Attributes.

    @abstractmethod
    def attr(self, node: Any) -> bytes:
        """The packed `fuse_attr`."""

    @abstractmethod
    def btime(self, node: Any) -> int | None:
        """Time of birth, ns, when known."""

    @abstractmethod
    def setattr(self, node: Any, handle: Handle | None, changes: Changes) -> None:
        """Changes attributes."""

    @abstractmethod
    def readlink(self, node: Any) -> bytes:
        """A symbolic link's target."""

    @abstractmethod
    def getxattr(self, node: Any, name: bytes) -> bytes:
        """An attribute's value; ENODATA."""

    @abstractmethod
    def setxattr(self, node: Any, name: bytes, value: bytes, flags: int) -> None:
        """Sets one; XATTR_CREATE and XATTR_REPLACE as in setxattr(2)."""

    @abstractmethod
    def listxattr(self, node: Any) -> list[bytes]:
        """The names."""

    @abstractmethod
    def removexattr(self, node: Any, name: bytes) -> None:
        """Removes one; ENODATA."""

    @abstractmethod
    def statfs(self, node: Any) -> Statfs:
        """Sizes and free space."""

    # Contents.

    @abstractmethod
    def open(self, node: Any, flags: int, *, kill: bool) -> tuple[Handle | None, int]:
        """Opens a regular file: handle (None: the nodeid is enough) and FOPEN flags."""

    @abstractmethod
    def read(
        self, node: Any, handle: Handle | None, offset: int, views: list[memoryview], size: int
    ) -> int:
        """Reads at most `size` bytes straight into `views` (together exactly `size`)."""

    @abstractmethod
    def write(
        self,
        node: Any,
        handle: Handle | None,
        offset: int,
        views: list[memoryview],
        size: int,
        *,
        kill: bool,
    ) -> int:
        """Writes the views (together `size` bytes). kill: drop set-user-ID and set-group-ID."""

    @abstractmethod
    def fallocate(
        self, node: Any, handle: Handle | None, mode: int, offset: int, length: int
    ) -> None:
        """Allocates, punches or zeroes a range; EOPNOTSUPP for other modes."""

    @abstractmethod
    def lseek(self, node: Any, handle: Handle | None, offset: int, whence: int) -> int:
        """SEEK_DATA and SEEK_HOLE."""

    @abstractmethod
    def copy_range(
        self,
        node: Any,
        handle: Handle | None,
        offset: int,
        to: Any,
        to_handle: Handle | None,
        to_offset: int,
        length: int,
    ) -> int:
        """Copies between two files of this file system; may copy less."""

    @abstractmethod
    def flush(self, node: Any, handle: Handle | None) -> None:
        """A descriptor was closed."""

    @abstractmethod
    def fsync(self, node: Any, handle: Handle | None, *, data_only: bool) -> None:
        """Everything acknowledged about the node is on stable storage, as far as there is any."""

    @abstractmethod
    def syncfs(self) -> None:
        """The same for the whole file system."""

    # Directories.

    @abstractmethod
    def opendir(self, node: Any) -> tuple[Handle | None, int]:
        """Handle (None: the nodeid is enough) and FOPEN flags."""

    @abstractmethod
    def entries(
        self, node: Any, handle: Handle | None, cookie: int, *, nodes: bool
    ) -> Iterator[Dirent]:
        """Entries after `cookie` (0: from the first). Others may come and go meanwhile: an entry
        that stays is given exactly once. nodes: also the child's node."""


def must_be_directory(node: Node) -> None:
    """ENOTDIR unless it is one."""
    if node.mode & 0o170000 != 0o040000:
        fail(errno.ENOTDIR)
