"""Ethernet II frames (RFC 894)."""

from __future__ import annotations

SIZE = 14
DESTINATION, SOURCE, TYPE = 0, 6, 12
IPV4, ARP, IPV6 = 0x0800, 0x0806, 0x86DD
BROADCAST = b"\xff" * 6


def build(destination: bytes, source: bytes, kind: int) -> bytes:
    """The header of a frame."""
    return destination + source + kind.to_bytes(2, "big")


def is_group(address: bytes) -> bool:
    """Broadcast or multicast."""
    return bool(address[0] & 1)


def multicast4(address: bytes) -> bytes:
    """Where an IPv4 multicast address is sent (RFC 1112 §6.4)."""
    return b"\x01\x00\x5e" + bytes((address[1] & 0x7F,)) + address[2:]


def multicast6(address: bytes) -> bytes:
    """Where an IPv6 multicast address is sent (RFC 2464 §7)."""
    return b"\x33\x33" + address[12:]


def text(address: bytes) -> str:
    """As people write it."""
    return address.hex(":")
