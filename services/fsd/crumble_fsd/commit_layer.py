"""What a guest has written as a layer for an image: something that can be put over the layers below.

Unlike a snapshot's (freeze.py), this layer is by names alone, as OCI image-spec, layer.md has it: whiteouts,
opaque directories, hard links. A directory of a layer that was renamed is written whole, as a copy. Not in it:
shares, sockets, files without a name, files that were put in before the guest started and are unchanged.

Only what has changed is looked at: directories that were, and those above them.
"""

from __future__ import annotations

import stat
from collections import defaultdict
from collections.abc import Iterator

from crumble_common.layer_index import Inode as LayerInode
from crumble_common.layer_index import LayerIndex
from crumble_fsd.copying import Contents
from crumble_fsd.excludes import Excludes
from crumble_fsd.inodes import LAYER_SHIFT, Directory, Inode
from crumble_fsd.nodes import NodeTable
from crumble_fsd.tree import Tree

_Found = tuple[bytes, Inode | None]
"""A name and what it leads to; None: a whiteout."""


class CommitLayer:
    """Builds one layer. Everything that sleeps wakes."""

    def __init__(
        self, tree: Tree, nodes: NodeTable, contents: Contents, excludes: Excludes
    ) -> None:
        nodes.wake_all()
        self._tree = tree
        self._contents = contents
        self._excludes = excludes
        self._made: dict[int, LayerInode] = {}
        self._at: dict[tuple[int, int], Directory] = {}  # which directory shows a layer's one
        self._below: defaultdict[int, list[_Found]] = defaultdict(list)  # changed names of layers
        self._touched: set[int] = set()
        inodes = [node for node in nodes.values() if isinstance(node, Inode) and node.nlink]
        directories = [node for node in inodes if isinstance(node, Directory)]
        for directory in directories:
            for place in directory.lowers:
                self._at[place] = directory
        for directory in directories:
            if directory.pinned:
                self._touch(directory)
        for node in inodes:
            if node.pinned and node.nodeid >> LAYER_SHIFT and not isinstance(node, Directory):
                self._find_names(node)

    def build(self) -> LayerInode | None:
        """The layer's root; None when there is nothing to say."""
        root = self._directory(self._tree.root, whole=False)
        links: list[tuple[LayerInode, bytes, LayerInode]] = []
        todo: list[tuple[Directory, LayerInode, bytes, bool]] = [
            (self._tree.root, root, b"", False)
        ]
        while todo:
            directory, made, path, whole = todo.pop()
            children = made.children
            assert children is not None
            for name, child in self._names(directory, whole=whole):
                where = path + name
                is_directory = isinstance(child, Directory)
                if self._excludes.match(where, is_directory=is_directory):
                    continue
                if isinstance(child, Directory):
                    below = whole or self._is_moved(directory, name, child)
                    one = self._directory(child, whole=below)
                    one.opaque = not whole and self._hides(directory, name, child)
                    todo.append((child, one, where + b"/", below))
                    links.append((made, name, one))
                elif child is None:
                    one = LayerInode(stat.S_IFCHR, whiteout=True)
                elif stat.S_ISSOCK(child.mode) or self._is_injected(child):
                    continue
                else:
                    one = self._file(child)
                children[name] = one
        return _pruned(root, links)

    # What has changed.

    def _touch(self, directory: Directory) -> None:
        """The directory and those above it are to be looked at."""
        while directory.nodeid not in self._touched:
            self._touched.add(directory.nodeid)
            parent = directory.parent
            name = self._layer_name(directory)
            if parent is not directory and name is not None:
                self._below[parent.nodeid].append((name, directory))
            directory = parent

    def _layer_name(self, directory: Directory) -> bytes | None:
        """The directory's name, when its parent has it from a layer."""
        if not directory.lowers:
            return None
        parent, (layer, row) = directory.parent, directory.lowers[0]
        name = self._tree.layer_index(layer).name(row)
        if name in (parent.children or ()) or self._is_moved(parent, name, directory):
            return None
        return name

    def _find_names(self, node: Inode) -> None:
        """A layer's file was changed: every name of it that still shows is to be written."""
        layer, row = (node.nodeid >> LAYER_SHIFT) - 1, node.nodeid & ((1 << LAYER_SHIFT) - 1)
        index = self._tree.layer_index(layer)
        for one in _rows_of(index, row):
            entry = index.entry(one)
            directory = self._shown(layer, entry.parent)
            if directory is None or entry.name in (directory.children or {}):
                continue
            if self._tree.find(directory, entry.name) is node:
                self._below[directory.nodeid].append((entry.name, node))
                self._touch(directory)

    def _shown(self, layer: int, row: int) -> Directory | None:
        """The directory of the tree that shows a layer's directory."""
        way: list[int] = []
        index = self._tree.layer_index(layer)
        while (layer, row) not in self._at and row:
            way.append(row)
            row = index.entry(row).parent
        found = self._at.get((layer, row))
        for step in reversed(way):
            child = self._tree.find(found, index.name(step)) if found is not None else None
            found = child if isinstance(child, Directory) else None
            if found is None or (layer, step) not in found.lowers:
                return None
            for place in found.lowers:
                self._at[place] = found
        return found

    # What a directory says.

    def _names(self, directory: Directory, *, whole: bool) -> Iterator[_Found]:
        """Names to write: all there are, or those that differ from the layers."""
        if whole:
            for _, name in list(self._tree.listing(directory).after(0)):
                child = self._tree.find(directory, name)
                if child is not None:
                    yield name, child
            return
        for name in list(directory.children or ()):
            yield name, self._tree.find(directory, name)
        yield from self._below[directory.nodeid]

    def _is_moved(self, parent: Directory, name: bytes, child: Directory) -> bool:
        """It shows layers' directories that are not those of its place."""
        return bool(child.lowers) and child.lowers != self._tree.lowers_at(parent, name)

    def _hides(self, parent: Directory, name: bytes, child: Directory) -> bool:
        """Layers have something else at its place."""
        there = self._tree.lowers_at(parent, name)
        return bool(there) and child.lowers != there

    def _is_injected(self, node: Inode) -> bool:
        return self._tree.injected.get(node.nodeid) == node.mtime

    # Inodes.

    def _directory(self, node: Directory, *, whole: bool) -> LayerInode:
        made = self._attributes(node)
        made.children = {}
        made.implicit = not whole and not node.pinned
        return made

    def _attributes(self, node: Inode) -> LayerInode:
        return LayerInode(
            node.mode, node.uid, node.gid, mtime_ns=node.mtime, xattrs=dict(node.xattrs or {})
        )

    def _file(self, node: Inode) -> LayerInode:
        """Made once for all names of the inode."""
        made = self._made.get(node.nodeid)
        if made is not None:
            return made
        made = self._made[node.nodeid] = self._attributes(node)
        made.rdev, made.target = node.rdev, node.target
        if stat.S_ISREG(node.mode):
            fd = node.fd if node.fd >= 0 else self._tree.upper.open(node)
            made.size = node.size
            made.offset = self._contents.add(fd, node.base, node.size, holes=node.sparse)
        return made


def _rows_of(index: LayerIndex, first: int) -> Iterator[int]:
    """All rows of an inode of which `first` is the first."""
    yield first
    more = index.entry(first).nlink - 1
    for row in range(first + 1, index.count):
        if more <= 0:
            return
        if index.link(row) == first:
            more -= 1
            yield row


def _pruned(
    root: LayerInode, links: list[tuple[LayerInode, bytes, LayerInode]]
) -> LayerInode | None:
    """Without directories that say nothing; None when the root does not either."""
    for parent, name, made in reversed(links):
        if made.implicit and not made.opaque and not made.children:
            assert parent.children is not None
            del parent.children[name]
    return None if root.implicit and not root.children else root
