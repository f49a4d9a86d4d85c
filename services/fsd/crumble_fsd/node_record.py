"""One inode of a captured tree as bytes, and back.

    fixed fields, see _FIXED; then msgpack: [target, xattrs], and of directories
    [target, xattrs, parent, [layer, row, ...], {name: nodeid, 0 for a whiteout} or nil, listing or nil]

A directory that is as its layers have it has no fields worth keeping: UNCHANGED, and its list is
[parent, [layer, row, ...]]. listing: [names, cookies or nil when they follow each other, next cookie].
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from typing import Any

import msgpack

from crumble_fsd.inodes import Directory, Inode
from crumble_fsd.listing import Listing

# flags, mode, uid, gid, links, graft (number of a share, or -1), size, rdev, charged, atime, mtime, ctime,
# btime, lookups
_FIXED = struct.Struct("<IIIIIiQQQqqqqQ")
FIXED_SIZE = _FIXED.size
CAPTURED, SPARSE, PINNED, LISTED, UNCHANGED = 1, 2, 4, 8, 16
_PLAIN: bytes = msgpack.packb([b"", {}])  # of most files
_MAX_SIZE = 1 << 62
_MAX_CHARGE = 1 << 32
_KINDS = (
    stat.S_IFREG,
    stat.S_IFDIR,
    stat.S_IFLNK,
    stat.S_IFCHR,
    stat.S_IFBLK,
    stat.S_IFIFO,
    stat.S_IFSOCK,
)


@dataclass(slots=True)
class NodeRecord:
    """A record taken apart; the fields are Inode's and Directory's. children: nodeids, 0 for a whiteout."""

    flags: int
    mode: int
    uid: int
    gid: int
    nlink: int
    graft: int
    size: int
    rdev: int
    charged: int
    atime: int
    mtime: int
    ctime: int
    btime: int
    lookups: int
    target: bytes = b""
    xattrs: dict[bytes, bytes] | None = None
    parent: int = 0
    lowers: tuple[tuple[int, int], ...] = ()
    children: dict[bytes, int] | None = None
    listing: Listing | None = None

    @property
    def is_directory(self) -> bool:
        """True for a directory."""
        return stat.S_ISDIR(self.mode)


def pack_node(node: Inode, *, captured: bool, parent: int, graft: int) -> bytes:
    """The record. captured: its data is in the captured layer. parent: nodeid; graft: share's number."""
    flags = CAPTURED * captured | SPARSE * node.sparse | PINNED * node.pinned
    packed = _PLAIN
    if isinstance(node, Directory):
        flags |= LISTED * node.listed
        lowers = [number for place in node.lowers for number in place]
        if not node.pinned:
            flags |= UNCHANGED
            tail: list[Any] = [parent, lowers]
        else:
            children, listing = _pack_children(node), _pack_listing(node.listing)
            tail = [node.target, node.xattrs or {}, parent, lowers, children, listing]
        packed = msgpack.packb(tail)
    elif node.target or node.xattrs:
        packed = msgpack.packb([node.target, node.xattrs or {}])
    fixed = _FIXED.pack(
        flags, node.mode, node.uid, node.gid, node.nlink, graft, node.size, node.rdev, max(0, node.charged),
        node.atime, node.mtime, node.ctime, node.btime, min(node.lookups, (1 << 64) - 1),
    )  # fmt: skip
    return fixed + packed


def _pack_children(node: Directory) -> dict[bytes, int] | None:
    if node.children is None:
        return None
    return {
        name: child if isinstance(child, int) else child.nodeid if child is not None else 0
        for name, child in node.children.items()
    }


def _pack_listing(listing: Listing | None) -> list[Any] | None:
    return None if listing is None else listing.pack()


def data_of(record: bytes) -> tuple[int, bool]:
    """Bytes of captured data of a packed record, and whether they have holes. ValueError.

    A look at the fixed fields only.
    """
    if len(record) < FIXED_SIZE:
        raise ValueError("a record is too short")
    flags, _, _, _, _, _, size, *_ = _FIXED.unpack_from(record)
    return (size if flags & CAPTURED else 0), bool(flags & SPARSE)


def parse_node(record: bytes) -> NodeRecord:
    """The record taken apart; raises ValueError when it makes no sense by itself."""
    try:
        node = NodeRecord(*_FIXED.unpack_from(record))
        tail = msgpack.unpackb(memoryview(record)[FIXED_SIZE:], strict_map_key=False)
        _take_tail(node, tail)
    except (struct.error, TypeError, msgpack.UnpackException) as error:
        raise ValueError(f"a record is damaged ({error})") from None
    if stat.S_IFMT(node.mode) not in _KINDS or node.mode >> 16 or node.size >= _MAX_SIZE:
        raise ValueError("an inode's fields make no sense")
    if node.charged > _MAX_CHARGE or node.rdev >= 1 << 63 or node.nlink >= 1 << 31:
        raise ValueError("an inode's fields make no sense")
    if node.flags & CAPTURED and not stat.S_ISREG(node.mode):
        raise ValueError("something that is no file has data")
    return node


def _take_tail(node: NodeRecord, tail: Any) -> None:
    _must(isinstance(tail, list))
    if node.flags & UNCHANGED:
        _must(node.is_directory and len(tail) == 2)
        parent, lowers = tail
    else:
        _must(len(tail) == (6 if node.is_directory else 2))
        node.target, xattrs = tail[:2]
        _must(isinstance(node.target, bytes) and isinstance(xattrs, dict))
        _must(all(isinstance(k, bytes) and isinstance(v, bytes) for k, v in xattrs.items()))
        node.xattrs = xattrs or None
        if not node.is_directory:
            return
        parent, lowers, children, listing = tail[2:]
        node.children = _children(children)
        node.listing = None if listing is None else Listing.unpack(listing)
    _must(_is_number(parent) and isinstance(lowers, list) and len(lowers) % 2 == 0)
    _must(all(map(_is_number, lowers)))
    node.parent = parent
    node.lowers = tuple(zip(lowers[::2], lowers[1::2], strict=True))


def _children(children: Any) -> dict[bytes, int] | None:
    if children is None:
        return None
    _must(isinstance(children, dict))
    found: dict[bytes, int] = children
    for name, nodeid in found.items():
        _must(_is_name(name) and _is_number(nodeid))
    return found


def _is_name(name: Any) -> bool:
    return (
        isinstance(name, bytes)
        and 0 < len(name) < 256
        and b"/" not in name
        and b"\0" not in name
        and name not in (b".", b"..")
    )


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 64


def _must(holds: bool) -> None:
    if not holds:
        raise ValueError("a record's fields make no sense")
