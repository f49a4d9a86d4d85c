"""FUSE operations on open files and their contents."""

from __future__ import annotations

import errno
import os

from crumble_fsd import fuse_wire as wire
from crumble_fsd.filesystem import Caller, Handle, Node, fail
from crumble_fsd.session import MAX_WRITE, Operation, Request, Session
from crumble_fsd.views import first_bytes, skip_bytes, total
from crumble_fsd.wire_read import take_name

_ENTRY = wire.ENTRY_OUT.size + wire.ATTR_SIZE
_MAX_OFFSET = (1 << 63) - 1
_OUT_HEADER = wire.OUT_HEADER_SIZE
_READ = wire.READ_IN
_WRITE = wire.WRITE_IN


def open_(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_OPEN."""
    flags, open_flags = wire.OPEN_IN.unpack_from(request.body)
    session.handles.check_room()
    kill = bool(open_flags & wire.FUSE_OPEN_KILL_SUIDGID)
    handle, answer = node.fs.open(node, flags, kill=kill)
    return wire.OPEN_OUT.pack(_held(session, node, handle), answer, 0)


def _held(session: Session, node: Node, handle: Handle | None) -> int:
    """fh of what was opened; where locks come here, every open file needs one."""
    if handle is None and session.options.remote_locks:
        handle = Handle(node)
    return session.handles.add(handle)


def create(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_CREATE."""
    flags, mode, _, _ = wire.CREATE_IN.unpack_from(request.body)
    name = take_name(request.body, wire.CREATE_IN.size)
    session.handles.check_room()
    made, handle, answer = node.fs.create(
        node, name, mode & 0o7777, flags, Caller(request.uid, request.gid)
    )
    opened = wire.OPEN_OUT.pack(_held(session, made, handle), answer, 0)
    return session.entry(made) + opened


def tmpfile(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_TMPFILE; the name that follows is only for show."""
    flags, mode, _, _ = wire.CREATE_IN.unpack_from(request.body)
    session.handles.check_room()
    made, handle, answer = node.fs.tmpfile(
        node, mode & 0o7777, flags, Caller(request.uid, request.gid)
    )
    opened = wire.OPEN_OUT.pack(_held(session, made, handle), answer, 0)
    return session.entry(made) + opened


def read(session: Session, node: Node, request: Request) -> int:
    """FUSE_READ: straight into the guest's pages."""
    fh, offset, size, _, _, _, _ = _READ.unpack_from(request.body)
    writable, room = request.writable, request.room
    if size > room or offset > _MAX_OFFSET - size:
        fail(errno.EINVAL)
    if size == 0:
        return 0
    views = writable[1:] if len(writable[0]) == _OUT_HEADER else skip_bytes(writable, _OUT_HEADER)
    if size < room:
        views = first_bytes(views, size)
    handle = session.handles.get(fh, node) if fh else None
    return node.fs.read(node, handle, offset, views, size)


def write(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_WRITE: straight from the guest's pages."""
    fh, offset, size, flags, _, _, _ = _WRITE.unpack_from(request.body)
    data = request.data
    if size > MAX_WRITE or offset > _MAX_OFFSET - size or total(data) != size:
        fail(errno.EINVAL)
    if size == 0:
        return wire.WRITE_OUT.pack(0, 0)
    handle = session.handles.get(fh, node) if fh else None
    kill = bool(flags & wire.FUSE_WRITE_KILL_SUIDGID)
    return wire.WRITE_OUT.pack(node.fs.write(node, handle, offset, data, size, kill=kill), 0)


def flush(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_FLUSH: a descriptor was closed; its process's POSIX locks on the inode go."""
    fh, _, _, owner = wire.FLUSH_IN.unpack_from(request.body)
    node.fs.flush(node, session.handles.get(fh, node))
    session.drop_locks(node, owner, flock=False)
    return b""


def release(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_RELEASE: the last descriptor of an open file was closed."""
    fh, _, flags, owner = wire.RELEASE_IN.unpack_from(request.body)
    if flags & wire.FUSE_RELEASE_FLOCK_UNLOCK:
        session.drop_locks(node, owner, flock=True)
    handle = session.handles.release(fh, node)
    if handle is not None:
        for holder, flock in handle.owners:
            session.drop_locks(node, holder, flock=flock)
    return b""


def fsync(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_FSYNC and FUSE_FSYNCDIR."""
    fh, flags, _ = wire.FSYNC_IN.unpack_from(request.body)
    data_only = bool(flags & wire.FUSE_FSYNC_FDATASYNC)
    node.fs.fsync(node, session.handles.get(fh, node), data_only=data_only)
    return b""


def syncfs(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_SYNCFS."""
    for fs in session.filesystems:
        fs.syncfs()
    return b""


def fallocate(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_FALLOCATE."""
    fh, offset, length, mode, _ = wire.FALLOCATE_IN.unpack_from(request.body)
    if length == 0 or max(offset, length) > _MAX_OFFSET or offset + length > _MAX_OFFSET:
        fail(errno.EINVAL if length == 0 else errno.EFBIG)
    node.fs.fallocate(node, session.handles.get(fh, node), mode, offset, length)
    return b""


def lseek(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_LSEEK: SEEK_DATA and SEEK_HOLE; the others the guest does itself."""
    fh, offset, whence, _ = wire.LSEEK_IN.unpack_from(request.body)
    if offset > _MAX_OFFSET or whence not in (os.SEEK_DATA, os.SEEK_HOLE):
        fail(errno.EINVAL)
    handle = session.handles.get(fh, node)
    return wire.LSEEK_OUT.pack(node.fs.lseek(node, handle, offset, whence))


def copy_file_range(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_COPY_FILE_RANGE; across file systems the guest copies itself (EXDEV)."""
    fh, offset, target, to_fh, to_offset, length, flags = wire.COPY_FILE_RANGE_IN.unpack_from(
        request.body
    )
    to = session.node(target)
    if flags or max(offset, to_offset, length) > _MAX_OFFSET:
        fail(errno.EINVAL)
    if to.fs is not node.fs:
        fail(errno.EXDEV)
    length = min(length, _MAX_OFFSET - max(offset, to_offset), 0x7FFF_F000)
    handle, to_handle = session.handles.get(fh, node), session.handles.get(to_fh, to)
    count = node.fs.copy_range(node, handle, offset, to, to_handle, to_offset, length)
    return wire.WRITE_OUT.pack(count, 0)


OPERATIONS: dict[int, tuple[Operation, int, int]] = {
    wire.FUSE_OPEN: (open_, wire.OPEN_IN.size, wire.OPEN_OUT.size),
    wire.FUSE_CREATE: (create, wire.CREATE_IN.size + 2, _ENTRY + wire.OPEN_OUT.size),
    wire.FUSE_TMPFILE: (tmpfile, wire.CREATE_IN.size, _ENTRY + wire.OPEN_OUT.size),
    wire.FUSE_READ: (read, wire.READ_IN.size, 0),
    wire.FUSE_WRITE: (write, wire.WRITE_IN.size, wire.WRITE_OUT.size),
    wire.FUSE_FLUSH: (flush, wire.FLUSH_IN.size, 0),
    wire.FUSE_RELEASE: (release, wire.RELEASE_IN.size, 0),
    wire.FUSE_FSYNC: (fsync, wire.FSYNC_IN.size, 0),
    wire.FUSE_FSYNCDIR: (fsync, wire.FSYNC_IN.size, 0),
    wire.FUSE_SYNCFS: (syncfs, 0, 0),
    wire.FUSE_FALLOCATE: (fallocate, wire.FALLOCATE_IN.size, 0),
    wire.FUSE_LSEEK: (lseek, wire.LSEEK_IN.size, wire.LSEEK_OUT.size),
    wire.FUSE_COPY_FILE_RANGE: (
        copy_file_range,
        wire.COPY_FILE_RANGE_IN.size,
        wire.WRITE_OUT.size,
    ),
}
