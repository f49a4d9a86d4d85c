"""ARP for IPv4 over Ethernet (RFC 826)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from crumble_netd.header import Malformed

_LAYOUT = struct.Struct("!HHBBH6s4s6s4s")
_ETHERNET_IPV4 = (1, 0x0800, 6, 4)
REQUEST, REPLY = 1, 2


class Arp(NamedTuple):
    """One packet: who asks, and for whom."""

    operation: int
    sender_mac: bytes
    sender: bytes
    target_mac: bytes
    target: bytes


def parse(data: bytes | memoryview) -> Arp:
    """Raises Malformed."""
    if len(data) < _LAYOUT.size:
        raise Malformed("arp.short")
    fields = _LAYOUT.unpack_from(data)
    if fields[:4] != _ETHERNET_IPV4 or fields[4] not in (REQUEST, REPLY):
        raise Malformed("arp.kind")
    return Arp(*fields[4:])


def build(packet: Arp) -> bytes:
    """The packet's bytes."""
    return _LAYOUT.pack(*_ETHERNET_IPV4, *packet)
