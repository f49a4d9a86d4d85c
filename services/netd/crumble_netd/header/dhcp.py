"""DHCP messages (RFC 2131 §2, RFC 2132)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from crumble_netd.header import Malformed

_LAYOUT = struct.Struct("!BBBBIHH4s4s4s4s16s192x4s")
_MAGIC = b"\x63\x82\x53\x63"
REQUEST, REPLY = 1, 2
DISCOVER, OFFER, WANT, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
PAD, MASK, ROUTER, DNS, HOST_NAME, DOMAIN, MTU = 0, 1, 3, 6, 12, 15, 26
REQUESTED, LEASE, KIND, SERVER, SEARCH, END = 50, 51, 53, 54, 119, 255
_BROADCAST = 0x8000


class Dhcp(NamedTuple):
    """A client's message. client: the address it has. options: by number."""

    xid: int
    broadcast: bool
    client: bytes
    mac: bytes
    options: dict[int, bytes]

    @property
    def kind(self) -> int:
        """The message type; 0 when there is none (BOOTP)."""
        value = self.options.get(KIND, b"")
        return value[0] if len(value) == 1 else 0


def parse(data: memoryview) -> Dhcp:
    """A message from a client; raises Malformed."""
    if len(data) < _LAYOUT.size:
        raise Malformed("dhcp.short")
    operation, hardware, size, _, xid, _, flags, client, _, _, _, address, magic = (
        _LAYOUT.unpack_from(data)
    )
    if (operation, hardware, size, magic) != (REQUEST, 1, 6, _MAGIC):
        raise Malformed("dhcp.kind")
    options = _options(bytes(data[_LAYOUT.size :]))
    return Dhcp(xid, bool(flags & _BROADCAST), client, address[:6], options)


def _options(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    at = 0
    while at < len(data) and data[at] != END:
        if data[at] == PAD:
            at += 1
            continue
        if at + 1 >= len(data) or at + 2 + data[at + 1] > len(data):
            raise Malformed("dhcp.options")
        found[data[at]] = data[at + 2 : at + 2 + data[at + 1]]
        at += 2 + data[at + 1]
    return found


def build(
    xid: int, client: bytes, yours: bytes, server: bytes, mac: bytes, options: dict[int, bytes]
) -> bytes:
    """A server's message."""
    head = _LAYOUT.pack(
        REPLY, 1, 6, 0, xid, 0, 0, client, yours, server, bytes(4), mac.ljust(16, b"\0"), _MAGIC
    )
    body = b"".join(bytes((kind, len(value))) + value for kind, value in options.items())
    return head + body + bytes((END,))
