"""The session: what INIT agrees on, what is never asked again, and locks that are waited for."""

import errno
import fcntl
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from crumble_fsd import fuse_wire as w
from crumble_fsd.assemble import new_session, new_tree, options_for
from crumble_fsd.locks import LAST, READ, UNLOCK, WRITE, Lock, LockTable
from crumble_fsd.session import PENDING, Session
from crumble_fsd.upper import MemoryUpper
from crumble_fsd.upper_directory import DirectoryUpper
from framework.fuse_client import KERNEL_FLAGS, FuseClient, direct

Mount = Callable[..., FuseClient]


def failing(number: int) -> Any:
    return pytest.raises(OSError, match=f"Errno {number}]")


def test_init_agrees_on_what_a_lone_guest_needs(session_of: Callable[..., Session]) -> None:
    fuse = FuseClient(direct(session_of({})))
    answer = fuse.init()
    assert (answer["major"], answer["minor"]) == (7, 39)
    assert answer["max_write"] == 1 << 20
    assert answer["max_pages"] == 256
    flags = answer["flags"]
    for wanted in (w.FUSE_DO_READDIRPLUS, w.FUSE_PARALLEL_DIROPS, w.FUSE_HANDLE_KILLPRIV_V2,
                   w.FUSE_MAX_PAGES, w.FUSE_CACHE_SYMLINKS, w.FUSE_ASYNC_READ):  # fmt: skip
        assert flags & wanted
    for unwanted in (w.FUSE_ATOMIC_O_TRUNC, w.FUSE_POSIX_LOCKS, w.FUSE_FLOCK_LOCKS,
                     w.FUSE_AUTO_INVAL_DATA, w.FUSE_SUBMOUNTS, w.FUSE_DONT_MASK):  # fmt: skip
        assert not flags & unwanted


def test_init_offers_nothing_the_guest_does_not_know(session_of: Callable[..., Session]) -> None:
    fuse = FuseClient(direct(session_of({}, shared=True, remote_locks=True)))
    assert fuse.init(0)["flags"] == 0
    flags = fuse.init(KERNEL_FLAGS)["flags"]
    assert flags & w.FUSE_POSIX_LOCKS
    assert flags & w.FUSE_AUTO_INVAL_DATA
    assert flags & w.FUSE_SUBMOUNTS


def test_versions(session_of: Callable[..., Session]) -> None:
    fuse = FuseClient(direct(session_of({})))
    reply = fuse.call(w.FUSE_INIT, 0, w.INIT_IN.pack(8, 0, 0, 0), room=64)
    assert w.INIT_OUT.unpack(reply)[0] == 7
    with failing(errno.EIO):  # that was no agreement yet
        fuse.getattr(1)
    with failing(errno.EPROTO):
        fuse.call(w.FUSE_INIT, 0, w.INIT_IN.pack(7, 30, 0, 0), room=64)
    reply = fuse.call(w.FUSE_INIT, 0, w.INIT_IN.pack(7, 31, 0, 0), room=64)
    assert w.INIT_OUT.unpack(reply)[1] == 31


def test_what_need_not_be_asked_is_asked_once(mount: Mount, tmp_path: Path) -> None:
    fuse = mount({"f": b"data"})
    node = fuse.lookup(1, b"f").nodeid
    quiet = [
        lambda: fuse.open(node),
        lambda: fuse.opendir(1),
        lambda: fuse.fsync(node),
        lambda: fuse.call(w.FUSE_FLUSH, node, bytes(24)),
        lambda: fuse.call(w.FUSE_ACCESS, node, bytes(8)),
        lambda: fuse.call(w.FUSE_POLL, node, bytes(24), room=8),
        lambda: fuse.call(w.FUSE_BMAP, node, bytes(16), room=8),
        lambda: fuse.lock(w.FUSE_SETLK, node, 1, WRITE),
        lambda: fuse.call(63, node),
    ]
    for call in quiet:
        with failing(errno.ENOSYS):
            call()
    with failing(errno.ENOTTY):
        fuse.call(w.FUSE_IOCTL, node, bytes(32), room=16)
    shared = mount({"f": b"data"}, shared=True)
    node = shared.lookup(1, b"f").nodeid
    assert shared.open(node) == 0  # nothing to hold: the nodeid says it all
    shared.release(node, 0)
    upper = DirectoryUpper(str(tmp_path / "upper"), [])
    tree, nodes = new_tree([], upper)
    kept = FuseClient(direct(new_session(nodes, [tree], options_for(upper, shared=False))))
    kept.init()
    kept.fsync(1)
    upper.close()


