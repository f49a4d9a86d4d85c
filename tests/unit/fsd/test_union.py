"""The union: layers, whiteouts, opaque directories, stable inodes, copy-up."""

import errno
import os
import stat
from collections.abc import Callable
from typing import Any

import pytest

from crumble_common.layer_index import Inode
from framework.fuse_client import FuseClient
from framework.layers import WHITEOUT, Special

Mount = Callable[..., FuseClient]


def failing(number: int) -> Any:
    return pytest.raises(OSError, match=f"Errno {number}]")


def test_empty_tree_is_a_usable_root(mount: Mount) -> None:
    fuse = mount()
    assert stat.S_ISDIR(fuse.getattr(1).mode)
    assert [e.name for e in fuse.listdir(1)] == [b".", b".."]
    entry, _ = fuse.create(1, b"a")
    assert fuse.write(entry.nodeid, 0, b"hello") == 5
    assert fuse.read_path("a") == b"hello"


def test_higher_layers_win_and_directories_merge(mount: Mount) -> None:
    fuse = mount(
        {"etc": {"a": b"low a", "b": b"low b"}, "file": b"x", "dir": {"below": b"1"}},
        {"etc": {"b": b"high b", "c": b"high c"}, "file": {"now": b"a dir"}, "dir": b"now a file"},
    )
    assert fuse.names(fuse.resolve("etc").nodeid) == {b"a", b"b", b"c"}
    assert fuse.read_path("etc/a") == b"low a"
    assert fuse.read_path("etc/b") == b"high b"
    assert fuse.read_path("file/now") == b"a dir"
    assert fuse.read_path("dir") == b"now a file"


def test_whiteouts_and_opaque_directories_hide(mount: Mount) -> None:
    fuse = mount(
        {"a": b"1", "d": {"x": b"1", "y": {"deep": b""}}, "o": {"old": b"1", "both": b"low"}},
        {"a": WHITEOUT, "d": {"y": WHITEOUT}, "o": Special({"both": b"high"}, opaque=True)},
        {"d": {"y": {"fresh": b"2"}}},
    )
    assert fuse.names(1) == {b"d", b"o"}
    with failing(errno.ENOENT):
        fuse.lookup(1, b"a")
    assert fuse.names(fuse.resolve("o").nodeid) == {b"both"}
    assert fuse.read_path("o/both") == b"high"
    assert fuse.names(fuse.resolve("d").nodeid) == {b"x", b"y"}
    assert fuse.names(fuse.resolve("d/y").nodeid) == {b"fresh"}


def test_implied_directory_keeps_the_lower_attributes(mount: Mount) -> None:
    fuse = mount(
        {"tmp": Special({}, mode=0o1777, uid=7)}, {"tmp": Special({"f": b""}, implicit=True)}
    )
    attr = fuse.resolve("tmp").attr
    assert (stat.S_IMODE(attr.mode), attr.uid) == (0o1777, 7)


def test_hard_links_share_an_inode_and_survive_copy_up_and_forget(mount: Mount) -> None:
    shared = Inode(stat.S_IFREG | 0o644, size=0)
    fuse = mount({"one": shared, "two": shared, "other": b"data"})
    one, two = fuse.lookup(1, b"one"), fuse.lookup(1, b"two")
    assert one.nodeid == two.nodeid == one.attr.ino
    assert one.attr.nlink == 2
    fuse.write(one.nodeid, 0, b"written")
    fuse.forget(one.nodeid, 2)
    again = fuse.lookup(1, b"two")
    assert again.nodeid == one.nodeid
    assert fuse.read_path("two") == b"written"
    fuse.unlink(1, b"one")
    assert fuse.getattr(again.nodeid).nlink == 1
    fuse.rename(1, b"two", 1, b"three")
    assert fuse.lookup(1, b"three").nodeid == one.nodeid
    assert fuse.names(1) == {b"three", b"other"}


def test_lower_inode_number_is_the_same_after_forget(mount: Mount) -> None:
    fuse = mount({"f": b"data", "d": {}})
    first = [fuse.lookup(1, name).nodeid for name in (b"f", b"d")]
    for nodeid in first:
        fuse.forget(nodeid)
    assert [fuse.lookup(1, name).nodeid for name in (b"f", b"d")] == first


