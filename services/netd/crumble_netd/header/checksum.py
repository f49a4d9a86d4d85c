"""Internet checksums (RFC 1071) over parts of a packet, and pseudo-headers."""

from __future__ import annotations

from collections.abc import Iterable

from crumble_native.checksum import ones_sum

Bytes = bytes | bytearray | memoryview


def total(parts: Iterable[Bytes], initial: int = 0) -> int:
    """The folded sum of parts that follow one another; an odd part shifts those after it."""
    value, odd = initial, False
    for part in parts:
        piece = ones_sum(part)
        if odd:
            piece = (piece & 0xFF) << 8 | piece >> 8
        value += piece
        odd ^= bool(len(part) & 1)
    while value >> 16:
        value = (value & 0xFFFF) + (value >> 16)
    return value


def internet(parts: Iterable[Bytes], initial: int = 0) -> int:
    """The checksum to put into a header: the inverted sum."""
    return total(parts, initial) ^ 0xFFFF


def valid(parts: Iterable[Bytes], initial: int = 0) -> bool:
    """Whether parts that hold their own checksum add up (RFC 1071 §1)."""
    return total(parts, initial) == 0xFFFF


def pseudo(source: bytes, destination: bytes, protocol: int, length: int) -> int:
    """The folded sum of the pseudo-header, of IPv4 (RFC 9293 §3.1) and IPv6 (RFC 8200 §8.1) alike."""
    value = ones_sum(source + destination, protocol) + (length >> 16) + (length & 0xFFFF)
    return (value & 0xFFFF) + (value >> 16)
