"""IPv6 headers and extension headers (RFC 8200)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from crumble_netd.header import Malformed

SIZE = 40
MAX_PAYLOAD = 65_535
_LAYOUT = struct.Struct("!IHBB16s16s")
_FRAGMENT = struct.Struct("!BBHI")
HOP_BY_HOP, ROUTING, FRAGMENT, NO_NEXT, DESTINATION = 0, 43, 44, 59, 60
# More of them than any real packet has; each costs a look.
_MAX_EXTENSIONS = 8
ANY = bytes(16)
ALL_NODES = bytes.fromhex("ff020000000000000000000000000001")


class Fragment(NamedTuple):
    """A fragment header (§4.5). offset: bytes."""

    identification: int
    offset: int
    more: bool


class IPv6(NamedTuple):
    """A header with what its extension headers say. start: where the payload begins; end: its end."""

    source: bytes
    destination: bytes
    protocol: int
    hop_limit: int
    start: int
    end: int
    fragment: Fragment | None


def parse(data: memoryview, *, joined: bool = False) -> IPv6:
    """The headers at the start of `data`; raises Malformed.

    joined: they have been looked at, and the packet is as long as `data`.
    """
    if len(data) < SIZE:
        raise Malformed("ipv6.short")
    first, length, following, hops, source, destination = _LAYOUT.unpack_from(data)
    end = len(data) if joined else SIZE + length
    if first >> 28 != 6 or len(data) < end:
        raise Malformed("ipv6.length")
    at, fragment = SIZE, None
    for _ in range(_MAX_EXTENSIONS):
        if following == FRAGMENT:
            following, at, fragment = _fragment(data, at, end, fragment)
            if fragment.offset:
                break
        elif following in (HOP_BY_HOP, DESTINATION):
            following, at = _extension(data, at, end)
        else:
            break
    if following in (HOP_BY_HOP, ROUTING) and not (fragment and fragment.offset):
        raise Malformed("ipv6.extension")
    return IPv6(source, destination, following, hops, at, end, fragment)


def _extension(data: memoryview, at: int, end: int) -> tuple[int, int]:
    if at + 8 > end:
        raise Malformed("ipv6.extension")
    after = at + 8 + data[at + 1] * 8
    if after > end:
        raise Malformed("ipv6.extension")
    return data[at], after


def _fragment(
    data: memoryview, at: int, end: int, seen: Fragment | None
) -> tuple[int, int, Fragment]:
    if at + 8 > end or seen is not None:
        raise Malformed("ipv6.fragment")
    following, _, word, identification = _FRAGMENT.unpack_from(data, at)
    offset, more = word & 0xFFF8, bool(word & 1)
    if (more and (end - at - 8) % 8) or offset + end - at - 8 > 65_535:
        raise Malformed("ipv6.fragment")
    return following, at + 8, Fragment(identification, offset, more)


def build(
    source: bytes, destination: bytes, protocol: int, payload: int, *, hop_limit: int = 64
) -> bytes:
    """The header of a packet with `payload` bytes behind it; its length is 0 when it is too large."""
    payload = payload if payload <= MAX_PAYLOAD else 0
    return _LAYOUT.pack(6 << 28, payload, protocol, hop_limit, source, destination)


def build_fragment(protocol: int, fragment: Fragment) -> bytes:
    """A fragment header."""
    word = fragment.offset | fragment.more
    return _FRAGMENT.pack(protocol, 0, word, fragment.identification)


def solicited_node(address: bytes) -> bytes:
    """The multicast address a neighbour is asked at (RFC 4291 §2.7.1)."""
    return bytes.fromhex("ff0200000000000000000001ff") + address[13:]


def is_link_local(address: bytes) -> bool:
    """fe80::/10."""
    return address[0] == 0xFE and address[1] & 0xC0 == 0x80


def eui64(prefix: bytes, mac: bytes) -> bytes:
    """The address a host makes of an 8-byte prefix and its MAC (RFC 4291 appendix A)."""
    return prefix + bytes((mac[0] ^ 2,)) + mac[1:3] + b"\xff\xfe" + mac[3:]
