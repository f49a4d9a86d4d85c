"""A host share: a directory or file of the host at a path of the guest's tree.

Other processes of the host may change it at any time, so the guest keeps names and attributes for a
second only and opens files for real. Writable shares run with this process's rights: as root, owners
pass through and what the guest makes belongs to whom it says; as an ordinary user everything is
made as that user, which the guest sees as root. Device nodes cannot be made, and only "user."
attributes pass: anything else would be the guest's hand on the host.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import Any

from crumble_common.errors import HostError, UsageError
from crumble_fsd.filesystem import Caller, Changes, Handle, Node, Statfs, fail
from crumble_fsd.fuse_wire import FUSE_ROOT_ID
from crumble_fsd.locks import Lock
from crumble_fsd.passthrough_files import ShareFiles
from crumble_fsd.share_locks import ShareLocks
from crumble_fsd.share_nodes import ShareNode, ShareNodes, chmod, chown, guest_id, host_id
from crumble_fsd.tree import check_cover
from crumble_native import files

_ROOT = Caller(0, 0)


class Share(ShareFiles):
    """One share; see Filesystem for the operations."""

    def __init__(
        self, source: str, nodes: dict[int, Node], number: int, *, read_only: bool, target: str = ""
    ) -> None:
        """Opens `source`; raises UsageError when it is not there, HostError when it cannot be opened."""
        self._read_only = read_only
        self.target = target
        self._is_root = False
        self._grafts: dict[
            tuple[int, bytes], Node
        ] = {}  # (directory's nodeid, name) → what covers it
        self.nodes = ShareNodes(self, _open_source(source), nodes, number)
        self._locks = ShareLocks(self.nodes)

    @property
    def root(self) -> ShareNode:
        """The node that is grafted into the tree."""
        return self.nodes.root

    def pack(self) -> dict[str, Any]:
        """For a capture; see share_state.py."""
        is_directory = stat.S_ISDIR(self.root.mode)
        return {"target": self.target, "directory": is_directory, **self.nodes.capture()}

    def close(self) -> None:
        """Closes every descriptor."""
        self._locks.clear()
        self.nodes.close()

    def replace_root(self, nodes: dict[int, Node]) -> None:
        """The share is the guest's whole tree."""
        if not stat.S_ISDIR(self.root.mode):
            raise UsageError("The root of the tree cannot be a file.", code="share.target")
        nodes[FUSE_ROOT_ID] = self.root
        self._is_root = True

    def graft(self, parts: list[bytes], root: Node, path: str) -> None:
        """Makes another share's root appear inside this one; makes what it covers, on the host."""
        at = self.root
        for name in parts[:-1]:
            found = self._find_or_make(at, name, path, is_directory=True)
            if not isinstance(found, ShareNode) or not stat.S_ISDIR(found.mode):
                raise UsageError(
                    f"Cannot share at {path}: {os.fsdecode(name)!r} is no directory of the share.",
                    code="share.target",
                    hint="Choose another target.",
                )
            at = found
        is_directory = stat.S_ISDIR(root.mode)
        point = self._find_or_make(at, parts[-1], path, is_directory=is_directory)
        check_cover(point, root, path, taken=(at.nodeid, parts[-1]) in self._grafts)
        at.refs += 1  # kept for good: its nodeid says where the graft is
        self._grafts[at.nodeid, parts[-1]] = root

    def _find_or_make(
        self, directory: ShareNode, name: bytes, path: str, *, is_directory: bool
    ) -> Node:
        found = self.lookup(directory, name)
        if found is not None:
            return found
        if self._read_only:
            raise UsageError(
                f"Cannot share at {path}: it does not exist in the read-only share around it.",
                code="share.target",
                hint="Create it there first.",
            )
        if is_directory:
            return self.mkdir(directory, name, 0o755, _ROOT)
        return self.mknod(directory, name, stat.S_IFREG | 0o644, 0, _ROOT)

    def _check_uncovered(self, directory: ShareNode, name: bytes) -> None:
        """EBUSY for a name that another share covers, as for a mount point."""
        if (directory.nodeid, name) in self._grafts:
            fail(errno.EBUSY)

    # Names.

    def lookup(self, directory: ShareNode, name: bytes) -> Node | None:
        """See Filesystem."""
        if self._grafts and (directory.nodeid, name) in self._grafts:
            return self._grafts[directory.nodeid, name]
        try:
            return self.nodes.find(directory, name)
        except FileNotFoundError:
            return None

    def remember(self, node: ShareNode) -> None:
        """See Filesystem."""
        self.nodes.remember(node)

    def forget(self, node: ShareNode, count: int) -> None:
        """See Filesystem."""
        self.nodes.forget(node, count)

    def mknod(
        self, directory: ShareNode, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> Node:
        """See Filesystem. Device nodes would be the host's devices: EPERM."""
        self._check_writable()
        kind = stat.S_IFMT(mode) or stat.S_IFREG
        if kind not in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK) or rdev:
            fail(errno.EPERM)
        os.mknod(name, kind | stat.S_IMODE(mode) & 0o777, dir_fd=self.nodes.fd(directory))
        return self._made(directory, name, mode, caller)

    def mkdir(self, directory: ShareNode, name: bytes, mode: int, caller: Caller) -> Node:
        """See Filesystem."""
        self._check_writable()
        os.mkdir(name, stat.S_IMODE(mode) & 0o777, dir_fd=self.nodes.fd(directory))
        return self._made(directory, name, mode, caller)

    def symlink(self, directory: ShareNode, name: bytes, target: bytes, caller: Caller) -> Node:
        """See Filesystem."""
        self._check_writable()
        os.symlink(target, name, dir_fd=self.nodes.fd(directory))
        return self._made(directory, name, None, caller)

    def _made(
        self, directory: ShareNode, name: bytes, mode: int | None, caller: Caller
    ) -> ShareNode:
        """The node of what was just made, with its owner and mode set."""
        node = self.nodes.find(directory, name)
        self._own(node, os.fstat(self.nodes.fd(directory)), mode, caller)
        return node

    def unlink(self, directory: ShareNode, name: bytes) -> None:
        """See Filesystem."""
        self._check_writable()
        self._keep_open(directory, name)
        os.unlink(name, dir_fd=self.nodes.fd(directory))

    def rmdir(self, directory: ShareNode, name: bytes) -> None:
        """See Filesystem."""
        self._check_writable()
        self._keep_open(directory, name)
        os.rmdir(name, dir_fd=self.nodes.fd(directory))

    def _keep_open(self, directory: ShareNode, name: bytes) -> None:
        """What is at `name` loses it, and the guest may have it open."""
        self._check_uncovered(directory, name)
        node = self.nodes.known_at(directory, name)
        if node is not None:
            self.nodes.pin(node)

    def rename(
        self, old: ShareNode, name: bytes, new: ShareNode, new_name: bytes, flags: int
    ) -> None:
        """See Filesystem."""
        self._check_writable()
        self._check_uncovered(old, name)
        self._check_uncovered(new, new_name)
        node, target = self.nodes.known_at(old, name), self.nodes.known_at(new, new_name)
        if target is not None and target is not node:
            self.nodes.pin(target)
        files.renameat2(self.nodes.fd(old), name, self.nodes.fd(new), new_name, flags)
        if node is not None and node is not target:
            self.nodes.moved(node, new, new_name)
        if flags & 2 and target is not None:
            self.nodes.moved(target, old, name)

    def link(self, node: ShareNode, directory: ShareNode, name: bytes) -> None:
        """See Filesystem."""
        self._check_writable()
        os.link(self.nodes.path(node), name, dst_dir_fd=self.nodes.fd(directory))

    # Attributes.

    def attr(self, node: ShareNode) -> bytes:
        """See Filesystem."""
        status = os.fstat(self.nodes.fd(node))
        is_mount = node is self.root and self.submounts and not self._is_root
        is_mount = is_mount and stat.S_ISDIR(status.st_mode)
        return self.nodes.pack(node, status, submount=is_mount)

    def btime(self, node: ShareNode) -> int | None:
        """See Filesystem."""
        return node.key[2] or None

    def setattr(self, node: ShareNode, handle: Handle | None, changes: Changes) -> None:
        """See Filesystem."""
        self._check_writable()
        status = os.fstat(self.nodes.fd(node))
        if changes.mode is not None:
            if stat.S_ISLNK(status.st_mode):
                fail(errno.EOPNOTSUPP)
            chmod(self.nodes.path(node), stat.S_IMODE(changes.mode))
        if changes.uid is not None or changes.gid is not None:
            self._chown(node, status, changes.uid, changes.gid)
        if changes.size is not None:
            self._truncate(node, handle, changes.size)
            if changes.kill_suidgid:
                self._kill_suidgid(node)
        if changes.atime is not None or changes.mtime is not None:
            atime = status.st_atime_ns if changes.atime is None else changes.atime
            mtime = status.st_mtime_ns if changes.mtime is None else changes.mtime
            os.utime(self.nodes.path(node), ns=(atime, mtime))

    def _chown(
        self, node: ShareNode, status: os.stat_result, uid: int | None, gid: int | None
    ) -> None:
        """An ordinary user can only "give" files to whom they belong."""
        ours, our_group = os.geteuid(), os.getegid()
        if ours != 0:
            asked = (uid, guest_id(status.st_uid, ours)), (gid, guest_id(status.st_gid, our_group))
            if any(wanted not in (None, had) for wanted, had in asked):
                fail(errno.EPERM)
            return
        chown(self.nodes.path(node), uid, gid)

    def _own(
        self, node: ShareNode, parent: os.stat_result, mode: int | None, caller: Caller
    ) -> None:
        """Gives what was just made to who made it, and its exact mode (without the umask of ours)."""
        uid = host_id(caller.uid, os.geteuid())
        gid = None if parent.st_mode & stat.S_ISGID else host_id(caller.gid, os.getegid())
        if os.geteuid() == 0:
            with contextlib.suppress(PermissionError):  # root of a container: it stays ours
                chown(self.nodes.path(node), uid, gid)
        if mode is not None:
            had = os.fstat(self.nodes.fd(node)).st_mode
            inherited = had & stat.S_ISGID if stat.S_ISDIR(had) else 0
            wanted = stat.S_IMODE(mode) | inherited
            if stat.S_IMODE(had) != wanted:
                chmod(self.nodes.path(node), wanted)

    def readlink(self, node: ShareNode) -> bytes:
        """See Filesystem."""
        if not stat.S_ISLNK(node.mode):
            fail(errno.EINVAL)
        return os.fsencode(os.readlink(b"", dir_fd=self.nodes.fd(node)))

    def getxattr(self, node: ShareNode, name: bytes) -> bytes:
        """See Filesystem."""
        self._check_attribute(node, name)
        return os.getxattr(self.nodes.path(node), name)

    def setxattr(self, node: ShareNode, name: bytes, value: bytes, flags: int) -> None:
        """See Filesystem."""
        self._check_writable()
        self._check_attribute(node, name)
        os.setxattr(self.nodes.path(node), name, value, flags)

    def listxattr(self, node: ShareNode) -> list[bytes]:
        """See Filesystem."""
        if stat.S_ISLNK(node.mode):
            return []
        names = [os.fsencode(name) for name in os.listxattr(self.nodes.path(node))]
        return [name for name in names if name.startswith(b"user.")]

    def removexattr(self, node: ShareNode, name: bytes) -> None:
        """See Filesystem."""
        self._check_writable()
        self._check_attribute(node, name)
        os.removexattr(self.nodes.path(node), name)

    @staticmethod
    def _check_attribute(node: ShareNode, name: bytes) -> None:
        if not name.startswith(b"user.") or stat.S_ISLNK(node.mode):
            fail(errno.EOPNOTSUPP)

    def statfs(self, node: ShareNode) -> Statfs:
        """See Filesystem."""
        have = os.fstatvfs(self.nodes.fd(node))
        return Statfs(
            have.f_blocks, have.f_bfree, have.f_bavail, have.f_files, have.f_ffree,
            have.f_frsize, have.f_namemax,
        )  # fmt: skip

    # Locks.

    def lock(self, node: ShareNode, lock: Lock, *, flock: bool) -> None:
        """See Filesystem."""
        self._locks.set(node, lock, flock=flock)

    def lock_conflict(self, node: ShareNode, lock: Lock, *, flock: bool) -> Lock | None:
        """See Filesystem."""
        return self._locks.conflict(node, lock, flock=flock)

    def drop_locks(self, node: ShareNode, owner: int, *, flock: bool) -> None:
        """See Filesystem."""
        self._locks.drop(node, owner, flock=flock)

    def clear_locks(self) -> None:
        """See Filesystem."""
        self._locks.clear()


def _open_source(source: str) -> int:
    try:
        fd = os.open(source, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise UsageError(
            f"The share {source} does not exist on the host.",
            code="share.missing",
            hint="Create it first, or correct the path.",
        ) from error
    except OSError as error:
        raise HostError(
            f"Cannot open the share {source}: {error.strerror}.",
            code="share.open",
            hint="Check that you may use it, or share something else.",
        ) from error
    mode = os.fstat(fd).st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        os.close(fd)
        raise UsageError(
            f"The share {source} is neither a directory nor a regular file.",
            code="share.kind",
            hint="Share a directory or a file.",
        )
    if not os.access(source, os.R_OK):
        os.close(fd)
        raise UsageError(
            f"The share {source} cannot be read by this user.",
            code="share.open",
            hint="Change its permissions, or share something else.",
        )
    return fd
