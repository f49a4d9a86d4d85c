"""Puts a session together from its parts: layers, upper, shares, options."""

from __future__ import annotations

from collections.abc import Callable

from crumble_common.errors import UsageError
from crumble_common.messages.fs import Share as ShareConfig
from crumble_fsd import fuse_wire as wire
from crumble_fsd.filesystem import Filesystem, Node
from crumble_fsd.nodes import NodeTable
from crumble_fsd.operations import table
from crumble_fsd.passthrough import Share
from crumble_fsd.session import Complete, Options, Session
from crumble_fsd.tree import Tree, split_path
from crumble_fsd.union_parts import LayerFiles
from crumble_fsd.upper import MemoryUpper, Upper

_OPERATIONS = table()  # made before services are forked off


def options_for(upper: Upper, *, shared: bool, remote_locks: bool = False) -> Options:
    """What to offer: a tree that is one guest's alone needs far fewer round trips than a shared one."""
    quiet: set[int] = set()
    if not shared:
        quiet.add(wire.FUSE_OPENDIR)
        if not remote_locks:
            quiet |= {wire.FUSE_OPEN, wire.FUSE_FLUSH}
        if isinstance(upper, MemoryUpper):
            quiet |= {wire.FUSE_FSYNC, wire.FUSE_FSYNCDIR}
    return Options(frozenset(quiet), shared, remote_locks)


def new_tree(layers: list[LayerFiles], upper: Upper) -> tuple[Tree, NodeTable]:
    """The union, and the node table it shares with the session."""
    nodes = NodeTable()
    return Tree(layers, upper, nodes), nodes


def add_shares(tree: Tree, nodes: dict[int, Node], shares: list[ShareConfig]) -> list[Share]:
    """Opens the shares and grafts them, outer targets before inner ones; one at "/" is the whole tree.

    Raises UsageError for a source that is missing and a target nothing can be put at; none stays open then.
    """
    made: list[tuple[list[bytes], Share]] = []
    try:
        for share in sorted(shares, key=lambda share: len(split_path(share.target))):
            _add_share(tree, nodes, share, made)
    except BaseException:
        for _, opened in made:
            opened.close()
        raise
    return [share for _, share in made]


def _add_share(
    tree: Tree, nodes: dict[int, Node], share: ShareConfig, made: list[tuple[list[bytes], Share]]
) -> None:
    """made: those before it, and then it, too."""
    parts = split_path(share.target)
    if any(parts == at for at, _ in made):
        raise UsageError(
            f"Cannot share at {share.target}: there is another share at that path.",
            code="share.target",
            hint="Give each -v a target of its own.",
        )
    opened = Share(share.source, nodes, len(made), read_only=share.read_only, target=share.target)
    outer = [(at, host) for at, host in made if parts[: len(at)] == at]
    made.append((parts, opened))
    if not parts:
        opened.replace_root(nodes)
    elif outer:
        at, host = outer[-1]
        host.graft(parts[len(at) :], opened.root, share.target)
    else:
        tree.graft(parts, opened.root, share.target)


def new_session(
    nodes: NodeTable,
    filesystems: list[Filesystem],
    options: Options,
    complete: Complete = lambda _token, _length: None,
    commit: Callable[[], None] = lambda: None,
) -> Session:
    """A session over the nodes."""
    return Session(nodes, filesystems, options, _OPERATIONS, complete, commit)
