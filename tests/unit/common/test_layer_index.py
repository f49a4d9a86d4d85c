import os
import stat
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crumble_common.errors import HostError
from crumble_common.layer_index import Entry, Inode, LayerIndex, pack_index, write_index


def directory(**children: Inode) -> Inode:
    return Inode(
        stat.S_IFDIR | 0o755, children={name.encode(): node for name, node in children.items()}
    )


def sample() -> Inode:
    shell = Inode(
        stat.S_IFREG | 0o755, size=5, offset=4096, mtime_ns=-1, xattrs={b"user.a": b"\0v"}
    )
    link = Inode(stat.S_IFLNK | 0o777, target=b"usr/bin")
    null = Inode(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3))
    gone = Inode(stat.S_IFCHR, whiteout=True)
    binaries = directory(sh=shell, dash=shell)
    binaries.opaque = True
    usr = directory(bin=binaries)
    usr.implicit = True
    return directory(usr=usr, bin=link, null=null, gone=gone)


def walk(index: LayerIndex, row: int = 0, path: bytes = b"") -> dict[bytes, Entry]:
    found = {path or b"/": index.entry(row)}
    for child in index.children(row):
        found |= walk(index, child, path + b"/" + index.name(child))
    return found


def test_a_written_tree_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "x.index"
    assert write_index(path, sample(), 5000) == 8
    index = LayerIndex.open(path)
    tree = walk(index)
    assert set(tree) == {
        b"/",
        b"/bin",
        b"/gone",
        b"/null",
        b"/usr",
        b"/usr/bin",
        b"/usr/bin/dash",
        b"/usr/bin/sh",
    }
    shell, dash = tree[b"/usr/bin/sh"], tree[b"/usr/bin/dash"]
    assert (shell.size, shell.offset, shell.mtime_ns, shell.nlink) == (5, 4096, -1, 2)
    assert shell.link == dash.link == dash.row
    assert shell.xattrs == {b"user.a": b"\0v"}
    assert tree[b"/bin"].target == b"usr/bin"
    assert tree[b"/null"].rdev == os.makedev(1, 3)
    assert tree[b"/gone"].whiteout and tree[b"/usr/bin"].opaque and tree[b"/usr"].implicit
    assert not tree[b"/usr/bin"].implicit and not tree[b"/usr"].opaque
    assert tree[b"/"].nlink == 3 and tree[b"/"].parent == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.index"]


def test_children_are_contiguous_sorted_and_found(tmp_path: Path) -> None:
    names = [f"{number:05d}" for number in range(3000)]
    write_index(tmp_path / "x", directory(**{name: directory() for name in reversed(names)}), 0)
    index = LayerIndex.open(tmp_path / "x")
    assert [index.name(row).decode() for row in index.children(0)] == names
    assert index.find(0, b"01234") == 1 + 1234
    assert index.find(0, b"01234x") is None
    assert index.find(0, b"") is None
    assert index.find(1, b"00000") is None
    with pytest.raises(IndexError):
        index.entry(3001)


@pytest.mark.parametrize(
    ("tree", "contents"),
    [
        (directory(**{"..": directory()}), 0),
        (directory(**{"a/b": directory()}), 0),
        (directory(**{"x" * 256: directory()}), 0),
        (directory(a=Inode(stat.S_IFREG, size=10, offset=1)), 10),
        (directory(a=Inode(stat.S_IFREG, children={})), 0),
        (directory(a=Inode(stat.S_IFDIR)), 0),
    ],
)
def test_a_bad_tree_is_not_written(tmp_path: Path, tree: Inode, contents: int) -> None:
    with pytest.raises(ValueError, match=r".+"):
        write_index(tmp_path / "x", tree, contents)
    assert not list(tmp_path.iterdir())


def test_a_directory_under_two_names_is_not_written(tmp_path: Path) -> None:
    twice = directory()
    with pytest.raises(ValueError, match="two names"):
        write_index(tmp_path / "x", directory(a=twice, b=twice), 0)


def refused(path: Path) -> str:
    with pytest.raises(HostError) as caught:
        LayerIndex.open(path)
    return caught.value.code


def test_a_torn_or_foreign_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_index(path, sample(), 5000)
    good = path.read_bytes()
    for bad in (b"", b"x" * 10, good[:-1], good + b"\0", b"X" + good[1:], b"\0" * len(good)):
        path.write_bytes(bad)
        assert refused(path) == "store.corrupt"
    assert refused(tmp_path / "none") == "store.missing"


def test_a_loop_of_directories_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_index(path, directory(a=directory(b=directory())), 0)
    data = bytearray(path.read_bytes())
    struct.pack_into("<II", data, 48 + 80 * 2 + 36, 1, 1)  # b's children: a
    path.write_bytes(data)
    index = LayerIndex.open(path)
    with pytest.raises(HostError, match="bad children"):
        index.children(2)


SAMPLE = pack_index(sample(), 5000)


# Invariant: whatever bytes an index holds, every accessor ends, and either answers from inside the
# file or raises HostError "store.corrupt".
@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.binary(min_size=1, max_size=8)), max_size=4))
def test_damage_never_escapes(tmp_path: Path, patches: list[tuple[int, bytes]]) -> None:
    path = tmp_path / "fuzz"
    data = bytearray(SAMPLE)
    for at, patch in patches:
        at %= len(data)
        data[at : at + len(patch)] = patch[: len(data) - at]
    path.write_bytes(data)
    try:
        index = LayerIndex.open(path)
    except HostError as error:
        assert error.code == "store.corrupt"
        return
    for row in range(index.count):
        for use in (index.entry, index.children, lambda row: index.find(row, b"sh")):
            try:
                use(row)
            except HostError as error:
                assert error.code == "store.corrupt"