def test_attribute_change_copies_no_data(mount: Mount) -> None:
    fuse = mount({"f": b"x" * 100_000})
    before = fuse.statfs()[1]
    node = fuse.lookup(1, b"f").nodeid
    fuse.setattr(node, mode=0o600, uid=5, mtime=10**9 + 1)
    fuse.setxattr(node, b"user.k", b"v")
    assert before - fuse.statfs()[1] <= 1
    attr = fuse.getattr(node)
    assert (attr.mode, attr.uid, attr.mtime, attr.mtimensec) == (stat.S_IFREG | 0o600, 5, 1, 1)
    fuse.write(node, 50_000, b"y")
    data = fuse.read_path("f")
    assert (len(data), data[50_000:50_001], data[49_999:50_000]) == (100_000, b"y", b"x")


def test_truncating_a_lower_file_keeps_only_its_beginning(mount: Mount) -> None:
    fuse = mount({"f": bytes(range(256)) * 400})
    node = fuse.lookup(1, b"f").nodeid
    fuse.setattr(node, size=10)
    fuse.setattr(node, size=20)
    assert fuse.read_path("f") == bytes(range(10)) + bytes(10)


def test_renamed_lower_directory_keeps_its_contents_and_leaves_a_whiteout(mount: Mount) -> None:
    fuse = mount({"a": {"x": {"f": b"1"}}}, {"a": {"x": {"g": b"2"}}})
    a = fuse.lookup(1, b"a").nodeid
    x = fuse.lookup(a, b"x").nodeid
    fuse.rename(a, b"x", 1, b"moved")
    assert fuse.lookup(1, b"moved").nodeid == x
    assert fuse.names(a) == set()
    assert fuse.read_path("moved/f") == b"1"
    assert fuse.read_path("moved/g") == b"2"
    fuse.mkdir(a, b"x")
    assert fuse.names(fuse.lookup(a, b"x").nodeid) == set()
    with failing(errno.EINVAL):
        fuse.rename(1, b"moved", x, b"loop")


def test_removed_lower_names_stay_removed_and_can_be_made_again(mount: Mount) -> None:
    fuse = mount({"d": {"f": b"old"}})
    d = fuse.lookup(1, b"d").nodeid
    with failing(errno.ENOTEMPTY):
        fuse.rmdir(1, b"d")
    fuse.unlink(d, b"f")
    fuse.rmdir(1, b"d")
    assert fuse.names(1) == set()
    with failing(errno.ENOENT):
        fuse.create(d, b"late")
    again = fuse.mkdir(1, b"d").nodeid
    assert again != d
    assert fuse.names(again) == set()


def test_unlinked_file_that_is_open_goes_on(mount: Mount) -> None:
    fuse = mount({"f": b"data"})
    node = fuse.lookup(1, b"f").nodeid
    fuse.unlink(1, b"f")
    assert fuse.read(node, 0, 100) == b"data"
    fuse.write(node, 4, b"more")
    assert fuse.read(node, 0, 100) == b"datamore"
    assert fuse.getattr(node).nlink == 0
    fuse.forget(node)
    with failing(errno.ESTALE):
        fuse.getattr(node)


def test_tmpfile_can_be_given_a_name(mount: Mount) -> None:
    fuse = mount()
    entry, _ = fuse.tmpfile(1)
    assert entry.attr.nlink == 0
    fuse.write(entry.nodeid, 0, b"t")
    assert fuse.link(entry.nodeid, 1, b"named").attr.nlink == 1
    fuse.forget(entry.nodeid, 2)
    assert fuse.read_path("named") == b"t"


def test_exchange_and_noreplace(mount: Mount) -> None:
    fuse = mount({"a": b"A", "d": {"in": b"I"}})
    fuse.rename(1, b"a", 1, b"d", 2)
    assert fuse.read_path("a/in") == b"I"
    assert fuse.read_path("d") == b"A"
    with failing(errno.EEXIST):
        fuse.rename(1, b"a", 1, b"d", 1)
    with failing(errno.EINVAL):
        fuse.rename(1, b"a", 1, b"d", 4)
    with failing(errno.ENOENT):
        fuse.rename(1, b"a", 1, b"none", 2)


