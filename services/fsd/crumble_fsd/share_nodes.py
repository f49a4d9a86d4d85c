"""The inodes of a host share: how the guest's nodeids lead to host files, with few descriptors.

A node is known by the host's device, inode number and time of birth (numbers are used again: a new file
must not be taken for one that was removed) and remembers one way to it: its parent and name. It is
opened with O_PATH when it is used; descriptors are kept while there is room and made again by walking
from the root, each step checked to lead to the same inode (ESTALE when the host has moved it). A node
whose name the guest removes keeps its descriptor, since there is no way back to it.

No step follows a symbolic link: each opens one name (no '/') with O_NOFOLLOW and RESOLVE_BENEATH, so
neither "..", a link, nor a host or another guest that swaps names meanwhile leads outside the share.
"""

from __future__ import annotations

import errno
import os
import stat
from collections import OrderedDict
from typing import Any

from crumble_fsd.filesystem import Filesystem, Node, fail
from crumble_fsd.fuse_wire import ATTR, FUSE_ATTR_SUBMOUNT
from crumble_fsd.inodes import BLOCK, encode_rdev
from crumble_fsd.share_state import SHARE_BASE, Key, ShareState
from crumble_native import files

_NS = 1_000_000_000
_U64 = (1 << 64) - 1
_OVERFLOW = 65_534  # "nobody": who is not this user, when this process is not root

# Of RLIMIT_NOFILE (20,000 and hard, where it is lowest): O_PATH descriptors kept for speed, and those
# of removed files that would otherwise be lost.
MAX_CACHED, MAX_PINNED = 2_048, 4_096
# Nodes a guest may hold of one share, some 400 bytes each. A guest's own inodes cost it more.
MAX_NODES = 4 << 20


class ShareNode(Node):
    """key: device, inode, birth. fd: O_PATH, -1 when closed. refs: nodes whose parent this is.

    pinned: fd is not to be closed. stamp: mtime and size when the guest last opened it.
    """

    __slots__ = ("fd", "key", "name", "parent", "pinned", "refs", "stamp")

    def __init__(
        self,
        fs: Filesystem,
        nodeid: int,
        mode: int,
        key: Key,
        parent: ShareNode | None,
        name: bytes,
    ) -> None:
        super().__init__(fs, nodeid, mode)
        self.key = key
        self.parent = parent
        self.name = name
        self.fd = -1
        self.pinned = False
        self.refs = 0
        self.stamp: tuple[int, int] | None = None


