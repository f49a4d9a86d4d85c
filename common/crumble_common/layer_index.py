"""The index of an image layer: a tree of inodes in one file that is mapped, not read.

`ocid` writes `<digest>.index` and `<digest>.contents` from a layer's tar; `fsd` maps the index and
reads files straight out of the contents. Opening costs the same for ten entries and for a million:
the header is checked on open, a row's references when that row is looked at, so nothing in a torn or
hostile file can lead outside it. Rows are in breadth-first order: a directory's children follow each
other, sorted by name, and always come after it, so no walk downwards can loop.

File, little-endian: header | rows (80 bytes each) | names | extras | extension. A row's extra is its symlink target
and extended attributes: u32 length, target, then for each attribute u16 and u32 lengths, name, value.
In the contents file, files of 4096 bytes and more start on a multiple of 4096, smaller ones are packed.
The extension is empty in an image's layer; a snapshot keeps what `fsd` knew of its inodes there.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from crumble_common.errors import HostError

CONTENTS_ALIGNMENT = 4096

_MAGIC = b"CRBLAYER"
_VERSION = 1
_HEADER = struct.Struct(
    "<8sIIQQQQ"
)  # magic, version, rows, names', extras', contents', file's length
# size, mtime_ns, offset, rdev, parent, first child, children, name offset, extra offset, extra length,
# mode, uid, gid, link, nlink, name length, flags
_ROW = struct.Struct("<QqQQIIIIIIIIIIIHH")
_NAME_OFFSET = 44  # in a row, of "name offset"
_NAME_AT = struct.Struct("<I28xH")  # from there: name offset, name length
_WHITEOUT, _OPAQUE, _IMPLICIT = 1, 2, 4
_MAX_NAME = 255  # Linux NAME_MAX
_MAX_U32 = (1 << 32) - 1


@dataclass(slots=True)
class Inode:
    """What a layer says of one inode, before it has rows: the writer's input.

    Names are the keys of `children` (None unless a directory). An inode under several names is hard
    linked. mode includes S_IFMT; size and offset (into the contents file) are bytes; rdev as
    os.makedev makes it. whiteout: the name is deleted from the layers below. opaque: a directory that
    hides what layers below have in it. implicit: a directory the archive only implied, so one of a
    lower layer keeps its attributes.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    size: int = 0
    mtime_ns: int = 0
    rdev: int = 0
    offset: int = 0
    target: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, Inode] | None = None
    whiteout: bool = False
    opaque: bool = False
    implicit: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: a name and its inode (see `Inode`). link: the row of the inode's first name."""

    row: int
    parent: int
    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    rdev: int
    offset: int
    target: bytes
    xattrs: dict[bytes, bytes]
    link: int
    nlink: int
    whiteout: bool
    opaque: bool
    implicit: bool


