"""Captures a session for a snapshot: inodes and file data into a layer, the rest into a small state.

The layer's index has no names of its own: a renamed directory goes on showing its layers, an unlinked file
has no path, so what a tree is cannot be said by names. Its extension is the table of inodes
(node_table.py). A layer for an image is made by commit_layer.py.

A capture of a restored session is whole: data of the capture before is copied into the new one (by
reference, where the host's file system can), so a chain of captures never is more than one layer above the image.
"""

from __future__ import annotations

import os
import stat
from typing import Any

import msgpack

from crumble_common.errors import HostError, UsageError
from crumble_common.layer_index import Inode as LayerInode
from crumble_common.layer_index import pack_index
from crumble_fsd import copying
from crumble_fsd.commit_layer import CommitLayer
from crumble_fsd.excludes import Excludes
from crumble_fsd.filesystem import Handle
from crumble_fsd.fuse_wire import FUSE_ROOT_ID
from crumble_fsd.gone import GoneShare
from crumble_fsd.inodes import Directory, Inode
from crumble_fsd.later import Later
from crumble_fsd.node_record import data_of, pack_node
from crumble_fsd.node_table import NO_DATA, TOKEN_SIZE, NodeTableWriter
from crumble_fsd.passthrough import Share
from crumble_fsd.passthrough_files import DirectoryHandle, FileHandle
from crumble_fsd.session import Session
from crumble_fsd.share_state import share_number
from crumble_fsd.thaw import Sleepers
from crumble_fsd.tree import Tree

FORMAT = 1
MAX_STATE = 12 << 20  # it travels in one message


def freeze_session(
    session: Session, tree: Tree, shares: list[Share | GoneShare], index_fd: int, contents_fd: int,
    later: Later | None = None,
) -> tuple[bytes, int]:  # fmt: skip
    """Writes the layer to two empty files; the state, and the bytes of contents.

    later: is left to copy the data of large files. Nothing may change them but through it.

    The session does not change. UsageError when a request is not finished; HostError when the files
    cannot be written.
    """
    if session.waiting:
        raise UsageError("A request of the guest is not answered yet.", code="fs.running")
    token = os.urandom(TOKEN_SIZE)
    contents = copying.Contents(contents_fd, later)
    table = _table(session, tree, contents)
    contents.finish()
    root = LayerInode(stat.S_IFDIR | 0o755, children={}, implicit=True)
    copying.write_at(index_fd, pack_index(root, contents.size, table.pack(token)), 0)
    state = msgpack.packb(_state(session, tree, shares, token))
    if len(state) > MAX_STATE:
        raise HostError(
            "The guest has too many files of shares open to be captured.", code="snapshot.too_large"
        )
    return state, contents.size


def freeze_files(
    session: Session, tree: Tree, index_fd: int, contents_fd: int, excludes: list[str]
) -> int | None:
    """Writes a layer for an image to two empty files: bytes of contents, None when nothing has changed.

    UsageError "fs.excludes"; OSError.
    """
    contents = copying.Contents(contents_fd)
    root = CommitLayer(tree, session.nodes, contents, Excludes(excludes)).build()
    if root is None:
        return None
    contents.finish()
    copying.write_at(index_fd, pack_index(root, contents.size), 0)
    return contents.size


def _table(session: Session, tree: Tree, contents: copying.Contents) -> NodeTableWriter:
    table = NodeTableWriter()
    for node in session.nodes.values():
        if not isinstance(node, Inode):
            continue
        if node.pinned or isinstance(node, Directory):
            _record(table, node, tree, session, contents)
        elif node.lookups:
            table.mention(node.nodeid, node.lookups)
    waker = session.nodes.waker
    if isinstance(waker, Sleepers):
        _copy_sleepers(table, waker, tree, contents)
    return table


def _record(
    table: NodeTableWriter,
    node: Inode,
    tree: Tree,
    session: Session,
    contents: copying.Contents,
) -> None:
    place, parent = NO_DATA, 0
    captured = stat.S_ISREG(node.mode) and tree.is_captured(node)
    if captured:
        fd = node.fd if node.fd >= 0 else tree.upper.open(node)
        place = contents.add(fd, node.base, node.size, holes=node.sparse)
    if isinstance(node, Directory):  # the parent of one that was removed may be gone
        parent = node.parent.nodeid if node.parent.nodeid in session.nodes else FUSE_ROOT_ID
    graft = -1 if node.graft is None else share_number(node.graft.nodeid)
    record = pack_node(node, captured=captured, parent=parent, graft=graft)
    table.record(node.nodeid, record, place)


def _copy_sleepers(
    table: NodeTableWriter, waker: Sleepers, tree: Tree, contents: copying.Contents
) -> None:
    """Inodes nobody has used since the last capture: their records stay, their data moves over.

    At once, unless more than half of what the last capture holds is not theirs.
    """
    assert tree.captured is not None
    fd, end = tree.captured.contents, tree.captured.index.contents_size
    left = list(waker.table.left())
    live = sum(data_of(record)[0] for _, record, _ in left)
    whole = contents.add(fd, 0, end, holes=True) if 2 * live > end else -1
    for nodeid, record, place in left:
        if place != NO_DATA:
            size, holes = data_of(record)
            if place + size > end:
                raise ValueError("a file's data is outside the captured layer")
            moved = whole + place if whole >= 0 else contents.add(fd, place, size, holes=holes)
            table.record(nodeid, record, moved)
        else:
            table.record(nodeid, record)
    for nodeid, lookups in waker.table.mentions_left():
        table.mention(nodeid, lookups)


def _state(
    session: Session, tree: Tree, shares: list[Share | GoneShare], token: bytes
) -> dict[str, Any]:
    options = session.options
    return {
        "format": FORMAT,
        "token": token,
        "layers": tree.shape(),
        "next_id": tree.next_id,
        "charged": tree.upper.charged,
        "injected": list(tree.injected.items()),
        "minor": session.minor,
        "flags": session.flags,
        "quiet": sorted(options.quiet),
        "shared": options.shared,
        "remote_locks": options.remote_locks,
        "shares": [share.pack() for share in shares],
        "handles": [_handle(number, handle) for number, handle in session.handles.items()],
        "next_handle": session.handles.next,
        "locks": [[*key, *lock] for key, lock in session.locks.items()],
    }


def _handle(number: int, handle: Handle) -> list[Any]:
    """[number, nodeid, owners, a file's open flags, True for a directory, its names as they were read]"""
    owners = [list(owner) for owner in handle.owners]
    flags = handle.flags if isinstance(handle, FileHandle) else None
    names = handle.names if isinstance(handle, DirectoryHandle) else None
    is_directory = isinstance(handle, DirectoryHandle)
    return [number, handle.node.nodeid, owners, flags, is_directory, names]
