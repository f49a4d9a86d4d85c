"""Shares of a session that is captured and goes on in another one."""

import errno
import fcntl
from collections.abc import Iterator
from pathlib import Path

import pytest

from crumble_common.errors import UsageError
from crumble_common.messages.fs import Share
from crumble_fsd import fuse_wire as w
from framework.fsd_world import World, client


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    path = tmp_path / "shared"
    (path / "d").mkdir(parents=True)
    (path / "d" / "f").write_bytes(b"host file")
    for n in range(40):
        (path / f"n{n}").touch()
    return path


def test_open_files_of_a_share_go_on(world: World, shared: Path) -> None:
    share = [Share(str(shared), "/mnt/s")]
    world.begin(share)
    fuse = world.fuse
    node = fuse.resolve("mnt/s/d/f").nodeid
    top = fuse.resolve("mnt/s").nodeid
    fh = fuse.open(node)
    directory = fuse.opendir(top)
    first = fuse.readdir(top, 0, 300, directory)
    whole = fuse.listdir(top, fh=directory)
    again = world.restored(share)
    assert again.read(node, 5, 9, fh) == b"file"
    assert again.write(node, 0, b"HOST", fh) == 4
    assert (shared / "d" / "f").read_bytes() == b"HOST file"
    rest, cookie = list(first), first[-1].cookie
    while batch := again.readdir(top, cookie, 300, directory):
        rest += batch
        cookie = batch[-1].cookie
    assert rest == whole
    again.release(node, fh)
    assert again.resolve("mnt/s/d/f").nodeid == node


def test_files_of_a_share_that_are_gone_are_stale(world: World, shared: Path) -> None:
    share = [Share(str(shared), "/mnt/s")]
    world.begin(share)
    node = world.fuse.resolve("mnt/s/d/f").nodeid
    fh = world.fuse.open(node)
    snapshot = world.capture()
    (shared / "d" / "f").unlink()
    (shared / "d" / "f").write_bytes(b"another")
    again = client(world.clone(snapshot, share))
    for use in (lambda: again.read(node, 0, 9, fh), lambda: again.getattr(node),
                lambda: again.setattr(node, size=0), lambda: again.fsync(node, fh)):  # fmt: skip
        with pytest.raises(OSError, match=f"Errno {errno.ESTALE}]"):
            use()
    again.release(node, fh)
    assert again.read(again.resolve("mnt/s/d/f").nodeid, 0, 0) == b""
    assert (shared / "d" / "f").read_bytes() == b"another"


def test_a_share_that_is_not_given_is_stale(world: World, shared: Path) -> None:
    world.begin([Share(str(shared), "/mnt/s"), Share(str(shared), "/mnt/t")])
    kept, lost = (world.fuse.resolve(f"mnt/{name}/d/f").nodeid for name in "st")
    fh = world.fuse.open(lost)
    only = [Share(str(shared), "/mnt/s")]
    clone = world.clone(world.capture(), only)
    for again in (client(clone), client(world.clone(world.capture(clone), only))):
        assert again.getattr(kept).size == 9
        for use in (lambda: again.getattr(lost), lambda: again.resolve("mnt/t"),  # noqa: B023
                    lambda: again.read(lost, 0, 9, fh), lambda: again.release(lost, fh)):  # noqa: B023  # fmt: skip
            with pytest.raises(OSError, match=f"Errno {errno.ESTALE}]"):
                use()
        again.forget(lost)
        assert {b"s", b"t"} == again.names(again.resolve("mnt").nodeid)
        assert {b"s", b"t"} == again.names(again.resolve("mnt").nodeid, plus=True)


def test_shares_that_cannot_be(world: World, shared: Path) -> None:
    world.begin([Share(str(shared), "/mnt/s")])
    snapshot = world.capture()
    with pytest.raises(UsageError, match="without a share at that path") as caught:
        world.clone(snapshot, [Share(str(shared), "/other")])
    assert caught.value.code == "share.restore"
    with pytest.raises(UsageError, match="had a directory there"):
        world.clone(snapshot, [Share(str(shared / "d" / "f"), "/mnt/s")])
    with pytest.raises(UsageError, match="does not exist"):
        world.clone(snapshot, [Share(str(shared / "nothing"), "/mnt/s")])


def test_a_share_inside_a_share(world: World, shared: Path, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "i").write_bytes(b"inner")
    shares = [Share(str(shared), "/s"), Share(str(tmp_path / "inner"), "/s/d/in")]
    world.begin(shares)
    node = world.fuse.resolve("s/d/in/i").nodeid
    again = world.restored(shares)
    assert again.resolve("s/d/in/i").nodeid == node
    assert again.getattr(node).size == 5


def test_host_locks_are_taken_again(world: World, shared: Path) -> None:
    share = [Share(str(shared), "/s")]
    world.begin(share, locks=True)
    node = world.fuse.resolve("s/d/f").nodeid
    world.fuse.lock(w.FUSE_SETLK, node, 7, fcntl.F_WRLCK, flock=True)
    snapshot = world.capture()
    world.begin([])  # the first VM ends
    with (shared / "d" / "f").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(file, fcntl.LOCK_UN)
        world.clone(snapshot, share)
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
