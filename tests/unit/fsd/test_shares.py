"""Host shares: what the guest does is what happens on the host."""

import errno
import fcntl
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from crumble_common.errors import UsageError
from crumble_common.messages.fs import Share
from crumble_fsd import fuse_wire as w
from crumble_fsd.locks import READ, WRITE
from framework.fuse_client import FuseClient
from framework.share_client import Sharing, failing


def test_a_share_appears_at_its_path_and_both_sides_see_changes(
    sharing: Sharing, host: Path
) -> None:
    fuse = sharing(Share(str(host), "/mnt/data"), layer={"etc": {}})
    root = fuse.resolve("mnt/data")
    assert root.attr.flags & 1  # a submount
    assert root.attr.ino == host.stat().st_ino
    assert fuse.names(root.nodeid) == {b"file", b"dir"}
    assert fuse.read_path("mnt/data/file") == b"from the host"
    made = fuse.create(root.nodeid, b"new", 0o640)[0]
    fuse.write(made.nodeid, 0, b"from the guest")
    assert (host / "new").read_text() == "from the guest"
    assert stat.S_IMODE((host / "new").stat().st_mode) == 0o640
    (host / "later").write_text("2")
    assert fuse.read_path("mnt/data/later") == b"2"
    fuse.rename(root.nodeid, b"new", fuse.resolve("mnt/data/dir").nodeid, b"moved")
    assert (host / "dir" / "moved").exists()
    fuse.mkdir(root.nodeid, b"sub", 0o700)
    fuse.symlink(root.nodeid, b"link", b"/etc/passwd")
    assert (host / "link").readlink() == Path("/etc/passwd")
    assert fuse.readlink(fuse.resolve("mnt/data/link").nodeid) == b"/etc/passwd"
    fuse.link(made.nodeid, root.nodeid, b"hard")
    assert (host / "hard").stat().st_nlink == 2
    fuse.rmdir(root.nodeid, b"sub")
    fuse.unlink(root.nodeid, b"hard")
    assert sorted(p.name for p in host.iterdir()) == ["dir", "file", "later", "link"]


def test_attributes(sharing: Sharing, host: Path) -> None:
    fuse = sharing(Share(str(host), "/data"))
    node = fuse.resolve("data/file").nodeid
    attr = fuse.setattr(node, mode=0o600, mtime=10**18 + 5)
    assert stat.S_IMODE(attr.mode) == 0o600
    assert (host / "file").stat().st_mtime_ns == 10**18 + 5
    fuse.setattr(node, size=4)
    assert (host / "file").read_text() == "from"
    fuse.setxattr(node, b"user.k", b"v")
    assert os.getxattr(host / "file", "user.k") == b"v"
    assert fuse.listxattr(node) == [b"user.k"]
    fuse.removexattr(node, b"user.k")
    for name in (b"security.capability", b"trusted.x", b"system.posix_acl_access"):
        with failing(errno.EOPNOTSUPP):
            fuse.setxattr(node, name, b"x")
    assert fuse.getattr(node).nlink == 1
    assert len(fuse.statfs()) == 8


def test_read_only_share_refuses_every_change(sharing: Sharing, host: Path) -> None:
    fuse = sharing(Share(str(host), "/data", read_only=True))
    root = fuse.resolve("data").nodeid
    node = fuse.resolve("data/file").nodeid
    changes: list[Callable[[], object]] = [
        lambda: fuse.create(root, b"n"),
        lambda: fuse.mkdir(root, b"n"),
        lambda: fuse.mknod(root, b"n", stat.S_IFREG),
        lambda: fuse.symlink(root, b"n", b"t"),
        lambda: fuse.link(node, root, b"n"),
        lambda: fuse.unlink(root, b"file"),
        lambda: fuse.rmdir(root, b"dir"),
        lambda: fuse.rename(root, b"file", root, b"n"),
        lambda: fuse.setattr(node, mode=0),
        lambda: fuse.setattr(node, size=0),
        lambda: fuse.setxattr(node, b"user.k", b"v"),
        lambda: fuse.removexattr(node, b"user.k"),
        lambda: fuse.write(node, 0, b"x"),
        lambda: fuse.tmpfile(root),
        lambda: fuse.open(node, os.O_RDONLY | os.O_TRUNC),
    ]
    for change in changes:
        with failing(errno.EROFS):
            change()
    assert (host / "file").read_text() == "from the host"
    assert fuse.read_path("data/file") == b"from the host"


