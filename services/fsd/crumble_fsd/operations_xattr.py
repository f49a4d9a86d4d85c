"""FUSE operations on extended attributes."""

from __future__ import annotations

import errno

from crumble_fsd import fuse_wire as wire
from crumble_fsd.filesystem import Node, fail
from crumble_fsd.session import Operation, Request, Session
from crumble_fsd.wire_read import take_attribute

_MAX_VALUE = 65_536  # XATTR_SIZE_MAX


def setxattr(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_SETXATTR (the short form: FUSE_SETXATTR_EXT is not negotiated)."""
    size, flags = wire.SETXATTR_IN.unpack_from(request.body)
    name = take_attribute(request.body, wire.SETXATTR_IN.size)
    start = wire.SETXATTR_IN.size + len(name) + 1
    if size > _MAX_VALUE:
        fail(errno.E2BIG)
    if len(request.body) - start != size:
        fail(errno.EINVAL)
    node.fs.setxattr(node, name, request.body[start:], flags)
    return b""


def getxattr(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_GETXATTR."""
    size, _ = wire.GETXATTR_IN.unpack_from(request.body)
    name = take_attribute(request.body, wire.GETXATTR_IN.size)
    return _sized(request, size, node.fs.getxattr(node, name))


def listxattr(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_LISTXATTR."""
    size, _ = wire.GETXATTR_IN.unpack_from(request.body)
    names = node.fs.listxattr(node)
    return _sized(request, size, b"".join(name + b"\0" for name in names))


def removexattr(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_REMOVEXATTR."""
    node.fs.removexattr(node, take_attribute(request.body, 0))
    return b""


def _sized(request: Request, size: int, value: bytes) -> bytes:
    """The value, or with size 0 how long it is. The reply's room is `size`, or that of the length."""
    if size == 0:
        if request.room < wire.GETXATTR_OUT.size:
            fail(errno.EINVAL)
        return wire.GETXATTR_OUT.pack(len(value), 0)
    if len(value) > min(size, request.room):
        fail(errno.ERANGE)
    return value


OPERATIONS: dict[int, tuple[Operation, int, int]] = {
    wire.FUSE_SETXATTR: (setxattr, wire.SETXATTR_IN.size + 2, 0),
    wire.FUSE_GETXATTR: (getxattr, wire.GETXATTR_IN.size + 2, 0),
    wire.FUSE_LISTXATTR: (listxattr, wire.GETXATTR_IN.size, 0),
    wire.FUSE_REMOVEXATTR: (removexattr, 2, 0),
}
