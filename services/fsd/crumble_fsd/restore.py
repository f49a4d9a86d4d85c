"""Starts a session from the state of an FsFrozen: what freeze.py wrote, in a new process."""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass
from typing import Any

import msgpack

from crumble_common import log
from crumble_common.errors import UsageError
from crumble_common.messages.fs import Share as ShareConfig
from crumble_fsd import fuse_wire as wire
from crumble_fsd.assemble import new_session, new_tree
from crumble_fsd.filesystem import Filesystem, Handle, Node
from crumble_fsd.freeze import FORMAT
from crumble_fsd.gone import GoneShare
from crumble_fsd.handles import MAX_HANDLES
from crumble_fsd.inodes import LAYER_SHIFT
from crumble_fsd.locks import LAST, MAX_LOCKS, READ, WRITE, Lock
from crumble_fsd.node_table import NodeTableReader
from crumble_fsd.nodes import NodeTable
from crumble_fsd.passthrough import Share
from crumble_fsd.session import Complete, Options, Session
from crumble_fsd.share_nodes import ShareNode
from crumble_fsd.share_state import ShareState, parse_share
from crumble_fsd.thaw import Sleepers, corrupt
from crumble_fsd.tree import Tree, split_path
from crumble_fsd.union_parts import LayerFiles
from crumble_fsd.upper import Upper

_QUIET = frozenset((
    wire.FUSE_OPENDIR, wire.FUSE_OPEN, wire.FUSE_FLUSH, wire.FUSE_FSYNC, wire.FUSE_FSYNCDIR,
))  # fmt: skip
_MAX_CHARGE = 1 << 48


@dataclass(frozen=True, slots=True)
class Restored:
    """What goes on."""

    tree: Tree
    shares: list[Share | GoneShare]
    session: Session
    table: NodeTableReader

    def close(self) -> None:
        """Lets go of shares and of the captured layer's index; the upper is the caller's."""
        self.session.handles.close()
        _close(self.shares)
        self.table.close()


def restore_session(
    state: bytes,
    layers: list[LayerFiles],
    upper: Upper,
    shares: list[ShareConfig],
    complete: Complete = lambda _token, _length: None,
) -> Restored:
    """A session that goes on where the captured one was. layers: the image's, and last the captured one.

    Raises HostError "snapshot.corrupt", UsageError "snapshot.foreign" (other layers, another format)
    or "share.restore" (a share that the guest does not know).
    """
    try:
        return _restore(_unpack(state), layers, upper, shares, complete)
    except (ValueError, TypeError, KeyError, IndexError, OverflowError) as error:
        raise corrupt(error) from None


def _unpack(state: bytes) -> dict[str, Any]:
    try:
        found = msgpack.unpackb(state, strict_map_key=False)
    except Exception as error:  # noqa: BLE001  msgpack raises many kinds for bad bytes
        raise corrupt(f"not msgpack ({error})") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise UsageError(
            "The snapshot's file system state is of another version of Crumble.",
            code="snapshot.foreign",
            hint="Make the snapshot again.",
        )
    return found


def _restore(
    state: dict[str, Any],
    layers: list[LayerFiles],
    upper: Upper,
    configs: list[ShareConfig],
    complete: Complete,
) -> Restored:
    shape = state["layers"]
    _check(isinstance(shape, list))
    # Captured layers of before may be between: this capture needs nothing of theirs.
    tree, nodes = new_tree(layers[: min(len(shape), len(layers) - 1)], upper)
    if not layers or shape != tree.shape():
        raise UsageError(
            "The snapshot was made over other image layers.",
            code="snapshot.foreign",
            hint="Restore it with the image it was made of.",
        )
    captured = layers[-1]
    table = NodeTableReader(captured.index.extension())
    shares: list[Share | GoneShare] = []
    try:
        if table.token != state["token"]:
            raise ValueError("state and layer are of two captures")
        shares = _open_shares(state["shares"], configs, nodes)
        next_id, charged = state["next_id"], state["charged"]
        _check(type(next_id) is int and wire.FUSE_ROOT_ID < next_id <= 1 << LAYER_SHIFT)
        _check(type(charged) is int and 0 <= charged <= _MAX_CHARGE)
        tree.resume(captured, next_id, charged)
        tree.injected = {_number(nodeid): int(mtime) for nodeid, mtime in state["injected"]}
        nodes.waker = Sleepers(tree, nodes, table, captured, lambda number: shares[number].root)
        filesystems: list[Filesystem] = [tree, *(s for s in shares if isinstance(s, Share))]
        session = new_session(nodes, filesystems, _options(state), complete, upper.commit)
        try:
            _resume(session, state)
        except BaseException:
            session.handles.close()
            raise
    except BaseException:
        _close(shares)
        table.close()
        raise
    return Restored(tree, shares, session, table)


def _options(state: dict[str, Any]) -> Options:
    """What the guest was offered holds on: it does not ask again."""
    quiet, shared, remote = frozenset(state["quiet"]), state["shared"], state["remote_locks"]
    _check(quiet <= _QUIET and isinstance(shared, bool) and isinstance(remote, bool))
    return Options(quiet, shared, remote)


