"""DHCPv6 messages between client and server (RFC 8415 §8, §21)."""

from __future__ import annotations

import struct
from typing import NamedTuple

from crumble_netd.header import Malformed

CLIENT_PORT, SERVER_PORT = 546, 547
REPLY, INFORMATION_REQUEST = 7, 11
CLIENT_ID, SERVER_ID, IA_NA, IA_TA, DNS_SERVERS, DOMAIN_LIST, IA_PD, REFRESH_TIME = (
    1, 2, 3, 4, 23, 24, 25, 32,
)  # fmt: skip
_OPTION = struct.Struct("!HH")
_DUID_LINK_LAYER, _ETHERNET = 3, 1  # §11.4
# §11.1: a DUID has a type and at most 128 bytes.
_MAX_DUID = 130


class Dhcp6(NamedTuple):
    """A client's message. xid: 3 bytes. options: by code, the first of each."""

    kind: int
    xid: bytes
    options: dict[int, bytes]


def parse(data: memoryview) -> Dhcp6:
    """A message from a client; raises Malformed."""
    if len(data) < 4:
        raise Malformed("dhcp6.short")
    options: dict[int, bytes] = {}
    at = 4
    while at < len(data):
        if at + _OPTION.size > len(data):
            raise Malformed("dhcp6.options")
        code, size = _OPTION.unpack_from(data, at)
        at += _OPTION.size
        if at + size > len(data):
            raise Malformed("dhcp6.options")
        options.setdefault(code, bytes(data[at : at + size]))
        at += size
    if len(options.get(CLIENT_ID, b"")) > _MAX_DUID:
        raise Malformed("dhcp6.duid")
    return Dhcp6(data[0], bytes(data[1:4]), options)


def build(kind: int, xid: bytes, options: dict[int, bytes]) -> bytes:
    """A message."""
    body = b"".join(_OPTION.pack(code, len(value)) + value for code, value in options.items())
    return bytes((kind,)) + xid + body


def duid(mac: bytes) -> bytes:
    """Who has this MAC, for DHCPv6."""
    return struct.pack("!HH", _DUID_LINK_LAYER, _ETHERNET) + mac
