"""A guest and a host side for `netd`'s stack, without I/O: frames and events in, frames and commands out.

net = FakeNetwork()
net.guest.udp((GATEWAY, 53), query)
(answer,) = net.packets()
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

from crumble_netd import events
from crumble_netd.addresses import Addresses, packed
from crumble_netd.commands import Command, Frame, HostConnect, HostRead, Transmit
from crumble_netd.flow_table import Limits
from crumble_netd.header import arp, checksum, ethernet, icmp, ipv4, ipv6, tcp, udp, virtio_net
from crumble_netd.header.virtio_net import NOTHING, Offload
from crumble_netd.layers.dns import Resolver
from crumble_netd.policy import Policy
from crumble_netd.port import Port
from crumble_netd.stack import Stack

MAC = bytes.fromhex("020000000001")
GATEWAY_MAC = bytes.fromhex("026372756d62")
GUEST, GATEWAY, HOST = packed("10.0.2.15"), packed("10.0.2.1"), packed("10.0.2.2")
NETWORK6 = packed("fd63:7275:6d62:6c65::")[:8]
GATEWAY6, HOST6 = NETWORK6 + bytes(7) + b"\x01", NETWORK6 + bytes(7) + b"\x02"
ROUTER6 = packed("fe80::1")
GUEST6 = ipv6.eui64(NETWORK6, MAC)
LINK6 = ipv6.eui64(packed("fe80::")[:8], MAC)
INTERNET, INTERNET6 = packed("93.184.216.34"), packed("2606:2800::1")
WEB = (INTERNET, 80)
ADDRESSES = Addresses(GATEWAY_MAC, packed("10.0.2.0"), 24, GATEWAY, HOST, NETWORK6)


@dataclass
class Packet:
    """What the guest got, taken apart; `message` is of its protocol."""

    kind: str
    source: bytes = b""
    destination: bytes = b""
    message: object = None
    offload: Offload = NOTHING
    mac: bytes = b""
    raw: bytes = b""
    fragment: tuple[int, bool] | None = None


@dataclass
class FakeNetwork:
    """The stack with one port. commands: what it asked of the host side, but for frames."""

    policy: Policy = field(default_factory=Policy)
    resolvers: list[Resolver] = field(default_factory=lambda: [(packed("192.0.2.53"), 53)])
    limits: Limits = field(default_factory=Limits)
    mtu: int = 1500
    features: int = 0

    def __post_init__(self) -> None:
        self.time = 1000.0
        counter = itertools.count(1)
        self.stack = Stack(
            ADDRESSES, lambda: self.time, resolvers=self.resolvers, limits=self.limits,
            random=lambda n: (next(counter) * 7919).to_bytes(16, "big")[-n:],
        )  # fmt: skip
        self.port = Port(1, MAC, GUEST, self.mtu, self.policy, "box", self.features)
        self.stack.add_port(self.port)
        self.commands: list[Command] = []
        self._frames: list[Frame] = []
        self.guest = Guest(self)

    @property
    def drops(self) -> dict[str, int]:
        """What was dropped and counted."""
        return {name[5:]: n for name, n in self.port.counts.items() if name.startswith("drop.")}

    def frame(self, frame: bytes, offload: Offload = NOTHING) -> None:
        """The guest sends."""
        self.stack.frame(1, frame, offload)

    def event(self, event: object) -> None:
        """The host side tells."""
        self.stack.event(event)  # type: ignore[arg-type]

    def settle(self) -> None:
        """The end of a batch."""
        self.stack.flush()
        for command in self.stack.take():
            if isinstance(command, Transmit):
                self._frames.append(command.frame)
            else:
                self.commands.append(command)

    def packets(self) -> list[Packet]:
        """What the guest got since the last call."""
        self.settle()
        frames, self._frames = self._frames, []
        return [parse(frame) for frame in frames]

    def asked(self) -> list[Command]:
        """What the host side was asked since the last call."""
        self.settle()
        commands, self.commands = self.commands, []
        return commands

    def wait(self, seconds: float) -> None:
        """Time passes, deadlines are kept."""
        end = self.time + seconds
        while 0 < self.stack.deadline() <= end:
            self.time = max(self.time, self.stack.deadline())
            self.stack.tick()
            self.settle()
        self.time = end


class Guest:
    """Makes frames as a guest's kernel does."""

    def __init__(self, network: FakeNetwork) -> None:
        self._network = network
        self.seq = 1000

    def ip(
        self, source: bytes, destination: bytes, protocol: int, payload: bytes, **fields: int
    ) -> None:
        """A packet of either version."""
        if len(source) == 4:
            head = ipv4.build(source, destination, protocol, len(payload), **fields)  # type: ignore[arg-type]
            kind = ethernet.IPV4
        else:
            head = ipv6.build(source, destination, protocol, len(payload), **fields)
            kind = ethernet.IPV6
        self._network.frame(ethernet.build(GATEWAY_MAC, MAC, kind) + head + payload)

    def udp(
        self, to: tuple[bytes, int], data: bytes, port: int = 40000, source: bytes = b""
    ) -> None:
        """A datagram."""
        source = source or (GUEST if len(to[0]) == 4 else GUEST6)
        pseudo = checksum.pseudo(source, to[0], udp.PROTOCOL, udp.SIZE + len(data))
        self.ip(source, to[0], udp.PROTOCOL, udp.build(port, to[1], data, pseudo) + data)

    def ping(self, to: bytes, rest: int = 0x12340001, data: bytes = b"ping", **fields: int) -> None:
        """An echo request."""
        if len(to) == 4:
            self.ip(GUEST, to, icmp.PROTOCOL, icmp.build(icmp.ECHO, 0, rest, data), **fields)
        else:
            self.icmp6(to, icmp.ECHO6, rest, data)

    def icmp6(
        self, to: bytes, kind: int, rest: int, body: bytes, source: bytes = GUEST6, hops: int = 255
    ) -> None:
        """An ICMPv6 message."""
        pseudo = checksum.pseudo(source, to, icmp.PROTOCOL6, icmp.SIZE + len(body))
        data = icmp.build(kind, 0, rest, body, pseudo)
        self.ip(source, to, icmp.PROTOCOL6, data, hop_limit=hops)

    def tcp(
        self,
        to: tuple[bytes, int],
        flags: int,
        seq: int,
        ack: int = 0,
        data: bytes = b"",
        *,
        port: int = 50000,
        window: int = 60000,
        options: tcp.Options = tcp.NO_OPTIONS,
        source: bytes = b"",
    ) -> None:
        """A segment."""
        source = source or (GUEST if len(to[0]) == 4 else GUEST6)
        head = tcp.build(port, to[1], seq, ack, flags, window, tcp.build_options(options))
        pseudo = checksum.pseudo(source, to[0], tcp.PROTOCOL, len(head) + len(data))
        total = checksum.internet([head, data], pseudo)
        head = head[:16] + total.to_bytes(2, "big") + head[18:]
        self.ip(source, to[0], tcp.PROTOCOL, head + data)

    def arp(self, target: bytes, sender: bytes = GUEST, mac: bytes = MAC) -> None:
        """Who has `target`?"""
        asked = arp.Arp(arp.REQUEST, mac, sender, bytes(6), target)
        self._network.frame(
            ethernet.build(ethernet.BROADCAST, MAC, ethernet.ARP) + arp.build(asked)
        )


