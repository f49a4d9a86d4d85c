"""What a guest has written as a layer for an image; trees are compared in test_snapshot_random.py."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crumble_common.errors import UsageError
from crumble_common.layer_index import Entry, Inode, LayerIndex
from crumble_common.messages.fs import Share
from crumble_fsd.assemble import add_shares, new_session, new_tree, options_for
from crumble_fsd.excludes import Excludes
from crumble_fsd.upper import MemoryUpper
from framework.fsd_snapshots import commit
from framework.fuse_client import FuseClient, direct
from framework.layers import file_data, write_layer


class World:
    """A session over one layer; `layer()` is what it has written."""

    def __init__(self, work: Path) -> None:
        self.work = work
        contents = bytearray()
        twin = Inode(stat.S_IFREG | 0o644, **file_data(b"twin", contents))
        tree = {
            "usr": {"bin": {"a": twin, "b": b"B"}, "share": {"doc": {"x": b"1", "y": b"2"}}},
            "other": {"c": twin},
            "etc": {"hosts": b"image's"},
        }
        self.layers = [write_layer(work, "l", tree)]
        with (work / "l.contents").open("r+b") as file:  # the twin's bytes are the first
            file.write(contents)
        self.upper = MemoryUpper(1 << 26)
        self.tree, self.nodes = new_tree(self.layers, self.upper)
        self.session = new_session(self.nodes, [self.tree], options_for(self.upper, shared=False))
        self.fuse = FuseClient(direct(self.session))
        self.fuse.init()

    def layer(self, *excludes: str) -> dict[str, Entry] | None:
        made = commit(self.work, "made", self.session, self.tree, excludes)
        if made is None:
            assert not (self.work / "made.index").stat().st_size
            assert not (self.work / "made.contents").stat().st_size
            return None
        found = dict(walk(made.index, 0, ""))
        made.index.close()
        os.close(made.contents)
        return found

    def close(self) -> None:
        self.upper.close()
        for layer in self.layers:
            layer.index.close()
            os.close(layer.contents)


def walk(index: LayerIndex, row: int, path: str) -> Iterator[tuple[str, Entry]]:
    for child in index.children(row):
        entry = index.entry(child)
        name = path + entry.name.decode()
        yield name, entry
        yield from walk(index, child, name + "/")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def test_nothing_written(world: World) -> None:
    world.fuse.read_path("usr/bin/b")
    assert world.layer() is None


def test_only_what_changed_is_in_it(world: World) -> None:
    fuse = world.fuse
    fuse.create(fuse.resolve("usr/bin").nodeid, b"new")
    fuse.unlink(fuse.resolve("usr/share/doc").nodeid, b"x")
    layer = world.layer()
    assert layer is not None
    assert layer.keys() == {
        "usr", "usr/bin", "usr/bin/new", "usr/share", "usr/share/doc", "usr/share/doc/x"
    }  # fmt: skip
    assert layer["usr"].implicit and layer["usr/share"].implicit
    assert not layer["usr/bin"].implicit  # its time has changed
    assert layer["usr/share/doc/x"].whiteout


def test_a_changed_file_keeps_all_its_names(world: World) -> None:
    """The guest has met only one of them."""
    world.fuse.setattr(world.fuse.resolve("other/c").nodeid, mode=0o600)
    layer = world.layer()
    assert layer is not None
    assert layer.keys() == {"other", "other/c", "usr", "usr/bin", "usr/bin/a"}
    assert layer["usr/bin/a"].link == layer["other/c"].link
    assert layer["usr/bin/a"].nlink == 2 and stat.S_IMODE(layer["usr/bin/a"].mode) == 0o600
    assert layer["usr/bin/a"].size == 4 and layer["other"].implicit


def test_a_name_that_is_gone_does_not_come_back(world: World) -> None:
    fuse = world.fuse
    fuse.unlink(fuse.resolve("usr/bin").nodeid, b"a")
    layer = world.layer()
    assert layer is not None
    assert layer["usr/bin/a"].whiteout
    assert layer["other/c"].nlink == 1  # it is the same file, whose link count has changed


def test_a_renamed_directory_is_a_copy(world: World) -> None:
    fuse = world.fuse
    fuse.rename(fuse.resolve("usr").nodeid, b"share", 1, b"moved")
    layer = world.layer()
    assert layer is not None
    assert {"moved", "moved/doc", "moved/doc/x", "moved/doc/y", "usr/share"} <= layer.keys()
    assert layer["usr/share"].whiteout and not layer["moved"].opaque


def test_a_directory_made_again_hides_the_old_one(world: World) -> None:
    fuse = world.fuse
    doc = fuse.resolve("usr/share/doc").nodeid
    fuse.unlink(doc, b"x")
    fuse.unlink(doc, b"y")
    fuse.rmdir(fuse.resolve("usr/share").nodeid, b"doc")
    fuse.mkdir(fuse.resolve("usr/share").nodeid, b"doc")
    layer = world.layer()
    assert layer is not None
    assert layer["usr/share/doc"].opaque
    assert not any(name.startswith("usr/share/doc/") for name in layer)


def test_what_no_archive_holds_is_left_out(world: World) -> None:
    fuse = world.fuse
    fuse.mknod(1, b"socket", stat.S_IFSOCK | 0o600)
    fuse.mknod(1, b"null", stat.S_IFCHR | 0o666, 0x103)
    fuse.tmpfile(1)
    fuse.create(1, b"removed")
    fuse.unlink(1, b"removed")
    layer = world.layer()
    assert layer is not None
    assert layer.keys() == {"null"}
    assert layer["null"].rdev == os.makedev(1, 3)


def test_injected_files_are_left_out_unless_changed(world: World) -> None:
    world.tree.inject("/etc/hosts", b"the VM's", 0o644)
    world.tree.inject("/etc/resolv.conf", b"the host's", 0o644)
    assert world.layer() is not None
    assert (world.layer() or {}).keys() == {"etc"}
    world.fuse.write(world.fuse.resolve("etc/hosts").nodeid, 0, b"THE")
    assert (world.layer() or {}).keys() == {"etc", "etc/hosts"}


def test_shares_are_left_out(world: World, tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "secret").touch()
    shares = add_shares(world.tree, world.nodes, [Share(str(tmp_path / "shared"), "/mnt/s")])
    world.session.filesystems += shares
    world.fuse.resolve("mnt/s/secret")
    assert (world.layer() or {}).keys() == {"mnt", "mnt/s"}
    shares[0].close()


def test_names_that_are_left_out(world: World) -> None:
    fuse = world.fuse
    cache = fuse.mkdir(fuse.resolve("usr").nodeid, b"cache").nodeid
    fuse.create(cache, b"big")
    fuse.create(1, b"x.log")
    fuse.create(1, b"kept")
    fuse.unlink(fuse.resolve("etc").nodeid, b"hosts")
    whole = world.layer()
    assert whole is not None and {"usr/cache/big", "x.log", "etc/hosts"} <= whole.keys()
    assert (world.layer("cache/", "*.log", "/etc/hosts") or {}).keys() == {"kept", "usr", "etc"}
    assert (world.layer("/*") or {}).keys() == set()


def test_a_tree_of_any_depth(world: World) -> None:
    at = 1
    for _ in range(1500):
        at = world.fuse.mkdir(at, b"d").nodeid
    made = commit(world.work, "made", world.session, world.tree)
    assert made is not None
    assert made.index.count == 1501
    made.index.close()
    os.close(made.contents)


# Patterns.


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("*.pyc", ["a.pyc", "d/e/a.pyc"], ["a.py", "a.pyc/x"]),
        ("/tmp", ["tmp"], ["var/tmp", "tmp/x"]),
        ("var/cache", ["var/cache"], ["x/var/cache", "var/cache2"]),
        ("var/cache/*", ["var/cache/x"], ["var/cache", "var/cache/x/y"]),
        ("a/**/b", ["a/b", "a/x/b", "a/x/y/b"], ["a/xb", "b", "x/a/b"]),
        ("**/log", ["log", "a/log", "a/b/log"], ["alog"]),
        ("log/**", ["log/a", "log/a/b"], ["log"]),
        ("[a-c]?.x", ["b1.x", "d/c2.x"], ["d1.x", "b.x", "b/.x"]),
        ("[!a]", ["b"], ["a", "/"]),
        ("[]a]", ["]", "a"], ["b"]),
        ("a[", ["a["], ["a"]),
        ("a+(b).*", ["a+(b).c"], ["aab.c"]),
        ("é\\n", ["é\\n"], ["é\n"]),
        ("[\\d^]", ["\\", "d", "^"], ["5"]),
    ],
)
def test_patterns(pattern: str, yes: list[str], no: list[str]) -> None:
    excludes = Excludes([pattern])
    assert all(excludes.match(os.fsencode(path), is_directory=False) for path in yes)
    assert not any(excludes.match(os.fsencode(path), is_directory=True) for path in no)


def test_a_pattern_for_directories_only() -> None:
    excludes = Excludes(["build/"])
    assert excludes.match(b"a/build", is_directory=True)
    assert not excludes.match(b"a/build", is_directory=False)


@pytest.mark.parametrize(
    "pattern", ["", "/", "!a", "a//b", "../a", "a/./b", "\0", "x" * 2000, "*" * 9 + "a", "[z-a]"]
)
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(UsageError) as caught:
        Excludes([pattern])
    assert caught.value.code == "fs.excludes"


@given(st.text("a*?[]!/^\\-b", max_size=12), st.text("ab/-]", max_size=8))
def test_any_pattern_is_one_or_refused(pattern: str, path: str) -> None:
    """Invariant: a pattern gives an answer for every path, or is refused with a sentence."""
    try:
        Excludes([pattern]).match(os.fsencode(path), is_directory=True)
    except UsageError as error:
        assert error.hint
