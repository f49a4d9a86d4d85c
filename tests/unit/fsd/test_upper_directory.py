"""An upper in a directory: what stays, what is refused, what a kill or a full disk leaves."""

import errno
import os
import stat
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import HealthCheck, given, settings

from crumble_common.errors import CrumbleError, HostError, UsageError
from crumble_fsd import journal as journal_module
from crumble_fsd import upper_directory
from crumble_fsd.assemble import new_session, new_tree, options_for
from crumble_fsd.union_parts import LayerFiles
from crumble_fsd.upper_directory import DirectoryUpper
from framework.abandon import abandon
from framework.fuse_client import FuseClient, direct
from framework.layers import Special, open_layer, write_layer

IMAGE = {
    "etc": {"passwd": b"root", "hosts": b"h"},
    "a": {"b": {"c": {"f": b"deep"}}},
    "big": b"x" * 10_000,
    "s": Special(b"1", mode=0o4755),
}


class Life:
    """One run of fsd over the same image and upper."""

    def __init__(self, work: Path, layers: list[str] | None = None) -> None:
        if not (work / "l.index").exists():
            close_layer(write_layer(work, "l", IMAGE))
        self.layer = open_layer(work, "l")
        try:
            self.upper = DirectoryUpper(str(work / "upper"), layers or ["l"])
        except BaseException:
            close_layer(self.layer)
            raise
        try:
            tree, nodes = new_tree([self.layer], self.upper)
        except BaseException:
            self.kill()
            raise
        options = options_for(self.upper, shared=False)
        session = new_session(nodes, [tree], options, commit=self.upper.commit)
        self.fuse = FuseClient(direct(session))
        self.fuse.init()

    def kill(self) -> None:
        """Closes descriptors as the kernel would."""
        abandon(self.upper)
        close_layer(self.layer)

    def close(self) -> None:
        """Ends in good order."""
        self.upper.close()
        close_layer(self.layer)


def close_layer(layer: LayerFiles) -> None:
    layer.index.close()
    os.close(layer.contents)


Live = Callable[..., FuseClient]


@pytest.fixture
def live(tmp_path: Path) -> Any:
    """Ends the life before (killed, or in good order) and begins another."""
    lives: list[Life] = []

    def begin(*, killed: bool = True, **options: Any) -> FuseClient:
        if lives:
            lives.pop().kill() if killed else lives.pop().close()
        lives.append(Life(tmp_path, **options))
        return lives[-1].fuse

    yield begin
    if lives:
        lives.pop().close()


def test_everything_is_there_again(live: Live) -> None:
    fuse = live()
    etc = fuse.resolve("etc").nodeid
    made = fuse.create(etc, b"new")[0].nodeid
    fuse.write(made, 0, b"written")
    fuse.setxattr(made, b"user.k", b"v")
    fuse.setattr(made, mode=0o600, uid=7, mtime=5 * 10**9 + 1)
    fuse.unlink(etc, b"hosts")
    fuse.symlink(1, b"link", b"etc")
    fuse.mknod(1, b"dev", stat.S_IFCHR | 0o600, 0x103)
    fuse.rename(fuse.resolve("a/b").nodeid, b"c", 1, b"moved")
    fuse.create(fuse.resolve("moved").nodeid, b"in the moved one")
    fuse.link(made, 1, b"second name")
    fuse.write(fuse.resolve("big").nodeid, 5000, b"Y")
    fuse.setattr(fuse.resolve("s").nodeid, uid=9)
    numbers = {
        p: fuse.resolve(p).nodeid for p in ("etc/new", "moved", "moved/f", "big", "s", "a/b")
    }
    fuse = live()
    assert fuse.names(etc) == {b"passwd", b"new"}
    attr = fuse.resolve("etc/new").attr
    assert (attr.mode, attr.uid, attr.nlink, attr.size) == (stat.S_IFREG | 0o600, 7, 2, 7)
    assert (attr.mtime, attr.mtimensec) == (5, 1)
    assert fuse.read_path("second name") == b"written"
    assert fuse.getxattr(made, b"user.k") == b"v"
    assert fuse.readlink(fuse.resolve("link").nodeid) == b"etc"
    assert fuse.resolve("dev").attr.rdev == 0x103
    assert fuse.names(fuse.resolve("moved").nodeid) == {b"f", b"in the moved one"}
    assert fuse.names(fuse.resolve("a/b").nodeid) == set()
    assert fuse.read_path("moved/f") == b"deep"
    assert fuse.read_path("big") == b"x" * 5000 + b"Y" + b"x" * 4999
    attr = fuse.resolve("s").attr
    assert (attr.uid, attr.mode & 0o7777) == (9, 0o755)
    assert numbers == {path: fuse.resolve(path).nodeid for path in numbers}
    assert fuse.create(1, b"next")[0].nodeid not in numbers.values()


