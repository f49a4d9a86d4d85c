"""DHCPv6 without state (RFC 8415 §6.1): addresses make themselves, DNS is told to those who ask."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from crumble_netd.header import Malformed, dhcp6, dns, ipv6, udp
from crumble_netd.port import Port

if TYPE_CHECKING:
    from crumble_netd.layers.ip import Packet
    from crumble_netd.stack import Stack

_REFRESH = 86_400  # s, between a client's questions (§21.23)
_ADDRESSES = (dhcp6.IA_NA, dhcp6.IA_TA, dhcp6.IA_PD)


class Dhcp6Layer:
    """The server, for information only."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def receive(self, port: Port, packet: Packet, datagram: udp.Udp) -> None:
        """A client's message; raises Malformed."""
        message = dhcp6.parse(datagram.payload)
        if message.kind != dhcp6.INFORMATION_REQUEST:
            port.counts["dhcp6.other"] += 1  # nobody here gives addresses
            return
        if any(code in message.options for code in _ADDRESSES):
            raise Malformed("dhcp6.address")  # §16.12
        addresses = self._stack.addresses
        ours = dhcp6.duid(addresses.mac)
        if message.options.get(dhcp6.SERVER_ID, ours) != ours or not ipv6.is_link_local(
            packet.source
        ):
            return
        domain = tuple(addresses.domain.encode().split(b"."))
        options = {
            dhcp6.SERVER_ID: ours,
            dhcp6.DNS_SERVERS: addresses.gateway6,
            dhcp6.DOMAIN_LIST: dns.build_name(domain),
            dhcp6.REFRESH_TIME: struct.pack("!I", _REFRESH),
        }
        if client := message.options.get(dhcp6.CLIENT_ID):
            options = {dhcp6.CLIENT_ID: client, **options}
        data = dhcp6.build(dhcp6.REPLY, message.xid, options)
        self._stack.udp.send(
            port, addresses.router6, dhcp6.SERVER_PORT, packet.source, dhcp6.CLIENT_PORT, data
        )