def test_negative_entries_may_be_kept(mount: Mount) -> None:
    fuse = mount({})
    reply = fuse.call(w.FUSE_LOOKUP, 1, b"nothing\0", room=128)
    nodeid, _, valid, _, _, _ = w.ENTRY_OUT.unpack_from(reply)
    assert nodeid == 0
    assert valid > 10**6


def test_lookups_are_counted(session_of: Callable[..., Session]) -> None:
    session = session_of({"f": b"data"})
    fuse = FuseClient(direct(session))
    fuse.init()
    node = fuse.lookup(1, b"f").nodeid
    fuse.lookup(1, b"f")
    fuse.readdir(1, plus=True)
    fuse.batch_forget((node, 2))
    assert fuse.read(node, 0, 4) == b"data"
    fuse.forget(node)
    assert node not in session.nodes


def test_statx(mount: Mount) -> None:
    fuse = mount({})
    node = fuse.mknod(1, b"dev", 0o020644, 0x10203).nodeid
    fuse.setattr(node, mtime=-(10**9) + 1)
    reply = fuse.call(w.FUSE_STATX, node, w.STATX_IN.pack(0, 0, 0, 0, 0xFFF), room=288)
    fields = w.STATX_OUT.unpack(reply)
    assert fields[3] == 0xFFF
    assert fields[9] == 0o020644
    assert fields[16] > 10**9  # birth, s
    assert fields[20:22] == (-1, 1)  # mtime
    assert fields[22:24] == (0x102, 3)


def test_read_replies_are_cut_to_the_file(mount: Mount) -> None:
    fuse = mount({"f": b"x" * 5000})
    node = fuse.lookup(1, b"f").nodeid
    assert len(fuse.read(node, 0, 131072)) == 5000
    assert len(fuse.read(node, 4096, 4096)) == 904
    assert fuse.read(node, 5000, 4096) == b""


def test_directory_buffers_of_any_size(mount: Mount) -> None:
    names = {f"{'n' * (i % 50)}{i}": b"" for i in range(100)}
    fuse = mount({"d": names})
    directory = fuse.lookup(1, b"d").nodeid
    for size, plus in itertools.product((256, 1000, 65536), (False, True)):
        listed = [e.name for e in fuse.listdir(directory, size, plus=plus)]
        assert len(listed) == 102
        assert set(listed) == {n.encode() for n in names} | {b".", b".."}
    with failing(errno.EINVAL):
        fuse.readdir(directory, 5, 24)


# Locks.


class Waiting:
    """A client whose blocking locks may be answered later."""

    def __init__(self) -> None:
        self.answers: dict[object, int] = {}
        self.buffers: dict[object, bytearray] = {}
        self.upper = MemoryUpper(1 << 20)
        tree, nodes = new_tree([], self.upper)
        options = options_for(self.upper, shared=False, remote_locks=True)
        self.session = new_session(nodes, [tree], options, self.answers.__setitem__)
        self.fuse = FuseClient(direct(self.session))
        self.fuse.init()
        self.node = self.fuse.create(1, b"f")[0].nodeid

    def setlkw(self, unique: int, owner: int, kind: int, *, flock: bool = False) -> int | None:
        """errno at once, or None: to be waited for."""
        body = w.LK_IN.pack(0, owner, 0, LAST, kind, 1, int(flock), 0)
        head = w.IN_HEADER.pack(40 + len(body), w.FUSE_SETLKW, unique, self.node, 0, 0, 1, 0, 0)
        self.buffers[unique] = bytearray(16)
        length = self.session.handle(
            [memoryview(head), memoryview(body)], [memoryview(self.buffers[unique])], unique
        )
        return None if length == PENDING else self.error(unique)

    def error(self, unique: int) -> int:
        """The answer's errno."""
        _, error, answered = w.OUT_HEADER.unpack(self.buffers[unique])
        assert answered == unique
        return -error

    def interrupt(self, unique: int) -> None:
        """INTERRUPT, on the high-priority queue."""
        self.fuse.call(w.FUSE_INTERRUPT, 0, w.INTERRUPT_IN.pack(unique), room=None)


@pytest.fixture
def lone() -> Iterator[Waiting]:
    made = Waiting()
    yield made
    made.upper.close()