class LayerIndex:
    """A mapped index. Row 0 is the root; its name is empty and it is its own parent."""

    def __init__(self, path: str | Path, mapped: mmap.mmap) -> None:
        self._path = path
        self._map = mapped
        if len(mapped) < _HEADER.size:
            self._corrupt("is too short")
        magic, version, count, names, extras, contents, length = _HEADER.unpack_from(mapped)
        if magic != _MAGIC or version != _VERSION:
            self._corrupt("is not a layer index of this version")
        self.count: int = count
        self.contents_size: int = contents
        self._names: int = _HEADER.size + count * _ROW.size
        self._extras: int = self._names + names
        self._end: int = self._extras + extras
        if count == 0 or self._end > len(mapped) or length != len(mapped):
            self._corrupt("is torn")
        if not stat.S_ISDIR(self.entry(0).mode):
            self._corrupt("has a root that is no directory")

    @classmethod
    def open(cls, path: str | Path) -> LayerIndex:
        """Maps the index at `path`; raises HostError "store.corrupt", or "store.missing"."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                size = os.fstat(fd).st_size
                if size == 0:  # an empty file cannot be mapped
                    _raise_corrupt(path, "is empty")
                mapped = mmap.mmap(fd, size, access=mmap.ACCESS_READ)
            finally:
                os.close(fd)
        except OSError as error:
            raise HostError(
                f"Cannot open the layer index {path}: {error.strerror}.",
                code="store.missing",
                hint="Remove the image and pull it again.",
            ) from error
        try:
            return cls(path, mapped)
        except BaseException:
            mapped.close()
            raise

    def extension(self) -> memoryview:
        """What follows the index in its file; to be released before `close`."""
        return memoryview(self._map)[self._end :]

    def close(self) -> None:
        """Unmaps the file; the index must not be used afterwards."""
        self._map.close()

    def entry(self, row: int) -> Entry:
        """The row; IndexError when there is none, HostError "store.corrupt" when it is damaged."""
        fields = self._row(row)
        size, mtime_ns, offset, rdev, parent = fields[:5]
        extra, extra_length, mode, uid, gid, link, nlink, _, flags = fields[8:]
        target, xattrs = self._extra(extra, extra_length) if extra_length else (b"", {})
        if stat.S_ISREG(mode) and offset + size > self.contents_size:
            self._corrupt(f"places row {row} outside the contents")
        if link > row or (link != row and self._row(link)[13] != link):
            self._corrupt(f"has a bad hard link in row {row}")
        return Entry(
            row,
            parent,
            self._name(row, fields),
            mode,
            uid,
            gid,
            size,
            mtime_ns,
            rdev,
            offset,
            target,
            xattrs,
            link,
            nlink,
            bool(flags & _WHITEOUT),
            bool(flags & _OPAQUE),
            bool(flags & _IMPLICIT),
        )

    def name(self, row: int) -> bytes:
        """The row's name alone."""
        return self._name(row, self._row(row))

    def link(self, row: int) -> int:
        """The row of the first name of the row's inode."""
        return self._row(row)[13]

    def children(self, row: int) -> range:
        """The rows of a directory's children, sorted by name; empty for anything else."""
        fields = self._row(row)
        first, count = fields[5], fields[6]
        if not count:
            return range(0)
        if first <= row or first + count > self.count or not stat.S_ISDIR(fields[10]):
            self._corrupt(f"has bad children in row {row}")
        return range(first, first + count)

    def find(self, row: int, name: bytes) -> int | None:
        """The row of the child of `row` called `name`."""
        rows = self.children(row)
        low, high = rows.start, rows.stop
        mapped, names, unpack = self._map, self._names, _NAME_AT.unpack_from
        while low < high:  # reads names unchecked: bad ones lead astray, never outside the file
            middle = (low + high) // 2
            start, length = unpack(mapped, _HEADER.size + middle * _ROW.size + _NAME_OFFSET)
            if mapped[names + start : names + start + length] < name:
                low = middle + 1
            else:
                high = middle
        return low if low < rows.stop and self.name(low) == name else None

    def _row(self, row: int) -> tuple[int, ...]:
        if not 0 <= row < self.count:
            raise IndexError(row)
        fields = _ROW.unpack_from(self._map, _HEADER.size + row * _ROW.size)
        if fields[4] >= row and row:
            self._corrupt(f"has a bad parent in row {row}")
        return fields

    def _name(self, row: int, fields: tuple[int, ...]) -> bytes:
        start = self._names + fields[7]
        end = start + fields[15]
        name = self._map[start:end]
        if end > self._extras or not _is_name(name, row):
            self._corrupt(f"has a bad name in row {row}")
        return name

    def _extra(self, offset: int, length: int) -> tuple[bytes, dict[bytes, bytes]]:
        start = self._extras + offset
        if start + length > self._end:
            self._corrupt("has attributes outside the file")
        try:
            return _unpack_extra(self._map[start : start + length])
        except (struct.error, ValueError):
            return self._corrupt("has damaged attributes")

    def _corrupt(self, why: str) -> NoReturn:
        _raise_corrupt(self._path, why)


def write_index(path: str | Path, root: Inode, contents_size: int) -> int:
    """Writes the tree below `root` (temp, fsync, rename); returns the number of rows.

    contents_size: bytes of the contents file the inodes' offsets point into. Raises ValueError for a
    tree that cannot be written (bad names, an inode outside the contents, over 2**32 rows), OSError
    as the file system does.
    """
    path = Path(path)
    data = pack_index(root, contents_size)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}-{id(data):x}")
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return int(_HEADER.unpack_from(data)[2])


