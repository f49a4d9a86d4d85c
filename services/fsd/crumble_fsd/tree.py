"""The tree a guest gets: the union, what is put into it before the guest starts, and host shares.

Shares are grafted over inodes of the union, which are made first where the image has none; a
covered inode cannot be removed or renamed (EBUSY), as a mount point cannot.
"""

from __future__ import annotations

import errno
import os
import stat

from crumble_common.errors import UsageError
from crumble_fsd.filesystem import Caller, Node
from crumble_fsd.inodes import Directory, Inode
from crumble_fsd.nodes import NodeTable
from crumble_fsd.union_data import UnionData
from crumble_fsd.union_parts import LayerFiles
from crumble_fsd.upper import Upper

_ROOT = Caller(0, 0)
_MAX_LINKS = 40  # MAXSYMLINKS


class Tree(UnionData):
    """The union with grafts and injected files. injected: nodeid → mtime of those it came with."""

    def __init__(self, layers: list[LayerFiles], upper: Upper, nodes: NodeTable) -> None:
        super().__init__(layers, upper, nodes)
        self.injected: dict[int, int] = {}

    def inject(self, path: str, data: bytes, mode: int) -> None:
        """Puts a file at `path` in place of whatever file or link is there; makes its directories."""
        parts = split_path(path)
        if not parts:
            raise UsageError("A file cannot be injected at the root of the tree.")
        directory = self._make_directories(parts[:-1], path)
        name = parts[-1]
        found = self.find(directory, name)
        if isinstance(found, Directory) or (found is not None and found.graft is not None):
            raise UsageError(f"Cannot inject {path}: there is a directory or share at that path.")
        if found is not None:
            self.unlink(directory, name)
        node = self.mknod(directory, name, stat.S_IFREG | mode, 0, _ROOT)
        if data:
            self.write(node, None, 0, [memoryview(data)], len(data), kill=False)
        self.injected[node.nodeid] = node.mtime

    def graft(self, parts: list[bytes], root: Node, path: str) -> None:
        """Makes `root` (of another file system) appear at `parts` (of `path`); makes what it covers."""
        directory = self._make_directories(parts[:-1], path)
        point = self._follow(directory, parts[-1], path)
        if isinstance(point, tuple):
            directory, name = point
            if stat.S_ISDIR(root.mode):
                point = self.mkdir(directory, name, 0o755, _ROOT)
            else:
                point = self.mknod(directory, name, stat.S_IFREG | 0o644, 0, _ROOT)
        check_cover(point, root, path, taken=point.graft is not None)
        point.graft = root
        self._pin(point)

    def _pin(self, point: Inode) -> None:
        """Covered inodes must be found through the upper part of their directory, never anew."""
        point.pinned = True
        self._nodes[point.nodeid] = point

    def _make_directories(self, parts: list[bytes], path: str) -> Directory:
        at = self.root
        for name in parts:
            found = self._follow(at, name, path)
            if isinstance(found, tuple):
                found = self.mkdir(*found, 0o755, _ROOT)
            if not isinstance(found, Directory):
                raise UsageError(
                    f"Cannot put {path} into the image: {name.decode(errors='replace')} is no directory.",
                    hint="Choose another image.",
                )
            at = found
        return at

    def _follow(self, at: Directory, name: bytes, path: str) -> Inode | tuple[Directory, bytes]:
        """What `name` leads to through links, all inside the tree; or where it would have to be."""
        rest, links = [name], 0
        while rest:
            name = rest.pop(0)
            if name in (b"", b"."):
                continue
            if name == b"..":
                at = at.parent
                continue
            found = self.find(at, name)
            if found is None and not rest:
                return at, name
            if found is None:
                found = self.mkdir(at, name, 0o755, _ROOT)
            if stat.S_ISLNK(found.mode):
                links += 1
                if links > _MAX_LINKS:
                    raise UsageError(
                        f"Cannot put {path} into the image: its links form a loop.",
                        hint="Choose another image.",
                    )
                at = self.root if found.target.startswith(b"/") else at
                rest = [*found.target.split(b"/"), *rest]
                continue
            if not rest:
                return found
            if not isinstance(found, Directory):
                raise OSError(errno.ENOTDIR, f"{path}: {name!r} is no directory")
            at = found
        return at


def check_cover(point: Node, root: Node, path: str, *, taken: bool) -> None:
    """UsageError unless `root` can go over `point`."""
    is_directory = stat.S_ISDIR(point.mode)
    if is_directory == stat.S_ISDIR(root.mode) and not taken:
        return
    what = "another share" if taken else "a directory" if is_directory else "a file"
    raise UsageError(
        f"Cannot share at {path}: there is {what} at that path.",
        code="share.target",
        hint="Choose another target; directories go over directories, files over files.",
    )


def split_path(path: str) -> list[bytes]:
    """The components of an absolute guest path, none for the root; UsageError."""
    parts = [os.fsencode(part) for part in path.split("/") if part not in ("", ".")]
    if not path.startswith("/") or b".." in parts or "\0" in path:
        raise UsageError(
            f"{path!r} is not a path in the guest that something can be put at.",
            hint="It must be absolute and without '..'.",
        )
    if any(len(part) > 255 for part in parts):
        raise UsageError(
            f"{path!r} has a component of more than 255 bytes.", hint="Give a shorter one."
        )
    return parts
