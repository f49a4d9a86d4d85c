"""Captures that somebody has changed.

Invariant: whatever state and layer are given, restoring raises a CrumbleError or makes a session that
answers every request with a reply or an errno; no bug of ours shows, and nothing outside the layers is read.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crumble_common import log
from crumble_common.errors import CrumbleError
from crumble_common.messages.fs import Share
from crumble_fsd import fuse_wire as w
from crumble_fsd.assemble import add_shares, new_session, new_tree, options_for
from crumble_fsd.node_record import FIXED_SIZE
from crumble_fsd.node_table import NodeTableReader, NodeTableWriter
from crumble_fsd.share_state import parse_share
from crumble_fsd.union_parts import LayerFiles
from crumble_fsd.upper import MemoryUpper
from framework.fsd_snapshots import Clone, Snapshot, capture
from framework.fuse_client import FuseClient, direct
from framework.layers import write_layer

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), (1 << 64) - 1) | st.binary(max_size=4)
    | st.text(max_size=4) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)  # fmt: skip


class Victim:
    """A capture with something of everything in it."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.shares = [Share(str(work / "shared"), "/mnt/s")]
        (work / "shared" / "d").mkdir(parents=True)
        (work / "shared" / "f").write_bytes(b"host")
        (work / "outside").write_bytes(b"secret")
        low = {"d": {"a": b"A", "b": b"B" * 5000, "e": {"f": b"F"}}, "l": "d", "g": b"G"}
        self.layers = [write_layer(work, "l0", low), write_layer(work, "l1", {"d": {"c": b"C"}})]
        upper = MemoryUpper(1 << 26)
        tree, nodes = new_tree(self.layers, upper)
        shares = add_shares(tree, nodes, self.shares)
        options = options_for(upper, shared=True, remote_locks=True)
        session = new_session(nodes, [tree, *shares], options)
        self.write(FuseClient(direct(session)))
        self.snapshot = capture(work, "s", session, tree, shares)
        self.index = (work / "s.index").read_bytes()
        shares[0].close()
        upper.close()

    def write(self, fuse: FuseClient) -> None:
        fuse.init()
        directory = fuse.resolve("d").nodeid
        new, _ = fuse.create(directory, b"new")
        fuse.write(new.nodeid, 0, b"N" * 9000)
        fuse.write(new.nodeid, 1 << 20, b"end")
        fuse.link(new.nodeid, 1, b"hard")
        fuse.lock(w.FUSE_SETLK, new.nodeid, 5, 1, 0, 9)
        fuse.unlink(directory, b"a")
        fuse.rename(directory, b"e", 1, b"moved")
        fuse.setattr(fuse.resolve("g").nodeid, mode=0o600)
        fuse.setxattr(new.nodeid, b"user.x", b"y")
        fuse.symlink(1, b"soft", b"nowhere")
        fuse.resolve("d/b")
        fuse.listdir(directory, plus=True)
        shared = fuse.resolve("mnt/s/f").nodeid
        fuse.open(shared)
        fuse.readdir(fuse.resolve("mnt/s").nodeid, fh=fuse.opendir(fuse.resolve("mnt/s").nodeid))
        fuse.unlink(1, b"hard")

    def attack(self, state: bytes, index: bytes) -> None:
        """Restores the changed capture and does everything with it."""
        bugs: list[BaseException] = []
        with (
            tempfile.TemporaryDirectory(dir=self.work) as where,
            pytest.MonkeyPatch.context() as patch,
        ):
            patch.setattr(log, "exception", lambda _event, problem, **_: bugs.append(problem))
            patch.setattr(log, "error", lambda *_, **__: None)
            patch.setattr(log, "warning", lambda *_, **__: None)
            (Path(where) / "s.index").write_bytes(index)
            (Path(where) / "s.contents").hardlink_to(self.work / "s.contents")
            snapshot = Snapshot(Path(where), "s", state, 0)
            try:
                clone = Clone(snapshot, self.layers, self.shares)
            except CrumbleError as error:
                assert error.hint or error.code
                return
            try:
                self.use(FuseClient(direct(clone.restored.session)))
                with contextlib.suppress(CrumbleError, OSError, ValueError):
                    again = capture(
                        Path(where), "t", clone.restored.session, clone.restored.tree,
                        clone.restored.shares,
                    )  # fmt: skip
                    assert again.state
            finally:
                clone.close()
        if bugs:
            raise bugs[0]

    def use(self, fuse: FuseClient) -> None:
        """What a guest does, at every inode it can find or guess."""
        seen = {1, 1 << 62, *range(2, 12), (1 << 32) | 3, (2 << 32) | 1}
        todo = list(seen)
        while todo and len(seen) < 60:
            nodeid = todo.pop()
            with contextlib.suppress(OSError):
                for entry in fuse.listdir(nodeid, plus=True):
                    if entry.entry is not None and entry.entry.nodeid not in seen:
                        seen.add(entry.entry.nodeid)
                        todo.append(entry.entry.nodeid)
        for nodeid in seen:
            for use in (
                lambda: fuse.getattr(nodeid),  # noqa: B023
                lambda: b"secret" not in fuse.read(nodeid, 0, 20_000) or 1 / 0,  # noqa: B023
                lambda: fuse.read(nodeid, 0, 9, 1),  # noqa: B023
                lambda: fuse.readdir(nodeid, 3, fh=2),  # noqa: B023
                lambda: fuse.lseek(nodeid, 0, os.SEEK_HOLE),  # noqa: B023
                lambda: fuse.readlink(nodeid),  # noqa: B023
                lambda: fuse.write(nodeid, 4000, b"x", 0),  # noqa: B023
                lambda: fuse.create(nodeid, b"made"),  # noqa: B023
                lambda: fuse.rename(nodeid, b"new", 1, b"renamed"),  # noqa: B023
                lambda: fuse.unlink(nodeid, b"b"),  # noqa: B023
                lambda: fuse.rmdir(nodeid, b"d"),  # noqa: B023
                lambda: fuse.lock(w.FUSE_SETLK, nodeid, 8, 1),  # noqa: B023
                lambda: fuse.forget(nodeid, 1 << 63),  # noqa: B023
            ):
                with contextlib.suppress(OSError):
                    use()
        with contextlib.suppress(OSError):
            fuse.init()


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    where = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=where) as work:
        made = Victim(Path(work))
        yield made
        close(made.layers)


