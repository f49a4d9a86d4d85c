"""FUSE operations on names and attributes, and the table of all of them.

Each takes (session, node of the header's nodeid, request), checks what the session could not, and
returns the payload of the reply. The session has seen to it that the body has at least the fixed
fields and that the reply has room for its least length.
"""

from __future__ import annotations

import errno
import os
import stat

from crumble_fsd import fuse_wire as wire
from crumble_fsd import operations_data as data
from crumble_fsd import operations_dir as directories
from crumble_fsd import operations_lock as locks
from crumble_fsd import operations_xattr as xattrs
from crumble_fsd.clock import CLOCK
from crumble_fsd.filesystem import Caller, Changes, Node, fail
from crumble_fsd.inodes import decode_rdev
from crumble_fsd.session import MAX_PAGES, MAX_WRITE, Operation, Request, Session
from crumble_fsd.wire_read import take_name, take_names

_NS = 1_000_000_000
_ENTRY = wire.ENTRY_OUT.size + wire.ATTR_SIZE
_ATTR = wire.ATTR_OUT.size + wire.ATTR_SIZE
_MAX_TARGET = 4095  # PATH_MAX - 1
_MAX_OFFSET = (1 << 63) - 1
_MIN_TIME, _MAX_TIME = -(1 << 63), (1 << 63) - 1  # as records hold them: years 1677 to 2262

_WANTED = (
    wire.FUSE_ASYNC_READ | wire.FUSE_BIG_WRITES | wire.FUSE_DO_READDIRPLUS
    | wire.FUSE_READDIRPLUS_AUTO | wire.FUSE_ASYNC_DIO | wire.FUSE_PARALLEL_DIROPS
    | wire.FUSE_MAX_PAGES | wire.FUSE_CACHE_SYMLINKS | wire.FUSE_INIT_EXT
    | wire.FUSE_NO_OPEN_SUPPORT | wire.FUSE_NO_OPENDIR_SUPPORT
)  # fmt: skip


