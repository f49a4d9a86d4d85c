"""The inodes of the union: what the guest may know by nodeid, which is also their inode number.

Numbers survive forgetting and restarts: a lower inode's comes from its place in its layer (layer
number and row of its first name), so hard links share it and copy-up keeps it; an upper inode's is
given once. Modified and upper inodes are pinned (kept after the guest forgets them), and so is every
directory met, because children refer to their parents; other lower inodes are made again when needed.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from crumble_common.layer_index import Entry
from crumble_fsd.filesystem import Filesystem, Node
from crumble_fsd.fuse_wire import ATTR, FUSE_ROOT_ID

if TYPE_CHECKING:
    from crumble_fsd.listing import Listing

BLOCK = 4096
_NS = 1_000_000_000
_U64 = (1 << 64) - 1
LAYER_SHIFT = 32  # nodeid of a lower inode: (layer number + 1) << 32 | row


class Inode(Node):
    """An inode of the union. Times in ns; `fd` and `base`: where byte 0 of a regular file is.

    fd is -1 while the upper has the file closed. owned: the data is in the upper (else in a layer).
    pinned: differs from its layer. charged: what the upper's account holds for it. sparse: may have holes. graft: the root of what covers it.
    """

    __slots__ = (
        "atime", "base", "btime", "charged", "ctime", "fd", "gid", "graft", "mtime", "nlink", "owned", "packed",
        "pinned", "rdev", "size", "sparse", "target", "uid", "xattrs",
    )  # fmt: skip

    def __init__(self, fs: Filesystem, nodeid: int, mode: int, uid: int, gid: int) -> None:
        super().__init__(fs, nodeid, mode)
        self.uid = uid
        self.gid = gid
        self.size = 0
        self.rdev = 0
        self.nlink = 1
        self.target = b""
        self.xattrs: dict[bytes, bytes] | None = None
        self.atime = self.mtime = self.ctime = self.btime = 0
        self.fd = -1
        self.base = 0
        self.owned = False
        self.charged = 0
        self.pinned = False
        self.sparse = False
        self.graft: Node | None = None
        self.packed: bytes | None = None

    def set_times(self, now: int) -> None:
        """All four."""
        self.atime = self.mtime = self.ctime = self.btime = now

    def pack(self, blocks: int) -> bytes:
        """The `fuse_attr`; blocks of 512 bytes."""
        atime, atime_ns = divmod(self.atime, _NS)
        mtime, mtime_ns = divmod(self.mtime, _NS)
        ctime, ctime_ns = divmod(self.ctime, _NS)
        return ATTR.pack(
            self.nodeid, self.size, blocks, atime & _U64, mtime & _U64, ctime & _U64,
            atime_ns, mtime_ns, ctime_ns, self.mode, self.nlink, self.uid, self.gid,
            encode_rdev(self.rdev), BLOCK, 0,
        )  # fmt: skip


class Directory(Inode):
    """A directory. lowers: (layer number, row) of what still shows through, highest first.

    children: names that differ from the lowers (None: whiteout; a number: an inode that sleeps, see
    nodes.py). parent: itself for the root.
    listed: the guest has seen cookies made from the only lower's row order.
    """

    __slots__ = ("children", "listed", "listing", "lowers", "parent")

    def __init__(
        self, fs: Filesystem, nodeid: int, mode: int, uid: int, gid: int, parent: Directory | None
    ) -> None:
        super().__init__(fs, nodeid, mode, uid, gid)
        self.nlink = 2
        self.lowers: tuple[tuple[int, int], ...] = ()
        self.children: dict[bytes, Inode | int | None] | None = None
        self.parent: Directory = parent if parent is not None else self
        self.listing: Listing | None = None
        self.listed = False


def lower_nodeid(layer: int, row: int) -> int:
    """The number of a layer's inode."""
    return (layer + 1) << LAYER_SHIFT | row


def lower_file(fs: Filesystem, layer: int, contents: int, entry: Entry) -> Inode:
    """The inode of a layer's entry that is not a directory. contents: the layer's descriptor."""
    node = Inode(fs, lower_nodeid(layer, entry.link), entry.mode, entry.uid, entry.gid)
    node.set_times(entry.mtime_ns)
    node.nlink = entry.nlink
    node.rdev = entry.rdev
    node.xattrs = entry.xattrs or None
    if stat.S_ISREG(entry.mode):
        node.size, node.fd, node.base = entry.size, contents, entry.offset
    elif stat.S_ISLNK(entry.mode):
        node.target, node.size = entry.target, len(entry.target)
    return node


def lower_directory(
    fs: Filesystem, entries: list[tuple[int, Entry]], parent: Directory | None
) -> Directory:
    """A directory merged of layers' entries, highest first.

    Attributes come from the highest that was not merely implied by its archive. A merged directory's
    link count is 1 ("not counted"), as overlayfs has it.
    """
    layer, top = entries[0]
    nodeid = FUSE_ROOT_ID if parent is None else lower_nodeid(layer, top.row)
    told = next((entry for _, entry in entries if not entry.implicit), top)
    node = Directory(fs, nodeid, told.mode, told.uid, told.gid, parent)
    node.set_times(told.mtime_ns)
    node.xattrs = told.xattrs or None
    node.nlink = told.nlink if len(entries) == 1 else 1
    node.size = BLOCK
    node.lowers = tuple((number, entry.row) for number, entry in entries)
    return node


def encode_rdev(rdev: int) -> int:
    """A device number as FUSE carries it (the kernel's new_encode_dev)."""
    major, minor = os.major(rdev), os.minor(rdev)
    return ((minor & 0xFF) | (major & 0xFFF) << 8 | (minor & 0xFFF00) << 12) & 0xFFFFFFFF


def decode_rdev(encoded: int) -> int:
    """The reverse of `encode_rdev`."""
    return os.makedev((encoded >> 8) & 0xFFF, (encoded & 0xFF) | (encoded >> 12) & 0xFFF00)