def test_a_file_can_be_shared_over_a_file(sharing: Sharing, host: Path) -> None:
    fuse = sharing(
        Share(str(host / "file"), "/etc/conf"), layer={"etc": {"conf": b"image's", "b": b""}}
    )
    assert fuse.read_path("etc/conf") == b"from the host"
    etc = fuse.resolve("etc").nodeid
    listed = {e.name: e for e in fuse.listdir(etc, plus=True)}
    assert listed[b"conf"].entry is not None
    assert listed[b"conf"].entry.attr.size == 13
    with failing(errno.EBUSY):
        fuse.unlink(etc, b"conf")
    with failing(errno.EBUSY):
        fuse.rename(etc, b"b", etc, b"conf")
    with failing(errno.EXDEV):
        fuse.link(fuse.resolve("etc/conf").nodeid, etc, b"hard")


def test_links_of_the_image_are_followed_inside_it(sharing: Sharing, host: Path) -> None:
    fuse = sharing(Share(str(host), "/var/run/data"), layer={"var": {"run": "/run"}, "run": {}})
    assert fuse.read_path("run/data/file") == b"from the host"
    fuse = sharing(Share(str(host), "/up/x"), layer={"up": "../../../.."})
    assert fuse.read_path("x/file") == b"from the host"


def test_shares_inside_shares(sharing: Sharing, host: Path, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "i").write_text("inner")
    fuse = sharing(Share(str(inner), "/work/cache/x"), Share(str(host), "/work"))
    assert (host / "cache" / "x").is_dir()
    assert fuse.read_path("work/cache/x/i") == b"inner"
    cache = fuse.resolve("work/cache").nodeid
    assert fuse.names(cache) == {b"x"}
    with failing(errno.EBUSY):
        fuse.rmdir(cache, b"x")
    with failing(errno.EXDEV):
        fuse.rename(fuse.resolve("work/cache/x").nodeid, b"i", cache, b"i")
    fuse.init()
    assert fuse.read_path("work/cache/x/i") == b"inner"


def test_bad_shares_are_refused_in_a_sentence(sharing: Sharing, host: Path) -> None:
    with pytest.raises(UsageError, match="does not exist on the host"):
        sharing(Share(str(host / "missing"), "/data"))
    for target in ("data", "/a/../b", "/" + "n" * 256):
        with pytest.raises(UsageError):
            sharing(Share(str(host), target))
    with pytest.raises(UsageError, match="there is a file at that path"):
        sharing(Share(str(host), "/f"), layer={"f": b""})
    with pytest.raises(UsageError, match="there is a directory at that path"):
        sharing(Share(str(host / "file"), "/d"), layer={"d": {}})
    with pytest.raises(UsageError, match="form a loop"):
        sharing(Share(str(host), "/l/x"), layer={"l": "l"})
    with pytest.raises(UsageError, match="another share"):
        sharing(Share(str(host), "/d"), Share(str(host), "/d/dir"), Share(str(host), "/d/dir"))  # fmt: skip
    os.mkfifo(host / "fifo")
    with pytest.raises(UsageError, match="neither a directory nor a regular file"):
        sharing(Share(str(host / "fifo"), "/data"))


