"""UDP: the gateway's own services, and NAT to host sockets, a flow for each pair of ends."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from crumble_netd.commands import Adopt, HostClose, HostConnect, HostSend, Refuse
from crumble_netd.events import Incoming
from crumble_netd.flow_table import Flow, Key
from crumble_netd.header import checksum, dhcp6, ipv4, udp
from crumble_netd.layers import keeping
from crumble_netd.port import Port

if TYPE_CHECKING:
    from crumble_netd.layers.ip import Packet
    from crumble_netd.stack import Stack

# RFC 4787 REQ-5: not less than two minutes, once there was an answer; ports with short exchanges less.
TIMEOUT, UNANSWERED, SHORT = 180.0, 30.0, 10.0
# s that a guest has to say that it has an IPv4 address.
ASKED = 1.0
SHORT_PORTS = frozenset((53, 123))
DHCP_PORT, DNS_PORT = 67, 53


class UdpLayer:
    """Datagrams both ways."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        # Brings a flow that is served elsewhere up to date.
        self.look: Callable[[Flow], None] = lambda _: None

    def receive(self, port: Port, packet: Packet) -> None:
        """A datagram from a guest; raises Malformed."""
        stack = self._stack
        datagram = udp.parse(
            packet.payload, packet.pseudo(), trusted=packet.trusted, ipv6=packet.ipv6
        )
        addresses = stack.addresses
        if datagram.destination == DHCP_PORT and not packet.ipv6:
            stack.dhcp.receive(port, datagram)
        elif datagram.destination == dhcp6.SERVER_PORT and packet.ipv6:
            stack.dhcp6.receive(port, packet, datagram)
        elif packet.source in (ipv4.ANY, bytes(16)):
            return
        elif packet.destination in addresses.owned() and datagram.destination == DNS_PORT:
            stack.dns.receive(port, packet, datagram)
        else:
            self._nat(port, packet, datagram)

    def _nat(self, port: Port, packet: Packet, datagram: udp.Udp) -> None:
        stack = self._stack
        key = Key(
            "udp", port.number, packet.source, datagram.source,
            packet.destination, datagram.destination,
        )  # fmt: skip
        flow = stack.flows.find(key)
        if flow is None:
            target = stack.resolve_target(port, "udp", packet.destination, datagram.destination)
            if target is None:
                stack.icmp.error(port, packet, errno.EACCES)
                return
            if not stack.may_begin(port):
                return
            flow = self._open(port, key, target)
        flow.sent += len(datagram.payload)
        self._touch(flow)
        stack.emit(HostSend(flow.number, bytes(datagram.payload)))

    def _open(self, port: Port, key: Key, target: tuple[bytes, int]) -> Flow:
        stack = self._stack
        flow = self._add(port, key, target, "nat")
        stack.emit(HostConnect(flow.number, "udp", *target))
        return flow

    def _add(self, port: Port, key: Key, target: tuple[bytes, int], service: str) -> Flow:
        """A new flow; the one that was silent for longest makes room for it.

        service: "nat", or the name of the forward it came by.
        """
        stack = self._stack
        if stack.flows.full(port, "udp"):
            port.counts["limit.udp"] += 1
            for flow in stack.flows.all():
                self.look(flow)
            oldest = stack.flows.oldest(port, "udp")
            assert oldest is not None
            self.close(oldest)
        flow = Flow(key, port, target=target, begun=stack.now())
        stack.flows.add(flow)
        if stack.ledger is not None and (slot := stack.ledger.take(stream=False)):
            slot.begin(flow.number, keeping.identity(flow, service))
            flow.slot = slot
        return flow

    def revive(self, flow: Flow) -> None:
        """A predecessor's flow goes on."""
        flow.received = 1  # for all we know there were answers
        self._stack.flows.add(flow)
        self._touch(flow)

    def _touch(self, flow: Flow) -> None:
        flow.last = self._stack.now()
        self._stack.timers.set(("idle", flow.number), self._end(flow))

    def _end(self, flow: Flow) -> float:
        if flow.key.remote_port in SHORT_PORTS:
            return flow.last + SHORT
        return flow.last + (TIMEOUT if flow.received else UNANSWERED)

    def idle(self, flow: Flow) -> None:
        """It was silent for its time, as far as was seen here."""
        self.look(flow)
        if flow.key.kind == "udp" and self._end(flow) > self._stack.now():
            self._stack.timers.set(("idle", flow.number), self._end(flow))
        else:
            self.close(flow)

    def close(self, flow: Flow) -> None:
        """Its time is over."""
        self._stack.timers.set(("idle", flow.number), 0)
        self._stack.flows.remove(flow)
        if flow.slot is not None:
            flow.slot.end()
        self._stack.emit(HostClose(flow.number))

    # From the host side.

    def received(self, flow: Flow, data: bytes) -> None:
        """A datagram for a guest."""
        if flow.port.has_ipv4 is None and flow.received:
            self._go_by_ipv6(flow)
        flow.received += max(len(data), 1)
        self._touch(flow)
        key = flow.key
        self.send(flow.port, key.remote, key.remote_port, key.guest, key.guest_port, data)

    def failed(self, flow: Flow, why: int) -> None:
        """The host's kernel was told, or knows, that it cannot be reached."""
        self._stack.icmp.flow_error(flow, why)
        if why != errno.ECONNREFUSED:
            self.close(flow)

    def incoming(self, event: Incoming) -> None:
        """A datagram to a forward, from a peer without a flow."""
        stack = self._stack
        found = stack.forwarded(event)
        if found is None:
            return
        port, ways = found
        if len(event.data) > 65_507:
            stack.emit(Refuse(event.token))
            return
        flow = self._add(port, ways[0], event.peer, stack.forwards.name(event.rule))
        stack.emit(Adopt(event.token, flow.number))
        if port.has_ipv4 is None and port.ipv6:
            stack.ethernet.ask(port)
        self.received(flow, event.data)

    def _go_by_ipv6(self, flow: Flow) -> None:
        """A forward's peer says more, and the guest, which was asked, has not said that it has IPv4."""
        stack, port, key = self._stack, flow.port, flow.key
        if len(key.guest) == 16 or not port.ipv6 or stack.now() < flow.begun + ASKED:
            return
        port.has_ipv4 = False
        remote = stack.visible_peer(flow.target, port.ipv6)
        other = Key("udp", port.number, port.ipv6, key.guest_port, *remote)
        if stack.flows.find(other) is None:
            stack.flows.change(flow, other)
            if flow.slot is not None:
                flow.slot.begin(flow.number, flow.slot.identity() | {"key": other})

    # To guests.

    def send(
        self, port: Port, source: bytes, source_port: int, to: bytes, to_port: int, data: bytes
    ) -> None:
        """One datagram."""
        pseudo = checksum.pseudo(source, to, udp.PROTOCOL, udp.SIZE + len(data))
        head = udp.build(source_port, to_port, data, pseudo)
        self._stack.ip.send(port, source, to, udp.PROTOCOL, head + data)
