"""The union of read-only image layers below one upper: finding, listing and reading.

A name is looked up in the upper part of its directory, then in each layer that shows through, highest
first. A whiteout or a non-directory ends the search; an opaque directory ends it after itself. What
changes the tree is in union_names.py and union_data.py.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import cast

from crumble_common.errors import HostError
from crumble_common.layer_index import Entry
from crumble_fsd import copying
from crumble_fsd.filesystem import Dirent, Handle, Node, Statfs, fail
from crumble_fsd.fuse_wire import FOPEN_CACHE_DIR, FOPEN_KEEP_CACHE, FOPEN_NOFLUSH
from crumble_fsd.inodes import (
    BLOCK,
    Directory,
    Inode,
    lower_directory,
    lower_file,
    lower_nodeid,
)
from crumble_fsd.listing import Listing
from crumble_fsd.union_parts import UnionParts
from crumble_fsd.views import first_bytes, skip_bytes

# The tree belongs to this one guest, which sees its own changes: it may keep what it was told.
FOREVER = 1 << 30
FIRST_COOKIE = 2  # "." resumes at 1, ".." at 2


class Union(UnionParts):
    """Layers and an upper as one tree."""

    entry_valid = attr_valid = negative_valid = FOREVER

    # Finding.

    def lookup(self, directory: Directory, name: bytes) -> Node | None:
        """See Filesystem."""
        child = self.find(directory, name)
        return child.graft or child if child is not None else None

    def find(self, directory: Directory, name: bytes) -> Inode | None:
        """The inode, not what is grafted over it. ENOTDIR."""
        if not isinstance(directory, Directory):
            fail(errno.ENOTDIR)
        children = directory.children
        if children is not None and name in children:
            child = children[name]
            if type(child) is int:
                child = children[name] = self._wake_child(child)
            return cast("Inode | None", child)
        return self._find_lower(directory, name) if directory.lowers else None

    def _wake_child(self, nodeid: int) -> Inode:
        child = self._known(nodeid)
        if child is None:
            raise HostError("A name in the snapshot leads to nothing.", code="snapshot.corrupt")
        return child

    def _known(self, nodeid: int) -> Inode | None:
        """The inode, if there is one by that number already."""
        return cast("Inode | None", self._nodes.get(nodeid) or self._nodes.wake(nodeid))

    def lowers_at(self, directory: Directory, name: bytes) -> tuple[tuple[int, int], ...]:
        """What the layers have at a name, whatever the upper says: (layer, row), highest first."""
        found, file = self._merged(directory, name)
        found = found or ([file] if file else [])
        return tuple((number, entry.row) for number, entry in found)

    def _find_lower(self, directory: Directory, name: bytes) -> Inode | None:
        merged, file = self._merged(directory, name)
        if file is not None:
            return self._lower_file(*file)
        return self._lower_directory(merged, directory) if merged else None

    def _merged(
        self, directory: Directory, name: bytes
    ) -> tuple[list[tuple[int, Entry]], tuple[int, Entry] | None]:
        """The layers' directories of a name, highest first; or the file that is there instead."""
        merged: list[tuple[int, Entry]] = []
        for number, row in directory.lowers:
            index = self._layers[number].index
            found = index.find(row, name)
            if found is None:
                continue
            entry = index.entry(found)
            if entry.whiteout:
                break
            if not stat.S_ISDIR(entry.mode):
                if not merged:
                    return merged, (number, entry)
                break
            merged.append((number, entry))
            if entry.opaque:
                break
        return merged, None

    def _lower_file(self, number: int, entry: Entry) -> Inode:
        node = self._known(lower_nodeid(number, entry.link))
        if node is not None:
            return node
        return lower_file(self, number, self._layers[number].contents, entry)

    def _lower_directory(self, merged: list[tuple[int, Entry]], parent: Directory) -> Directory:
        node = self._known(lower_nodeid(merged[0][0], merged[0][1].row))
        if isinstance(node, Directory):
            return node
        made = lower_directory(self, merged, parent)
        self._nodes[made.nodeid] = made
        return made

    def shows_through(self, directory: Directory, name: bytes) -> bool:
        """True when a layer has the name: removing it needs a whiteout."""
        for number, row in directory.lowers:
            index = self._layers[number].index
            found = index.find(row, name)
            if found is not None:
                return not index.entry(found).whiteout
        return False

    def remember(self, node: Inode) -> None:
        """See Filesystem."""
        if node.lookups == 0:
            self._nodes[node.nodeid] = node
        node.lookups += 1

    def forget(self, node: Inode, count: int) -> None:
        """See Filesystem."""
        node.lookups = max(0, node.lookups - count)
        if node.lookups == 0:
            self._drop_if_unused(node)

    def _drop_if_unused(self, node: Inode) -> None:
        """Frees what has no name and is unknown to the guest; lets go of what can be made again."""
        if node.lookups or node is self.root:
            return
        if node.nlink == 0:
            del self._nodes[node.nodeid]
            self._free(node)
        elif not node.pinned and not isinstance(node, Directory):
            del self._nodes[node.nodeid]

    def _free(self, node: Inode) -> None:
        raise NotImplementedError

    # Listing.

    def opendir(self, node: Directory) -> tuple[Handle | None, int]:  # noqa: ARG002  of Filesystem
        """See Filesystem."""
        return None, FOPEN_KEEP_CACHE | FOPEN_CACHE_DIR

    def entries(
        self,
        node: Directory,
        handle: Handle | None,  # noqa: ARG002  of Filesystem
        cookie: int,
        *,
        nodes: bool,
    ) -> Iterator[Dirent]:
        """See Filesystem."""
        if not isinstance(node, Directory):
            fail(errno.ENOTDIR)
        if cookie == 0:
            yield Dirent(1, b".", node.nodeid, stat.S_IFDIR, None)
        if cookie <= 1:
            yield Dirent(2, b"..", node.parent.nodeid, stat.S_IFDIR, None)
        start = max(cookie, FIRST_COOKIE)
        if node.listing is None and node.children is None and len(node.lowers) == 1:
            node.listed = True
            yield from self._layer_entries(node, start, nodes)
            return
        for at, name in self.listing(node).after(start):
            child = self.lookup(node, name)
            if child is not None:
                yield Dirent(at + 1, name, child.nodeid, child.mode, child if nodes else None)

    def _layer_entries(self, node: Directory, start: int, nodes: bool) -> Iterator[Dirent]:
        """Entries of a directory that is one layer's, unchanged: cookies follow the rows."""
        number, row = node.lowers[0]
        index = self._layers[number].index
        rows = index.children(row)
        for child_row in rows[start - FIRST_COOKIE :]:
            entry = index.entry(child_row)
            if entry.whiteout:
                continue
            at = child_row - rows.start + FIRST_COOKIE + 1
            nodeid = lower_nodeid(number, entry.link)
            known: Node | None = self._known(nodeid)
            if known is None and nodes:
                if stat.S_ISDIR(entry.mode):
                    known = self._lower_directory([(number, entry)], node)
                else:
                    known = lower_file(self, number, self._layers[number].contents, entry)
            if isinstance(known, Inode) and known.graft is not None:
                known = known.graft
                nodeid = known.nodeid
            yield Dirent(at, entry.name, nodeid, entry.mode, known if nodes else None)

    def listing(self, directory: Directory) -> Listing:
        """The directory's names with cookies that stay as it changes."""
        if directory.listing is None:
            directory.listing = Listing(self._all_names(directory), FIRST_COOKIE)
        return directory.listing

    def _all_names(self, directory: Directory) -> Iterator[bytes | None]:
        """Names in row order of each layer, highest first, then those only in the upper.

        A name the layer or the upper whites out holds its place in the first layer.
        """
        children = directory.children or {}
        met: set[bytes] = set()
        for depth, (number, row) in enumerate(directory.lowers):
            index = self._layers[number].index
            for child_row in index.children(row):
                entry = index.entry(child_row)
                if entry.name in met:
                    continue
                met.add(entry.name)
                hidden = children[entry.name] is None if entry.name in children else entry.whiteout
                if not hidden:
                    yield entry.name
                elif depth == 0:
                    yield None
        for name, child in children.items():
            if name not in met and child is not None:
                yield name

    def is_empty(self, directory: Directory) -> bool:
        """True when it holds no names."""
        if directory.listing is not None:
            return len(directory.listing) == 0
        return all(name is None for name in self._all_names(directory))

    # Reading.

    def attr(self, node: Inode) -> bytes:
        """See Filesystem."""
        packed = node.packed
        if packed is None:
            if node.sparse:
                blocks = self._upper.blocks(node) if node.owned else _captured_blocks(node)
            else:
                blocks = (node.size + BLOCK - 1) // BLOCK * (BLOCK // 512)
            packed = node.packed = node.pack(blocks)
        return packed

    def btime(self, node: Inode) -> int | None:
        """See Filesystem."""
        return node.btime

    def readlink(self, node: Inode) -> bytes:
        """See Filesystem."""
        if not stat.S_ISLNK(node.mode):
            fail(errno.EINVAL)
        return node.target

    def open(
        self,
        node: Inode,
        flags: int,  # noqa: ARG002  of Filesystem
        *,
        kill: bool,  # noqa: ARG002
    ) -> tuple[Handle | None, int]:
        """See Filesystem. Truncation comes as SETATTR: FUSE_ATOMIC_O_TRUNC is not offered."""
        if not stat.S_ISREG(node.mode):
            fail(errno.EISDIR if stat.S_ISDIR(node.mode) else errno.EACCES)
        return None, FOPEN_KEEP_CACHE | FOPEN_NOFLUSH

    def read(
        self,
        node: Inode,
        handle: Handle | None,  # noqa: ARG002  of Filesystem
        offset: int,
        views: list[memoryview],
        size: int,
    ) -> int:
        """See Filesystem."""
        room = node.size - offset
        if room < size:
            if not stat.S_ISREG(node.mode):
                fail(errno.EISDIR if stat.S_ISDIR(node.mode) else errno.EINVAL)
            if room <= 0:
                return 0
            views, size = first_bytes(views, room), room
        fd = node.fd if node.fd >= 0 else self._upper.open(node)
        done = os.preadv(fd, views, node.base + offset)
        if done != size:
            done += self._read_rest(fd, views, node.base + offset, done, size)
        return done

    def _read_rest(self, fd: int, views: list[memoryview], at: int, done: int, size: int) -> int:
        """What a short preadv left; zeros past the end of an upper file, EIO where a layer ends."""
        more = 0
        while done + more < size:
            rest = skip_bytes(views, done + more)
            count = os.preadv(fd, rest, at + done + more)
            if count == 0:
                fail(errno.EIO)
            more += count
        return more

    def statfs(self, node: Node) -> Statfs:  # noqa: ARG002  of Filesystem
        """See Filesystem."""
        return self._upper.statfs()


def _captured_blocks(node: Inode) -> int:
    return copying.data_blocks(node.fd, node.base, node.base + node.size)