def test_open_files_outlive_their_names(sharing: Sharing, host: Path) -> None:
    fuse = sharing(Share(str(host), "/data"))
    root, node = fuse.resolve("data").nodeid, fuse.resolve("data/file").nodeid
    fh = fuse.open(node)
    fuse.unlink(root, b"file")
    assert fuse.read(node, 0, 100, fh) == b"from the host"
    assert fuse.write(node, 0, b"still", fh) == 5
    assert fuse.getattr(node).nlink == 0
    fuse.release(node, fh)
    deep = fuse.resolve("data/dir/deep").nodeid
    fh = fuse.open(deep)
    (host / "dir" / "deep").unlink()  # by the host
    assert fuse.read(deep, 0, 100, fh) == b"deep"
    with failing(errno.ENOENT):
        fuse.resolve("data/dir/deep")


def test_a_number_used_again_is_another_inode(sharing: Sharing, host: Path) -> None:
    fuse = sharing(Share(str(host), "/data"))
    seen = set()
    for number in range(20):
        (host / "x").write_text(str(number))
        entry = fuse.resolve("data/x")
        assert entry.nodeid not in seen
        seen.add(entry.nodeid)
        assert fuse.read(entry.nodeid, 0, 10) == str(number).encode()
        (host / "x").unlink()
        fuse.forget(entry.nodeid)


def test_tmpfile_and_link(sharing: Sharing, host: Path) -> None:
    fuse = sharing(Share(str(host), "/data"))
    root = fuse.resolve("data").nodeid
    entry, fh = fuse.tmpfile(root)
    FuseClient.write(fuse, entry.nodeid, 0, b"t", fh)
    fuse.link(entry.nodeid, root, b"named")
    assert (host / "named").read_text() == "t"


def test_a_large_directory_is_listed_whole(sharing: Sharing, host: Path) -> None:
    for number in range(500):
        (host / "dir" / f"{number}").touch()
    fuse = sharing(Share(str(host), "/data"))
    directory = fuse.resolve("data/dir").nodeid
    expected = {str(number).encode() for number in range(500)} | {b"deep"}
    for plus in (False, True):
        listed = [e.name for e in fuse.listdir(directory, size=1024, plus=plus)]
        assert len(listed) == len(set(listed)) == 503
        assert set(listed) - {b".", b".."} == expected


def test_the_whole_tree_can_be_a_share(sharing: Sharing, host: Path) -> None:
    fuse = sharing(Share(str(host), "/"), Share(str(host), "/dir"))
    assert fuse.names(1) == {b"file", b"dir"}
    assert not fuse.getattr(1).flags
    assert fuse.read_path("dir/file") == b"from the host"


def test_locks_are_the_hosts_too(sharing: Sharing, host: Path) -> None:
    one, two = (sharing(Share(str(host), "/data")) for _ in range(2))
    first, second = one.resolve("data/file").nodeid, two.resolve("data/file").nodeid
    for flock in (False, True):
        one.lock(w.FUSE_SETLK, first, 7, WRITE, 0, 9, flock=flock)
        one.lock(w.FUSE_SETLK, first, 7, WRITE, 0, 9, flock=flock)  # one's own
        with failing(errno.EAGAIN):
            two.lock(w.FUSE_SETLK, second, 7, READ, 5, 5, flock=flock)
        if not flock:
            two.lock(w.FUSE_SETLK, second, 7, READ, 10, 20)
            reply = two.lock(w.FUSE_GETLK, second, 7, WRITE, 0, 100)
            assert w.LK_OUT.unpack(reply)[:3] == (0, 9, WRITE)
        with open(host / "file", "r+b") as file, pytest.raises(BlockingIOError):
            (fcntl.flock if flock else fcntl.lockf)(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if flock:
            one.release(first, one.open(first), w.FUSE_RELEASE_FLOCK_UNLOCK, owner=7)
        else:
            fh = one.open(first)
            one.call(w.FUSE_FLUSH, first, w.FLUSH_IN.pack(fh, 0, 0, 7))
        two.lock(w.FUSE_SETLK, second, 7, WRITE, 5, 5, flock=flock)
    two.init()  # the guest is gone: it holds nothing
    one.lock(w.FUSE_SETLK, first, 7, WRITE, flock=True)
    directory = one.resolve("data/dir").nodeid
    with failing(errno.EBADF):
        one.lock(w.FUSE_SETLK, directory, 7, WRITE)
