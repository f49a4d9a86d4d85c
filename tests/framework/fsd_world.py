"""A session of fsd over two layers, captures of it and clones of those."""

import os
from pathlib import Path
from typing import Any

from crumble_common.messages.fs import Share
from crumble_fsd.assemble import add_shares, new_session, new_tree, options_for
from crumble_fsd.union_parts import LayerFiles
from crumble_fsd.upper import MemoryUpper, Upper
from framework.fsd_snapshots import Clone, Snapshot, capture
from framework.fuse_client import FuseClient, direct
from framework.layers import Special, write_layer

LOW = {
    "etc": {"hosts": b"localhost\n", "big": b"B" * 100_000, "deep": {"er": {"x": b"1"}}},
    "link": "etc",
    "set": Special(b"s", mode=0o4755, xattrs={b"user.a": b"1"}),
}
HIGH = {"etc": {"passwd": b"root\n"}}


class World:
    """A session over two layers, captures of it and clones of those."""

    def __init__(self, work: Path, upper: Upper | None = None) -> None:
        self.work = work
        self.layers = [write_layer(work, "l0", LOW), write_layer(work, "l1", HIGH)]
        self.upper = upper or MemoryUpper(1 << 28)
        self.clones: list[Clone] = []
        self.shares: Any = []
        self.captures = 0
        self.begin([])

    def begin(self, shares: list[Share], *, locks: bool = False) -> None:
        for share in self.shares:
            share.close()
        self.tree, nodes = new_tree(self.layers, self.upper)
        self.shares = add_shares(self.tree, nodes, shares)
        options = options_for(self.upper, shared=bool(shares), remote_locks=locks)
        self.session = new_session(nodes, [self.tree, *self.shares], options)
        self.fuse = FuseClient(direct(self.session))
        self.fuse.init()

    def capture(self, clone: Clone | None = None) -> Snapshot:
        self.captures += 1
        name = f"s{self.captures}"
        if clone is None:
            return capture(self.work, name, self.session, self.tree, self.shares)
        restored = clone.restored
        return capture(self.work, name, restored.session, restored.tree, restored.shares)

    def clone(self, snapshot: Snapshot, shares: list[Share] | None = None) -> Clone:
        self.clones.append(Clone(snapshot, self.layers, shares))
        return self.clones[-1]

    def restored(self, shares: list[Share] | None = None) -> FuseClient:
        return client(self.clone(self.capture(), shares))

    def close(self) -> None:
        for clone in self.clones:
            clone.close()
        self.session.handles.close()
        for share in self.shares:
            share.close()
        self.upper.close()
        close(self.layers)


def close(layers: list[LayerFiles]) -> None:
    for layer in layers:
        layer.index.close()
        os.close(layer.contents)


def client(clone: Clone) -> FuseClient:
    return FuseClient(direct(clone.restored.session))