def init(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_INIT: a guest that begins (again) holds nothing of before."""
    major, minor, readahead, flags = wire.INIT_IN.unpack_from(request.body)
    if major > wire.FUSE_KERNEL_VERSION:  # the guest asks again with ours
        return _init_out(0, readahead, 0)
    if major < wire.FUSE_KERNEL_VERSION or minor < wire.FUSE_MIN_MINOR_VERSION:
        fail(errno.EPROTO)
    if flags & wire.FUSE_INIT_EXT and len(request.body) >= wire.INIT_IN_EXT.size:
        flags |= wire.INIT_IN_EXT.unpack_from(request.body)[4] << 32
    options = session.options
    wanted = _WANTED
    killpriv = wire.FUSE_HANDLE_KILLPRIV_V2
    wanted |= killpriv if flags & killpriv else wire.FUSE_HANDLE_KILLPRIV
    if options.shared:
        wanted |= wire.FUSE_AUTO_INVAL_DATA | wire.FUSE_SUBMOUNTS
    if options.remote_locks:
        wanted |= wire.FUSE_POSIX_LOCKS | wire.FUSE_FLOCK_LOCKS
    session.reset()
    session.minor = min(minor, wire.FUSE_KERNEL_MINOR_VERSION)
    session.flags = wanted & flags
    for fs in session.filesystems:
        fs.submounts = bool(session.flags & wire.FUSE_SUBMOUNTS)
    return _init_out(session.minor, readahead, session.flags)


def _init_out(minor: int, readahead: int, flags: int) -> bytes:
    return wire.INIT_OUT.pack(
        wire.FUSE_KERNEL_VERSION, minor, readahead, flags & 0xFFFFFFFF,
        64, 48, MAX_WRITE, 1, MAX_PAGES, 0, flags >> 32,
    )  # fmt: skip


def destroy(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_DESTROY: unmounted."""
    session.reset()
    return b""


def forget(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_FORGET."""
    session.forget(request.nodeid, *wire.FORGET_IN.unpack_from(request.body))
    return b""


def batch_forget(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_BATCH_FORGET; a count that promises more than is there is cut."""
    count, _ = wire.BATCH_FORGET_IN.unpack_from(request.body)
    start, size = wire.BATCH_FORGET_IN.size, wire.FORGET_ONE.size
    there = min(count, (len(request.body) - start) // size)
    for nodeid, lookups in wire.FORGET_ONE.iter_unpack(request.body[start : start + there * size]):
        session.forget(nodeid, lookups)
    return b""


def lookup(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_LOOKUP; a name that is not there may be remembered as such (nodeid 0)."""
    found = node.fs.lookup(node, take_name(request.body))
    if found is not None:
        return session.entry(found)
    keep = node.fs.negative_valid
    if keep == 0:
        fail(errno.ENOENT)
    return wire.ENTRY_OUT.pack(0, 0, keep, 0, 0, 0) + bytes(wire.ATTR_SIZE)


def getattr_(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_GETATTR."""
    return session.attr_out(node)


def setattr_(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_SETATTR."""
    (
        valid, _, fh, size, _, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, mode, _, uid, gid, _,
    ) = wire.SETATTR_IN.unpack_from(request.body)  # fmt: skip
    handle = session.handles.get(fh, node) if valid & wire.FATTR_FH else None
    changes = Changes(kill_suidgid=bool(valid & wire.FATTR_KILL_SUIDGID))
    if valid & wire.FATTR_MODE:
        changes.mode = stat.S_IMODE(mode)
    if valid & wire.FATTR_UID:
        changes.uid = uid
    if valid & wire.FATTR_GID:
        changes.gid = gid
    if valid & wire.FATTR_SIZE:
        if size > _MAX_OFFSET:
            fail(errno.EINVAL)
        changes.size = size
    changes.atime = _time(valid, wire.FATTR_ATIME, wire.FATTR_ATIME_NOW, atime, atime_ns)
    changes.mtime = _time(valid, wire.FATTR_MTIME, wire.FATTR_MTIME_NOW, mtime, mtime_ns)
    changes.ctime = _time(valid, wire.FATTR_CTIME, 0, ctime, ctime_ns)
    node.fs.setattr(node, handle, changes)
    return session.attr_out(node)


def _time(valid: int, given: int, now: int, seconds: int, nanoseconds: int) -> int | None:
    if valid & now:
        return CLOCK.now()
    if not valid & given:
        return None
    if nanoseconds >= _NS:
        fail(errno.EINVAL)
    return max(_MIN_TIME, min(seconds * _NS + nanoseconds, _MAX_TIME))


def statx(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_STATX: what GETATTR says, and the time of birth where it is known."""
    (
        ino, size, blocks, atime, mtime, ctime, atime_ns, mtime_ns, ctime_ns, mode, nlink, uid, gid,
        rdev, blksize, _,
    ) = wire.ATTR.unpack(node.fs.attr(node))  # fmt: skip
    birth = node.fs.btime(node)
    mask = wire.STATX_BASIC_STATS | (wire.STATX_BTIME if birth is not None else 0)
    btime, btime_ns = divmod(birth or 0, _NS)
    device = decode_rdev(rdev)
    return wire.STATX_OUT.pack(
        node.fs.attr_valid, 0, 0, mask, blksize, 0, nlink, uid, gid, mode, ino, size, blocks, 0,
        _signed(atime), atime_ns, btime, btime_ns, _signed(ctime), ctime_ns, _signed(mtime), mtime_ns,
        os.major(device), os.minor(device), 0, 0,
    )  # fmt: skip


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def readlink(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_READLINK."""
    target = node.fs.readlink(node)
    if len(target) > request.room:
        fail(errno.ENAMETOOLONG)
    return target


def symlink(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_SYMLINK: name, then target."""
    name, target = take_names(request.body, 0, longest=_MAX_TARGET)
    return session.entry(node.fs.symlink(node, name, target, _caller(request)))


def mknod(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_MKNOD."""
    mode, rdev, _, _ = wire.MKNOD_IN.unpack_from(request.body)
    name = take_name(request.body, wire.MKNOD_IN.size)
    made = node.fs.mknod(node, name, mode & 0o177777, decode_rdev(rdev), _caller(request))
    return session.entry(made)


def mkdir(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_MKDIR."""
    mode, _ = wire.MKDIR_IN.unpack_from(request.body)
    name = take_name(request.body, wire.MKDIR_IN.size)
    return session.entry(node.fs.mkdir(node, name, stat.S_IMODE(mode), _caller(request)))


def unlink(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_UNLINK."""
    node.fs.unlink(node, take_name(request.body))
    return b""


def rmdir(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_RMDIR."""
    node.fs.rmdir(node, take_name(request.body))
    return b""


def rename(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_RENAME."""
    (target,) = wire.RENAME_IN.unpack_from(request.body)
    return _rename(session, node, target, request.body[wire.RENAME_IN.size :], 0)


def rename2(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_RENAME2."""
    target, flags, _ = wire.RENAME2_IN.unpack_from(request.body)
    return _rename(session, node, target, request.body[wire.RENAME2_IN.size :], flags)


def _rename(session: Session, node: Node, target: int, names: bytes, flags: int) -> bytes:
    known = wire.RENAME_NOREPLACE | wire.RENAME_EXCHANGE
    if flags & ~known or flags == known:
        fail(errno.EINVAL)
    old_name, new_name = take_names(names, 0)
    to = session.node(target)
    if to.fs is not node.fs:
        fail(errno.EXDEV)
    node.fs.rename(node, old_name, to, new_name, flags)
    return b""


def link(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_LINK: the header names the directory, the body the inode and its new name."""
    old = session.node(*wire.LINK_IN.unpack_from(request.body))
    name = take_name(request.body, wire.LINK_IN.size)
    if old.fs is not node.fs:
        fail(errno.EXDEV)
    node.fs.link(old, node, name)
    return session.entry(old)


def statfs(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_STATFS."""
    have = node.fs.statfs(node)
    return wire.STATFS_OUT.pack(*have, have.bsize)


def unsupported(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """ACCESS (the guest's kernel checks permissions itself), BMAP, POLL: never ask again."""
    fail(errno.ENOSYS)


def ioctl(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_IOCTL: no file has any."""
    fail(errno.ENOTTY)


def _caller(request: Request) -> Caller:
    return Caller(request.uid, request.gid)


def table() -> list[tuple[Operation, int, int] | None]:
    """By opcode: operation, least body, least room for the reply's payload."""
    entries: dict[int, tuple[Operation, int, int]] = {
        wire.FUSE_LOOKUP: (lookup, 2, _ENTRY),
        wire.FUSE_FORGET: (forget, wire.FORGET_IN.size, -wire.OUT_HEADER_SIZE),
        wire.FUSE_GETATTR: (getattr_, 0, _ATTR),
        wire.FUSE_SETATTR: (setattr_, wire.SETATTR_IN.size, _ATTR),
        wire.FUSE_READLINK: (readlink, 0, 1),
        wire.FUSE_SYMLINK: (symlink, 4, _ENTRY),
        wire.FUSE_MKNOD: (mknod, wire.MKNOD_IN.size + 2, _ENTRY),
        wire.FUSE_MKDIR: (mkdir, wire.MKDIR_IN.size + 2, _ENTRY),
        wire.FUSE_UNLINK: (unlink, 2, 0),
        wire.FUSE_RMDIR: (rmdir, 2, 0),
        wire.FUSE_RENAME: (rename, wire.RENAME_IN.size + 4, 0),
        wire.FUSE_RENAME2: (rename2, wire.RENAME2_IN.size + 4, 0),
        wire.FUSE_LINK: (link, wire.LINK_IN.size + 2, _ENTRY),
        wire.FUSE_STATFS: (statfs, 0, wire.STATFS_OUT.size),
        wire.FUSE_STATX: (statx, wire.STATX_IN.size, wire.STATX_OUT.size),
        wire.FUSE_INIT: (init, wire.INIT_IN.size, wire.INIT_OUT.size),
        wire.FUSE_DESTROY: (destroy, 0, -wire.OUT_HEADER_SIZE),
        wire.FUSE_BATCH_FORGET: (
            batch_forget,
            wire.BATCH_FORGET_IN.size,
            -wire.OUT_HEADER_SIZE,
        ),
        wire.FUSE_ACCESS: (unsupported, 0, 0),
        wire.FUSE_BMAP: (unsupported, 0, 0),
        wire.FUSE_POLL: (unsupported, 0, 0),
        wire.FUSE_IOCTL: (ioctl, 0, 0),
        **data.OPERATIONS,
        **directories.OPERATIONS,
        **locks.OPERATIONS,
        **xattrs.OPERATIONS,
    }
    return [entries.get(opcode) for opcode in range(wire.OPCODES)]