def test_a_directory_below_an_unchanged_one_of_a_moved_one(live: Live) -> None:
    fuse = live()
    fuse.rename(1, b"a", fuse.resolve("etc").nodeid, b"a2")
    fuse.create(fuse.resolve("etc/a2/b/c").nodeid, b"g")
    fuse = live()
    assert fuse.names(fuse.resolve("etc/a2/b/c").nodeid) == {b"f", b"g"}
    fuse.rename(fuse.resolve("etc/a2/b").nodeid, b"c", 1, b"c")
    fuse = live(killed=False)
    assert fuse.names(fuse.resolve("c").nodeid) == {b"f", b"g"}


def test_removed_and_open_files_leave_no_data(live: Live, tmp_path: Path) -> None:
    fuse = live()
    for name in (b"gone", b"open"):
        node = fuse.create(1, name)[0].nodeid
        fuse.write(node, 0, b"data")
        fuse.unlink(1, name)
        if name == b"gone":
            fuse.forget(node)
    assert fuse.read(node, 0, 10) == b"data"
    (tmp_path / "upper/data/half-made").write_bytes(b"")
    fuse = live()
    assert fuse.names(1) == {name.encode() for name in IMAGE}
    assert list((tmp_path / "upper/data").iterdir()) == []


def test_one_vm_at_a_time_and_one_image(live: Live, tmp_path: Path) -> None:
    live()
    before = os.listdir("/proc/self/fd")  # noqa: PTH208
    with pytest.raises(UsageError, match="in use by another VM"):
        Life(tmp_path)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208
    with pytest.raises(UsageError, match="made over another image"):
        live(layers=["another"])
    live()


def test_a_torn_end_is_dropped(live: Live, tmp_path: Path) -> None:
    fuse = live()
    fuse.create(1, b"whole")
    journal = tmp_path / "upper/journal"
    size = journal.stat().st_size
    fuse.create(1, b"torn")
    with journal.open("r+b") as file:
        file.truncate(size + 20)
    assert b"torn" not in live().names(1)
    assert b"whole" in live().names(1)


def test_damage_is_refused_in_a_sentence(live: Live, tmp_path: Path) -> None:
    live().create(1, b"f")
    journal = tmp_path / "upper/journal"
    (tmp_path / "upper/data" / next((tmp_path / "upper/data").iterdir()).name).unlink()
    with pytest.raises(HostError, match="is damaged: the data of inode"):
        live()
    bad = msgpack.packb([["?"]])
    journal.write_bytes(journal_module._FRAME.pack(len(bad), zlib.crc32(bad)) + bad)
    with pytest.raises(HostError, match="is damaged"):
        live()


def test_the_journal_is_rewritten_when_it_grows(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upper_directory, "_COMPACT_AT", 4000)
    fuse = live()
    for number in range(300):
        fuse.create(1, b"same")
        fuse.unlink(1, b"same")
        fuse.forget(number + 2)
    fuse.create(1, b"kept")
    assert (tmp_path / "upper/journal").stat().st_size < 8000
    fuse = live()
    assert b"kept" in fuse.names(1)
    assert fuse.create(1, b"new")[0].nodeid > 302


