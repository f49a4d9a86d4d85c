"""A FUSE client without a kernel: builds requests, checks and decodes replies.

`FuseClient` speaks by nodeid over any transport: a function that takes the readable buffers of a
request and the lengths of the writable ones, and returns the reply's bytes. `direct` is the transport
straight into a session; a ring driver gives another. `PathClient` adds paths, as a kernel would.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from crumble_fsd import fuse_wire as w
from crumble_fsd.session import PENDING, Session

Transport = Callable[[Sequence[bytes], Sequence[int]], bytes]
KERNEL_FLAGS = (1 << 31) - 1 & ~(w.FUSE_POSIX_ACL | w.FUSE_WRITEBACK_CACHE)


class Attr(NamedTuple):
    """`fuse_attr`."""

    ino: int
    size: int
    blocks: int
    atime: int
    mtime: int
    ctime: int
    atimensec: int
    mtimensec: int
    ctimensec: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    blksize: int
    flags: int


class Entry(NamedTuple):
    """`fuse_entry_out`."""

    nodeid: int
    generation: int
    entry_valid: int
    attr_valid: int
    attr: Attr


class DirEntry(NamedTuple):
    """One entry of READDIR or READDIRPLUS (then with `entry`)."""

    name: bytes
    ino: int
    cookie: int
    kind: int
    entry: Entry | None


def direct(session: Session) -> Transport:
    """Requests straight into a session, cut into buffers as virtiofs cuts them."""

    def send(readable: Sequence[bytes], writable: Sequence[int]) -> bytes:
        buffers = [bytearray(size) for size in writable]
        length = session.handle(
            [memoryview(bytearray(part)) for part in readable if part],
            [memoryview(buffer) for buffer in buffers if buffer],
        )
        assert length != PENDING, "the request waits"
        return b"".join(buffers)[:length]

    return send


class FuseClient:
    """Operations by nodeid; raises OSError with the server's errno."""

    def __init__(self, send: Transport, uid: int = 0, gid: int = 0) -> None:
        self.send = send
        self.uid, self.gid = uid, gid
        self.unique = 0

    def call(
        self, opcode: int, nodeid: int, *body: bytes, room: int | None = 0, pages: int = 0
    ) -> bytes:
        """One request: body parts, then `room` bytes of reply and `pages` bytes of pages.

        room None: the guest expects no answer at all.
        """
        self.unique += 2
        length = w.IN_HEADER_SIZE + sum(map(len, body))
        head = w.IN_HEADER.pack(length, opcode, self.unique, nodeid, self.uid, self.gid, 1, 0, 0)
        writable = [] if room is None else [w.OUT_HEADER_SIZE, room, *_pages(pages)]
        reply = self.send([head, *body], [size for size in writable if size])
        if room is None:
            assert reply == b""
            return b""
        length, error, unique = w.OUT_HEADER.unpack_from(reply)
        assert unique == self.unique
        assert length == len(reply)
        if error:
            assert length == w.OUT_HEADER_SIZE
            assert -4096 < error < 0
            raise OSError(-error, os.strerror(-error))
        return reply[w.OUT_HEADER_SIZE :]

    def init(self, flags: int = KERNEL_FLAGS) -> dict[str, int]:
        """INIT as Linux 6.12 sends it; the reply's fields."""
        body = struct.pack("<IIIII44x", 7, 41, 1 << 20, flags & 0xFFFFFFFF, flags >> 32)
        fields = w.INIT_OUT.unpack(self.call(w.FUSE_INIT, 0, body, room=64))
        names = [
            "major",
            "minor",
            "max_readahead",
            "flags",
            "max_background",
            "congestion_threshold",
            "max_write",
            "time_gran",
            "max_pages",
            "map_alignment",
            "flags2",
        ]
        return dict(zip(names, fields, strict=True))

    def lookup(self, parent: int, name: bytes) -> Entry:
        """LOOKUP; ENOENT also for a negative entry."""
        entry = parse_entry(self.call(w.FUSE_LOOKUP, parent, name + b"\0", room=128))
        if entry.nodeid == 0:
            raise FileNotFoundError(errno.ENOENT, "negative entry", name)
        return entry

    def forget(self, nodeid: int, count: int = 1) -> None:
        """FORGET."""
        self.call(w.FUSE_FORGET, nodeid, w.FORGET_IN.pack(count), room=None)

    def batch_forget(self, *ones: tuple[int, int]) -> None:
        """BATCH_FORGET."""
        body = w.BATCH_FORGET_IN.pack(len(ones), 0) + b"".join(w.FORGET_ONE.pack(*o) for o in ones)
        self.call(w.FUSE_BATCH_FORGET, 0, body, room=None)

    def getattr(self, nodeid: int) -> Attr:
        """GETATTR."""
        reply = self.call(w.FUSE_GETATTR, nodeid, w.GETATTR_IN.pack(0, 0, 0), room=104)
        return Attr(*w.ATTR.unpack_from(reply, 16))

    def setattr(self, nodeid: int, **changes: int) -> Attr:
        """SETATTR: mode, uid, gid, size, atime, mtime, ctime (ns), kill."""
        valid = 0
        bits = {
            "mode": 1,
            "uid": 2,
            "gid": 4,
            "size": 8,
            "atime": 16,
            "mtime": 32,
            "ctime": 1024,
            "kill": 2048,
        }
        for name in changes:
            valid |= bits[name]
        at, mt, ct = (divmod(changes.get(name, 0), 10**9) for name in ("atime", "mtime", "ctime"))
        body = w.SETATTR_IN.pack(
            valid, 0, 0, changes.get("size", 0), 0, at[0], mt[0], ct[0], at[1], mt[1], ct[1],
            changes.get("mode", 0), 0, changes.get("uid", 0), changes.get("gid", 0), 0,
        )  # fmt: skip
        return Attr(*w.ATTR.unpack_from(self.call(w.FUSE_SETATTR, nodeid, body, room=104), 16))

    def readlink(self, nodeid: int) -> bytes:
        """READLINK."""
        return self.call(w.FUSE_READLINK, nodeid, room=4095)

    def symlink(self, parent: int, name: bytes, target: bytes) -> Entry:
        """SYMLINK."""
        body = name + b"\0" + target + b"\0"
        return parse_entry(self.call(w.FUSE_SYMLINK, parent, body, room=128))

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int = 0) -> Entry:
        """MKNOD."""
        body = w.MKNOD_IN.pack(mode, rdev, 0, 0) + name + b"\0"
        return parse_entry(self.call(w.FUSE_MKNOD, parent, body, room=128))

    def mkdir(self, parent: int, name: bytes, mode: int = 0o755) -> Entry:
        """MKDIR."""
        body = w.MKDIR_IN.pack(mode, 0) + name + b"\0"
        return parse_entry(self.call(w.FUSE_MKDIR, parent, body, room=128))

    def unlink(self, parent: int, name: bytes) -> None:
        """UNLINK."""
        self.call(w.FUSE_UNLINK, parent, name + b"\0")

    def rmdir(self, parent: int, name: bytes) -> None:
        """RMDIR."""
        self.call(w.FUSE_RMDIR, parent, name + b"\0")

    def rename(self, old: int, name: bytes, new: int, new_name: bytes, flags: int = 0) -> None:
        """RENAME2."""
        body = w.RENAME2_IN.pack(new, flags, 0) + name + b"\0" + new_name + b"\0"
        self.call(w.FUSE_RENAME2, old, body)

    def link(self, nodeid: int, parent: int, name: bytes) -> Entry:
        """LINK."""
        body = w.LINK_IN.pack(nodeid) + name + b"\0"
        return parse_entry(self.call(w.FUSE_LINK, parent, body, room=128))

    def open(self, nodeid: int, flags: int = os.O_RDWR) -> int:
        """OPEN; fh."""
        reply = self.call(w.FUSE_OPEN, nodeid, w.OPEN_IN.pack(flags, 0), room=16)
        return int(w.OPEN_OUT.unpack(reply)[0])

    def create(
        self, parent: int, name: bytes, mode: int = 0o644, flags: int = os.O_RDWR | os.O_CREAT
    ) -> tuple[Entry, int]:
        """CREATE; entry and fh."""
        body = w.CREATE_IN.pack(flags, mode, 0, 0) + name + b"\0"
        reply = self.call(w.FUSE_CREATE, parent, body, room=144)
        return parse_entry(reply), w.OPEN_OUT.unpack_from(reply, 128)[0]

    def tmpfile(self, parent: int, mode: int = 0o600) -> tuple[Entry, int]:
        """TMPFILE; entry and fh."""
        body = w.CREATE_IN.pack(os.O_RDWR, mode, 0, 0) + b"#tmp\0"
        reply = self.call(w.FUSE_TMPFILE, parent, body, room=144)
        return parse_entry(reply), w.OPEN_OUT.unpack_from(reply, 128)[0]

    def read(self, nodeid: int, offset: int, size: int, fh: int = 0) -> bytes:
        """READ."""
        body = w.READ_IN.pack(fh, offset, size, 0, 0, 0, 0)
        return self.call(w.FUSE_READ, nodeid, body, pages=size)

    def write(self, nodeid: int, offset: int, data: bytes, fh: int = 0, flags: int = 0) -> int:
        """WRITE; bytes written."""
        body = w.WRITE_IN.pack(fh, offset, len(data), flags, 0, 0, 0)
        return int(w.WRITE_OUT.unpack(self.call(w.FUSE_WRITE, nodeid, body, data, room=8))[0])

    def release(self, nodeid: int, fh: int, flags: int = 0, owner: int = 0) -> None:
        """RELEASE."""
        self.call(w.FUSE_RELEASE, nodeid, w.RELEASE_IN.pack(fh, 0, flags, owner))

    def fsync(self, nodeid: int, fh: int = 0) -> None:
        """FSYNC."""
        self.call(w.FUSE_FSYNC, nodeid, w.FSYNC_IN.pack(fh, 0, 0))

    def statfs(self) -> tuple[int, ...]:
        """STATFS: blocks bfree bavail files ffree bsize namelen frsize."""
        return w.STATFS_OUT.unpack(self.call(w.FUSE_STATFS, 1, room=80))

    def setxattr(self, nodeid: int, name: bytes, value: bytes, flags: int = 0) -> None:
        """SETXATTR."""
        body = w.SETXATTR_IN.pack(len(value), flags) + name + b"\0" + value
        self.call(w.FUSE_SETXATTR, nodeid, body)

    def getxattr(self, nodeid: int, name: bytes, size: int = 65536) -> bytes:
        """GETXATTR with room for `size` bytes."""
        body = w.GETXATTR_IN.pack(size, 0) + name + b"\0"
        return self.call(w.FUSE_GETXATTR, nodeid, body, room=size or 8)

    def listxattr(self, nodeid: int, size: int = 65536) -> list[bytes]:
        """LISTXATTR."""
        reply = self.call(w.FUSE_LISTXATTR, nodeid, w.GETXATTR_IN.pack(size, 0), room=size or 8)
        return reply.split(b"\0")[:-1]

    def removexattr(self, nodeid: int, name: bytes) -> None:
        """REMOVEXATTR."""
        self.call(w.FUSE_REMOVEXATTR, nodeid, name + b"\0")

    def fallocate(self, nodeid: int, mode: int, offset: int, length: int, fh: int = 0) -> None:
        """FALLOCATE."""
        self.call(w.FUSE_FALLOCATE, nodeid, w.FALLOCATE_IN.pack(fh, offset, length, mode, 0))

    def lseek(self, nodeid: int, offset: int, whence: int, fh: int = 0) -> int:
        """LSEEK."""
        body = w.LSEEK_IN.pack(fh, offset, whence, 0)
        return int(w.LSEEK_OUT.unpack(self.call(w.FUSE_LSEEK, nodeid, body, room=8))[0])

    def copy_range(
        self,
        nodeid: int,
        offset: int,
        to: int,
        to_offset: int,
        length: int,
        fh: int = 0,
        to_fh: int = 0,
    ) -> int:
        """COPY_FILE_RANGE."""
        body = w.COPY_FILE_RANGE_IN.pack(fh, offset, to, to_fh, to_offset, length, 0)
        reply = self.call(w.FUSE_COPY_FILE_RANGE, nodeid, body, room=8)
        return int(w.WRITE_OUT.unpack(reply)[0])

    def lock(
        self, opcode: int, nodeid: int, owner: int, kind: int, start: int = 0, end: int = (1 << 63) - 1,
        *, flock: bool = False,
    ) -> bytes:  # fmt: skip
        """GETLK, SETLK or SETLKW."""
        body = w.LK_IN.pack(0, owner, start, end, kind, owner, int(flock), 0)
        return self.call(opcode, nodeid, body, room=24 if opcode == w.FUSE_GETLK else 0)

    def opendir(self, nodeid: int) -> int:
        """OPENDIR; fh."""
        reply = self.call(w.FUSE_OPENDIR, nodeid, w.OPEN_IN.pack(0, 0), room=16)
        return int(w.OPEN_OUT.unpack(reply)[0])

    def readdir(
        self, nodeid: int, cookie: int = 0, size: int = 4096, fh: int = 0, *, plus: bool = False
    ) -> list[DirEntry]:
        """One READDIR or READDIRPLUS."""
        opcode = w.FUSE_READDIRPLUS if plus else w.FUSE_READDIR
        reply = self.call(opcode, nodeid, w.READ_IN.pack(fh, cookie, size, 0, 0, 0, 0), pages=size)
        return list(parse_dirents(reply, plus=plus))

    def listdir(
        self, nodeid: int, size: int = 4096, fh: int = 0, *, plus: bool = False
    ) -> list[DirEntry]:
        """All entries."""
        found: list[DirEntry] = []
        cookie = 0
        while batch := self.readdir(nodeid, cookie, size, fh, plus=plus):
            found += batch
            cookie = batch[-1].cookie
        return found

    def names(self, nodeid: int, **options: Any) -> set[bytes]:
        """All names but . and .. ."""
        return {e.name for e in self.listdir(nodeid, **options)} - {b".", b".."}

    def resolve(self, path: str | bytes) -> Entry:
        """LOOKUP of each component from the root; follows no links."""
        raw = path.encode() if isinstance(path, str) else path
        entry = Entry(w.FUSE_ROOT_ID, 0, 0, 0, self.getattr(w.FUSE_ROOT_ID))
        for part in raw.strip(b"/").split(b"/"):
            if part:
                entry = self.lookup(entry.nodeid, part)
        return entry

    def read_path(self, path: str | bytes) -> bytes:
        """A whole file."""
        entry = self.resolve(path)
        assert stat.S_ISREG(entry.attr.mode)
        return b"".join(
            self.read(entry.nodeid, at, min(1 << 20, entry.attr.size - at))
            for at in range(0, entry.attr.size, 1 << 20)
        )


def _pages(size: int) -> list[int]:
    """A payload as 4 KiB pages."""
    return [4096] * (size // 4096) + ([size % 4096] if size % 4096 else [])


def parse_entry(reply: bytes) -> Entry:
    """`fuse_entry_out`."""
    nodeid, generation, entry_valid, attr_valid, _, _ = w.ENTRY_OUT.unpack_from(reply)
    return Entry(nodeid, generation, entry_valid, attr_valid, Attr(*w.ATTR.unpack_from(reply, 40)))


def parse_dirents(reply: bytes, *, plus: bool) -> Any:
    """The entries of a READDIR(PLUS) reply."""
    at = 0
    while at < len(reply):
        entry = parse_entry(reply[at:]) if plus else None
        at += 128 if plus else 0
        ino, cookie, length, kind = w.DIRENT.unpack_from(reply, at)
        name = reply[at + 24 : at + 24 + length]
        at += (24 + length + 7) // 8 * 8
        yield DirEntry(name, ino, cookie, kind, entry)
