"""Decompressors for kernels and modules: bounded chunks out, damage and truncation noticed."""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator

Packed = bytes | memoryview
_CHUNK = 1 << 20
# zstd can grow 4 bytes into a block of 128 KiB; this bounds what one step may produce to 32 MiB.
_ZSTD_STEP = 1 << 10
_MEMORY_LIMIT = 1 << 27


class CompressionError(ValueError):
    """The data is damaged or ends too early."""


def gunzip(packed: Packed) -> Iterator[bytes]:
    """gzip (RFC 1952); what follows the first member is ignored."""
    stream = zlib.decompressobj(31)
    try:
        for at in range(0, len(packed), _CHUNK):
            pending = packed[at : at + _CHUNK]
            while pending and not stream.eof:
                yield stream.decompress(pending, _CHUNK)
                pending = stream.unconsumed_tail
        yield stream.flush()
    except zlib.error as error:
        raise CompressionError(f"its gzip data is damaged ({error})") from None
    if not stream.eof:
        raise CompressionError("its gzip data ends too early")


def unzstd(packed: Packed) -> Iterator[bytes]:
    """One zstd frame (RFC 8878)."""
    import zstandard

    stream = zstandard.ZstdDecompressor(max_window_size=_MEMORY_LIMIT).decompressobj()
    try:
        for at in range(0, len(packed), _ZSTD_STEP):
            yield stream.decompress(packed[at : at + _ZSTD_STEP])
            if stream.eof:
                return
    except zstandard.ZstdError as error:
        raise CompressionError(f"its zstd data is damaged ({error})") from None
    raise CompressionError("its zstd data ends too early")


def unxz(packed: Packed) -> Iterator[bytes]:
    """One xz stream."""
    stream = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_MEMORY_LIMIT)
    pending: Packed = packed
    try:
        while not stream.eof:
            chunk = stream.decompress(pending, _CHUNK)
            pending = b""
            if not chunk and stream.needs_input and not stream.eof:
                raise CompressionError("its xz data ends too early")
            yield chunk
    except lzma.LZMAError as error:
        raise CompressionError(f"its xz data is damaged ({error})") from None


Decompressor = Callable[[Packed], Iterator[bytes]]
_MAGIC: list[tuple[bytes, str, Decompressor]] = [
    (b"\x1f\x8b", "gzip", gunzip),
    (b"\x28\xb5\x2f\xfd", "zstd", unzstd),
    (b"\xfd7zXZ\0", "xz", unxz),
]


def sniff(head: bytes) -> tuple[str, Decompressor] | None:
    """The compression that `head` starts, by its magic; None when it is none we know."""
    for magic, name, decompressor in _MAGIC:
        if head.startswith(magic):
            return name, decompressor
    return None


def unpack(packed: bytes, limit: int) -> bytes:
    """The whole of `packed`, itself when it isn't compressed; CompressionError beyond `limit` bytes."""
    found = sniff(packed[:6])
    if found is None:
        return packed
    data = bytearray()
    for chunk in found[1](packed):
        data += chunk
        if len(data) > limit:
            raise CompressionError(f"it unpacks to more than {limit} bytes")
    return bytes(data)
