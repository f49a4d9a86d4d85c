"""What a union is made of: layers, an upper, and inodes that are made again of records.

Records come from the journal of an upper's directory (upper_record.py) or from a capture (thaw.py).
"""

from __future__ import annotations

import stat
from dataclasses import dataclass

from crumble_common.layer_index import Entry, LayerIndex
from crumble_fsd.clock import CLOCK
from crumble_fsd.filesystem import Filesystem
from crumble_fsd.fuse_wire import FUSE_ROOT_ID
from crumble_fsd.inodes import BLOCK, LAYER_SHIFT, Directory, Inode, lower_directory, lower_file
from crumble_fsd.nodes import NodeTable
from crumble_fsd.upper import INODE_COST, NAME_COST, Upper


@dataclass(frozen=True, slots=True)
class LayerFiles:
    """A layer: its index, and a descriptor of its contents."""

    index: LayerIndex
    contents: int


class UnionParts(Filesystem):
    """Layers (lowest first) and an upper. `nodes`: every node of the session, by nodeid."""

    # Where a restored tree has data from that is not the image's.
    captured: LayerFiles | None = None

    def __init__(self, layers: list[LayerFiles], upper: Upper, nodes: NodeTable) -> None:
        if len(layers) >= 1 << (62 - LAYER_SHIFT):
            raise ValueError("too many layers")
        self._layers = layers
        self._upper = upper
        self._nodes = nodes
        self.root = self._make_root()
        nodes[FUSE_ROOT_ID] = self.root
        self._next_id = upper.restore(self)

    def _make_root(self) -> Directory:
        entries = [(number, layer.index.entry(0)) for number, layer in self._top_down()]
        for depth, (_, entry) in enumerate(entries):
            if entry.opaque:
                del entries[depth + 1 :]
                break
        if entries:
            return lower_directory(self, entries, None)
        root = Directory(self, FUSE_ROOT_ID, stat.S_IFDIR | 0o755, 0, 0, None)
        root.set_times(CLOCK.now())
        root.size = BLOCK
        return root

    def _top_down(self) -> list[tuple[int, LayerFiles]]:
        return list(enumerate(self._layers))[::-1]

    # Restoring: see upper_record.Records.

    def make_directory(self, nodeid: int, mode: int, uid: int, gid: int) -> Directory:
        """See Records."""
        if nodeid == FUSE_ROOT_ID:
            return self.root
        if nodeid >> LAYER_SHIFT and not self.is_directory(*_lower_place(nodeid)):
            raise ValueError("a directory was none in its layer")
        made = Directory(self, nodeid, mode, uid, gid, self.root)
        made.size = BLOCK
        return made

    def make_inode(self, nodeid: int, mode: int, uid: int, gid: int) -> Inode:
        """See Records."""
        if nodeid >> LAYER_SHIFT == 0:
            return Inode(self, nodeid, mode, uid, gid)
        made = self.layer_file(nodeid)
        if stat.S_IFMT(made.mode) != stat.S_IFMT(mode):
            raise ValueError("an inode is of another kind than in its layer")
        return made

    def layer_file(self, nodeid: int) -> Inode:
        """The inode of a layer's file by its number alone; ValueError when it is no such number."""
        number, row = _lower_place(nodeid)
        entry = self.entry(number, row)
        if stat.S_ISDIR(entry.mode) or entry.whiteout or entry.link != row:
            raise ValueError("a number is of no file of a layer")
        return lower_file(self, number, self._layers[number].contents, entry)

    def layer_index(self, layer: int) -> LayerIndex:
        """The index of a layer."""
        return self._layers[layer].index

    def entry(self, layer: int, row: int) -> Entry:
        """A row of a layer; ValueError when there is none."""
        if not 0 <= layer < len(self._layers) or row >= self._layers[layer].index.count:
            raise ValueError("no layer has such a row")
        return self._layers[layer].index.entry(row)

    def is_directory(self, layer: int, row: int) -> bool:
        """See Records."""
        if not 0 <= layer < len(self._layers):
            return False
        index = self._layers[layer].index
        return 0 <= row < index.count and stat.S_ISDIR(index.entry(row).mode)

    def restored(self, inode: Inode, names: int) -> None:
        """See Records."""
        count = len(inode.children or ()) if isinstance(inode, Directory) else 0
        inode.charged = INODE_COST if inode.nodeid >> LAYER_SHIFT == 0 else 0
        self._upper.charge(names + count * NAME_COST, force=True)
        self._nodes[inode.nodeid] = inode

    # Capturing and restoring a session: see freeze.py and thaw.py.

    def is_captured(self, node: Inode) -> bool:
        """True when a regular file's data is not the image's."""
        return node.owned or (self.captured is not None and node.fd == self.captured.contents)

    def shape(self) -> list[list[int]]:
        """What tells the layers from others, lowest first."""
        return [[layer.index.count, layer.index.contents_size] for layer in self._layers]

    @property
    def upper(self) -> Upper:
        """Where writes go."""
        return self._upper

    @property
    def next_id(self) -> int:
        """The number of the next new inode."""
        return self._next_id

    def resume(self, captured: LayerFiles, next_id: int, charged: int) -> None:
        """Goes on from a capture, whose inodes sleep."""
        self.captured = captured
        self._next_id = next_id
        self._upper.charge(charged, force=True)


def _lower_place(nodeid: int) -> tuple[int, int]:
    """Layer and row of a lower inode's number."""
    return (nodeid >> LAYER_SHIFT) - 1, nodeid & ((1 << LAYER_SHIFT) - 1)
