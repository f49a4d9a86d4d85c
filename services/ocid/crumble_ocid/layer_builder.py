"""Builds a layer's tree of inodes and its contents file from archive members.

OCI image-spec, layer.md: later members replace earlier ones, `.wh.NAME` deletes NAME from the layers
below, `.wh..wh..opq` hides all a lower directory holds. Paths are taken apart here and never given to
the host's file system: a leading "/" is dropped, ".." is refused, and so is a path that leads through a
symlink or a file of the same layer. Raises RemoteError "image.archive" and OSError.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from typing import IO

from crumble_common.errors import RemoteError
from crumble_common.layer_index import CONTENTS_ALIGNMENT, Inode
from crumble_ocid.compression import corrupt
from crumble_ocid.tar_reader import Member

MAX_LAYER_BYTES = 64 << 30  # decompressed; a bomb stops here
MAX_ENTRIES = 4 << 20
_MAX_PATH = 4096  # Linux PATH_MAX
_MAX_NAME = 255
_MAX_XATTRS = 64
_MAX_LINKS = 40  # Linux MAXSYMLINKS
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_AUFS = b".wh..wh."  # aufs's own bookkeeping, which others pass over too

_TYPES = {"0": stat.S_IFREG, "2": stat.S_IFLNK, "3": stat.S_IFCHR, "4": stat.S_IFBLK,
          "5": stat.S_IFDIR, "6": stat.S_IFIFO}  # fmt: skip


class LayerBuilder:
    """A tree being built. `contents` receives the bytes of files.

    dpkg: unpack as dpkg does: paths may lead through symlinks (within the tree), a directory never
    replaces a symlink to one nor changes one that is there, and whiteouts are names like any other.
    """

    def __init__(self, contents: IO[bytes], *, dpkg: bool = False) -> None:
        self.root = Inode(stat.S_IFDIR | 0o755, children={}, implicit=True)
        self.contents_size = 0
        self._contents = contents
        self._dpkg = dpkg
        self._whiteouts: list[tuple[Inode, bytes]] = []
        self._entries = 0
        self.newest_mtime_ns = 0

    def add(self, member: Member, data: Iterable[bytes | memoryview]) -> None:
        """Takes in one member; `data` gives a regular file's bytes."""
        path = self.split(member.name)
        self._entries += 1
        self.newest_mtime_ns = max(self.newest_mtime_ns, member.mtime_ns)
        if self._entries > MAX_ENTRIES:
            raise corrupt(f"has more than {MAX_ENTRIES} entries")
        if len(member.xattrs) > _MAX_XATTRS:
            raise corrupt(f"has more than {_MAX_XATTRS} extended attributes on one file")
        if not path:
            self._set_root(member)
        elif path[-1].startswith(_WHITEOUT) and not self._dpkg:
            self._add_whiteout(path)
        else:
            self._add_inode(path, member, data)

    def finish(self) -> Inode:
        """The root, with whiteouts in place: one for a name this layer has itself makes it opaque."""
        for parent, name in self._whiteouts:
            children = _children(parent)
            there = children.get(name)
            if there is None:
                children[name] = Inode(stat.S_IFCHR, whiteout=True)
            elif there.children is not None:
                there.opaque = True
        self._whiteouts.clear()
        return self.root

    def split(self, name: bytes) -> list[bytes]:
        """A path's components, from the root."""
        parts = [part for part in name.split(b"/") if part not in (b"", b".")]
        if b".." in parts:
            raise corrupt(f"holds {_show(name)}, which leads out of the image")
        if len(name) > _MAX_PATH or any(len(part) > _MAX_NAME for part in parts):
            raise corrupt(f"holds {_show(name)}, a name that is too long")
        return parts

    def make_directory(self, name: bytes) -> None:
        """Makes a directory that has no attributes of its own yet."""
        self._walk(self.split(name), make=True)

    def find(self, name: bytes) -> Inode | None:
        """The inode at a path; the last component is not followed, others only as dpkg does."""
        path = self.split(name)
        try:
            parent = self._walk(path[:-1], make=False) if path else None
        except KeyError:
            return None
        return _children(parent).get(path[-1]) if parent is not None else self.root

    def store(self, size: int, data: Iterable[bytes | memoryview]) -> int:
        """Puts a file's `size` bytes into the contents; returns their offset."""
        if self.contents_size + size > MAX_LAYER_BYTES:
            raise corrupt(f"expands to more than {MAX_LAYER_BYTES >> 30} GiB")
        if size >= CONTENTS_ALIGNMENT:
            padding = -self.contents_size % CONTENTS_ALIGNMENT
            self._contents.write(bytes(padding))
            self.contents_size += padding
        offset = self.contents_size
        for part in data:
            self._contents.write(part)
            self.contents_size += len(part)
        if self.contents_size - offset != size:
            raise corrupt("is truncated")
        return offset

    def _set_root(self, member: Member) -> None:
        if member.kind != "5":
            raise corrupt("makes the root something other than a directory")
        if self.root.implicit or not self._dpkg:
            _set_attributes(self.root, member)

    def _add_inode(
        self, path: list[bytes], member: Member, data: Iterable[bytes | memoryview]
    ) -> None:
        children = _children(self._parent(path))
        if member.kind == "1":
            children[path[-1]] = self._linked(member)
            return
        there = children.get(path[-1])
        if member.kind == "5" and there is not None and self._stays(there, path, member):
            return
        inode = Inode(_TYPES[member.kind])
        if member.kind == "5":
            inode.children = {}
        elif member.kind == "2":
            inode.target = _checked_target(member)
        elif member.kind in "34":
            inode.rdev = os.makedev(member.major, member.minor)
        elif member.kind == "0":
            inode.size = member.size
            inode.offset = self.store(member.size, data)
        _set_attributes(inode, member)
        children[path[-1]] = inode

    def _linked(self, member: Member) -> Inode:
        target = self.find(member.target)
        if target is None:
            raise corrupt(
                f"links {_show(member.name)} to {_show(member.target)}, which this layer lacks"
            )
        if target.children is not None:
            raise corrupt(f"links {_show(member.name)} to a directory")
        return target

    def _add_whiteout(self, path: list[bytes]) -> None:
        parent, name = self._parent(path), path[-1]
        if name == _OPAQUE:
            parent.opaque = True
            return
        if name.startswith(_AUFS):
            return
        hidden = name[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise corrupt(f"has the bad whiteout {_show(name)}")
        self._whiteouts.append((parent, hidden))

    def _stays(self, there: Inode, path: list[bytes], member: Member) -> bool:
        """What a directory member finds is a directory already; gives it the member's attributes."""
        if self._dpkg and stat.S_ISLNK(there.mode):
            try:
                self._walk(path, make=False)
            except (KeyError, RemoteError):
                return False
            return True
        if there.children is None:
            return False
        if there.implicit or not self._dpkg:
            _set_attributes(there, member)
        return True

    def _parent(self, path: list[bytes]) -> Inode:
        """The directory of a path; those that are missing are made, as other tools do."""
        return self._walk(path[:-1], make=True)

    def _walk(self, path: list[bytes], *, make: bool) -> Inode:
        """The directory at a path. Raises KeyError when it is missing and not to be made."""
        trail = [self.root]
        left = path[::-1]
        links = 0
        while left:
            part = left.pop()
            if part in (b"", b"."):
                continue
            if part == b"..":  # only a followed symlink's target has it
                trail = trail[:-1] or trail
                continue
            children = _children(trail[-1])
            found = children.get(part)
            if found is None:
                if not make:
                    raise KeyError(part)
                found = children[part] = Inode(stat.S_IFDIR | 0o755, children={}, implicit=True)
                self._entries += 1
            if self._dpkg and stat.S_ISLNK(found.mode) and links < _MAX_LINKS:
                links += 1
                trail = trail[:1] if found.target.startswith(b"/") else trail
                left += found.target.split(b"/")[::-1]
                continue
            if found.children is None:
                what = "a symlink" if stat.S_ISLNK(found.mode) else "a file"
                raise corrupt(
                    f"has a path below {_show(b'/'.join(path))}, which leads through {what}"
                )
            trail.append(found)
        return trail[-1]


def load_layer(
    builder: LayerBuilder, members: Iterable[Member], data: Callable[[], Iterable[memoryview]]
) -> Inode:
    """Feeds a whole archive to a builder; returns the finished root."""
    for member in members:
        builder.add(member, data())
    return builder.finish()


def _set_attributes(inode: Inode, member: Member) -> None:
    inode.mode = stat.S_IFMT(inode.mode) | (0o777 if member.kind == "2" else member.mode)
    inode.uid, inode.gid = member.uid, member.gid
    inode.mtime_ns = member.mtime_ns
    inode.xattrs = member.xattrs
    inode.implicit = False


def _checked_target(member: Member) -> bytes:
    if not 0 < len(member.target) < _MAX_PATH:
        raise corrupt(f"has the symlink {_show(member.name)} with a bad target")
    return member.target


def _children(inode: Inode) -> dict[bytes, Inode]:
    if inode.children is None:
        raise AssertionError("not a directory")
    return inode.children


def _show(name: bytes) -> str:
    return repr(name[:120].decode("utf-8", "backslashreplace"))
