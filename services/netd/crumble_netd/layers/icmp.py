"""ICMP and ICMPv6: echoes answered or passed on, errors made for guests and heeded from them."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from crumble_netd.commands import HostClose, HostConnect, HostSend
from crumble_netd.flow_table import Flow, Key
from crumble_netd.header import Malformed, checksum, icmp, ipv4, tcp
from crumble_netd.header.icmp import Icmp
from crumble_netd.port import Port

if TYPE_CHECKING:
    from crumble_netd.layers.ip import Packet
    from crumble_netd.stack import Stack

_TIMEOUT = 30.0
# Errors a second, of one guest (RFC 1812 §4.3.2.8, RFC 4443 §2.4 (f)).
_ERRORS = 100
_NEIGHBOUR = range(icmp.ROUTER_SOLICITATION, icmp.NEIGHBOR_ADVERTISEMENT + 1)
# errno → code of "unreachable", for IPv4 and IPv6.
_CODES = {
    errno.ECONNREFUSED: (icmp.PORT, icmp.PORT6),
    errno.EHOSTUNREACH: (icmp.HOST, icmp.ADDRESS6),
    errno.ETIMEDOUT: (icmp.HOST, icmp.ADDRESS6),
    errno.ENETUNREACH: (icmp.NET, icmp.NO_ROUTE6),
    errno.EACCES: (icmp.ADMIN, icmp.ADMIN6),
    errno.EPERM: (icmp.ADMIN, icmp.ADMIN6),
}


class IcmpLayer:
    """Both versions."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._second = 0
        self._errors = 0

    # From guests.

    def receive(self, port: Port, packet: Packet) -> None:
        """A message from a guest; raises Malformed."""
        pseudo = packet.pseudo() if packet.ipv6 else 0
        message = icmp.parse(packet.payload, pseudo, trusted=packet.trusted)
        echo = icmp.ECHO6 if packet.ipv6 else icmp.ECHO
        if message.type == echo:
            self._echo(port, packet, message)
        elif packet.ipv6 and message.type in _NEIGHBOUR:
            self._stack.neighbours.receive(port, packet, message)
        elif message.type == (icmp.TOO_BIG6 if packet.ipv6 else icmp.UNREACHABLE):
            self._too_big(port, packet, message)

    def _echo(self, port: Port, packet: Packet, message: Icmp) -> None:
        stack = self._stack
        if packet.destination in stack.addresses.owned():
            self._reply(port, packet.destination, packet.source, message.rest, bytes(message.body))
        elif stack.addresses.inside(packet.destination):
            self.error(port, packet, errno.EHOSTUNREACH)
        elif not port.allows(packet.destination, 0, "icmp", stack.now()):
            stack.refused(port, "icmp", packet.destination, 0)
            self.error(port, packet, errno.EACCES)
        else:
            self._pass_on(port, packet, message)

    def _reply(self, port: Port, source: bytes, to: bytes, rest: int, body: bytes) -> None:
        if len(source) == 16:
            pseudo = checksum.pseudo(source, to, icmp.PROTOCOL6, icmp.SIZE + len(body))
            data = icmp.build(icmp.ECHO_REPLY6, 0, rest, body, pseudo)
            self._stack.ip.send(port, source, to, icmp.PROTOCOL6, data)
        else:
            data = icmp.build(icmp.ECHO_REPLY, 0, rest, body)
            self._stack.ip.send(port, source, to, icmp.PROTOCOL, data)

    def _pass_on(self, port: Port, packet: Packet, message: Icmp) -> None:
        """Through a ping socket of the host's (icmp(7)), which has identifiers of its own."""
        stack, identifier = self._stack, message.rest >> 16
        key = Key("icmp", port.number, packet.source, identifier, packet.destination, 0)
        flow = stack.flows.find(key)
        if flow is None:
            if stack.flows.full(port, "icmp"):
                port.counts["limit.icmp"] += 1
                return
            flow = Flow(key, port, target=(packet.destination, 0), begun=stack.now())
            stack.flows.add(flow)
            stack.emit(HostConnect(flow.number, "icmp", packet.destination, 0))
        flow.last = stack.now()
        stack.timers.set(("idle", flow.number), flow.last + _TIMEOUT)
        kind = icmp.ECHO6 if packet.ipv6 else icmp.ECHO
        data = icmp.build(kind, 0, message.rest, message.body)
        stack.emit(HostSend(flow.number, data))

    def received(self, flow: Flow, data: bytes) -> None:
        """An echo reply from the host side."""
        if len(data) < icmp.SIZE:
            return
        key = flow.key
        kind = icmp.ECHO_REPLY6 if len(key.remote) == 16 else icmp.ECHO_REPLY
        if data[0] == kind:
            rest = key.guest_port << 16 | int.from_bytes(data[6:8], "big")
            self._reply(flow.port, key.remote, key.guest, rest, data[icmp.SIZE :])

    def failed(self, flow: Flow) -> None:
        """No ping socket to be had, or an error on it: the guest's time-out tells it."""
        self._stack.flows.remove(flow)
        self._stack.emit(HostClose(flow.number))

    # To guests.

    def error(self, port: Port, packet: Packet, why: int) -> None:
        """Tells a guest that its packet cannot be delivered; never about what must not be answered."""
        if packet.destination[0] >= (0xFF if packet.ipv6 else 224) or not self._may_tell():
            return
        code = _CODES.get(why, _CODES[errno.EHOSTUNREACH])[packet.ipv6]
        addresses = self._stack.addresses
        gateway = addresses.gateway6 if packet.ipv6 else addresses.gateway4
        self._unreachable(port, gateway, packet.source, code, packet.quote())

    def flow_error(self, flow: Flow, why: int) -> None:
        """The same, about a flow whose packet is gone: it is quoted as far as errors need it."""
        key = flow.key
        if not self._may_tell():
            return
        protocol = {"tcp": tcp.PROTOCOL, "udp": 17, "icmp": icmp.PROTOCOL}[key.kind]
        transport = key.guest_port.to_bytes(2, "big") + key.remote_port.to_bytes(2, "big")
        transport += (8).to_bytes(2, "big") + bytes(2)
        addresses = self._stack.addresses
        if len(key.guest) == 16:
            quote = bytes((0x60, 0, 0, 0, 0, 8, protocol, 64)) + key.guest + key.remote
            code = _CODES.get(why, _CODES[errno.EHOSTUNREACH])[1]
            source = key.remote if code == icmp.PORT6 else addresses.gateway6
        else:
            quote = ipv4.build(key.guest, key.remote, protocol, 8)
            code = _CODES.get(why, _CODES[errno.EHOSTUNREACH])[0]
            source = key.remote if code == icmp.PORT else addresses.gateway4
        self._unreachable(flow.port, source, key.guest, code, quote + transport)

    def _may_tell(self) -> bool:
        second = int(self._stack.now())
        if second != self._second:
            self._second, self._errors = second, 0
        self._errors += 1
        return self._errors <= _ERRORS

    def _unreachable(self, port: Port, source: bytes, to: bytes, code: int, quote: bytes) -> None:
        if len(source) == 16:
            pseudo = checksum.pseudo(source, to, icmp.PROTOCOL6, icmp.SIZE + len(quote))
            data = icmp.build(icmp.UNREACHABLE6, code, 0, quote, pseudo)
            self._stack.ip.send(port, source, to, icmp.PROTOCOL6, data)
        else:
            data = icmp.build(icmp.UNREACHABLE, code, 0, quote)
            self._stack.ip.send(port, source, to, icmp.PROTOCOL, data)

    def _too_big(self, port: Port, packet: Packet, message: Icmp) -> None:
        """Path MTU discovery (RFC 1191, RFC 8201): something behind the guest takes less."""
        if packet.ipv6:
            size, mtu = 40, message.rest
            quoted, protocol_at, source_at = bytes(message.body), 6, 8
        else:
            if message.code != icmp.FRAGMENTATION_NEEDED:
                return
            size, mtu = 20, message.rest & 0xFFFF
            quoted, protocol_at, source_at = bytes(message.body), 9, 12
        if len(quoted) < size + 8 or quoted[protocol_at] != tcp.PROTOCOL:
            return
        width = 16 if packet.ipv6 else 4
        remote = quoted[source_at : source_at + width]
        guest = quoted[source_at + width : source_at + 2 * width]
        if guest != packet.source:
            raise Malformed("icmp.quote")
        ports = quoted[size : size + 4]
        key = Key(
            "tcp", port.number, guest, int.from_bytes(ports[2:], "big"),
            remote, int.from_bytes(ports[:2], "big"),
        )  # fmt: skip
        self._stack.tcp.path_mtu(key, mtu - size - tcp.SIZE)
