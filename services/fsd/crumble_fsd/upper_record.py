"""Records of an upper's journal, and the tree that is made of them again.

A frame's payload is a msgpack list of records, applied in order:

    ["v", version, layers]           the layers this is over, lowest first; in the first frame
    ["m", id]                        ids up to this one have been given
    ["i", id, mode, uid, gid, size, atime, mtime, ctime, btime, rdev, nlink, flags, target, xattrs,
          parent, lowers]            an inode; flags: 1 owned data, 2 sparse; the last two of directories
    ["n", directory, name, id]       a name; id 0: whiteout
    ["x", directory, name]           the name is the layers' business again
    ["d", id]                        the inode is gone
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgpack

from crumble_fsd.inodes import Directory, Inode

VERSION = 1
_OWNED, _SPARSE = 1, 2
_ROOT = 1
_I63 = 1 << 63


class Records(Protocol):
    """Who makes objects of records: the union."""

    root: Directory

    def make_directory(self, nodeid: int, mode: int, uid: int, gid: int) -> Directory:
        """A directory, its parent to come."""

    def make_inode(self, nodeid: int, mode: int, uid: int, gid: int) -> Inode:
        """Anything else; a lower file with its layer's data. ValueError when no layer has it."""

    def is_directory(self, layer: int, row: int) -> bool:
        """True when the layer has a directory at that row."""

    def restored(self, inode: Inode, names: int) -> None:
        """The inode is complete; `names` is the weight of the names in it."""


def inode_record(inode: Inode) -> list[Any]:
    """An "i" record."""
    flags = _OWNED * inode.owned | _SPARSE * inode.sparse
    record: list[Any] = [
        "i", inode.nodeid, inode.mode, inode.uid, inode.gid, inode.size, inode.atime, inode.mtime,
        inode.ctime, inode.btime, inode.rdev, inode.nlink, flags, inode.target, inode.xattrs or {},
    ]  # fmt: skip
    if isinstance(inode, Directory):
        record += [inode.parent.nodeid, inode.lowers]
    return record


class _State:
    """What the records say in the end."""

    def __init__(self) -> None:
        self.layers: list[str] | None = None
        self.highest = _ROOT
        self.inodes: dict[int, list[Any]] = {}
        self.names: dict[int, dict[bytes, int]] = {}

    def apply(self, record: list[Any]) -> None:
        kind = record[0]
        if kind == "i":
            self.inodes[record[1]] = record
            if record[1] >> 32 == 0:
                self.highest = max(self.highest, record[1])
        elif kind == "n":
            self.names.setdefault(record[1], {})[record[2]] = record[3]
        elif kind == "x":
            self.names.get(record[1], {}).pop(record[2], None)
        elif kind == "d":
            self.inodes.pop(record[1], None)
            self.names.pop(record[1], None)
        elif kind == "m":
            self.highest = max(self.highest, record[1])
        elif kind == "v" and record[1] == VERSION:
            self.layers = record[2]
        else:
            raise ValueError(f"a record of an unknown kind, {record[0]!r:.20}")


def restore(
    payloads: Iterable[bytes],
    layers: list[str],
    records: Records,
    attach: Callable[[Inode], None],
) -> tuple[dict[int, Inode], int] | None:
    """Makes the inodes again: (by id, highest id given). None when the layers are others.

    Raises ValueError, TypeError, KeyError or IndexError for records that make no sense.
    """
    state = _State()
    for payload in payloads:
        for record in msgpack.unpackb(payload, strict_map_key=False, use_list=True):
            state.apply(record)
    if state.layers is not None and state.layers != layers:
        return None
    made = {
        number: _make(record, records, attach)
        for number, record in state.inodes.items()
        if record[11] > 0
    }
    for number, inode in made.items():
        if isinstance(inode, Directory):
            _complete(inode, state.inodes[number], state.names.get(number, {}), made)
    _check_parents(made, records.root)
    for inode in made.values():
        names = (inode.children or {}) if isinstance(inode, Directory) else {}
        records.restored(inode, sum(map(len, names)))
    return made, state.highest


def _make(record: list[Any], records: Records, attach: Callable[[Inode], None]) -> Inode:
    (
        _, number, mode, uid, gid, size, atime, mtime, ctime, btime, rdev, nlink, flags, target, xattrs,
    ) = record[:15]  # fmt: skip
    _check_ranges((number, size, atime, mtime, ctime, btime, rdev), -_I63, _I63)
    _check_ranges((mode, uid, gid, nlink, flags), 0, 1 << 32)
    if number < _ROOT or (number == _ROOT and not stat.S_ISDIR(mode)):
        raise ValueError("an inode's number makes no sense")
    if size < 0 or rdev < 0 or not isinstance(target, bytes):
        raise ValueError("an inode's fields make no sense")
    inode: Inode
    if stat.S_ISDIR(mode):
        inode = records.make_directory(number, mode, uid, gid)
        inode.lowers = tuple((layer, row) for layer, row in record[16])
        if not all(records.is_directory(layer, row) for layer, row in inode.lowers):
            raise ValueError("a directory is merged of what no layer has")
    else:
        inode = records.make_inode(number, mode, uid, gid)
    inode.mode, inode.uid, inode.gid, inode.size, inode.rdev = mode, uid, gid, size, rdev
    inode.atime, inode.mtime, inode.ctime, inode.btime = atime, mtime, ctime, btime
    inode.nlink, inode.target, inode.pinned = nlink, target, True
    inode.sparse = bool(flags & _SPARSE)
    inode.xattrs = {bytes(key): bytes(value) for key, value in xattrs.items()} or None
    if flags & _OWNED:
        attach(inode)
    return inode


def _check_ranges(values: Iterable[Any], low: int, high: int) -> None:
    if not all(isinstance(value, int) and low <= value < high for value in values):
        raise ValueError("a number is out of range")


def _complete(
    directory: Directory, record: list[Any], names: dict[bytes, int], made: dict[int, Inode]
) -> None:
    """Parent and children, now that all inodes are there."""
    parent = made[record[15]]
    if not isinstance(parent, Directory):
        raise TypeError("a directory's parent is none")
    directory.parent = parent
    for name in names:
        if not isinstance(name, bytes) or not 0 < len(name) < 256 or b"/" in name:
            raise ValueError("a name makes no sense")
    if names:
        directory.children = {name: made[at] if at else None for name, at in names.items()}


def _check_parents(made: dict[int, Inode], root: Directory) -> None:
    """Every directory leads to the root."""
    known = {root.nodeid}
    for inode in made.values():
        at, way = inode, set()
        while isinstance(at, Directory) and at.nodeid not in known:
            if at.nodeid in way:
                raise ValueError("directories form a loop")
            way.add(at.nodeid)
            at = at.parent
        known |= way
