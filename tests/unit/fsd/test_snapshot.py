"""Capturing a session and going on from it in another one."""

import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest

from crumble_common.errors import HostError, UsageError
from crumble_fsd import fuse_wire as w
from crumble_fsd.upper_directory import DirectoryUpper
from framework.fsd_snapshots import Clone, Snapshot
from framework.fsd_world import World, client, close
from framework.fuse_client import FuseClient, direct
from framework.layers import write_layer


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def test_what_was_written_is_there(world: World) -> None:
    fuse = world.fuse
    etc = fuse.resolve("etc").nodeid
    fuse.write(fuse.resolve("etc/hosts").nodeid, 9, b"!")
    new = fuse.create(etc, b"new", 0o640)[0].nodeid
    fuse.write(new, 0, b"N" * 10_000)
    fuse.link(new, 1, b"hard")
    fuse.symlink(1, b"soft", b"etc/new")
    fuse.mknod(1, b"null", stat.S_IFCHR | 0o666, 0x103)
    fuse.setxattr(new, b"user.x", b"\0y")
    fuse.setattr(fuse.resolve("set").nodeid, mode=0o755, uid=7, mtime=-5)
    fuse.unlink(1, b"link")
    fuse.rename(etc, b"deep", 1, b"moved")
    before = {path: fuse.getattr(fuse.resolve(path).nodeid) for path in
              ("etc", "etc/hosts", "etc/new", "hard", "soft", "null", "set", "moved", "moved/er/x")}  # fmt: skip
    again = world.restored()
    assert {path: again.getattr(again.resolve(path).nodeid) for path in before} == before
    assert again.names(1) == {b"etc", b"set", b"hard", b"soft", b"null", b"moved"}
    assert again.names(etc) == {b"hosts", b"big", b"passwd", b"new"}
    assert again.read_path("etc/hosts") == b"localhost!"
    assert again.read_path("etc/new") == again.read_path("hard") == b"N" * 10_000
    assert again.readlink(again.resolve("soft").nodeid) == b"etc/new"
    assert again.getxattr(new, b"user.x") == b"\0y"
    assert again.read_path("moved/er/x") == b"1"
    assert again.getattr(new).nlink == 2


def test_what_is_open_goes_on_without_a_name(world: World) -> None:
    fuse = world.fuse
    written = fuse.create(1, b"w")[0].nodeid
    fuse.write(written, 0, b"kept")
    fuse.unlink(1, b"w")
    lower = fuse.resolve("etc/big").nodeid
    fuse.unlink(fuse.resolve("etc").nodeid, b"big")
    directory = fuse.mkdir(1, b"cwd").nodeid
    fuse.rmdir(1, b"cwd")
    temporary = fuse.tmpfile(1)[0].nodeid
    again = world.restored()
    assert again.read(written, 0, 10) == b"kept"
    assert again.read(lower, 99_990, 20) == b"B" * 10
    assert again.getattr(directory).nlink == again.getattr(temporary).nlink == 0
    assert [entry.name for entry in again.listdir(directory)] == [b".", b".."]
    for nodeid in (written, lower, directory, temporary):
        again.forget(nodeid, 1 << 40)
        with pytest.raises(OSError, match=f"Errno {errno.ESTALE}]"):
            again.getattr(nodeid)


def test_new_inodes_get_new_numbers(world: World) -> None:
    known = {world.fuse.create(1, b"%d" % n)[0].nodeid for n in range(3)}
    again = world.restored()
    assert again.create(1, b"later")[0].nodeid not in known


def test_lookups_are_counted_on(world: World) -> None:
    """A file the guest knows twice is still known after one FORGET; and gone after the other."""
    fuse = world.fuse
    twice = fuse.resolve("etc/hosts").nodeid
    assert fuse.resolve("etc/hosts").nodeid == twice
    restored = world.clone(world.capture()).restored
    again = FuseClient(direct(restored.session))
    again.forget(twice)
    assert twice in restored.session.nodes
    again.forget(twice)
    assert twice not in restored.session.nodes
    assert again.resolve("etc/hosts").nodeid == twice


