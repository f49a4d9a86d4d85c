"""Streams of bytes: decompressed on the way (gzip, zstd, xz, or plain, told by their first bytes).

Compressed input is hostile: a truncated stream, garbage after it, and one that expands beyond `limit`
raise RemoteError; no call makes more than about 64 MiB of output at once.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import IO, Protocol

import zstandard

from crumble_common.errors import RemoteError

CHUNK = 1 << 18
# What a decoder is fed at once, so that even a bomb makes no more than about 64 MiB of it: gzip expands
# up to 1,000 times, xz 7,000 times, and zstd makes 128 KiB of four bytes.
_PIECES = {"gzip": 1 << 15, "xz": 1 << 13, "zstd": 1 << 11}
_ZSTD_WINDOW = 1 << 27  # what the zstd tool itself takes without being asked
_LZMA_MEMORY = 1 << 28


class _Decoder(Protocol):
    """One compressed stream (a gzip member, a zstd frame, an xz stream)."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, /) -> bytes: ...


_MAGICS: list[tuple[bytes, str]] = [
    (b"\x1f\x8b", "gzip"),
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\xfd7zXZ\x00", "xz"),
]


def corrupt(what: str) -> RemoteError:
    """The error for a compressed stream or archive that is damaged."""
    return RemoteError(
        f"The archive {what}.",
        code="image.archive",
        hint="It is damaged, or made by a faulty tool; get it again.",
    )


def kind_of(head: bytes) -> str:
    """ "gzip", "zstd", "xz" or "" for a stream that begins so."""
    if head[:3] == b"BZh":
        raise corrupt("is compressed with bzip2, which is not supported")
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return kind
    skippable = len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
    return "zstd" if skippable else ""


def read_chunks(file: IO[bytes], size: int = -1) -> Iterator[bytes]:
    """The bytes of a file, or its next `size`; raises RemoteError when it holds fewer."""
    while size:
        chunk = file.read(CHUNK if size < 0 else min(CHUNK, size))
        if not chunk:
            if size > 0:
                raise corrupt("is truncated")
            return
        size = size - len(chunk) if size > 0 else size
        yield chunk


def decompress(chunks: Iterable[bytes], limit: int) -> Iterator[bytes]:
    """The decompressed chunks of a stream; raises RemoteError "image.archive"."""
    source = iter(chunks)
    head = b""
    while len(head) < 6 and (chunk := next(source, b"")):
        head += chunk
    kind = kind_of(head)
    pieces = _rejoin(head, source)
    decoded = _decode(pieces, kind) if kind else pieces
    total = 0
    for chunk in decoded:
        total += len(chunk)
        if total > limit:
            raise corrupt(f"expands to more than {limit >> 20} MiB, which is not accepted")
        yield chunk


def _rejoin(head: bytes, rest: Iterable[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from rest


def _decode(chunks: Iterator[bytes], kind: str) -> Iterator[bytes]:
    """All streams that follow each other, as gzip, zstd and xz allow."""
    make, size = {"gzip": _gzip, "zstd": _zstd, "xz": _xz}[kind], _PIECES[kind]
    decoder: _Decoder | None = None
    try:
        for chunk in chunks:
            while chunk:
                if decoder is None:
                    chunk = chunk.lstrip(b"\0") if kind != "zstd" else chunk  # padding
                    if not chunk:
                        break
                    decoder = make()
                for at in range(0, len(chunk), size):
                    if out := decoder.decompress(chunk[at : at + size]):
                        yield out
                    if decoder.eof:
                        chunk = decoder.unused_data + chunk[at + size :]
                        decoder = None
                        break
                else:
                    break
    except (zlib.error, lzma.LZMAError, zstandard.ZstdError, EOFError) as error:
        raise corrupt(f"has damaged {kind} data ({error})") from None
    if decoder is not None:
        raise corrupt("is truncated")


def _gzip() -> _Decoder:
    return zlib.decompressobj(wbits=31)


def _zstd() -> _Decoder:
    return zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()


def _xz() -> _Decoder:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_LZMA_MEMORY)


class ByteReader:
    """Exact reads from a stream of chunks. `seen` gets every chunk (hashing)."""

    def __init__(
        self, chunks: Iterable[bytes], seen: Callable[[bytes], object] | None = None
    ) -> None:
        self._chunks = iter(chunks)
        self._seen = seen
        self._chunk = memoryview(b"")
        self.position = 0  # bytes given out so far

    def some(self, limit: int) -> memoryview:
        """At most `limit` next bytes; empty only at the end."""
        while not self._chunk:
            chunk = next(self._chunks, None)
            if chunk is None:
                return memoryview(b"")
            if self._seen is not None:
                self._seen(chunk)
            self._chunk = memoryview(chunk)
        taken, self._chunk = self._chunk[:limit], self._chunk[limit:]
        self.position += len(taken)
        return taken

    def read(self, size: int) -> bytes:
        """The next `size` bytes; fewer only at the end."""
        first = self.some(size)
        if len(first) == size:
            return bytes(first)
        parts = [first]
        left = size - len(first)
        while left and (part := self.some(left)):
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Passes over `size` bytes; raises RemoteError when there are fewer."""
        while size:
            part = self.some(size)
            if not part:
                raise corrupt("is truncated")
            size -= len(part)

    def drain(self) -> None:
        """Reads to the end."""
        while self.some(CHUNK):
            pass
