"""Writes an indexed layer as a tar archive (PAX), always the same bytes for the same index.

What OCI image-spec, layer.md asks for: whiteouts as `.wh.` entries, opaque directories, hard links, PAX
records where ustar's fields do not reach. Directories come before what is in them, names sorted.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from crumble_common.layer_index import Entry, LayerIndex

_BLOCK = 512
_CHUNK = 1 << 20
END = bytes(2 * _BLOCK)
_KINDS = {stat.S_IFREG: b"0", stat.S_IFLNK: b"2", stat.S_IFCHR: b"3", stat.S_IFBLK: b"4",
          stat.S_IFDIR: b"5", stat.S_IFIFO: b"6"}  # fmt: skip
_MAX_OCTAL = {8: 0o7777777, 12: 0o77777777777}
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"


def layer_archive(index: LayerIndex, contents: Path) -> Iterator[bytes | memoryview]:
    """The archive's bytes, in chunks."""
    with contents.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        mapped = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b""
        first_names: dict[int, bytes] = {}
        for path, entry in _walk(index, 0, b""):
            yield from _member(path, entry, memoryview(mapped), first_names)
    yield END


def _walk(index: LayerIndex, row: int, path: bytes) -> Iterator[tuple[bytes, Entry]]:
    """Every entry with its path, depth first; an iterative walk, for trees of any depth."""
    todo = [(row, path)]
    while todo:
        row, path = todo.pop()
        entry = index.entry(row)
        yield path, entry
        prefix = path + b"/" if path else b""
        todo += [(child, prefix + index.name(child)) for child in reversed(index.children(row))]


def _member(
    path: bytes, entry: Entry, mapped: memoryview, first_names: dict[int, bytes]
) -> Iterator[bytes | memoryview]:
    if entry.whiteout:
        folder, slash, name = path.rpartition(b"/")
        yield header(folder + slash + _WHITEOUT + name, b"0", 0o644)
        return
    if stat.S_ISDIR(entry.mode):
        if not entry.implicit:
            yield _entry_header(path + b"/" if path else b"./", entry, b"5")
        if entry.opaque:
            yield header(path + b"/" + _OPAQUE if path else _OPAQUE, b"0", 0o644)
        return
    first = first_names.setdefault(entry.link, path) if entry.nlink > 1 else path
    if first is not path:
        yield _entry_header(path, entry, b"1", target=first)
        return
    kind = _KINDS.get(stat.S_IFMT(entry.mode))
    if kind is None:  # a socket: archives have none
        return
    if kind != b"0":
        yield _entry_header(path, entry, kind, target=entry.target)
        return
    yield _entry_header(path, entry, kind, size=entry.size)
    end = entry.offset + entry.size
    for start in range(entry.offset, end, _CHUNK):
        yield mapped[start : min(start + _CHUNK, end)]
    yield bytes(-entry.size % _BLOCK)


def _entry_header(
    path: bytes, entry: Entry, kind: bytes, target: bytes = b"", size: int = 0
) -> bytes:
    device = (os.major(entry.rdev), os.minor(entry.rdev)) if kind in b"34" else (0, 0)
    xattrs = entry.xattrs.items() if kind != b"1" else ()
    return header(
        path,
        kind,
        stat.S_IMODE(entry.mode),
        (entry.uid, entry.gid),
        size,
        entry.mtime_ns,
        target,
        device,
        [(b"SCHILY.xattr." + key, value) for key, value in xattrs],
    )


def header(
    path: bytes,
    kind: bytes,
    mode: int,
    owner: tuple[int, int] = (0, 0),
    size: int = 0,
    mtime_ns: int = 0,
    target: bytes = b"",
    device: tuple[int, int] = (0, 0),
    records: Iterable[tuple[bytes, bytes]] = (),
) -> bytes:
    """One member's header (kind: its type flag), preceded by a PAX header when ustar's fields cannot hold it."""
    pax = list(records)
    seconds, fraction = divmod(mtime_ns, 1_000_000_000)
    if fraction or not 0 <= seconds <= _MAX_OCTAL[12]:
        pax.append((b"mtime", _time(mtime_ns)))
    for key, value, width in ((b"uid", owner[0], 8), (b"gid", owner[1], 8), (b"size", size, 12)):
        if value > _MAX_OCTAL[width]:
            pax.append((key, b"%d" % value))
    for key, text in ((b"path", path), (b"linkpath", target)):
        if len(text) > 100:
            pax.append((key, text))
    block = _block(path, kind, mode, owner, size, max(seconds, 0), target, device)
    if not pax:
        return block
    body = b"".join(_record(key, value) for key, value in sorted(pax))
    extended = _block(b"././@PaxHeader", b"x", 0o644, (0, 0), len(body), 0, b"", (0, 0))
    return extended + body + bytes(-len(body) % _BLOCK) + block


def _block(
    path: bytes,
    kind: bytes,
    mode: int,
    owner: tuple[int, int],
    size: int,
    seconds: int,
    target: bytes,
    device: tuple[int, int],
) -> bytes:
    fields = (
        path[:100].ljust(100, b"\0"),
        _octal(mode, 8),
        _octal(owner[0], 8),
        _octal(owner[1], 8),
        _octal(size, 12),
        _octal(seconds, 12),
        b" " * 8,
        kind,
        target[:100].ljust(100, b"\0"),
        b"ustar\x0000",
        bytes(64),
        _octal(device[0], 8),
        _octal(device[1], 8),
        bytes(167),
    )
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def _octal(value: int, width: int) -> bytes:
    """An octal field; what is too large is 0 here and given by a PAX record."""
    return b"%0*o\0" % (width - 1, value if value <= _MAX_OCTAL[width] else 0)


def _record(key: bytes, value: bytes) -> bytes:
    """ "LENGTH KEY=VALUE\\n", where LENGTH counts itself."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if len(str(length)) != len(str(rest)):
        length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _time(nanoseconds: int) -> bytes:
    sign = b"-" if nanoseconds < 0 else b""
    seconds, fraction = divmod(abs(nanoseconds), 1_000_000_000)
    text = b"%s%d.%09d" % (sign, seconds, fraction)
    return text.rstrip(b"0").rstrip(b".")
