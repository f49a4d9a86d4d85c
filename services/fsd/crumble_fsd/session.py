"""The FUSE session: requests in, replies out, no I/O of its own.

`handle` takes the readable and writable buffers of one virtqueue chain and returns how many bytes of
reply are in the writable ones. It never raises: whatever a guest sends, the answer is a FUSE error or
nothing. Everything it needs of the world comes from the file systems behind the nodes, so the
same session runs over a ring, in a test, or (its hot part) in C.

Fewer round trips are the biggest win, so what the guest need not ask is answered ENOSYS, which
Linux takes as "never ask again": OPEN, OPENDIR, FLUSH when the tree is only this guest's, and FSYNC
when there is no stable storage. Locks are then the guest kernel's own business too.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass
from struct import error as StructError  # noqa: N812

from crumble_common import log
from crumble_common.errors import CrumbleError
from crumble_fsd import fuse_wire as wire
from crumble_fsd.filesystem import Filesystem, Node, fail
from crumble_fsd.handles import HandleTable
from crumble_fsd.locks import LockTable
from crumble_fsd.nodes import NodeTable
from crumble_fsd.views import first_bytes, join, place, skip_bytes, total

MAX_WRITE = 1 << 20
MAX_PAGES = MAX_WRITE // 4096
# Longest request that is not a WRITE: SETXATTR with a 64 KiB value and a name; BATCH_FORGET is cut
# by the kernel to a page or so.
MAX_REQUEST = 128 << 10
PENDING = -1

_HEADER = wire.IN_HEADER
_OUT = wire.OUT_HEADER
_NO_REPLY = frozenset((wire.FUSE_FORGET, wire.FUSE_BATCH_FORGET, wire.FUSE_INTERRUPT))


@dataclass(frozen=True)
class Options:
    """What this session offers. quiet: opcodes to answer ENOSYS so that the guest stops asking.

    shared: host files are in the tree (they may change behind the guest's back). remote_locks: locks
    come here. The writeback cache is never offered: see docs/decisions.
    """

    quiet: frozenset[int] = frozenset()
    shared: bool = False
    remote_locks: bool = False


class Request:
    """One request, checked as far as its header. `data`: WRITE's payload. `room`: bytes of reply."""

    __slots__ = ("body", "data", "gid", "nodeid", "opcode", "room", "token", "uid", "unique", "writable")  # fmt: skip

    body: bytes
    data: list[memoryview]
    opcode: int
    unique: int
    nodeid: int
    uid: int
    gid: int
    room: int
    writable: list[memoryview]
    token: object


Result = bytes | int | None
"""A payload; or the length of one already in place; or None for an answer that comes later."""
Operation = Callable[["Session", Node, Request], Result]
Complete = Callable[[object, int], None]
Attempt = Callable[[], "bytes | None"]
"""Tries a lock again: the reply, or None to go on waiting; may raise OSError."""


class Session:
    """One guest's use of one tree. `complete(token, length)` is called for answers that come later."""

    def __init__(
        self,
        nodes: NodeTable,
        filesystems: list[Filesystem],
        options: Options,
        operations: list[tuple[Operation, int, int] | None],
        complete: Complete,
        commit: Callable[[], None],
    ) -> None:
        """operations: by opcode: what to call, least length of the body, least room for the reply.
        commit: called after each request and before its answer; may raise OSError.
        """
        self.nodes = nodes
        self.filesystems = filesystems
        self.options = options
        self.handles = HandleTable()
        self.locks = LockTable()
        self.minor = 0  # 0: INIT has not come
        self.flags = 0  # what INIT agreed on
        self.waiting: dict[int, tuple[Request, Attempt]] = {}
        self._operations = operations
        self._complete = complete
        self._commit = commit

    def handle(
        self, readable: list[memoryview], writable: list[memoryview], token: object = None
    ) -> int:
        """Serves one request. Returns the reply's length, or PENDING."""
        request = Request()
        request.unique = 0
        request.writable = writable
        request.token = token
        try:
            try:
                result = self._serve(readable, request)
            finally:
                self._commit()
        except OSError as error:
            return self._error(request, error.errno or errno.EIO)
        except StructError:
            return self._error(request, errno.EINVAL)
        except CrumbleError as error:  # a damaged layer, met only now
            log.error("request failed", code=error.code, reason=error.message)
            return self._error(request, errno.EIO)
        except Exception as error:  # noqa: BLE001  a bug here must not take the guest's disk away
            log.exception("request failed", error, opcode=getattr(request, "opcode", -1))
            return self._error(request, errno.EIO)
        if result is None:
            return PENDING
        return self._answer(request, result)

    def _serve(self, readable: list[memoryview], request: Request) -> Result:
        self._parse(readable, request)
        opcode = request.opcode
        entry = self._operations[opcode] if opcode < wire.OPCODES else None
        if opcode in _NO_REPLY or request.room < 0:
            request.writable = []  # whatever the guest offers, nothing is answered
        if entry is None:
            fail(errno.ENOSYS)
        operation, least_body, least_room = entry
        if self.minor == 0 and opcode != wire.FUSE_INIT:
            fail(errno.EIO)
        if len(request.body) < least_body or (request.room < least_room):
            fail(errno.EINVAL)
        node = self.nodes.get(request.nodeid) or self.nodes.wake(request.nodeid)
        if node is None:
            if opcode not in _NODELESS:
                fail(errno.ESTALE)
            node = self.nodes[wire.FUSE_ROOT_ID]
        if opcode in self.options.quiet:
            fail(errno.ENOSYS)
        return operation(self, node, request)

    def _parse(self, readable: list[memoryview], request: Request) -> None:
        """Header, body and payload, however the guest cut them into buffers."""
        if readable and len(readable[0]) >= wire.IN_HEADER_SIZE:
            head: bytes | memoryview = readable[0]
        else:
            head = join(first_bytes(readable, wire.IN_HEADER_SIZE))
        length, request.opcode, request.unique, request.nodeid, request.uid, request.gid, *_ = (
            _HEADER.unpack_from(head)
        )
        given = total(readable)
        if length != given:
            fail(errno.EINVAL)
        request.room = total(request.writable) - wire.OUT_HEADER_SIZE
        if request.opcode == wire.FUSE_WRITE:
            split = wire.IN_HEADER_SIZE + wire.WRITE_IN.size
            if len(readable) > 2 and len(readable[0]) == len(readable[1]) == wire.IN_HEADER_SIZE:
                request.body, request.data = bytes(readable[1]), readable[2:]
            else:
                whole = join(first_bytes(readable, split))
                request.body, request.data = (
                    whole[wire.IN_HEADER_SIZE :],
                    skip_bytes(readable, split),
                )
        elif given > MAX_REQUEST:
            fail(errno.EINVAL)
        elif len(readable) == 2 and len(head) == wire.IN_HEADER_SIZE:
            request.body = bytes(readable[1])
        else:
            request.body = join(readable)[wire.IN_HEADER_SIZE :]

    # Replies.

    def _answer(self, request: Request, result: bytes | int) -> int:
        writable = request.writable
        if not writable:
            return 0
        if isinstance(result, int):
            length = wire.OUT_HEADER_SIZE + result
            if len(writable[0]) >= wire.OUT_HEADER_SIZE:
                _OUT.pack_into(writable[0], 0, length, 0, request.unique)
            else:
                place(writable, _OUT.pack(length, 0, request.unique))
            return length
        length = wire.OUT_HEADER_SIZE + len(result)
        if len(writable[0]) >= length:
            writable[0][:length] = _OUT.pack(length, 0, request.unique) + result
        elif len(writable) == 2 and len(writable[0]) == wire.OUT_HEADER_SIZE:
            _OUT.pack_into(writable[0], 0, length, 0, request.unique)
            writable[1][: len(result)] = result
        else:
            place(writable, _OUT.pack(length, 0, request.unique) + result)
        return length

    def _error(self, request: Request, number: int) -> int:
        if total(request.writable) < wire.OUT_HEADER_SIZE:
            return 0
        place(request.writable, _OUT.pack(wire.OUT_HEADER_SIZE, -number, request.unique))
        return wire.OUT_HEADER_SIZE

    def finish(self, request: Request, result: bytes | OSError) -> None:
        """The answer of a request that was PENDING."""
        self.waiting.pop(request.unique, None)
        if isinstance(result, OSError):
            length = self._error(request, result.errno or errno.EIO)
        else:
            length = self._answer(request, result)
        self._complete(request.token, length)

    def entry(self, node: Node) -> bytes:
        """`fuse_entry_out` of a node, which the guest thereby learns of."""
        fs = node.fs
        packed = fs.attr(node)
        fs.remember(node)
        return wire.ENTRY_OUT.pack(node.nodeid, 0, fs.entry_valid, fs.attr_valid, 0, 0) + packed

    def attr_out(self, node: Node) -> bytes:
        """`fuse_attr_out` of a node."""
        return wire.ATTR_OUT.pack(node.fs.attr_valid, 0, 0) + node.fs.attr(node)

    def node(self, nodeid: int) -> Node:
        """A node that a request's body names. ESTALE."""
        node = self.nodes.get(nodeid) or self.nodes.wake(nodeid)
        if node is None:
            fail(errno.ESTALE)
        return node

    # Locks.

    def drop_locks(self, node: Node, owner: int, *, flock: bool) -> None:
        """An owner lets go of all its locks on an inode."""
        if self.locks.drop_owner((node.nodeid, flock), owner):
            node.fs.drop_locks(node, owner, flock=flock)
            self.locks_freed()

    def locks_freed(self) -> None:
        """Lets everyone who waits for a lock try again, oldest first."""
        for request, attempt in list(self.waiting.values()):
            try:
                result = attempt()
            except OSError as error:
                self.finish(request, error)
            else:
                if result is not None:
                    self.finish(request, result)

    # Lives.

    def forget(self, nodeid: int, count: int) -> None:
        """The guest forgets `count` lookups; unknown nodes are nobody's loss."""
        node = self.nodes.get(nodeid) or self.nodes.wake(nodeid)
        if node is not None:
            node.fs.forget(node, count)

    def interrupt_all(self) -> None:
        """Answers everyone who waits for a lock with EINTR."""
        for request, _ in list(self.waiting.values()):
            self.finish(request, OSError(errno.EINTR, "interrupted"))

    def reset(self) -> None:
        """The guest is gone or begins anew: it holds nothing."""
        self.nodes.wake_all()
        self.interrupt_all()
        self.minor = 0
        self.handles.close()
        self.locks.clear()
        for fs in self.filesystems:
            fs.clear_locks()
        for node in list(self.nodes.values()):
            if node.lookups:
                node.fs.forget(node, node.lookups)


_NODELESS = frozenset((
    wire.FUSE_INIT, wire.FUSE_DESTROY, wire.FUSE_FORGET, wire.FUSE_BATCH_FORGET,
    wire.FUSE_INTERRUPT, wire.FUSE_SYNCFS, wire.FUSE_STATFS,
))  # fmt: skip