def test_full_upper_says_so_and_deleting_makes_room(mount: Mount) -> None:
    fuse = mount({"low": b"x" * 200_000}, limit=1 << 20)
    entry, _ = fuse.create(1, b"big")
    written = 0
    with failing(errno.ENOSPC):
        for at in range(0, 2 << 20, 1 << 16):
            written += fuse.write(entry.nodeid, at, b"z" * (1 << 16))
    assert (1 << 20) - 200_000 < written <= 1 << 20
    assert fuse.write(entry.nodeid, 0, b"again") == 5
    with failing(errno.ENOSPC):
        fuse.write(fuse.lookup(1, b"low").nodeid, 0, b"copy-up")
    assert fuse.read_path("low") == b"x" * 200_000
    fuse.unlink(1, b"big")
    fuse.forget(entry.nodeid)
    assert fuse.write(fuse.lookup(1, b"low").nodeid, 0, b"copy-up") == 7


def test_empty_files_and_names_count_against_the_limit(mount: Mount) -> None:
    fuse = mount(limit=100_000)
    made = 0
    with failing(errno.ENOSPC):
        for made in range(1000):
            fuse.mknod(1, b"%d" % made, stat.S_IFREG)
    assert 50 < made < 100
    for number in range(made):
        fuse.unlink(1, b"%d" % number)
        fuse.forget(fuse_id(number))
    fuse.mknod(1, b"again", stat.S_IFREG)
    for _ in range(1000):  # a name that comes and goes costs nothing in the end
        node = fuse.mknod(1, b"x", stat.S_IFREG).nodeid
        fuse.unlink(1, b"x")
        fuse.forget(node)


def fuse_id(number: int) -> int:
    """Upper inodes are numbered from 2."""
    return number + 2


def test_cookies_survive_changes_between_reads(mount: Mount) -> None:
    names = {f"n{i:03}": b"" for i in range(200)}
    fuse = mount({"d": names})
    d = fuse.lookup(1, b"d").nodeid
    seen: list[bytes] = []
    cookie, step = 0, 0
    while batch := fuse.readdir(d, cookie, 512):
        seen += [e.name for e in batch]
        cookie = batch[-1].cookie
        fuse.unlink(d, seen[-1])  # removed after it was seen
        if step < 5:
            fuse.create(d, b"new%d" % step)
        step += 1
    stayed = {n.encode() for n in names}
    assert stayed <= set(seen)
    assert len(seen) == len(set(seen))


def test_readdirplus_looks_up_and_counts(mount: Mount) -> None:
    fuse = mount({"a": b"1", "b": {}, "c": "link"})
    listed = {e.name: e for e in fuse.listdir(1, plus=True)}
    assert set(listed) == {b".", b"..", b"a", b"b", b"c"}
    assert listed[b"."].entry is not None
    assert listed[b"."].entry.nodeid == 0
    for name in (b"a", b"b", b"c"):
        entry = listed[name].entry
        assert entry is not None
        assert entry.attr == fuse.getattr(entry.nodeid)
        fuse.forget(entry.nodeid)
    with failing(errno.ESTALE):
        fuse.getattr(listed[b"a"].ino)


def test_set_group_id_is_inherited(mount: Mount) -> None:
    fuse = mount({"d": Special({}, mode=0o2775, gid=42)})
    d = fuse.lookup(1, b"d").nodeid
    sub = fuse.mkdir(d, b"sub").attr
    assert (sub.gid, sub.mode & 0o7777) == (42, 0o2755)
    assert fuse.create(d, b"f")[0].attr.gid == 42


def test_privileges_go_with_writes_and_changes_of_owner(mount: Mount) -> None:
    cap = {b"security.capability": b"c", b"user.k": b"v"}
    fuse = mount({"s": Special(b"1", mode=0o6755, xattrs=cap), "t": Special(b"1", mode=0o6755)})
    s, t = fuse.lookup(1, b"s").nodeid, fuse.lookup(1, b"t").nodeid
    fuse.write(s, 0, b"x")  # by someone with CAP_FSETID: only capabilities go
    assert fuse.getattr(s).mode & 0o7777 == 0o6755
    assert fuse.listxattr(s) == [b"user.k"]
    fuse.write(s, 0, b"x", flags=4)
    assert fuse.getattr(s).mode & 0o7777 == 0o755
    assert fuse.setattr(t, uid=1).mode & 0o7777 == 0o755


