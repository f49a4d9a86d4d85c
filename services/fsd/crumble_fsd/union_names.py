"""Changing names in the union: making, removing, renaming and linking inodes.

Order in each operation: check everything, charge the upper for what it will cost, change the objects,
then tell the upper; so an error leaves the tree as it was.
"""

from __future__ import annotations

import errno
import os
import stat

from crumble_fsd.clock import CLOCK
from crumble_fsd.filesystem import Caller, Handle, Node, fail
from crumble_fsd.fuse_wire import (
    FOPEN_KEEP_CACHE,
    FOPEN_NOFLUSH,
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
)
from crumble_fsd.inodes import BLOCK, LAYER_SHIFT, Directory, Inode
from crumble_fsd.union import Union
from crumble_fsd.upper import INODE_COST, NAME_COST

_MAX_LINKS = 65_000
_OPENED = FOPEN_KEEP_CACHE | FOPEN_NOFLUSH


class UnionNames(Union):
    """Operations on names; see Filesystem for each."""

    def mknod(
        self, directory: Directory, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> Inode:
        """See Filesystem."""
        kind = stat.S_IFMT(mode)
        if kind in (0, stat.S_IFREG):
            return self._make_file(directory, name, stat.S_IFREG | stat.S_IMODE(mode), caller)
        if kind not in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK):
            fail(errno.EINVAL)
        self._check_new(directory, name)
        node = self._make(directory, name, mode, caller)
        node.rdev = rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else 0
        return self._name(directory, name, node)

    def create(
        self, directory: Directory, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[Node, Handle | None, int]:
        """See Filesystem."""
        found = self.lookup(directory, name)
        if found is None:
            made = self._make_file(directory, name, stat.S_IFREG | stat.S_IMODE(mode), caller)
            return made, None, _OPENED
        if flags & os.O_EXCL:
            fail(errno.EEXIST)
        handle, open_flags = found.fs.open(found, flags, kill=False)
        return found, handle, open_flags

    def tmpfile(
        self,
        directory: Directory,
        mode: int,
        flags: int,  # noqa: ARG002  of Filesystem
        caller: Caller,
    ) -> tuple[Node, Handle | None, int]:
        """See Filesystem."""
        self._check_writable(directory)
        node = self._make(directory, None, stat.S_IFREG | stat.S_IMODE(mode), caller)
        self._give_data(node)
        node.nlink = 0
        self._upper.save_inode(node)
        return node, None, _OPENED

    def mkdir(self, directory: Directory, name: bytes, mode: int, caller: Caller) -> Directory:
        """See Filesystem."""
        self._check_new(directory, name)
        self._upper.charge(INODE_COST + _name_cost(directory, name))
        gid, inherited = _inherit(directory, caller)
        mode = stat.S_IFDIR | stat.S_IMODE(mode) | inherited
        node = Directory(self, self._new_id(), mode, caller.uid, gid, directory)
        node.size, node.charged = BLOCK, INODE_COST
        self._register(node)
        self._name(directory, name, node)
        self._count_subdirectory(directory, 1)
        return node

    def symlink(self, directory: Directory, name: bytes, target: bytes, caller: Caller) -> Inode:
        """See Filesystem."""
        self._check_new(directory, name)
        mode = stat.S_IFLNK | 0o777
        self._upper.charge(len(target))
        node = self._make(directory, name, mode, caller)
        node.target, node.size = target, len(target)
        node.charged += len(target)
        return self._name(directory, name, node)

    def link(self, node: Inode, directory: Directory, name: bytes) -> None:
        """See Filesystem."""
        self._check_new(directory, name)
        if isinstance(node, Directory):
            fail(errno.EPERM)
        if node.nlink >= _MAX_LINKS:
            fail(errno.EMLINK)
        self._upper.charge(_name_cost(directory, name))
        node.nlink += 1
        self._changed(node)
        self._name(directory, name, node)

    def unlink(self, directory: Directory, name: bytes) -> None:
        """See Filesystem."""
        node = self._existing(directory, name)
        if isinstance(node, Directory):
            fail(errno.EISDIR)
        self._remove_name(directory, name)
        self._dropped_link(node)

    def rmdir(self, directory: Directory, name: bytes) -> None:
        """See Filesystem."""
        node = self._existing(directory, name)
        if not isinstance(node, Directory):
            fail(errno.ENOTDIR)
        if not self.is_empty(node):
            fail(errno.ENOTEMPTY)
        self._remove_name(directory, name)
        self._count_subdirectory(directory, -1)
        self._removed_directory(node)

    def rename(
        self, old: Directory, name: bytes, new: Directory, new_name: bytes, flags: int
    ) -> None:
        """See Filesystem."""
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE) or flags == 3:  # both
            fail(errno.EINVAL)
        node = self._existing(old, name)
        self._check_writable(new)
        target = self.find(new, new_name)
        if target is not None and target.nodeid == node.nodeid:
            target = node  # of a layer's file the guest does not know, each look makes an object
        if target is not None and target.graft is not None:
            fail(errno.EBUSY)
        if flags & RENAME_EXCHANGE:
            self._exchange(old, name, node, new, new_name, target)
            return
        if target is not None and flags & RENAME_NOREPLACE:
            fail(errno.EEXIST)
        _check_no_loop(node, new)
        if target is not None:
            if target is node:
                return
            self._check_replaceable(node, target)
        self._upper.charge(_name_cost(new, new_name))
        self._remove_name(old, name)
        self._name(new, new_name, node)
        self._moved(node, old, new)
        if isinstance(target, Directory):
            self._count_subdirectory(new, -1)
            self._removed_directory(target)
        elif target is not None:
            self._dropped_link(target)

    def _exchange(
        self,
        old: Directory,
        name: bytes,
        node: Inode,
        new: Directory,
        new_name: bytes,
        target: Inode | None,
    ) -> None:
        if target is None:
            fail(errno.ENOENT)
        _check_no_loop(node, new)
        _check_no_loop(target, old)
        self._upper.charge(_name_cost(old, name) + _name_cost(new, new_name))
        self._name(old, name, target)
        self._name(new, new_name, node)
        self._moved(node, old, new)
        self._moved(target, new, old)

    # Checks.

    def _check_writable(self, directory: Directory) -> None:
        if not isinstance(directory, Directory):
            fail(errno.ENOTDIR)
        if directory.nlink == 0:
            fail(errno.ENOENT)

    def _check_new(self, directory: Directory, name: bytes) -> None:
        self._check_writable(directory)
        if self.find(directory, name) is not None:
            fail(errno.EEXIST)

    def _existing(self, directory: Directory, name: bytes) -> Inode:
        """What `name` leads to, which may be moved or removed."""
        node = self.find(directory, name)
        if node is None:
            fail(errno.ENOENT)
        if node.graft is not None:
            fail(errno.EBUSY)
        return node

    def _check_replaceable(self, node: Inode, target: Inode) -> None:
        if isinstance(target, Directory):
            if not isinstance(node, Directory):
                fail(errno.EISDIR)
            if not self.is_empty(target):
                fail(errno.ENOTEMPTY)
        elif isinstance(node, Directory):
            fail(errno.ENOTDIR)

    # Steps.

    def _make_file(self, directory: Directory, name: bytes, mode: int, caller: Caller) -> Inode:
        self._check_new(directory, name)
        node = self._make(directory, name, mode, caller)
        self._give_data(node)
        return self._name(directory, name, node)

    def _make(self, directory: Directory, name: bytes | None, mode: int, caller: Caller) -> Inode:
        """A new inode, paid for together with its name; what else there is to it the caller sets."""
        self._upper.charge(INODE_COST + (_name_cost(directory, name) if name else 0))
        gid, _ = _inherit(directory, caller)
        node = Inode(self, self._new_id(), mode, caller.uid, gid)
        node.charged = INODE_COST
        self._register(node)
        return node

    def _give_data(self, node: Inode) -> None:
        try:
            self._upper.create(node)
        except OSError:
            del self._nodes[node.nodeid]
            self._upper.charge(-INODE_COST)
            raise

    def _new_id(self) -> int:
        number = self._next_id
        if number >= 1 << LAYER_SHIFT:
            fail(errno.ENOSPC)
        self._next_id = number + 1
        return number

    def _register(self, node: Inode) -> None:
        node.set_times(CLOCK.now())
        node.pinned = True
        self._nodes[node.nodeid] = node

    def _name(self, directory: Directory, name: bytes, node: Inode) -> Inode:
        """Puts a name into the upper part of a directory, over whatever it meant before."""
        self._keep_cookies(directory)
        if directory.children is None:
            directory.children = {}
        directory.children[name] = node
        if directory.listing is not None:
            directory.listing.add(name)
        self._upper.save_inode(node)
        self._upper.save_name(directory, name, node)
        self._touch(directory)
        return node

    def _remove_name(self, directory: Directory, name: bytes) -> None:
        """Takes a name out of a directory, leaving a whiteout where a layer has it too."""
        shows = self.shows_through(directory, name)
        had = directory.children is not None and name in directory.children
        if shows and not had:  # even when full: how else could room be made?
            self._upper.charge(NAME_COST + len(name), force=True)
        elif had and not shows:
            self._upper.charge(-NAME_COST - len(name))
        self._keep_cookies(directory)
        if directory.children is None:
            directory.children = {}
        if shows:
            directory.children[name] = None
            self._upper.save_name(directory, name, None)
        else:
            del directory.children[name]
            self._upper.drop_name(directory, name)
        if directory.listing is not None:
            directory.listing.remove(name)
        self._touch(directory)

    def _keep_cookies(self, directory: Directory) -> None:
        """Before the first change: the cookies the guest has seen must go on meaning the same."""
        if directory.listed and directory.listing is None:
            self.listing(directory)

    def _touch(self, directory: Directory) -> None:
        directory.mtime = directory.ctime = CLOCK.now()
        self._changed(directory)

    def _changed(self, node: Inode) -> None:
        node.packed = None
        node.pinned = True
        self._nodes[node.nodeid] = node
        self._upper.save_inode(node)

    def _count_subdirectory(self, directory: Directory, change: int) -> None:
        if directory.nlink >= 2:  # 1: not counted
            directory.nlink += change
            self._changed(directory)

    def _moved(self, node: Inode, old: Directory, new: Directory) -> None:
        node.ctime = CLOCK.now()
        if isinstance(node, Directory) and old is not new:
            node.parent = new
            self._count_subdirectory(old, -1)
            self._count_subdirectory(new, 1)
        self._changed(node)

    def _dropped_link(self, node: Inode) -> None:
        node.nlink = max(0, node.nlink - 1)  # 0 already: a damaged capture
        node.ctime = CLOCK.now()
        self._changed(node)
        self._drop_if_unused(node)

    def _removed_directory(self, node: Directory) -> None:
        node.nlink = 0
        node.ctime = CLOCK.now()
        self._changed(node)
        self._drop_if_unused(node)

    def _free(self, node: Inode) -> None:
        """The inode has no name and the guest does not know it: its space is given back."""
        if node.owned:
            self._upper.free(node)
        self._upper.charge(-node.charged)
        if isinstance(node, Directory):
            for name in node.children or ():
                self._upper.charge(-NAME_COST - len(name))
        self._upper.drop_inode(node)


def _inherit(directory: Directory, caller: Caller) -> tuple[int, int]:
    """Group of a new inode, and the set-group-ID bit of a new directory."""
    if directory.mode & stat.S_ISGID:
        return directory.gid, stat.S_ISGID
    return caller.gid, 0


def _name_cost(directory: Directory, name: bytes) -> int:
    """What the upper pays for a name: nothing where it has an entry (a whiteout, say) already."""
    if directory.children is not None and name in directory.children:
        return 0
    return NAME_COST + len(name)


def _check_no_loop(node: Inode, directory: Directory) -> None:
    """EINVAL when `directory` is `node` or below it."""
    if not isinstance(node, Directory):
        return
    at = directory
    while at is not node:
        if at.parent is at:
            return
        at = at.parent
    fail(errno.EINVAL)
