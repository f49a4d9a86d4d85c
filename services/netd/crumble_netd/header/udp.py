"""UDP headers (RFC 768)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from crumble_netd.header import Malformed, checksum

SIZE = 8
PROTOCOL = 17
CHECKSUM = 6
_LAYOUT = struct.Struct("!HHHH")


class Udp(NamedTuple):
    """A datagram."""

    source: int
    destination: int
    payload: memoryview


def parse(data: memoryview, pseudo: int, *, trusted: bool, ipv6: bool) -> Udp:
    """The datagram in an IP payload; raises Malformed.

    pseudo: the pseudo-header's sum. trusted: its checksum was left to us and is not there.
    """
    if len(data) < SIZE:
        raise Malformed("udp.short")
    source, destination, length, total = _LAYOUT.unpack_from(data)
    if not SIZE <= length <= len(data):
        raise Malformed("udp.length")
    if destination == 0:
        raise Malformed("udp.port")
    if not trusted:
        if total == 0 and ipv6:
            raise Malformed("udp.checksum")
        if total and not checksum.valid([data[:length]], pseudo):
            raise Malformed("udp.checksum")
    return Udp(source, destination, data[SIZE:length])


def build(source: int, destination: int, payload: bytes | memoryview, pseudo: int) -> bytes:
    """The header of a datagram, checksum filled in; `pseudo` counts header and payload."""
    length = SIZE + len(payload)
    head = _LAYOUT.pack(source, destination, length, 0)
    total = checksum.internet([head, payload], pseudo) or 0xFFFF
    return _LAYOUT.pack(source, destination, length, total)