def test_holes_stay_holes(world: World) -> None:
    fuse = world.fuse
    node = fuse.create(1, b"sparse")[0].nodeid
    fuse.write(node, 0, b"a" * 4096)
    fuse.write(node, 1 << 30, b"z")
    before = fuse.getattr(node)
    snapshot = world.capture()
    assert (world.work / f"{snapshot.name}.contents").stat().st_blocks * 512 < 1 << 20
    again = client(world.clone(snapshot))
    assert again.getattr(node) == before
    assert again.lseek(node, 4096, os.SEEK_DATA) == 1 << 30
    assert again.lseek(node, 0, os.SEEK_HOLE) == 4096
    again.write(node, 5, b"b")  # moves it to the clone's upper, holes and all
    assert again.getattr(node).blocks == before.blocks
    assert again.read(node, 1 << 30, 10) == b"z"


def test_clones_are_apart(world: World) -> None:
    node = world.fuse.create(1, b"f")[0].nodeid
    world.fuse.write(node, 0, b"original")
    snapshot = world.capture()
    one, two = (client(world.clone(snapshot)) for _ in range(2))
    one.write(node, 0, b"ONE")
    two.unlink(1, b"f")
    assert one.read(node, 0, 9) == b"ONEginal"
    assert world.fuse.read(node, 0, 9) == b"original"
    assert two.read(node, 0, 9) == b"original"
    assert b"f" not in two.names(1)


def test_a_capture_of_a_clone_is_whole(world: World) -> None:
    """Whatever was used since or not: the next capture needs nothing of the one before."""
    fuse = world.fuse
    for n in range(20):
        node = fuse.create(1, b"%d" % n)[0].nodeid
        fuse.write(node, 0, b"%d" % n * 1000)
    for generation in range(4):
        snapshot = world.capture(world.clones[-1] if world.clones else None)
        if generation:
            world.clones[-1].close()
            old = world.clones.pop()
            for suffix in ("index", "contents"):
                (world.work / f"{old.captured_name}.{suffix}").unlink()
        fuse = client(world.clone(snapshot))
        fuse.write(fuse.resolve(f"{generation}").nodeid, 0, b"new")
    assert world.clones[-1].captured.index.contents_size < 200_000
    for n in range(20):
        data = fuse.read_path(f"{n}")
        assert data[3:] == (b"%d" % n * 1000)[3:]
        assert data.startswith(b"new" if n < 4 else b"%d" % n)


def test_an_upper_in_a_directory_is_captured_too(tmp_path: Path) -> None:
    world = World(tmp_path, DirectoryUpper(str(tmp_path / "upper"), ["l0", "l1"]))
    node = world.fuse.create(1, b"f")[0].nodeid
    world.fuse.write(node, 0, b"x" * 200_000)
    assert world.restored().read(node, 199_999, 9) == b"x"
    world.close()


def test_a_directory_that_was_listed_goes_on_by_the_same_cookies(world: World) -> None:
    fuse = world.fuse
    for n in range(30):
        fuse.create(1, b"file%02d" % n)
    first = fuse.readdir(1, 0, 400)
    for n in range(0, 30, 3):
        fuse.unlink(1, b"file%02d" % n)
    whole = fuse.listdir(1)
    again = world.restored()
    assert again.listdir(1) == whole
    assert again.readdir(1, first[-1].cookie) == fuse.readdir(1, first[-1].cookie)


def test_space_in_use_is_accounted_for(world: World) -> None:
    before = world.fuse.statfs()
    for n in range(1000):
        world.fuse.create(1, b"%d" % n)
    used = world.fuse.statfs()
    again = world.restored()
    assert again.statfs()[1] == used[1] < before[1]
    for n in range(1000):
        again.unlink(1, b"%d" % n)
        again.forget(again.unique and 2 + n, 1 << 40)
    assert again.statfs()[1] == before[1]


