"""Host shares: nothing outside is reached, descriptors are bounded, an ordinary user's rights are enough."""

import errno
import os
import shutil
import socket
import stat
import tempfile
import traceback
from pathlib import Path

import pytest

from crumble_common.errors import UsageError
from crumble_common.messages.fs import Share
from crumble_fsd import share_nodes
from framework.share_client import ShareClient, Sharing, failing


def test_nothing_outside_is_reached(sharing: Sharing, host: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    (host / "out").symlink_to(secret)
    (host / "up").symlink_to("..")
    fuse = sharing(Share(str(host), "/data"))
    for name in ("out", "up"):
        entry = fuse.resolve(f"data/{name}")
        assert stat.S_ISLNK(entry.attr.mode)
        for call in (
            lambda: fuse.open(entry.nodeid),  # noqa: B023
            lambda: fuse.opendir(entry.nodeid),  # noqa: B023
            lambda: fuse.setattr(entry.nodeid, size=0),  # noqa: B023
            lambda: fuse.setattr(entry.nodeid, mode=0o777),  # noqa: B023
            lambda: fuse.lookup(entry.nodeid, b"secret"),  # noqa: B023
            lambda: fuse.create(entry.nodeid, b"new"),  # noqa: B023
            lambda: fuse.setxattr(entry.nodeid, b"user.k", b"v"),  # noqa: B023
        ):
            with pytest.raises(OSError, match="Errno"):
                call()
    fuse.setattr(fuse.resolve("data/out").nodeid, mtime=5)  # the link's own
    assert secret.read_text() == "secret"
    assert secret.stat().st_mtime_ns != 5
    assert not os.listxattr(secret)


def test_a_name_swapped_for_a_link_is_not_followed(
    sharing: Sharing, host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "deep").write_text("secret")
    monkeypatch.setattr(share_nodes, "MAX_CACHED", 1)  # descriptors are made again all the time
    fuse = sharing(Share(str(host), "/data"))
    directory = fuse.resolve("data/dir").nodeid
    deep = fuse.resolve("data/dir/deep").nodeid
    fuse.resolve("data/file")
    (host / "dir").rename(tmp_path / "gone")
    (host / "dir").symlink_to(outside)
    for call in (
        lambda: fuse.read(deep, 0, 10),
        lambda: fuse.lookup(directory, b"deep"),
        lambda: fuse.create(directory, b"evil"),
    ):
        try:
            result = call()
        except OSError:
            continue
        assert result != b"secret"
    assert [p.name for p in outside.iterdir()] == ["deep"]


def test_a_share_that_is_refused_leaves_none_open(sharing: Sharing, host: Path) -> None:
    with pytest.raises(UsageError):
        sharing(Share(str(host), "/a"), Share(str(host / "dir"), "/a/b"), Share(str(host), "/a/b"))
    left = [fd for fd in Path("/proc/self/fd").iterdir() if fd.is_symlink()]
    assert not [fd for fd in left if str(fd.readlink()).startswith(str(host))]


def test_descriptors_are_bounded(
    sharing: Sharing, host: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_nodes, "MAX_CACHED", 16)
    for number in range(200):
        (host / "dir" / f"f{number}").write_text(str(number))
    fuse = sharing(Share(str(host), "/data"))
    directory = fuse.resolve("data/dir").nodeid
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    nodes = [fuse.lookup(directory, b"f%d" % n).nodeid for n in range(200)]
    assert len(os.listdir("/proc/self/fd")) - before <= 16  # noqa: PTH208
    for number in range(20):
        (host / f"other{number}").touch()
        fuse.resolve(f"data/other{number}")
    (host / "dir").rename(host / "renamed")
    with failing(errno.ESTALE):
        fuse.read(nodes[0], 0, 10)
    directory = fuse.resolve("data/renamed").nodeid
    assert fuse.lookup(directory, b"f0").nodeid == nodes[0]
    assert fuse.read(nodes[0], 0, 10) == b"0"
    for nodeid in nodes:
        fuse.forget(nodeid, 10)


def test_special_files_of_the_host_are_never_opened(sharing: Sharing, host: Path) -> None:
    os.mkfifo(host / "fifo")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(host / "sock"))
    fuse = sharing(Share(str(host), "/data"))
    for name in ("fifo", "sock", "dir"):
        node = fuse.resolve(f"data/{name}").nodeid
        with pytest.raises(OSError, match="Errno"):
            fuse.open(node)
    root = fuse.resolve("data").nodeid
    with failing(errno.EPERM):
        fuse.mknod(root, b"null", stat.S_IFCHR | 0o666, 0x103)
    assert stat.S_ISFIFO(fuse.mknod(root, b"f2", stat.S_IFIFO | 0o600).attr.mode)
    server.close()


def test_an_ordinary_user_is_root_in_the_guest(sharing: Sharing) -> None:
    """In a child with uid 12345: its files are the guest root's, others nobody's."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    theirs = Path(tempfile.mkdtemp())
    try:
        theirs.chmod(0o755)
        (theirs / "roots").write_text("r")
        os.chown(theirs, 12345, 12345)
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setgid(12345)
                os.setuid(12345)
                _as_ordinary_user(sharing(Share(str(theirs), "/data")))
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert (theirs / "mine").stat().st_uid == 12345
    finally:
        shutil.rmtree(theirs)


def _as_ordinary_user(fuse: ShareClient) -> None:
    fuse.uid = 1000
    root = fuse.resolve("data").nodeid
    assert fuse.create(root, b"mine")[0].attr.uid == 0
    assert fuse.resolve("data/roots").attr.uid == 65534
    node = fuse.resolve("data/mine").nodeid
    fuse.setattr(node, uid=0, gid=0)
    with failing(errno.EPERM):
        fuse.setattr(node, uid=7)
