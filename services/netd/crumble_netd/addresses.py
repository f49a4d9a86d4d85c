"""Who is who on the virtual network."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from crumble_netd.header import ipv6

LINK_LOCAL6 = bytes.fromhex("fe80000000000000")


@dataclass(frozen=True, slots=True)
class Addresses:
    """gateway: routes, resolves names, answers pings. host: stands for the host's loopback.

    also: further addresses of the gateway, at which guests find it in every network.
    Addresses are 4 or 16 bytes; network6 is the prefix's 8 bytes, its length is always 64.
    """

    mac: bytes
    network4: bytes
    prefix4: int
    gateway4: bytes
    host4: bytes
    network6: bytes
    domain: str = "internal"
    also: frozenset[bytes] = frozenset()

    @property
    def mask4(self) -> bytes:
        """The IPv4 netmask."""
        return ((0xFFFFFFFF << (32 - self.prefix4)) & 0xFFFFFFFF).to_bytes(4, "big")

    @property
    def gateway6(self) -> bytes:
        """The gateway's address in the prefix."""
        return self.network6 + (1).to_bytes(8, "big")

    @property
    def host6(self) -> bytes:
        """The host's address in the prefix."""
        return self.network6 + (2).to_bytes(8, "big")

    @property
    def router6(self) -> bytes:
        """The gateway's link-local address."""
        return LINK_LOCAL6 + (1).to_bytes(8, "big")

    def owned(self) -> frozenset[bytes]:
        """The addresses this stack answers for itself."""
        own = (self.gateway4, self.host4, self.gateway6, self.host6, self.router6)
        return self.also.union(own)

    def inside(self, address: bytes) -> bool:
        """Whether an address belongs to the virtual network: such packets never leave it."""
        if len(address) == 4:
            mask = int.from_bytes(self.mask4, "big")
            own = int.from_bytes(self.network4, "big")
            return int.from_bytes(address, "big") & mask == own & mask
        return address[:8] == self.network6 or ipv6.is_link_local(address)


def packed(text: str) -> bytes:
    """An address as bytes; raises ValueError."""
    return ipaddress.ip_address(text).packed


def text(address: bytes) -> str:
    """An address as people write it."""
    return str(ipaddress.ip_address(address))