def pack_index(root: Inode, contents_size: int, extension: bytes = b"") -> bytes:
    """The bytes of the index file; raises ValueError as `write_index` does."""
    names, extras, rows = bytearray(), bytearray(), bytearray()
    extra_at: dict[bytes, int] = {b"": 0}
    first: dict[int, int] = {}
    links: dict[int, int] = {}
    nodes = _breadth_first(root, first, links)
    next_child = 1
    for row, (inode, parent, name) in enumerate(nodes):
        children = len(inode.children) if inode.children else 0
        extra = _pack_extra(inode)
        if extra not in extra_at:
            extra_at[extra] = len(extras)
            extras += extra
        _check_inode(inode, name, row, contents_size)
        rows += _ROW.pack(
            inode.size,
            inode.mtime_ns,
            inode.offset,
            inode.rdev,
            parent,
            next_child if children else 0,
            children,
            len(names),
            extra_at[extra],
            len(extra),
            inode.mode,
            inode.uid,
            inode.gid,
            first[id(inode)],
            links[id(inode)],
            len(name),
            _WHITEOUT * inode.whiteout | _OPAQUE * inode.opaque | _IMPLICIT * inode.implicit,
        )
        names += name
        next_child += children
    if max(len(nodes), len(names), len(extras)) > _MAX_U32:
        raise ValueError("too many names")
    length = _HEADER.size + len(rows) + len(names) + len(extras) + len(extension)
    sizes = (len(nodes), len(names), len(extras), contents_size, length)
    return b"".join((_HEADER.pack(_MAGIC, _VERSION, *sizes), rows, names, extras, extension))


def _breadth_first(
    root: Inode, first: dict[int, int], links: dict[int, int]
) -> list[tuple[Inode, int, bytes]]:
    """(inode, parent row, name) in row order; fills the first row and link count of each inode."""
    nodes: list[tuple[Inode, int, bytes]] = []
    queue = deque([(root, 0, b"")])
    while queue:
        inode, parent, name = queue.popleft()
        row = len(nodes)
        nodes.append((inode, parent, name))
        if first.setdefault(id(inode), row) != row and inode.children is not None:
            raise ValueError("a directory has two names")
        if inode.children is None:
            links[id(inode)] = links.get(id(inode), 0) + 1
            continue
        below = sorted(inode.children.items())
        links[id(inode)] = 2 + sum(child.children is not None for _, child in below)
        queue.extend((child, row, called) for called, child in below)
    return nodes


def _check_inode(inode: Inode, name: bytes, row: int, contents_size: int) -> None:
    if not _is_name(name, row):
        raise ValueError(f"bad name {name!r}")
    if stat.S_ISDIR(inode.mode) != (inode.children is not None):
        raise ValueError(f"{name!r} has children and is no directory, or the reverse")
    if stat.S_ISREG(inode.mode) and inode.offset + inode.size > contents_size:
        raise ValueError(f"{name!r} lies outside the contents")


def _is_name(name: bytes, row: int) -> bool:
    """True for one path component; the root's is empty."""
    if row == 0:
        return name == b""
    return (
        name not in (b"", b".", b"..")
        and b"/" not in name
        and b"\0" not in name
        and len(name) <= _MAX_NAME
    )


def _pack_extra(inode: Inode) -> bytes:
    if not inode.target and not inode.xattrs:
        return b""
    parts = [struct.pack("<I", len(inode.target)), inode.target]
    for key, value in sorted(inode.xattrs.items()):
        parts += [struct.pack("<HI", len(key), len(value)), key, value]
    return b"".join(parts)


def _unpack_extra(data: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Target and attributes; raises struct.error or ValueError."""
    (length,) = struct.unpack_from("<I", data)
    at = 4 + length
    target = data[4:at]
    xattrs: dict[bytes, bytes] = {}
    while at < len(data):
        key_length, value_length = struct.unpack_from("<HI", data, at)
        key_end = at + 6 + key_length
        xattrs[data[at + 6 : key_end]] = data[key_end : key_end + value_length]
        at = key_end + value_length
    if at != len(data):
        raise ValueError("lengths do not add up")
    return target, xattrs


def _raise_corrupt(path: str | Path, why: str) -> NoReturn:
    raise HostError(
        f"The layer index {path} {why}.",
        code="store.corrupt",
        hint="Remove the image and pull it again.",
    )
