"""FUSE operations on advisory locks, where the session takes them (Options.remote_locks).

A lock that must be waited for is answered when it is free, or with EINTR when the guest interrupts
the request; each unlock lets every waiter try again, oldest first, and the pump lets them try now and
then, because who is outside the guest does not say when it unlocks.
"""

from __future__ import annotations

import errno

from crumble_fsd import fuse_wire as wire
from crumble_fsd.filesystem import Node, fail
from crumble_fsd.locks import LAST, READ, UNLOCK, WRITE, Key, Lock
from crumble_fsd.session import Operation, Request, Result, Session

# Each waiter holds a descriptor chain; a ring has at most 32,768.
_MAX_WAITING = 32_768
# Processes that lock through one open file.
_MAX_OWNERS = 65_536


def getlk(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_GETLK: the first lock in the way, or F_UNLCK."""
    key, wanted = _arguments(session, node, request)
    flock = key[1]
    found = session.locks.conflict(key, wanted) or node.fs.lock_conflict(node, wanted, flock=flock)
    if found is None:
        return wire.LK_OUT.pack(wanted.start, wanted.end, UNLOCK, 0)
    return wire.LK_OUT.pack(found.start, found.end, found.kind, found.pid)


def setlk(session: Session, node: Node, request: Request) -> bytes:
    """FUSE_SETLK: at once or EAGAIN."""
    key, wanted = _arguments(session, node, request)
    _take(session, node, key, wanted, request)
    session.locks_freed()
    return b""


def _take(session: Session, node: Node, key: Key, wanted: Lock, request: Request) -> None:
    """Takes or drops a lock, of the guest's own and of others. EAGAIN."""
    handle = session.handles.get(wire.LK_IN.unpack_from(request.body)[0], node)
    if session.locks.conflict(key, wanted) is not None:
        fail(errno.EAGAIN)
    node.fs.lock(node, wanted, flock=key[1])
    session.locks.set(key, wanted)
    if handle is not None and wanted.kind != UNLOCK:
        if len(handle.owners) >= _MAX_OWNERS:
            fail(errno.ENOLCK)
        handle.owners.add((wanted.owner, key[1]))


def setlkw(session: Session, node: Node, request: Request) -> Result:
    """FUSE_SETLKW: now or later."""
    key, wanted = _arguments(session, node, request)
    try:
        return setlk(session, node, request)
    except BlockingIOError:
        pass
    if len(session.waiting) >= _MAX_WAITING or request.unique in session.waiting:
        fail(errno.ENOLCK)

    def attempt() -> bytes | None:
        if session.node(request.nodeid) is not node:
            fail(errno.ESTALE)
        try:
            _take(session, node, key, wanted, request)
        except BlockingIOError:
            return None
        return b""

    session.waiting[request.unique] = (request, attempt)
    return None


def interrupt(session: Session, node: Node, request: Request) -> bytes:  # noqa: ARG001
    """FUSE_INTERRUPT: only waiting for a lock takes long enough to matter."""
    (unique,) = wire.INTERRUPT_IN.unpack_from(request.body)
    waiting = session.waiting.get(unique)
    if waiting is not None:
        session.finish(waiting[0], OSError(errno.EINTR, "interrupted"))
    return b""


def _arguments(session: Session, node: Node, request: Request) -> tuple[Key, Lock]:
    if not session.options.remote_locks:
        fail(errno.ENOSYS)
    _, owner, start, end, kind, pid, flags, _ = wire.LK_IN.unpack_from(request.body)
    if node.mode & 0o170000 != 0o100000:
        fail(errno.EBADF)
    if kind not in (READ, WRITE, UNLOCK) or start > end or start > LAST:
        fail(errno.EINVAL)
    lock = Lock(start, min(end, LAST), kind, owner, pid)
    return (node.nodeid, bool(flags & wire.FUSE_LK_FLOCK)), lock


OPERATIONS: dict[int, tuple[Operation, int, int]] = {
    wire.FUSE_GETLK: (getlk, wire.LK_IN.size, wire.LK_OUT.size),
    wire.FUSE_SETLK: (setlk, wire.LK_IN.size, 0),
    wire.FUSE_SETLKW: (setlkw, wire.LK_IN.size, 0),
    wire.FUSE_INTERRUPT: (interrupt, wire.INTERRUPT_IN.size, -wire.OUT_HEADER_SIZE),
}
