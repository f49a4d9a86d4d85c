"""The stack: frames from guests, events from the host side and time in; commands out. No I/O.

    stack = Stack(addresses, clock=time.monotonic)
    stack.add_port(port)
    stack.frame(1, frame, offload)          # from a guest
    stack.event(Connected(flow))            # from the host side
    stack.tick()                            # when stack.deadline() has come
    stack.flush()                           # at the end of a batch
    for command in stack.take(): ...        # to be carried out in order

Layers: ethernet (with ARP) → ip (both versions, fragments) → icmp (with neighbours), udp (with dhcp, dhcp6, dns), tcp.
Nothing that a guest sends raises: what is malformed is dropped and counted by its port.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable

from crumble_netd import events
from crumble_netd.addresses import LINK_LOCAL6, Addresses
from crumble_netd.claims import Claims
from crumble_netd.commands import Command, Kind, Refuse
from crumble_netd.events import Accepted, Incoming
from crumble_netd.flow_table import Budget, Flow, FlowTable, Key, Limits
from crumble_netd.forward_rules import ForwardRules, guest_addresses
from crumble_netd.header import Malformed, ipv6
from crumble_netd.header.virtio_net import NOTHING, Offload
from crumble_netd.layers.dhcp import DhcpLayer
from crumble_netd.layers.dhcp6 import Dhcp6Layer
from crumble_netd.layers.dns import DnsLayer, Resolver
from crumble_netd.layers.ethernet import EthernetLayer
from crumble_netd.layers.icmp import IcmpLayer
from crumble_netd.layers.ip import IpLayer
from crumble_netd.layers.neighbours import NeighbourLayer
from crumble_netd.layers.switch import SwitchLayer
from crumble_netd.layers.tcp import TcpLayer
from crumble_netd.layers.udp import UdpLayer
from crumble_netd.ledger import Ledger
from crumble_netd.policy import LOOPBACK4, LOOPBACK6, Policy
from crumble_netd.port import Port
from crumble_netd.tcp.buffers import SendBuffer
from crumble_netd.tcp_flow import TcpFlow
from crumble_netd.timers import Timers

Refused = Callable[[Port, Kind, bytes, int], None]


class Stack:
    """One virtual network. clock: seconds, never back. random: unguessable bytes."""

    def __init__(
        self,
        addresses: Addresses,
        clock: Callable[[], float],
        *,
        resolvers: list[Resolver] | None = None,
        limits: Limits | None = None,
        random: Callable[[int], bytes] = os.urandom,
        ledger: Ledger | None = None,
    ) -> None:
        """ledger: where flows outlive this process."""
        self.addresses = addresses
        self.now = clock
        self.random = random
        self.ledger = ledger
        self.ports: dict[int, Port] = {}
        self.timers = Timers()
        self.flows = FlowTable(limits or Limits())
        self.budget = Budget(self.flows.limits.buffers)
        self.forwards = ForwardRules(self.ports)
        self.nobody = Port(-1, b"", b"", 1500, Policy())
        self.on_refused: Refused = lambda *_: None
        self.on_learnt: Callable[[], None] = lambda: None
        self._commands: list[Command] = []
        self._paused: set[int] = set()
        self._claims = Claims()
        self.ethernet = EthernetLayer(self)
        self.switch = SwitchLayer(self)
        self.neighbours = NeighbourLayer(self)
        self.ip = IpLayer(self)
        self.icmp = IcmpLayer(self)
        self.udp = UdpLayer(self)
        self.dhcp = DhcpLayer(self)
        self.dhcp6 = Dhcp6Layer(self)
        self.dns = DnsLayer(self, resolvers or [])
        self.tcp = TcpLayer(self)

    # In.

    def add_port(self, port: Port) -> None:
        """A guest, whose names are known from now on."""
        self.ports[port.number] = port
        self.name_guests()
        if port.mac:
            self._expect(port)

    def heard(self, port: Port) -> None:
        """A guest's first frame has told its MAC."""
        self._expect(port)
        self.name_guests()
        self.neighbours.advertise(port)

    def heard_ipv4(self, port: Port) -> None:
        """A guest has its IPv4 address."""
        if not port.has_ipv4:
            port.has_ipv4 = True
            self.on_learnt()

    def _expect(self, port: Port) -> None:
        """The addresses that a MAC makes are nobody else's."""
        for prefix in (self.addresses.network6, LINK_LOCAL6):
            self._claims.claim(port.number, ipv6.eui64(prefix, port.mac), fixed=True)

    def remove_port(self, number: int) -> None:
        """A guest has gone: so have its flows."""
        port = self.ports.pop(number, None)
        self._claims.release(number)
        self._paused.discard(number)
        if port is not None:
            self.end_flows(port)
        self.name_guests()

    def end_flows(self, port: Port) -> None:
        """Of a guest, whatever they are doing."""
        for flow in self.flows.all():
            if flow.port is port:
                self.abandon(flow)

    def name_guests(self) -> None:
        """The DNS knows them by the names that they have now."""
        addresses = self.addresses
        names: dict[tuple[bytes, ...], tuple[bytes, ...]] = {}
        for port in self.ports.values():
            six = (ipv6.eui64(addresses.network6, port.mac),) if port.mac else ()
            for name in (*port.aliases, port.name):
                if name:
                    names[tuple(name.lower().encode().split(b"."))] = (port.ipv4, *six)
        names[b"host",] = (addresses.host4, addresses.host6)
        names[b"gateway",] = (addresses.gateway4, addresses.gateway6)
        self.dns.names = names

    def by_mac(self, mac: bytes) -> Port | None:
        """The guest with this MAC."""
        return next((port for port in self.ports.values() if port.mac == mac), None)

    def may_use(self, port: Port, address: bytes) -> bool:
        """Anti-spoofing: whether a guest may send from `address`."""
        if not port.may_use(address, self.addresses.network6):
            return False
        return len(address) == 4 or self._claims.claim(port.number, address)

    def frame(
        self, number: int, frame: bytes | memoryview, offload: Offload = NOTHING, count: int = 1
    ) -> None:
        """A frame from a guest, made of so many; its bytes may change after the next `take`."""
        port = self.ports[number]
        port.counts["rx.frames"] += count
        port.counts["rx.bytes"] += len(frame)
        try:
            self.ethernet.receive(port, memoryview(frame), offload)
        except Malformed as error:
            port.counts[f"drop.{error.reason}"] += 1

    def event(self, event: events.Event) -> None:
        """Something happened on the host side. Events of flows that have ended are passed over."""
        if isinstance(event, events.Accepted):
            self.tcp.incoming(event)
            return
        if isinstance(event, events.Incoming):
            self.udp.incoming(event)
            return
        flow = self.flows.get(event.flow)
        if flow is None:
            return
        if self.dns.owns(flow):
            self._dns_event(flow, event)
        elif isinstance(flow, TcpFlow):
            self._tcp_event(flow, event)
        else:
            self._datagram_event(flow, event)

    def _dns_event(self, flow: Flow, event: events.Event) -> None:
        if isinstance(event, events.Received):
            self.dns.received(flow, event.data)
        elif isinstance(event, events.Failed | events.Closed):
            self.dns.failed(flow)

    def _tcp_event(self, flow: TcpFlow, event: events.Event) -> None:
        if isinstance(event, events.Filled):
            self.tcp.filled(flow, event.size)
        elif isinstance(event, events.Received):
            self.tcp.received(flow, event.data)
        elif isinstance(event, events.Took):
            self.tcp.took(flow, event.size)
        elif isinstance(event, events.Connected):
            self.tcp.connected(flow)
        elif isinstance(event, events.Closed):
            self.tcp.closed(flow)
        elif isinstance(event, events.Failed):
            self.tcp.failed(flow, event.errno)

    def _datagram_event(self, flow: Flow, event: events.Event) -> None:
        icmp = flow.key.kind == "icmp"
        if isinstance(event, events.Received):
            if icmp:
                self.icmp.received(flow, event.data)
            else:
                self.udp.received(flow, event.data)
        elif isinstance(event, events.Failed):
            if icmp:
                self.icmp.failed(flow)
            else:
                self.udp.failed(flow, event.errno)

    def space(self, number: int, count: int) -> list[memoryview]:
        """Where bytes of a stream belong, `count` of them (then Filled); nowhere special when empty."""
        flow = self.flows.get(number)
        if isinstance(flow, TcpFlow) and flow.connection is not None:
            return flow.connection.buffer.space(count)
        return []

    def flush(self) -> None:
        """The end of a batch of frames or events: ACKs that waited for company go out."""
        self.tcp.flush()

    def waiting(self, number: int) -> SendBuffer:
        """For bytes of a stream that the host's kernel has no room for."""
        flow = self.flows.get(number)
        slot = flow.slot if isinstance(flow, TcpFlow) else None
        if slot is None:
            return SendBuffer(0)
        return SendBuffer(0, slot.from_guest, slot.enlarged_from_guest, room=slot.rooms[1])

    def ended(self, number: int) -> None:
        """The host's end of a flow that is no more has gone, too."""
        if slot := self.tcp.ending.pop(number, None):
            slot.end()

    def note(self) -> None:
        """Writes down what guests are about to be told."""
        self.tcp.note()

    def pause(self, number: int, *, paused: bool) -> None:
        """A guest's receive ring is full, or has room again: TCP waits rather than lose."""
        if paused == (number in self._paused) or number not in self.ports:
            return
        self._paused ^= {number}
        self.tcp.pause(self.ports[number], paused=paused)

    def paused(self, port: Port) -> bool:
        """Whether a guest's receive ring is full."""
        return port.number in self._paused

    # Time.

    def deadline(self) -> float:
        """When `tick` is to be called; 0: not at all. A call too early does no harm."""
        return self.timers.next()

    def tick(self) -> None:
        """Serves what is due."""
        for key in self.timers.due(self.now()):
            self._tick(key)

    def _tick(self, key: Hashable) -> None:
        assert isinstance(key, tuple)
        what, number = key
        if what == "advertise":
            if number in self.ports:
                self.neighbours.advertise(self.ports[number])
            return
        flow = self.flows.get(number)
        if flow is None:
            return
        if isinstance(flow, TcpFlow):
            self.tcp.tick(flow)
        elif what == "dns":
            self.dns.failed(flow)
        else:
            self.udp.idle(flow)

    # Out.

    def emit(self, command: Command) -> None:
        """For layers: something to do."""
        self._commands.append(command)

    @property
    def busy(self) -> bool:
        """Something is still to be done."""
        return bool(self._commands)

    def take(self) -> list[Command]:
        """What is to be done, in order."""
        commands, self._commands = self._commands, []
        return commands

    # For layers.

    def resolve_target(
        self, port: Port, kind: Kind, address: bytes, number: int
    ) -> tuple[bytes, int] | None:
        """Where a guest's flow goes on the host's side; None when it may not."""
        addresses = self.addresses
        if address in (addresses.host4, addresses.host6):
            if service := port.services.get((kind, number)):
                return LOOPBACK4, service
            if port.policy.allows_host(number, kind):
                return (LOOPBACK4 if len(address) == 4 else LOOPBACK6), number
        elif not addresses.inside(address) and port.allows(address, number, kind, self.now()):
            return address, number
        self.refused(port, kind, address, number)
        return None

    def may_begin(self, port: Port) -> bool:
        """Whether a guest may begin one more flow, at the rate that it has."""
        if port.rate_flows.take(self.now()):
            return True
        port.counts["limit.rate"] += 1
        return False

    def refused(self, port: Port, kind: Kind, address: bytes, number: int) -> None:
        """Policy said no."""
        port.counts["refused"] += 1
        self.on_refused(port, kind, address, number)

    def forwarded(self, event: Accepted | Incoming) -> tuple[Port, list[Key]] | None:
        """The ends of the flow that one who came to a forward begins, the best first; None, and refused, when it
        cannot be.
        """
        found = self.forwards.target(event.rule)
        if found is not None:
            rule, port = found
            keys = [
                Key(rule.kind, port.number, guest, rule.guest_port, *self.visible_peer(event.peer, guest))
                for guest in guest_addresses(rule, port, event.peer[0])
            ]  # fmt: skip
            free = [key for key in keys if self.flows.find(key) is None]
            if free:
                return port, free
        self.emit(Refuse(event.token))
        return None

    def visible_peer(self, peer: tuple[bytes, int], guest: bytes) -> tuple[bytes, int]:
        """Whom a guest sees behind a forwarded connection: the peer itself where that is possible."""
        address, number = peer
        public = not self.addresses.inside(address) and Policy().allows(address, number, "tcp")
        if public and len(address) == len(guest):
            return peer
        gateway = self.addresses.gateway4 if len(guest) == 4 else self.addresses.gateway6
        return gateway, number

    def abandon(self, flow: Flow) -> None:
        """Ends a flow from this side, whatever it is doing."""
        if isinstance(flow, TcpFlow):
            self.tcp.failed(flow, 0)
        else:
            self.udp.close(flow)
