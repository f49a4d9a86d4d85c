"""DHCPv4 for the one address a port has: there is no pool to starve."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from crumble_netd.header import checksum, dhcp, ethernet, ipv4, udp
from crumble_netd.port import Port

if TYPE_CHECKING:
    from crumble_netd.stack import Stack

_LEASE = 86_400
_CLIENT_PORT, _SERVER_PORT = 68, 67


class DhcpLayer:
    """The server (RFC 2131 §4.3)."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def receive(self, port: Port, datagram: udp.Udp) -> None:
        """A client's message; raises Malformed."""
        message = dhcp.parse(datagram.payload)
        server = message.options.get(dhcp.SERVER)
        if message.mac != port.mac or server not in (None, self._stack.addresses.gateway4):
            return
        if message.kind == dhcp.DISCOVER:
            self._answer(port, message, dhcp.OFFER)
        elif message.kind == dhcp.INFORM:
            self._answer(port, message, dhcp.ACK)
        elif message.kind == dhcp.WANT:
            wanted = message.options.get(dhcp.REQUESTED, message.client)
            self._answer(port, message, dhcp.ACK if wanted == port.ipv4 else dhcp.NAK)

    def _answer(self, port: Port, message: dhcp.Dhcp, kind: int) -> None:
        addresses = self._stack.addresses
        options = {dhcp.KIND: bytes((kind,)), dhcp.SERVER: addresses.gateway4}
        if kind != dhcp.NAK:
            domain = addresses.domain.encode()
            options |= {
                dhcp.MASK: addresses.mask4,
                dhcp.ROUTER: addresses.gateway4,
                dhcp.DNS: addresses.gateway4,
                dhcp.DOMAIN: domain,
                dhcp.MTU: struct.pack("!H", port.mtu),
            }
            if message.kind != dhcp.INFORM:
                options[dhcp.LEASE] = struct.pack("!I", _LEASE)
        yours = bytes(4) if kind == dhcp.NAK or message.kind == dhcp.INFORM else port.ipv4
        data = dhcp.build(message.xid, message.client, yours, addresses.gateway4, port.mac, options)
        # To the address it will have; a client without one may only hear broadcasts.
        known = message.client != ipv4.ANY and kind != dhcp.NAK
        to = message.client if known else ipv4.BROADCAST
        pseudo = checksum.pseudo(addresses.gateway4, to, udp.PROTOCOL, udp.SIZE + len(data))
        head = udp.build(_SERVER_PORT, _CLIENT_PORT, data, pseudo)
        mac = port.mac if known else ethernet.BROADCAST
        self._stack.ip.send(port, addresses.gateway4, to, udp.PROTOCOL, head + data, mac=mac)