def test_data_files_kept_open_are_bounded(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upper_directory, "_MAX_OPEN", 8)
    fuse = live()
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    nodes = [fuse.create(1, b"f%d" % n)[0].nodeid for n in range(50)]
    for node in nodes:
        fuse.write(node, 0, b"%d" % node)
    assert len(os.listdir("/proc/self/fd")) - before <= 8  # noqa: PTH208
    for node in nodes:
        assert fuse.read(node, 0, 10) == b"%d" % node


def test_a_change_that_cannot_be_recorded_is_not_acknowledged(
    live: Live, monkeypatch: pytest.MonkeyPatch
) -> None:
    fuse = live()

    def full(_fd: int, _data: bytes, _at: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal_module.os, "pwrite", full)
    with pytest.raises(OSError, match=f"Errno {errno.ENOSPC}]"):
        fuse.mkdir(1, b"d")
    monkeypatch.undo()
    fuse.mkdir(1, b"e")  # takes along what waited
    assert {b"d", b"e"} <= live().names(1)


def test_fsync_and_space(live: Live) -> None:
    fuse = live()
    node = fuse.create(1, b"f")[0].nodeid
    fuse.write(node, 0, b"data")
    fuse.fsync(node)
    fuse.call(50, 1, bytes(8))  # SYNCFS
    assert fuse.statfs()[0] > 0
    fuse.fallocate(node, 0, 0, 8192)
    fuse.write(node, 4096, b"more")
    fuse.fallocate(node, 3, 0, 4096)
    assert fuse.lseek(node, 0, os.SEEK_DATA) == 4096
    assert fuse.read(node, 0, 4) == bytes(4)
    fuse.setattr(node, size=100_000)
    assert fuse.read(node, 99_999, 10) == b"\0"


@settings(
    derandomize=True, max_examples=150, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(st.data())
def test_any_journal_is_restored_or_refused(tmp_path_factory: Any, data: st.DataObject) -> None:
    """Invariant: records of any values give a tree that can be listed, or a HostError or UsageError."""
    work = tmp_path_factory.mktemp("fuzz")
    numbers = st.integers(0, 5) | st.sampled_from([1 << 32 | 1, 1 << 32 | 3, 1 << 40])
    values = st.none() | st.integers(-1, 1 << 64 - 1) | st.binary(max_size=4) | st.just([[0, 1]])
    inode = st.tuples(
        st.just("i"), numbers, st.sampled_from([0o40755, 0o100644, 0o120777]), *[numbers] * 8,
        st.integers(0, 2), st.integers(0, 3), st.binary(max_size=4), st.just({}), numbers,
        st.just([]) | st.just([[0, 1]]) | values,
    )  # fmt: skip
    name = st.tuples(st.just("n"), numbers, st.binary(min_size=1, max_size=3), numbers)
    other = st.tuples(st.sampled_from(["x", "d", "m", "v", "q"]), values, values)
    records = data.draw(st.lists(inode | name | other, max_size=12))
    (work / "upper/data").mkdir(parents=True)
    payload = msgpack.packb([list(record) for record in records])
    frame = journal_module._FRAME.pack(len(payload), zlib.crc32(payload)) + payload
    (work / "upper/journal").write_bytes(frame)
    try:
        life = Life(work)
    except CrumbleError as error:
        assert error.message.endswith(".")
        return
    seen: set[int] = set()
    waiting = [1]
    while waiting:
        for entry in life.fuse.listdir(waiting.pop(), plus=True):
            if entry.entry and entry.entry.nodeid and entry.entry.nodeid not in seen:
                seen.add(entry.entry.nodeid)
                if stat.S_ISDIR(entry.entry.attr.mode):
                    waiting.append(entry.entry.nodeid)
    life.kill()