class ShareNodes:
    """The nodes of one share. `nodes`: the session's table. number: of the share, from 0."""

    def __init__(self, fs: Filesystem, source: int, nodes: dict[int, Node], number: int) -> None:
        """source: an O_PATH descriptor of the share's root, which is taken over."""
        self._fs = fs
        self._nodes = nodes
        self._next = SHARE_BASE | number << 48
        self._by_key: dict[Key, ShareNode] = {}
        self._cached: OrderedDict[int, ShareNode] = OrderedDict()
        self._pinned = 0
        self._devices: dict[int, int] = {}
        self.root = self._make(identify(source), os.fstat(source).st_mode, None, b"")
        self.root.fd, self.root.pinned = source, True
        nodes[self.root.nodeid] = self.root

    def close(self) -> None:
        """Closes every descriptor."""
        for node in self._by_key.values():
            if node.fd >= 0:
                os.close(node.fd)
                node.fd = -1
        self._cached.clear()

    # Capturing and restoring.

    def capture(self) -> dict[str, Any]:
        """What the guest knows of the share: each node and the way to it."""
        return {
            "next": self._next,
            "devices": list(self._devices),
            "nodes": [
                [
                    node.nodeid, node.parent.nodeid if node.parent is not None else 0, node.name,
                    node.lookups, node.mode, *node.key,
                ]
                for node in self._by_key.values()
            ],
        }  # fmt: skip

    def resume(self, state: ShareState) -> None:
        """Knows what another process captured. Nothing is opened: each file is looked for, and has to be the
        same one, when the guest uses it; else it is ESTALE."""
        self._next = state.next
        self._devices = {device: number for number, device in enumerate(state.devices)}
        self._devices.setdefault(self.root.key[0], len(self._devices))
        made = {self.root.nodeid: self.root}
        for row in state.nodes:
            if row.nodeid == self.root.nodeid:
                self.root.lookups = row.lookups
                continue
            node = ShareNode(self._fs, row.nodeid, row.mode, row.key, None, row.name)
            node.lookups = row.lookups
            made[row.nodeid] = node
            self._by_key.setdefault(row.key, node)
            self._nodes[row.nodeid] = node
        for row in state.nodes:
            parent = made.get(row.parent)
            if parent is not None and row.nodeid != self.root.nodeid:
                made[row.nodeid].parent = parent
                parent.refs += 1

    # From node to host.

    def fd(self, node: ShareNode) -> int:
        """An O_PATH descriptor of the node, good until the next call. ESTALE."""
        if node.fd >= 0:
            if not node.pinned:
                self._cached.move_to_end(node.nodeid)
            return node.fd
        way: list[ShareNode] = []
        at: ShareNode | None = node
        while at is not None and at.fd < 0:
            way.append(at)
            at = at.parent
        if at is None:
            fail(errno.ESTALE)
        directory = at.fd
        for step in reversed(way):
            directory = self._open_step(directory, step)
        return directory

    def _open_step(self, directory: int, node: ShareNode) -> int:
        try:
            found = files.open_beneath(directory, node.name, os.O_PATH | os.O_NOFOLLOW)
        except OSError as error:
            gone = (errno.ENOENT, errno.ENOTDIR)
            raise OSError(errno.ESTALE if error.errno in gone else error.errno, "moved") from error
        if identify(found) != node.key:
            os.close(found)
            fail(errno.ESTALE)
        self._keep(node, found)
        return found

    def _keep(self, node: ShareNode, fd: int) -> None:
        node.fd = fd
        self._cached[node.nodeid] = node
        # The newest stay: one of them may be in use by the caller.
        if len(self._cached) > MAX_CACHED:
            _, oldest = self._cached.popitem(last=False)
            os.close(oldest.fd)
            oldest.fd = -1

    def path(self, node: ShareNode) -> str:
        """A path that leads to exactly this inode, for calls that take no O_PATH descriptor."""
        return f"/proc/self/fd/{self.fd(node)}"

    def pin(self, node: ShareNode) -> None:
        """Keeps the node's descriptor: its name is about to go. Past the limit it will be ESTALE."""
        if node.pinned or self._pinned >= MAX_PINNED:
            return
        self.fd(node)
        self._cached.pop(node.nodeid, None)
        node.pinned = True
        self._pinned += 1

    # From host to node.

    def known_at(self, directory: ShareNode, name: bytes) -> ShareNode | None:
        """The node at a name, if the guest knows it."""
        try:
            fd = files.open_beneath(self.fd(directory), name, os.O_PATH | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        try:
            return self._by_key.get(identify(fd))
        finally:
            os.close(fd)

    def find(self, directory: ShareNode, name: bytes) -> ShareNode:
        """The node `name` leads to. OSError as the host says."""
        fd = files.open_beneath(self.fd(directory), name, os.O_PATH | os.O_NOFOLLOW)
        return self.adopt(directory, name, fd)

    def adopt(self, directory: ShareNode | None, name: bytes, fd: int) -> ShareNode:
        """The node of an O_PATH descriptor, which is taken over."""
        key = identify(fd)
        node = self._by_key.get(key)
        if node is None:
            try:
                node = self._make(key, os.fstat(fd).st_mode, directory, name)
            except OSError:
                os.close(fd)
                raise
        if node is not self.root and directory is not None:
            self.moved(node, directory, name)
        if node.fd >= 0:
            os.close(fd)
        else:
            self._keep(node, fd)
        return node

    def moved(self, node: ShareNode, directory: ShareNode, name: bytes) -> None:
        """The node is now reached by another name."""
        if node.parent is not directory:
            directory.refs += 1
            old, node.parent = node.parent, directory
            self._unref(old)
        node.name = name

    def _make(self, key: Key, mode: int, parent: ShareNode | None, name: bytes) -> ShareNode:
        if len(self._by_key) >= MAX_NODES:
            fail(errno.ENOMEM)
        self._devices.setdefault(key[0], len(self._devices))
        node = ShareNode(self._fs, self._next, mode, key, parent, name)
        self._next += 1
        self._by_key[key] = node
        if parent is not None:
            parent.refs += 1
        return node

    # What the guest knows.

    def remember(self, node: ShareNode) -> None:
        """The guest is told of it once more."""
        self._nodes[node.nodeid] = node
        node.lookups += 1

    def forget(self, node: ShareNode, count: int) -> None:
        """The guest drops `count` of its lookups."""
        node.lookups = max(0, node.lookups - count)
        self.drop_unused(node)

    def drop_unused(self, node: ShareNode | None) -> None:
        """Lets go of a node neither the guest nor a child needs, and so on upwards."""
        while node is not None and not node.lookups and not node.refs and node is not self.root:
            if self._by_key.get(node.key) is node:
                del self._by_key[node.key]
            self._nodes.pop(node.nodeid, None)
            self._cached.pop(node.nodeid, None)
            if node.fd >= 0:
                os.close(node.fd)
                node.fd = -1
            self._pinned -= node.pinned
            parent, node.parent = node.parent, None
            if parent is not None:
                parent.refs -= 1
            node = parent

    def _unref(self, parent: ShareNode | None) -> None:
        if parent is not None:
            parent.refs -= 1
            self.drop_unused(parent)

    # Attributes.

    def ino(self, device: int, inode: int) -> int:
        """The inode number shown; those of file systems mounted inside the share are set apart."""
        return (inode ^ self._devices.get(device, 0) << 48) & _U64

    def pack(self, node: ShareNode, status: os.stat_result, *, submount: bool) -> bytes:
        """The `fuse_attr`."""
        node.mode = status.st_mode
        atime, atime_ns = divmod(status.st_atime_ns, _NS)
        mtime, mtime_ns = divmod(status.st_mtime_ns, _NS)
        ctime, ctime_ns = divmod(status.st_ctime_ns, _NS)
        single = node is self.root and not stat.S_ISDIR(status.st_mode)
        return ATTR.pack(
            node.nodeid if single else self.ino(status.st_dev, status.st_ino),
            status.st_size, status.st_blocks, atime & _U64, mtime & _U64, ctime & _U64,
            atime_ns, mtime_ns, ctime_ns, status.st_mode, status.st_nlink,
            guest_id(status.st_uid, os.geteuid()), guest_id(status.st_gid, os.getegid()),
            encode_rdev(status.st_rdev), BLOCK, FUSE_ATTR_SUBMOUNT if submount else 0,
        )  # fmt: skip


def identify(fd: int) -> Key:
    """What tells a host inode from every other, also from one that had its number before."""
    status = os.fstat(fd)
    return status.st_dev, status.st_ino, files.birth_time(fd)


def chmod(path: str, mode: int) -> None:
    """chmod(2) of a node's path."""
    os.chmod(path, mode)  # noqa: PTH101  a Path costs more than the call


def chown(path: str, uid: int | None, gid: int | None) -> None:
    """chown(2) of a node's path; EPERM also for ids this user namespace does not have."""
    try:
        os.chown(path, -1 if uid is None else uid, -1 if gid is None else gid)
    except OSError as error:
        fail(errno.EPERM if error.errno == errno.EINVAL else error.errno or errno.EIO)


def guest_id(host: int, ours: int) -> int:
    """Root passes ids through; an ordinary user is root in the guest, and everyone else nobody."""
    if ours == 0:
        return host
    return 0 if host == ours else _OVERFLOW


def host_id(guest: int, ours: int) -> int | None:
    """The reverse; None when this user cannot give files to that one."""
    if ours == 0:
        return guest
    return ours if guest == 0 else None
