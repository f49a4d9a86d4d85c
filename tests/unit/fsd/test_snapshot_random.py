"""Random file operations, captures and restores on fsd, and the same operations on a real directory.

Invariant: a session that goes on from a capture answers everything as the one that was captured would
have: same tree, same numbers, same open files, same directory cookies.
"""

import os

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import invariant, rule

from crumble_fsd.assemble import new_session, new_tree, options_for
from crumble_fsd.upper import MemoryUpper
from framework.fsd_snapshots import Clone, Snapshot, capture, commit
from framework.fuse_client import Attr, Entry, FuseClient, direct
from framework.tree_machine import OFFSETS, PATHS, PHASES, Machine
from framework.trees import fuse_tree, real_tree


class SnapshotMachine(Machine):
    """Goes on in a clone, or in the original, or in one of two clones that have been used by turns."""

    clone: Clone | None = None
    captures = 0
    steps = 0

    def take(self) -> Snapshot:
        self.captures += 1
        session = self.session if self.clone is None else self.clone.restored.session
        tree = self.tree if self.clone is None else self.clone.restored.tree
        return capture(self.work, f"s{self.captures}", session, tree)

    def go_on_in(self, snapshot: Snapshot) -> None:
        self.drop_clone()
        self.clone = Clone(snapshot, self.layers)
        self.fuse = FuseClient(direct(self.clone.restored.session))

    def drop_clone(self) -> None:
        if self.clone is not None:
            self.clone.close()
            self.clone = None

    @invariant()
    def same_trees(self) -> None:
        """Looking at everything wakes everything, so mostly that is done in a clone of its own."""
        if not hasattr(self, "fuse") or self.steps % 4:
            self.steps += 1
            return
        self.steps += 1
        other = Clone(self.take(), self.layers)
        try:
            assert real_tree(self.real) == fuse_tree(FuseClient(direct(other.restored.session)), 1)
        finally:
            other.close()

    @rule()
    def restore(self) -> None:
        self.go_on_in(self.take())

    @rule(
        path=PATHS,
        data=st.binary(min_size=1, max_size=9),
        slot=st.integers(0, 3),
        early=st.booleans(),
    )
    def use_removed(self, path: str, data: bytes, slot: int, *, early: bool) -> None:
        """An open file that loses its name goes on in the clone."""
        self.open_file(path, slot)
        if early:
            self.unlink(path)
        self.restore()
        if not early:
            self.unlink(path)
        self.use_open(slot, 3, data)

    @rule()
    def commit(self) -> None:
        """The layers with what was written as one more layer are the same tree."""
        clone = self.clone.restored if self.clone is not None else self
        layer = commit(self.work, "commit", clone.session, clone.tree)
        layers = [*self.layers, layer] if layer is not None else self.layers
        upper = MemoryUpper(1 << 20)
        tree, nodes = new_tree(layers, upper)
        fuse = FuseClient(direct(new_session(nodes, [tree], options_for(upper, shared=False))))
        fuse.init()
        try:
            assert fuse_tree(fuse, 1) == real_tree(self.real)
            before, after = ({path: kept(entry.attr) for path, entry in self.attributes(one).items()}
                             for one in (self.fuse, fuse))  # fmt: skip
            assert after == before
        finally:
            upper.close()
            if layer is not None:
                layer.index.close()
                os.close(layer.contents)

    @rule()
    def capture_only(self) -> None:
        self.take()

    @rule(data=st.binary(min_size=1, max_size=9), offset=OFFSETS)
    def a_clone_does_not_disturb(self, data: bytes, offset: int) -> None:
        """Another clone of the same snapshot writes and removes everything it can."""
        snapshot = self.take()
        other = Clone(snapshot, self.layers)
        fuse = FuseClient(direct(other.restored.session))
        for entry in fuse.listdir(1, plus=True):
            if entry.entry is not None and entry.entry.attr.mode >> 12 == 8:
                fuse.write(entry.entry.nodeid, offset, data)
                fuse.unlink(1, entry.name)
        other.close()
        self.go_on_in(snapshot)

    @rule(nodes=st.booleans())
    def restore_amid_a_listing(self, nodes: bool) -> None:
        """The second half of a listing comes from the clone."""
        size = 700 if nodes else 140
        first = self.fuse.readdir(1, 0, size, plus=nodes)
        whole = self.fuse.listdir(1)
        self.go_on_in(self.take())
        rest = first[-1].cookie if first else 0
        found = [entry.name for entry in first]
        while batch := self.fuse.readdir(1, rest, 200):
            found += [entry.name for entry in batch]
            rest = batch[-1].cookie
        assert found == [entry.name for entry in whole]

    @rule()
    def numbers_and_attributes_stay(self) -> None:
        before = self.attributes(self.fuse)
        self.go_on_in(self.take())
        assert self.attributes(self.fuse) == before

    def attributes(self, fuse: FuseClient) -> dict[bytes, Entry]:
        found: dict[bytes, Entry] = {}
        todo = [(b"", 1)]
        while todo:
            path, nodeid = todo.pop()
            for entry in fuse.listdir(nodeid, plus=True):
                if entry.entry is None or entry.name in (b".", b".."):
                    continue
                found[path + b"/" + entry.name] = entry.entry
                if entry.entry.attr.mode >> 12 == 4:
                    todo.append((path + b"/" + entry.name, entry.entry.nodeid))
        return found

    def teardown(self) -> None:
        if hasattr(self, "fuse"):
            assert real_tree(self.real) == fuse_tree(self.fuse, 1)
        self.drop_clone()
        super().teardown()


def kept(attr: Attr) -> tuple[int, ...]:
    """What an image keeps of an inode: not its number, and not a directory's links and size."""
    some = (attr.mode, attr.uid, attr.gid, attr.mtime, attr.mtimensec, attr.rdev)
    return some if attr.mode >> 12 == 4 else (*some, attr.size, attr.nlink)


TestSnapshots = SnapshotMachine.TestCase
TestSnapshots.settings = settings(
    derandomize=True, max_examples=50, stateful_step_count=50, deadline=None, phases=PHASES
)