def close(layers: list[LayerFiles]) -> None:
    for layer in layers:
        layer.index.close()
        os.close(layer.contents)


def test_the_untouched_capture_works(victim: Victim) -> None:
    victim.attack(victim.snapshot.state, victim.index)
    assert (victim.work / "outside").read_bytes() == b"secret"


def change(draw: Any, value: Any) -> Any:
    """The value with one thing in it replaced by anything."""
    if draw(st.booleans()) and isinstance(value, dict) and value:
        key = draw(st.sampled_from(sorted(value, key=str)))
        return {**value, key: change(draw, value[key])}
    if isinstance(value, list) and value and draw(st.integers(0, 3)):
        at = draw(st.integers(0, len(value) - 1))
        return [*value[:at], change(draw, value[at]), *value[at + 1 :]]
    return draw(ANYTHING)


@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_changed_state(victim: Victim, data: st.DataObject) -> None:
    state = msgpack.unpackb(victim.snapshot.state)
    key = data.draw(st.sampled_from(sorted(state)))
    state[key] = change(data.draw, state[key])
    victim.attack(msgpack.packb(state), victim.index)


@given(data=st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_changed_table(victim: Victim, data: st.DataObject) -> None:
    index = bytearray(victim.index)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(index) - 1))
        index[at] = data.draw(
            st.sampled_from([0, 1, 2, 0x7F, 0x80, 0xC0, 0xFF]) | st.integers(0, 255)
        )
    victim.attack(victim.snapshot.state, bytes(index))


@given(data=st.data())
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_changed_record(victim: Victim, data: st.DataObject) -> None:
    """Well-formed tables whose records lead wrong: to each other, to nothing, in circles."""
    start = victim.index.index(b"CRBNODES")
    reader = NodeTableReader(memoryview(victim.index)[start:])
    writer = NodeTableWriter()
    records = list(reader.left())
    numbers = [nodeid for nodeid, _, _ in records]
    for nodeid, record, place in records:
        if data.draw(st.integers(0, 4)) == 0:
            tail = change(data.draw, msgpack.unpackb(record[FIXED_SIZE:], strict_map_key=False))
            with contextlib.suppress(ValueError, OverflowError):
                tail = msgpack.packb(_renumber(data.draw, tail, numbers))
                record = record[:FIXED_SIZE] + tail
        if data.draw(st.integers(0, 9)) == 0:
            nodeid = data.draw(st.sampled_from(numbers))
        if data.draw(st.integers(0, 9)) == 0:
            place = data.draw(st.integers(0, 1 << 21))
        writer.record(nodeid, record, place)
    for nodeid, lookups in reader.mentions_left():
        writer.mention(data.draw(st.sampled_from([nodeid, *numbers])), lookups)
    token = reader.token
    reader.close()
    block = writer.pack(token)
    index = bytearray(victim.index[:start] + block)
    index[40:48] = len(index).to_bytes(8, "little")
    victim.attack(victim.snapshot.state, bytes(index))


def _renumber(draw: Any, tail: Any, numbers: list[int]) -> Any:
    """A directory's parent or children become others."""
    if isinstance(tail, list) and len(tail) == 6 and isinstance(tail[4], dict):
        children = {
            name: draw(st.sampled_from([child, 0, *numbers])) for name, child in tail[4].items()
        }
        return [*tail[:2], draw(st.sampled_from(numbers)), tail[3], children, tail[5]]
    return tail


@given(st.binary(max_size=300))
def test_any_bytes_as_a_state(victim: Victim, state: bytes) -> None:
    victim.attack(state, victim.index)


@given(ANYTHING)
def test_any_description_of_a_share(value: Any) -> None:
    with contextlib.suppress(ValueError):
        parse_share(value, 0)
