"""The switch between the guests of one network: it knows each by the one MAC that its port may use.

What goes from guest to guest is held to the same rules as what comes here: nobody sends from another's
address, and nobody but the network itself is router or DHCP server (RFC 6105, RFC 6980).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from crumble_netd.commands import Transmit
from crumble_netd.header import Malformed, arp, ethernet, icmp, ipv4, ipv6, udp
from crumble_netd.header.virtio_net import Offload
from crumble_netd.port import Port
from crumble_netd.segment import fit

if TYPE_CHECKING:
    from crumble_netd.stack import Stack

_DHCP = frozenset((67, 68, 546, 547))
_DHCP_SERVERS = frozenset((67, 547))
_REDIRECT = 137


class SwitchLayer:
    """Frames between ports."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    @property
    def alone(self) -> bool:
        """There is nobody to switch to."""
        return len(self._stack.ports) < 2

    def unicast(self, port: Port, destination: bytes, frame: memoryview, offload: Offload) -> None:
        """A frame for another guest; raises Malformed."""
        for other in self._stack.ports.values():
            if other.mac == destination and other is not port:
                self._check(port, frame)
                self._deliver(port, other, frame, offload)
                return
        port.counts["drop.other_mac"] += 1

    def flood(self, port: Port, frame: memoryview, offload: Offload) -> None:
        """A frame for all of them; raises Malformed."""
        if not self._check(port, frame):
            return
        for other in self._stack.ports.values():
            if other is not port and other.mac:
                self._deliver(port, other, frame, offload)

    def _deliver(self, port: Port, other: Port, frame: memoryview, offload: Offload) -> None:
        port.counts["switched.frames"] += 1
        for part in fit(frame, offload, other):
            self._stack.emit(Transmit(other.number, part))

    def _check(self, port: Port, frame: memoryview) -> bool:
        """Raises Malformed; False: not for all."""
        kind = frame[12] << 8 | frame[13]
        data = frame[ethernet.SIZE :]
        if kind == ethernet.IPV4:
            return self._check4(port, data)
        if kind == ethernet.IPV6:
            return self._check6(port, data)
        if kind != ethernet.ARP:
            raise Malformed("ethertype")
        asked = arp.parse(data)
        if asked.sender_mac != port.mac or asked.sender not in (port.ipv4, ipv4.ANY):
            raise Malformed("spoofed")
        return True

    def _check4(self, port: Port, data: memoryview) -> bool:
        head = ipv4.parse(data)
        self._stack.ip.check_source(port, head.source, head.destination)
        payload = data[head.size : head.length]
        return head.protocol != udp.PROTOCOL or bool(head.offset) or _not_dhcp(payload)

    def _check6(self, port: Port, data: memoryview) -> bool:
        head = ipv6.parse(data)
        self._stack.ip.check_source(port, head.source, head.destination)
        payload = data[head.start : head.end]
        if head.fragment is not None and head.protocol == icmp.PROTOCOL6:
            raise Malformed("nd.fragment")
        if head.protocol == icmp.PROTOCOL6:
            self._check_discovery(port, payload)
        return head.protocol != udp.PROTOCOL or head.fragment is not None or _not_dhcp(payload)

    def _check_discovery(self, port: Port, payload: memoryview) -> None:
        if len(payload) < icmp.SIZE:
            raise Malformed("icmp.short")
        if payload[0] in (icmp.ROUTER_ADVERTISEMENT, _REDIRECT):
            raise Malformed("nd.router")
        if payload[0] == icmp.NEIGHBOR_ADVERTISEMENT and not self._stack.may_use(
            port, bytes(payload[8:24])
        ):
            raise Malformed("spoofed")


def _not_dhcp(payload: memoryview) -> bool:
    """False for a client's message, which is the network's own business; raises Malformed for a server's."""
    if len(payload) < udp.SIZE:
        raise Malformed("udp.short")
    source, destination = int.from_bytes(payload[:2], "big"), int.from_bytes(payload[2:4], "big")
    if source in _DHCP_SERVERS and destination in _DHCP:
        raise Malformed("dhcp.server")
    return destination not in _DHCP