def parse(frame: Frame) -> Packet:
    """A frame for the guest; its checksums must be right, or left to the guest as was agreed."""
    raw = frame.head + b"".join(frame.payload)
    kind = int.from_bytes(raw[12:14], "big")
    mac, data = raw[:6], memoryview(raw)[14:]
    if kind == ethernet.ARP:
        return Packet("arp", message=arp.parse(data), mac=mac, raw=raw)
    left = bool(frame.offload.flags & virtio_net.NEEDS_CSUM)
    if kind == ethernet.IPV4:
        head4 = ipv4.parse(data)
        payload = data[head4.size : head4.length]
        source, destination, protocol = head4.source, head4.destination, head4.protocol
        fragment = (head4.offset, head4.more) if head4.offset or head4.more else None
    else:
        head6 = ipv6.parse(data)
        payload = data[head6.start : head6.end]
        source, destination, protocol = head6.source, head6.destination, head6.protocol
        fragment = (head6.fragment.offset, head6.fragment.more) if head6.fragment else None
    found = Packet("ip", source, destination, payload, frame.offload, mac, raw, fragment)
    if fragment:
        return found
    pseudo = checksum.pseudo(source, destination, protocol, len(payload))
    if left:
        assert frame.offload.csum_start == len(raw) - len(payload)
        where = frame.offload.csum_start + frame.offload.csum_offset
        assert int.from_bytes(raw[where : where + 2], "big") == pseudo
    if protocol == tcp.PROTOCOL:
        found.kind, found.message = "tcp", tcp.parse(payload, pseudo, trusted=left)
    elif protocol == udp.PROTOCOL:
        found.kind = "udp"
        found.message = udp.parse(payload, pseudo, trusted=left, ipv6=len(source) == 16)
    else:
        found.kind = "icmp"
        found.message = icmp.parse(payload, pseudo if len(source) == 16 else 0)
    return found


def one(found: list[Any]) -> Any:
    (only,) = found
    return only


def connect(net: FakeNetwork, to: tuple[bytes, int] = WEB, port: int = 50000) -> tuple[int, int]:
    """The guest opens a connection that the host side makes: flow, and our next sequence number."""
    options = tcp.Options(mss=1460)
    net.guest.tcp(to, tcp.SYN, 1000, port=port, options=options)
    asked = one(net.asked())
    assert isinstance(asked, HostConnect)
    net.event(events.Connected(asked.flow))
    answer = one(net.packets()).message
    assert answer.flags == tcp.SYN | tcp.ACK
    assert answer.ack == 1001
    net.guest.tcp(to, tcp.ACK, 1001, answer.seq + 1, port=port)
    read = one(net.asked())
    assert isinstance(read, HostRead)
    return asked.flow, answer.seq + 1
