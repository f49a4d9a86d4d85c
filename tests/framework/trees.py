"""A whole tree as a value, of a real directory and of a FUSE client."""
# ruff: noqa: PTH115

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from framework.fuse_client import FuseClient


def real_tree(where: Path) -> dict[str, Any]:
    """Modes, link counts, sizes and contents by name."""
    found: dict[str, Any] = {}
    for item in os.scandir(where):
        status = item.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            found[item.name] = (status.st_mode, real_tree(Path(item.path)))
            continue
        content: Any = None
        if stat.S_ISREG(status.st_mode):
            content = Path(item.path).read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(item.path)
        found[item.name] = (status.st_mode, status.st_nlink, status.st_size, content)
    return found


def fuse_tree(fuse: FuseClient, nodeid: int) -> dict[str, Any]:
    """The same."""
    found: dict[str, Any] = {}
    for item in fuse.listdir(nodeid, plus=True):
        if item.entry is None or item.name in (b".", b".."):
            continue
        attr, child = item.entry.attr, item.entry.nodeid
        assert item.ino == attr.ino
        if stat.S_ISDIR(attr.mode):
            found[item.name.decode()] = (attr.mode, fuse_tree(fuse, child))
        else:
            content: Any = None
            if stat.S_ISREG(attr.mode):
                content = fuse.read(child, 0, max(attr.size, 1))
            elif stat.S_ISLNK(attr.mode):
                content = fuse.readlink(child).decode()
            found[item.name.decode()] = (attr.mode, attr.nlink, attr.size, content)
        fuse.forget(child)
    return found