def test_blocking_locks_are_answered_when_free_in_order(lone: Waiting) -> None:
    assert lone.setlkw(100, 1, WRITE) == 0
    assert lone.setlkw(102, 2, WRITE) is None
    assert lone.setlkw(104, 3, WRITE) is None
    lone.fuse.lock(w.FUSE_SETLK, lone.node, 1, UNLOCK)
    assert lone.answers == {102: 16}
    assert lone.error(102) == 0
    body = w.FLUSH_IN.pack(0, 0, 0, 2)  # the process of owner 2 closes the file
    lone.fuse.call(w.FUSE_FLUSH, lone.node, body)
    assert lone.answers == {102: 16, 104: 16}


def test_waiting_can_be_interrupted(lone: Waiting) -> None:
    lone.setlkw(100, 1, READ)
    assert lone.setlkw(102, 2, WRITE) is None
    lone.interrupt(999)
    lone.interrupt(102)
    assert lone.error(102) == errno.EINTR
    lone.fuse.lock(w.FUSE_SETLK, lone.node, 1, UNLOCK)
    assert lone.answers == {102: 16}
    assert lone.setlkw(104, 3, WRITE) == 0
    assert lone.setlkw(106, 4, READ) is None
    lone.session.reset()
    assert lone.error(106) == errno.EINTR


def test_flock_and_posix_locks_do_not_meet(lone: Waiting) -> None:
    assert lone.setlkw(100, 1, WRITE) == 0
    assert lone.setlkw(102, 2, WRITE, flock=True) == 0
    with failing(errno.EAGAIN):
        lone.fuse.lock(w.FUSE_SETLK, lone.node, 3, READ, flock=True)
    lone.fuse.release(lone.node, 0, w.FUSE_RELEASE_FLOCK_UNLOCK, owner=2)
    lone.fuse.lock(w.FUSE_SETLK, lone.node, 3, READ, flock=True)
    reply = lone.fuse.lock(w.FUSE_GETLK, lone.node, 3, READ, 5, 10)
    assert w.LK_OUT.unpack(reply) == (0, LAST, WRITE, 1)
    reply = lone.fuse.lock(w.FUSE_GETLK, lone.node, 1, WRITE, 5, 10)
    assert w.LK_OUT.unpack(reply)[2] == UNLOCK


def test_locks_of_an_open_file_go_with_it(lone: Waiting) -> None:
    fh = lone.fuse.open(lone.node)
    assert fh != 0
    body = w.LK_IN.pack(fh, 99, 0, LAST, WRITE, 1, 0, 0)
    lone.fuse.call(w.FUSE_SETLK, lone.node, body)
    assert lone.setlkw(100, 2, WRITE) is None
    lone.fuse.release(lone.node, fh)
    assert lone.error(100) == 0


def test_ranges_are_as_the_kernels(tmp_path: Path) -> None:
    """The same requests on a real file, by OFD locks of three descriptors."""
    table = LockTable()
    path = tmp_path / "f"
    path.touch()
    owners = [os.open(path, os.O_RDWR) for _ in range(3)]
    steps = itertools.product(range(3), (READ, WRITE, UNLOCK), (0, 4, 8), (3, 7, 11))
    for number, (owner, kind, start, end) in enumerate(sorted(steps, key=lambda s: hash(s) % 97)):
        if end < start:
            continue
        got = expected = 0
        try:
            table.set((1, False), Lock(start, end, kind, owner, owner))
        except OSError as error:
            got = error.errno or -1
        try:
            _ofd_lock(owners[owner], kind, start, end - start + 1)
        except OSError as error:
            expected = error.errno or -1
        assert got == expected, number
    for fd in owners:
        os.close(fd)


def _ofd_lock(fd: int, kind: int, start: int, length: int) -> None:
    import struct

    request = struct.pack("hhxxxxqqixxxx", kind, os.SEEK_SET, start, length, 0)
    fcntl.fcntl(fd, 37, request)  # F_OFD_SETLK


def test_the_number_of_locks_is_bounded() -> None:
    table = LockTable(limit=10)
    for at in range(10):
        table.set((1, False), Lock(at * 2, at * 2, READ, 1, 1))
    with failing(errno.ENOLCK):
        table.set((1, False), Lock(100, 100, READ, 1, 1))
    table.set((1, False), Lock(0, LAST, UNLOCK, 1, 1))
    assert len(table) == 0
