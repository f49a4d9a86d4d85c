"""A captured tree in a new process: inodes are made again when they are first used.

Restoring reads the header of the table of inodes and nothing more. What a record says is checked when it
is looked at, against the layers and the captured layer's size; one that makes no sense is EIO for the
guest ("snapshot.corrupt").
"""

from __future__ import annotations

import stat
from collections.abc import Callable

from crumble_common.errors import HostError
from crumble_fsd.filesystem import Node
from crumble_fsd.fuse_wire import FUSE_ROOT_ID
from crumble_fsd.inodes import BLOCK, LAYER_SHIFT, Directory, Inode, lower_directory, lower_nodeid
from crumble_fsd.node_record import CAPTURED, LISTED, SPARSE, UNCHANGED, NodeRecord, parse_node
from crumble_fsd.node_table import NO_DATA, NodeTableReader
from crumble_fsd.nodes import NodeTable
from crumble_fsd.union import Union
from crumble_fsd.union_parts import LayerFiles


class Sleepers:
    """The inodes nobody has used yet; a crumble_fsd.nodes.Waker. grafts: root of a share by its number."""

    def __init__(
        self,
        tree: Union,
        nodes: NodeTable,
        table: NodeTableReader,
        captured: LayerFiles,
        grafts: Callable[[int], Node],
    ) -> None:
        self.table = table
        self._tree = tree
        self._nodes = nodes
        self._captured = captured
        self._grafts = grafts
        self._wake_way(FUSE_ROOT_ID)

    def __len__(self) -> int:
        return len(self.table)

    def wake(self, nodeid: int) -> Node | None:
        """See Waker."""
        try:
            lookups = self.table.take_mention(nodeid)
            if lookups is None:
                return self._wake_way(nodeid)
            node = self._tree.layer_file(nodeid)
        except (ValueError, IndexError) as error:
            raise corrupt(error) from None
        node.lookups = lookups
        self._nodes[nodeid] = node
        return node

    def wake_all(self) -> None:
        """See Waker."""
        for nodeid in self.table.numbers():
            self.wake(nodeid)

    def _wake_way(self, nodeid: int) -> Node | None:
        """The inode; of a directory also those above it, which come first."""
        way: list[tuple[int, NodeRecord, int]] = []
        at = nodeid
        while not way or (at not in self._nodes and way[-1][1].is_directory):
            found = self.table.take(at)
            if found is None:
                if way:
                    raise ValueError("a directory's parent is missing")
                return None
            record = parse_node(found[0])
            way.append((at, record, found[1]))
            at = record.parent
        for number, record, place in reversed(way):
            self._nodes[number] = self._make(number, record, place)
        return self._nodes[nodeid]

    def _make(self, nodeid: int, record: NodeRecord, place: int) -> Inode:
        if record.is_directory:
            node: Inode = self._directory(nodeid, record)
        else:
            node = self._file(nodeid, record, place)
        node.lookups = record.lookups
        if record.graft >= 0:
            node.graft = self._grafts(record.graft)
        if record.flags & UNCHANGED:
            return node
        node.mode, node.uid, node.gid, node.rdev = record.mode, record.uid, record.gid, record.rdev
        node.atime, node.mtime = record.atime, record.mtime
        node.ctime, node.btime = record.ctime, record.btime
        node.nlink, node.charged, node.xattrs = record.nlink, record.charged, record.xattrs
        node.pinned = True
        return node

    def _directory(self, nodeid: int, record: NodeRecord) -> Directory:
        if not all(self._tree.is_directory(*place) for place in record.lowers):
            raise ValueError("a directory is merged of what no layer has")
        if record.flags & UNCHANGED and nodeid != FUSE_ROOT_ID:
            node = self._unchanged(nodeid, record)
        else:
            node = self._tree.make_directory(nodeid, record.mode, record.uid, record.gid)
            node.lowers = record.lowers
            node.parent = self._parent(record)
        node.listed = bool(record.flags & LISTED)
        node.listing = record.listing
        if record.children is not None:
            node.children = {name: child or None for name, child in record.children.items()}
        return node

    def _unchanged(self, nodeid: int, record: NodeRecord) -> Directory:
        if not record.lowers or lower_nodeid(*record.lowers[0]) != nodeid:
            raise ValueError("a layer's directory has another number")
        entries = [(layer, self._tree.entry(layer, row)) for layer, row in record.lowers]
        return lower_directory(self._tree, entries, self._parent(record))

    def _parent(self, record: NodeRecord) -> Directory:
        parent = self._nodes.get(record.parent)
        if not isinstance(parent, Directory):
            raise ValueError("a directory's parent is none")
        return parent

    def _file(self, nodeid: int, record: NodeRecord, place: int) -> Inode:
        node = self._tree.make_inode(nodeid, record.mode, record.uid, record.gid)
        is_regular = stat.S_ISREG(record.mode)
        if record.flags & CAPTURED:
            end = self._captured.index.contents_size
            if place == NO_DATA or place + record.size > end:
                raise ValueError("a file's data is outside the captured layer")
            node.fd, node.base, node.size = self._captured.contents, place, record.size
            node.sparse = bool(record.flags & SPARSE)
        elif is_regular and not nodeid >> LAYER_SHIFT:
            raise ValueError("a file has no data")
        if stat.S_ISLNK(record.mode):
            node.target, node.size = record.target, len(record.target)
        elif not is_regular:
            node.size = record.size if record.size <= BLOCK else 0
        return node


def corrupt(why: object) -> HostError:
    """The error for a capture that cannot be believed."""
    return HostError(
        f"The snapshot's file system state is damaged: {why}.",
        code="snapshot.corrupt",
        hint="Remove the snapshot and make it again.",
    )
