"""IPv4 headers (RFC 791)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from crumble_netd.header import Malformed, checksum

SIZE = 20
MAX_PACKET = 65_535
_LAYOUT = struct.Struct("!BBHHHBBH4s4s")
_MORE, _DONT, _OFFSET = 0x2000, 0x4000, 0x1FFF
# Options that let a sender choose the route (RFC 7126 §4.3, §4.4): refused.
_SOURCE_ROUTES = (131, 137)

ANY, BROADCAST = bytes(4), b"\xff" * 4


class IPv4(NamedTuple):
    """A header. offset: of this fragment, bytes. size: of the header. length: of all."""

    source: bytes
    destination: bytes
    protocol: int
    ttl: int
    identification: int
    offset: int
    more: bool
    dont_fragment: bool
    size: int
    length: int


def parse(data: memoryview, *, joined: bool = False) -> IPv4:
    """The header at the start of `data`, its checksum verified; raises Malformed.

    joined: it has been looked at, and the packet is as long as `data`.
    """
    if len(data) < SIZE:
        raise Malformed("ipv4.short")
    first, _, length, ident, fragment, ttl, protocol, _, source, target = _LAYOUT.unpack_from(data)
    size = (first & 0xF) * 4
    if joined:
        return IPv4(source, target, protocol, ttl, ident, 0, False, True, size, len(data))
    if first >> 4 != 4 or size < SIZE or length < size or len(data) < length:
        raise Malformed("ipv4.length")
    if not checksum.valid([data[:size]]):
        raise Malformed("ipv4.checksum")
    if size > SIZE:
        _check_options(bytes(data[SIZE:size]))
    offset, more = (fragment & _OFFSET) * 8, bool(fragment & _MORE)
    if offset + length - size > MAX_PACKET - SIZE or (more and (length - size) % 8):
        raise Malformed("ipv4.fragment")
    return IPv4(
        source, target, protocol, ttl, ident, offset, more, bool(fragment & _DONT), size, length
    )


def _check_options(options: bytes) -> None:
    at = 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        if options[at] in _SOURCE_ROUTES:
            raise Malformed("ipv4.source_route")
        if at + 1 >= len(options) or options[at + 1] < 2 or at + options[at + 1] > len(options):
            raise Malformed("ipv4.options")
        at += options[at + 1]


def build(
    source: bytes,
    destination: bytes,
    protocol: int,
    payload: int,
    *,
    identification: int = 0,
    offset: int = 0,
    more: bool = False,
    dont_fragment: bool = False,
    ttl: int = 64,
) -> bytes:
    """The header of a packet with `payload` bytes behind it; its length is 0 when it is too large."""
    length = SIZE + payload if SIZE + payload <= MAX_PACKET else 0
    flags = (_MORE if more else 0) | (_DONT if dont_fragment else 0) | offset // 8
    fields = (0x45, 0, length, identification, flags, ttl, protocol)
    total = checksum.internet([_LAYOUT.pack(*fields, 0, source, destination)])
    return _LAYOUT.pack(*fields, total, source, destination)
