"""What is in a bzImage (Linux, Documentation/arch/x86/boot.rst): the kernel, compressed.

Unpacked once when it is fetched, it is not unpacked in each guest that boots it, which takes KVM 9,000 exits. What
goes with it is in docs/decisions/0020.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from crumble_ocid.compression import decompress, kind_of, read_chunks

_SECTOR = 512
_SETUP_SECTORS, _MAGIC, _VERSION, _PAYLOAD = 0x1F1, 0x202, 0x206, 0x248
_MIN_VERSION = 0x208  # payload_offset, payload_length
_HEADER_END = 0x250
_MAX_KERNEL = 512 << 20
_MAGIC_SIZE = 6
# What the kernel's build puts behind compressed data that does not end with its size itself: that, in 4 bytes.
_APPENDED = 4
_PIECE = 1 << 16
_ELF = b"\x7fELF"


def unpack(path: Path, target: Path) -> bool:
    """Writes the ELF file in the bzImage `path` to `target`, zeros as holes; False, with nothing written, when none is found.

    Raises RemoteError "image.archive" for a damaged one.
    """
    with path.open("rb") as file:
        found = _payload(file.read(_HEADER_END), path.stat().st_size)
        if found is None:
            return False
        offset, size = found
        file.seek(offset)
        kind = kind_of(file.read(_MAGIC_SIZE))
        if not kind:
            return False
        file.seek(offset)
        size -= 0 if kind == "gzip" else _APPENDED
        pieces = _pieces(decompress(read_chunks(file, size), _MAX_KERNEL))
        first = next(pieces)
        if not first.startswith(_ELF):
            return False
        _write_sparse(target, chain([first], pieces))
    return True


def _payload(head: bytes, size: int) -> tuple[int, int] | None:
    """Where the compressed kernel is in the file, and its bytes."""
    if len(head) < _HEADER_END or head[_MAGIC : _MAGIC + 4] != b"HdrS":
        return None
    (version,) = struct.unpack_from("<H", head, _VERSION)
    offset, length = struct.unpack_from("<II", head, _PAYLOAD)
    offset += ((head[_SETUP_SECTORS] or 4) + 1) * _SECTOR
    if version < _MIN_VERSION or offset + length > size:
        return None
    return offset, length


def _pieces(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same bytes, in pieces of _PIECE and a last one."""
    buffer = bytearray()
    for chunk in chunks:
        buffer += chunk
        while len(buffer) >= _PIECE:
            yield bytes(buffer[:_PIECE])
            del buffer[:_PIECE]
    yield bytes(buffer)


def _write_sparse(target: Path, pieces: Iterator[bytes]) -> None:
    """A fifth of a kernel's ELF file is padding and zeroed data."""
    zeros, size = bytes(_PIECE), 0
    with target.open("xb") as file:
        for piece in pieces:
            if piece != zeros[: len(piece)]:
                os.pwrite(file.fileno(), piece, size)
            size += len(piece)
        file.truncate(size)
        os.fsync(file.fileno())