def test_extended_attributes(mount: Mount) -> None:
    fuse = mount({"f": Special(b"", xattrs={b"user.a": b"1"})})
    node = fuse.lookup(1, b"f").nodeid
    assert fuse.getxattr(node, b"user.a") == b"1"
    assert fuse.getxattr(node, b"user.a", 0)[:4] == b"\1\0\0\0"
    fuse.setxattr(node, b"trusted.b", b"22", 1)
    with failing(errno.EEXIST):
        fuse.setxattr(node, b"trusted.b", b"3", 1)
    with failing(errno.ENODATA):
        fuse.setxattr(node, b"user.none", b"3", 2)
    with failing(errno.ERANGE):
        fuse.getxattr(node, b"trusted.b", 1)
    assert fuse.listxattr(node) == [b"user.a", b"trusted.b"]
    fuse.removexattr(node, b"user.a")
    with failing(errno.ENODATA):
        fuse.getxattr(node, b"user.a")
    with failing(errno.E2BIG):
        fuse.setxattr(node, b"user.big", b"x" * 65_537)


def test_special_files(mount: Mount) -> None:
    fuse = mount({"null": Inode(stat.S_IFCHR | 0o666, rdev=os.makedev(1, 3))})
    assert fuse.lookup(1, b"null").attr.rdev == 0x103
    assert fuse.mknod(1, b"blk", stat.S_IFBLK | 0o600, 0x12345678).attr.rdev == 0x12345678
    assert stat.S_ISFIFO(fuse.mknod(1, b"fifo", stat.S_IFIFO | 0o600).attr.mode)
    with failing(errno.EINVAL):
        fuse.read(fuse.lookup(1, b"fifo").nodeid, 0, 10)


def test_holes(mount: Mount) -> None:
    fuse = mount({"low": b"x" * 5000})
    node = fuse.create(1, b"s")[0].nodeid
    fuse.write(node, 1 << 30, b"end")
    assert fuse.getattr(node).blocks == 8
    assert fuse.lseek(node, 0, os.SEEK_DATA) == 1 << 30
    assert fuse.lseek(node, 0, os.SEEK_HOLE) == 0
    assert fuse.lseek(node, 1 << 30, os.SEEK_HOLE) == (1 << 30) + 3
    with failing(errno.ENXIO):
        fuse.lseek(node, (1 << 30) + 3, os.SEEK_DATA)
    low = fuse.lookup(1, b"low").nodeid
    assert fuse.lseek(low, 10, os.SEEK_DATA) == 10
    assert fuse.lseek(low, 10, os.SEEK_HOLE) == 5000
    fuse.fallocate(low, 3, 0, 4096)
    assert fuse.read(low, 0, 5000) == bytes(4096) + b"x" * 904
    assert fuse.lseek(low, 0, os.SEEK_DATA) == 4096
    fuse.fallocate(low, 0, 0, 8192)
    assert fuse.getattr(low).size == 8192
    with failing(errno.EOPNOTSUPP):
        fuse.fallocate(low, 8, 0, 4096)
    with failing(errno.EFBIG):
        fuse.write(node, 1 << 41, b"too far")


def test_copy_file_range(mount: Mount) -> None:
    fuse = mount({"low": bytes(range(256)) * 40})
    low = fuse.lookup(1, b"low").nodeid
    new = fuse.create(1, b"new")[0].nodeid
    assert fuse.copy_range(low, 100, new, 3, 1 << 40) == 10240 - 100
    assert fuse.read_path("new") == bytes(3) + (bytes(range(256)) * 40)[100:]
    with failing(errno.EINVAL):
        fuse.copy_range(new, 0, new, 10, 100)
    assert fuse.copy_range(low, 20_000, new, 0, 10) == 0
