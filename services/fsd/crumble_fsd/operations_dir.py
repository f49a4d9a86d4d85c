"""FUSE operations on open directories."""

from __future__ import annotations

import errno

from crumble_fsd import fuse_wire as wire
from crumble_fsd.filesystem import Dirent, Node, fail, must_be_directory
from crumble_fsd.session import Operation, Request, Session

_ENTRY = wire.ENTRY_OUT.size + wire.ATTR_SIZE
_MAX_READ = 1 << 20
_NO_ENTRY = bytes(_ENTRY)  # "." and "..": not looked up


def opendir(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_OPENDIR."""
    must_be_directory(node)
    session.handles.check_room()
    handle, answer = node.fs.opendir(node)
    return wire.OPEN_OUT.pack(session.handles.add(handle), answer, 0)


def releasedir(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_RELEASEDIR."""
    fh, _, _, _ = wire.RELEASE_IN.unpack_from(request.body)
    session.handles.release(fh, node)
    return b""


def readdir(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_READDIR: as many entries as fit."""
    fh, offset, limit = _arguments(node, request)
    out = bytearray()
    handle = session.handles.get(fh, node)
    for entry in node.fs.entries(node, handle, offset, nodes=False):
        packed = _dirent(entry)
        if len(out) + len(packed) > limit:
            _must_progress(out)
            break
        out += packed
    return bytes(out)


def readdirplus(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_READDIRPLUS: the same with each entry's attributes, as if looked up."""
    fh, offset, limit = _arguments(node, request)
    out = bytearray()
    handle = session.handles.get(fh, node)
    for entry in node.fs.entries(node, handle, offset, nodes=True):
        packed = _dirent(entry)
        if len(out) + _ENTRY + len(packed) > limit:
            _must_progress(out)
            break
        out += _entry(session, entry.node)
        out += packed
    return bytes(out)


def _entry(session: Session, node: Node | None) -> bytes:
    """What is gone does not spoil the listing: the guest learns of it when it looks it up."""
    if node is None:
        return _NO_ENTRY
    try:
        return session.entry(node)
    except OSError as error:
        if error.errno not in (errno.ESTALE, errno.ENOENT):
            raise
        return _NO_ENTRY


def _arguments(node: Node, request: Request) -> tuple[int, int, int]:
    must_be_directory(node)
    fh, offset, size, _, _, _, _ = wire.READ_IN.unpack_from(request.body)
    return fh, offset, min(size, request.room, _MAX_READ)


def _dirent(entry: Dirent) -> bytes:
    """`fuse_dirent`, padded to 8 bytes."""
    name = entry.name
    head = wire.DIRENT.pack(entry.ino, entry.cookie, len(name), (entry.mode & 0o170000) >> 12)
    return head + name + bytes(-len(name) % 8)


def _must_progress(out: bytearray) -> None:
    """An empty answer would mean "no more": a buffer too small for one entry is the guest's error."""
    if not out:
        fail(errno.EINVAL)


OPERATIONS: dict[int, tuple[Operation, int, int]] = {
    wire.FUSE_OPENDIR: (opendir, wire.OPEN_IN.size, wire.OPEN_OUT.size),
    wire.FUSE_READDIR: (readdir, wire.READ_IN.size, 0),
    wire.FUSE_READDIRPLUS: (readdirplus, wire.READ_IN.size, 0),
    wire.FUSE_RELEASEDIR: (releasedir, wire.RELEASE_IN.size, 0),
}
