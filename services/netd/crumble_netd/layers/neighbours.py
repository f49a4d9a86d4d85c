"""IPv6's neighbour and router discovery (RFC 4861), address configuration (RFC 4862), DNS (RFC 8106)."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from crumble_netd.header import Malformed, checksum, icmp, ipv6
from crumble_netd.header.icmp import Icmp
from crumble_netd.port import Port

if TYPE_CHECKING:
    from crumble_netd.layers.ip import Packet
    from crumble_netd.stack import Stack

_SOURCE_LINK, _TARGET_LINK, _PREFIX, _MTU, _RDNSS = 1, 2, 3, 5, 25
_ROUTER, _SOLICITED, _OVERRIDE = 1 << 31, 1 << 30, 1 << 29
_ROUTER_LIFETIME = 9000  # s, the most there is (§6.2.1)
_PREFIX_LIFETIME = 0xFFFFFFFF
_INTERVAL = 1800.0
_ON_LINK, _AUTONOMOUS = 0x80, 0x40
_OTHER = 0x40  # there is DHCPv6 for what is no address (§4.2)


class NeighbourLayer:
    """What ICMPv6 carries beside echoes and errors."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def receive(self, port: Port, packet: Packet, message: Icmp) -> None:
        """A discovery message; raises Malformed."""
        if packet.hop_limit != 255 or message.code != 0:
            raise Malformed("nd.hops")  # it came from elsewhere (§6.1.1, §7.1.1)
        if message.type == icmp.NEIGHBOR_SOLICITATION:
            self._solicited(port, packet, message)
        elif message.type == icmp.ROUTER_SOLICITATION:
            if packet.source == port.link_local() and not port.ipv6:
                self._learn(port, ipv6.eui64(self._stack.addresses.network6, port.mac))
            self.advertise(port)

    def _solicited(self, port: Port, packet: Packet, message: Icmp) -> None:
        if len(message.body) < 16:
            raise Malformed("nd.short")
        target = bytes(message.body[:16])
        if packet.source == ipv6.ANY:
            self._probed(port, target)
        if target not in self._stack.addresses.owned():
            return
        ask = packet.source
        to = ask if ask != ipv6.ANY else ipv6.ALL_NODES
        flags = _ROUTER | _OVERRIDE | (_SOLICITED if ask != ipv6.ANY else 0)
        body = target + bytes((_TARGET_LINK, 1)) + self._stack.addresses.mac
        self._send(port, target, to, icmp.NEIGHBOR_ADVERTISEMENT, flags, body)

    def _probed(self, port: Port, target: bytes) -> None:
        """Duplicate address detection (RFC 4862 §5.4): the guest is about to have this address. A server may never
        use it as a source before somebody has reached it there.
        """
        if target[:8] == self._stack.addresses.network6 and target != port.ipv6:
            self._learn(port, target)

    def _learn(self, port: Port, address: bytes) -> None:
        if self._stack.may_use(port, address):
            port.ipv6 = address
            self._stack.on_learnt()

    def advertise(self, port: Port) -> None:
        """A router advertisement, to all nodes; another one follows in time."""
        if not port.mac:
            return
        addresses = self._stack.addresses
        lifetime = _PREFIX_LIFETIME
        prefix = struct.pack(
            "!BBBBIII", _PREFIX, 4, 64, _ON_LINK | _AUTONOMOUS, lifetime, lifetime, 0
        )
        body = (
            struct.pack("!II", 0, 0)  # reachable time, retransmission timer: as the guest likes
            + bytes((_SOURCE_LINK, 1)) + addresses.mac
            + struct.pack("!BBHI", _MTU, 1, 0, port.mtu)
            + prefix + addresses.network6 + bytes(8)
            + struct.pack("!BBHI", _RDNSS, 3, 0, _ROUTER_LIFETIME) + addresses.gateway6
        )  # fmt: skip
        rest = 64 << 24 | _OTHER << 16 | _ROUTER_LIFETIME
        self._send(port, addresses.router6, ipv6.ALL_NODES, icmp.ROUTER_ADVERTISEMENT, rest, body)
        self._stack.timers.set(("advertise", port.number), self._stack.now() + _INTERVAL)

    def _send(
        self, port: Port, source: bytes, to: bytes, kind: int, rest: int, body: bytes
    ) -> None:
        size = icmp.SIZE + len(body)
        pseudo = checksum.pseudo(source, to, icmp.PROTOCOL6, size)
        data = icmp.build(kind, 0, rest, body, pseudo)
        mac = b"" if to[0] != 0xFF else b"\x33\x33" + to[12:]
        self._stack.ip.send(port, source, to, icmp.PROTOCOL6, data, hop_limit=255, mac=mac)