# Locks and handles.


def test_locks_and_handles_go_on(world: World) -> None:
    world.begin([], locks=True)
    fuse = world.fuse
    node, fh = fuse.create(1, b"f")
    fuse.lock(w.FUSE_SETLK, node.nodeid, 7, fcntl.F_WRLCK, 0, 9)
    again = world.restored()
    with pytest.raises(OSError, match=f"Errno {errno.EAGAIN}]"):
        again.lock(w.FUSE_SETLK, node.nodeid, 8, fcntl.F_RDLCK, 5, 5)
    again.lock(w.FUSE_SETLK, node.nodeid, 7, fcntl.F_UNLCK)
    again.lock(w.FUSE_SETLK, node.nodeid, 8, fcntl.F_RDLCK, 5, 5)
    assert again.open(node.nodeid) > fh
    again.release(node.nodeid, fh)
    with pytest.raises(OSError, match=f"Errno {errno.EBADF}]"):
        again.release(node.nodeid, fh)


# What cannot be.


def test_other_layers_are_refused(world: World, tmp_path: Path) -> None:
    snapshot = world.capture()
    (tmp_path / "o").mkdir()
    other = [world.layers[0], write_layer(tmp_path / "o", "l1", {"x": b""})]
    for layers in ([world.layers[0]], other):
        with pytest.raises(UsageError, match="other image layers") as caught:
            Clone(snapshot, layers)
        assert caught.value.code == "snapshot.foreign"
    close(other[1:])


def test_state_and_layer_of_two_captures_are_refused(world: World) -> None:
    one, two = world.capture(), world.capture()
    with pytest.raises(HostError, match="of two captures") as caught:
        world.clone(Snapshot(one.directory, one.name, two.state, 0))
    assert caught.value.code == "snapshot.corrupt"


def test_a_layer_that_is_no_capture_is_refused(world: World) -> None:
    snapshot = world.capture()
    with pytest.raises(HostError, match="damaged"):
        world.clone(Snapshot(world.work, "l1", snapshot.state, 0))


def test_another_format_is_refused(world: World) -> None:
    snapshot = world.capture()
    state = {**msgpack.unpackb(snapshot.state), "format": 99}
    with pytest.raises(UsageError, match="another version") as caught:
        world.clone(Snapshot(snapshot.directory, snapshot.name, msgpack.packb(state), 0))
    assert caught.value.code == "snapshot.foreign"


def test_a_request_that_waits_is_refused(world: World) -> None:
    world.begin([], locks=True)
    node = world.fuse.create(1, b"f")[0].nodeid
    world.fuse.lock(w.FUSE_SETLK, node, 1, fcntl.F_WRLCK)
    body = w.LK_IN.pack(0, 2, 0, 9, fcntl.F_WRLCK, 2, 0, 0)
    head = w.IN_HEADER.pack(40 + len(body), w.FUSE_SETLKW, 99, node, 0, 0, 1, 0, 0)
    world.session.handle([memoryview(head), memoryview(body)], [memoryview(bytearray(16))])
    with pytest.raises(UsageError, match="not answered yet"):
        world.capture()


# Time.


def test_much_is_captured_and_restored_fast(world: World) -> None:
    """Bounds are generous: the machine is shared. Restoring does not depend on how much there is."""
    fuse = world.fuse
    top = fuse.mkdir(1, b"top").nodeid
    for n in range(5000):
        fuse.create(top, b"file%d" % n)
    began = time.perf_counter()
    snapshot = world.capture()
    captured = time.perf_counter() - began
    began = time.perf_counter()
    clone = world.clone(snapshot)
    restored = time.perf_counter() - began
    assert captured < 1.0
    assert restored < 0.05
    assert len(clone.restored.session.nodes) < 5
    assert clone.restored.session.nodes.count > 5000
    assert client(clone).getattr(top).ino == top
