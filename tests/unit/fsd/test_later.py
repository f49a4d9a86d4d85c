"""Data that is captured while the guest goes on is what it was when it stood still."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crumble_fsd import copying, later
from crumble_fsd.assemble import new_session, new_tree, options_for
from crumble_fsd.freeze import freeze_session
from crumble_fsd.later import Later
from crumble_fsd.upper import WINDOW, MemoryUpper
from crumble_native.files import FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE
from framework.fsd_snapshots import Clone, Snapshot
from framework.fuse_client import FuseClient, direct

PIECE = 8192
FILES = 4
RANGES = st.tuples(st.integers(0, 5 * PIECE), st.integers(1, 3 * PIECE))
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["write", "truncate", "punch", "unlink", "create", "step", "rename"]),
        st.integers(0, FILES - 1),
        RANGES,
    ),
    max_size=25,
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pieces and files of a size that is soon written."""
    monkeypatch.setattr(later, "_PIECE", PIECE)
    monkeypatch.setattr(copying, "_SMALL", 100)


class Guest:
    """A session over nothing, and what its files are."""

    def __init__(self) -> None:
        self.upper = MemoryUpper(1 << 26)
        self.tree, nodes = new_tree([], self.upper)
        self.session = new_session(nodes, [self.tree], options_for(self.upper, shared=False))
        self.fuse = FuseClient(direct(self.session))
        self.fuse.init()
        self.nodes = [self.create(number) for number in range(FILES)]

    def create(self, number: int) -> int:
        return self.fuse.create(1, b"f%d" % number)[0].nodeid

    def write(self, number: int, offset: int, data: bytes) -> None:
        self.fuse.write(self.nodes[number], offset, data)

    def change(self, what: str, number: int, place: tuple[int, int]) -> None:
        offset, length = place
        node, name = self.nodes[number], b"f%d" % number
        if what == "write":
            self.write(number, offset, b"w" * length)
        elif what == "truncate":
            self.fuse.setattr(node, size=offset)
        elif what == "punch":
            self.fuse.fallocate(node, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE, offset, length)
        elif what == "rename":
            self.fuse.rename(1, name, 1, b"f%d" % ((number + 1) % FILES))
            self.nodes[(number + 1) % FILES] = node
            self.nodes[number] = self.create(number)
        else:  # its window may be given to the next one at once
            self.fuse.unlink(1, name)
            self.fuse.forget(node, 100)
            self.nodes[number] = self.create(number)

    def contents(self) -> list[bytes]:
        return [self.fuse.read_path(b"f%d" % number) for number in range(FILES)]


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, FILES - 1), RANGES), max_size=8), CHANGES, CHANGES)
def test_what_a_clone_reads_is_what_was_captured(
    tmp_path_factory: Any, writes: list[Any], before: list[Any], after: list[Any]
) -> None:
    """Whatever the guest does while its data is copied, and in whatever order."""
    work: Path = tmp_path_factory.mktemp("w")
    guest = Guest()
    for seed, (number, (offset, length)) in enumerate(writes):
        guest.write(number, offset, bytes([65 + seed]) * length)
    for change in before:
        if change[0] != "step":
            guest.change(*change)
    wanted = guest.contents()
    index, contents = (
        os.open(work / f"s.{n}", os.O_RDWR | os.O_CREAT) for n in ("index", "contents")
    )
    errors: list[OSError] = []
    left = guest.upper.copy_later(contents, errors.append)
    state, size = freeze_session(guest.session, guest.tree, [], index, contents, left)
    for change in after:
        if change[0] == "step":
            left.step()
        else:
            guest.change(*change)
    while left.step():
        pass
    assert left.complete and not left.pending and not errors
    os.close(index)
    os.close(contents)
    clone = Clone(Snapshot(work, "s", state, size), [])
    fuse = FuseClient(direct(clone.restored.session))
    assert [fuse.read_path(b"f%d" % number) for number in range(FILES)] == wanted
    clone.close()
    guest.upper.close()


def test_nothing_is_copied_while_the_guest_stands_still_and_a_full_disk_is_told_once() -> None:
    guest = Guest()
    for number in range(FILES):
        guest.write(number, 0, b"x" * 4 * PIECE)
    full = os.open("/dev/full", os.O_WRONLY)
    index = os.memfd_create("index")
    errors: list[OSError] = []
    left = guest.upper.copy_later(full, errors.append)
    contents = os.memfd_create("contents")
    freeze_session(guest.session, guest.tree, [], index, contents, left)
    assert os.fstat(contents).st_blocks == 0
    assert left.pending
    guest.write(1, 0, b"goes on")  # what it changes cannot be saved
    assert [error.errno for error in errors] == [errno.ENOSPC]
    assert not left.step()
    assert not left.complete
    guest.write(2, 0, b"goes on")
    assert len(errors) == 1
    assert guest.contents()[2].startswith(b"goes on")
    for fd in (full, index, contents):
        os.close(fd)
    guest.upper.close()


def test_after_a_failure_nothing_is_written_to_what_was_its_file() -> None:
    """One change of many pieces, the first of which cannot be saved; the fd is another file's then."""
    source, target = os.memfd_create("source"), os.open("/dev/full", os.O_WRONLY)
    os.pwrite(source, b"x" * 4 * PIECE, 0)
    other = os.memfd_create("other")
    later = Later(target, source, 4 * PIECE, lambda _: os.dup2(other, target))
    later.add(source, 0, 4 * PIECE, 0, holes=False)
    later.before_change(0, 4 * PIECE)
    assert not later.complete
    assert os.fstat(other).st_size == 0
    for fd in (source, target, other):
        os.close(fd)


def test_a_large_file_of_which_little_changes() -> None:
    """Only the pieces that are about to change are copied ahead of the others."""
    source, target = os.memfd_create("source"), os.memfd_create("target")
    os.pwrite(source, b"a" * 100 * PIECE, 3 * WINDOW)
    left = Later(target, source, WINDOW, lambda _: None)
    left.add(source, 3 * WINDOW, 100 * PIECE, 0, holes=False)
    left.before_change(3 * WINDOW + 50 * PIECE - 1, 2)
    assert os.fstat(target).st_blocks * 512 == 2 * PIECE
    left.before_change(4 * WINDOW, WINDOW)
    left.before_change(3 * WINDOW + 100 * PIECE, 5)
    assert os.fstat(target).st_blocks * 512 == 2 * PIECE
    left.before_change(3 * WINDOW, WINDOW)
    assert os.pread(target, 101 * PIECE, 0) == b"a" * 100 * PIECE
    os.close(source)
    os.close(target)