def _check(holds: bool) -> None:
    if not holds:
        raise ValueError("a field makes no sense")


# Shares.


def _open_shares(
    packed: list[Any], configs: list[ShareConfig], nodes: NodeTable
) -> list[Share | GoneShare]:
    states = [parse_share(item, number) for number, item in enumerate(packed)]
    given = {tuple(split_path(config.target)): config for config in configs}
    known = {tuple(split_path(state.target)) for state in states}
    for parts, config in given.items():
        if parts not in known:
            raise UsageError(
                f"Cannot share at {config.target}: the snapshot was made without a share at that path.",
                code="share.restore",
                hint="Make a snapshot of a VM that has it.",
            )
    made: list[Share | GoneShare] = []
    for number, state in enumerate(states):
        parts = tuple(split_path(state.target))
        wanted = given.get(parts)
        share: Share | GoneShare = GoneShare(number, packed[number])
        try:
            if wanted is not None:
                share = _open_share(wanted, state, number, nodes)
            if not parts:
                nodes[wire.FUSE_ROOT_ID] = share.root
            _graft_inside(made, states, share, state.target)
        except BaseException:
            _close([*made, share])
            raise
        made.append(share)
    return made


def _close(shares: list[Share | GoneShare]) -> None:
    for share in shares:
        share.close()


def _open_share(config: ShareConfig, state: ShareState, number: int, nodes: NodeTable) -> Share:
    share = Share(config.source, nodes, number, read_only=config.read_only, target=config.target)
    if stat.S_ISDIR(share.root.mode) != state.directory:
        share.close()
        was = "a directory" if state.directory else "a file"
        raise UsageError(
            f"Cannot share {config.source} at {config.target}: the snapshot had {was} there.",
            code="share.restore",
        )
    if not split_path(state.target):
        share.replace_root(nodes)
    share.nodes.resume(state)
    return share


def _graft_inside(
    made: list[Share | GoneShare], states: list[ShareState], share: Share | GoneShare, target: str
) -> None:
    """A share inside another one covers a name of it; the tree's own inodes say themselves what covers them."""
    parts = split_path(target)
    outer: tuple[int, Share] | None = None
    for other, state in zip(made, states, strict=False):
        at = split_path(state.target)
        if parts[: len(at)] == at and isinstance(other, Share):
            outer = len(at), other
    if outer is not None:
        outer[1].graft(parts[outer[0] :], share.root, target)


# Handles and locks.


def _resume(session: Session, state: dict[str, Any]) -> None:
    minor, flags = state["minor"], state["flags"]
    _check(type(minor) is int and 0 <= minor <= wire.FUSE_KERNEL_MINOR_VERSION)
    _check(type(flags) is int and 0 <= flags < 1 << 64)
    session.minor, session.flags = minor, flags
    for fs in session.filesystems:
        fs.submounts = bool(flags & wire.FUSE_SUBMOUNTS)
    _restore_handles(session, state["handles"], state["next_handle"])
    _restore_locks(session, state["locks"])


def _restore_handles(session: Session, packed: list[Any], following: int) -> None:
    _check(len(packed) <= MAX_HANDLES and type(following) is int and 0 < following < 1 << 63)
    handles: dict[int, Handle] = {}
    session.handles.restore(handles, following)  # closed with the session if the next one fails
    for number, nodeid, owners, flags, is_directory, names in packed:
        _check(type(number) is int and 0 < number < following and number not in handles)
        _check(type(nodeid) is int and isinstance(is_directory, bool))
        node = session.nodes.get(nodeid) or session.nodes.wake(nodeid)
        if node is None:
            continue  # of a share that is gone
        handle = _handle(node, flags, names, is_directory=is_directory)
        handle.owners = {(_number(owner), bool(flock)) for owner, flock in owners}
        handles[number] = handle


def _handle(node: Node, flags: Any, names: Any, *, is_directory: bool) -> Handle:
    if flags is None and not is_directory:
        return Handle(node)
    if not isinstance(node, ShareNode) or not isinstance(node.fs, Share):
        raise ValueError("a handle of a share is not of one")
    if not is_directory:
        return node.fs.reopen(node, _number(flags))
    if names is None:
        return node.fs.reopen_directory(node, None)
    read = [(bytes(name), _number(inode), _number(kind)) for name, inode, kind in names]
    return node.fs.reopen_directory(node, read)


def _restore_locks(session: Session, packed: list[Any]) -> None:
    """Locks of shares are taken on the host again; where that fails, the guest alone believes in them."""
    _check(len(packed) <= MAX_LOCKS)
    for nodeid, flock, *fields in packed:
        lock = Lock(*(_number(field) for field in fields))
        _check(isinstance(flock, bool) and lock.kind in (READ, WRITE))
        _check(lock.start <= lock.end <= LAST)
        node = session.nodes.get(nodeid) or session.nodes.wake(nodeid)
        if node is None:
            continue
        try:
            session.locks.set((nodeid, flock), lock)
            node.fs.lock(node, lock, flock=flock)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES, errno.ESTALE, errno.ENOLCK):
                raise corrupt(error) from None
            log.warning("a lock could not be taken again", reason=error)


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 64:
        raise ValueError("a number is out of range")
    return value
