"""The Internet checksum (RFC 1071) of bytes."""

from __future__ import annotations

from crumble_native._core import ffi, lib


def ones_sum(data: bytes | bytearray | memoryview, initial: int = 0) -> int:
    """The folded ones' complement sum of big-endian 16-bit words, plus `initial` (≤ 0xffff)."""
    if not data:
        return initial
    return int(lib.crb_checksum_sum(ffi.from_buffer(data), len(data), initial))
