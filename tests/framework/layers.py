"""Image layers for tests: a tree written down as a dict becomes an index and a contents file."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from crumble_common.layer_index import CONTENTS_ALIGNMENT, Inode, LayerIndex, write_index
from crumble_fsd.union_parts import LayerFiles

WHITEOUT = object()


class Special:
    """An entry with attributes: `Special(b"data", mode=0o4755, xattrs={...})`."""

    def __init__(self, what: Any = b"", **fields: Any) -> None:
        self.what, self.fields = what, fields


def write_layer(directory: Path, name: str, tree: dict[str, Any], **root: Any) -> LayerFiles:
    """A layer of `tree`: bytes are files, str links, dicts directories, Inode as it is.

    A name seen twice with the same Inode object is a hard link. Root's fields: `opaque=True`, ....
    """
    contents = bytearray()
    made = _inode(Special(tree, **root), contents)
    (directory / f"{name}.contents").write_bytes(contents)
    write_index(directory / f"{name}.index", made, len(contents))
    return open_layer(directory, name)


def open_layer(directory: Path, name: str) -> LayerFiles:
    """The layer as `fsd` opens it."""
    index = LayerIndex.open(directory / f"{name}.index")
    contents = os.open(directory / f"{name}.contents", os.O_RDONLY | os.O_CLOEXEC)
    return LayerFiles(index, contents)


def _inode(value: Any, contents: bytearray) -> Inode:
    fields: dict[str, Any] = {}
    if isinstance(value, Special):
        value, fields = value.what, dict(value.fields)
    mode = fields.pop("mode", None)
    if value is WHITEOUT:
        return Inode(stat.S_IFREG, whiteout=True)
    if isinstance(value, Inode):
        return value
    if isinstance(value, dict):
        children = {name.encode(): _inode(child, contents) for name, child in value.items()}
        return Inode(stat.S_IFDIR | (mode or 0o755), children=children, **fields)
    if isinstance(value, str):
        return Inode(stat.S_IFLNK | 0o777, target=value.encode(), **fields)
    return Inode(stat.S_IFREG | (mode or 0o644), **file_data(value, contents), **fields)


def file_data(data: bytes, contents: bytearray) -> dict[str, int]:
    """Adds a file's bytes to the contents; its size and offset."""
    if len(data) >= CONTENTS_ALIGNMENT:
        contents += bytes(-len(contents) % CONTENTS_ALIGNMENT)
    offset = len(contents)
    contents += data
    return {"size": len(data), "offset": offset}
