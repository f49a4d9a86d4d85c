"""ICMP (RFC 792) and ICMPv6 (RFC 4443) messages: type, code, a word of rest, a body."""

from __future__ import annotations

import struct
from typing import NamedTuple

from crumble_netd.header import Malformed, checksum

SIZE = 8
PROTOCOL, PROTOCOL6 = 1, 58
_LAYOUT = struct.Struct("!BBHI")

ECHO_REPLY, UNREACHABLE, ECHO, TIME_EXCEEDED = 0, 3, 8, 11
NET, HOST, PORT, FRAGMENTATION_NEEDED, ADMIN = 0, 1, 3, 4, 13

UNREACHABLE6, TOO_BIG6, TIME_EXCEEDED6, ECHO6, ECHO_REPLY6 = 1, 2, 3, 128, 129
NO_ROUTE6, ADMIN6, ADDRESS6, PORT6 = 0, 1, 3, 4
ROUTER_SOLICITATION, ROUTER_ADVERTISEMENT = 133, 134
NEIGHBOR_SOLICITATION, NEIGHBOR_ADVERTISEMENT = 135, 136


class Icmp(NamedTuple):
    """A message. rest: the second word. body: what follows it."""

    type: int
    code: int
    rest: int
    body: memoryview


def parse(data: memoryview, pseudo: int = 0, *, trusted: bool = False) -> Icmp:
    """The message in an IP payload; raises Malformed. pseudo: of IPv6 only."""
    if len(data) < SIZE:
        raise Malformed("icmp.short")
    if not trusted and not checksum.valid([data], pseudo):
        raise Malformed("icmp.checksum")
    kind, code, _, rest = _LAYOUT.unpack_from(data)
    return Icmp(kind, code, rest, data[SIZE:])


def build(
    kind: int, code: int, rest: int, body: bytes | memoryview = b"", pseudo: int = 0
) -> bytes:
    """A whole message; `pseudo` (IPv6) counts it all."""
    total = checksum.internet([_LAYOUT.pack(kind, code, 0, rest), body], pseudo)
    return _LAYOUT.pack(kind, code, total, rest) + bytes(body)
