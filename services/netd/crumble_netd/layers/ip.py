"""IPv4 and IPv6 in and out: validation, anti-spoofing, reassembly; headers, checksums, fragments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crumble_netd.commands import Frame, Transmit
from crumble_netd.header import (
    Malformed,
    checksum,
    ethernet,
    icmp,
    ipv4,
    ipv6,
    tcp,
    udp,
    virtio_net,
)
from crumble_netd.header.virtio_net import NOTHING, Offload
from crumble_netd.layers.reassembly import FragmentStore
from crumble_netd.port import Port

if TYPE_CHECKING:
    from crumble_netd.stack import Stack


class Packet:
    """A whole IP packet's payload, and what stood in its header. head: for quoting in ICMP errors.

    trusted: the sender left the checksum to its device, which is us, or it has been verified.
    """

    __slots__ = ("destination", "head", "hop_limit", "payload", "protocol", "source", "trusted")

    def __init__(
        self,
        source: bytes,
        destination: bytes,
        protocol: int,
        hop_limit: int,
        payload: memoryview,
        head: bytes,
        *,
        trusted: bool,
    ) -> None:
        self.source, self.destination = source, destination
        self.protocol, self.hop_limit = protocol, hop_limit
        self.payload, self.head, self.trusted = payload, head, trusted

    @property
    def ipv6(self) -> bool:
        """Of which version it is."""
        return len(self.source) == 16

    def pseudo(self) -> int:
        """The pseudo-header's sum; none is needed for a checksum that is not there."""
        if self.trusted:
            return 0
        return checksum.pseudo(self.source, self.destination, self.protocol, len(self.payload))

    def quote(self) -> bytes:
        """What an ICMP error about it quotes (RFC 1812 §4.3.2.3, RFC 4443 §2.4 (c))."""
        return self.head + bytes(self.payload[: 1232 - len(self.head) if self.ipv6 else 28])


class IpLayer:
    """Between Ethernet and the transports."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self._fragments: dict[int, FragmentStore] = {}
        self._identification = int.from_bytes(stack.random(2), "big")

    # In.

    def receive4(self, port: Port, data: memoryview, offload: Offload) -> None:
        """An IPv4 packet from a guest; raises Malformed."""
        head = ipv4.parse(data, joined=offload.joined)
        self.check_source(port, head.source, head.destination)
        payload = data[head.size : head.length]
        if head.offset or head.more:
            key = (head.source, head.destination, head.protocol, head.identification)
            payload = self._reassemble(port, key, head.offset, payload, more=head.more)
            offload = NOTHING
        if payload:
            trusted = offload.checked
            self._pass_on(
                port,
                Packet(head.source, head.destination, head.protocol, head.ttl, payload,
                       bytes(data[: head.size]), trusted=trusted),
            )  # fmt: skip

    def receive6(self, port: Port, data: memoryview, offload: Offload) -> None:
        """An IPv6 packet from a guest; raises Malformed."""
        head = ipv6.parse(data, joined=offload.joined)
        if head.protocol == ipv6.NO_NEXT:
            return
        self.check_source(port, head.source, head.destination)
        payload = data[head.start : head.end]
        if head.fragment is not None:
            fragment = head.fragment
            key = (head.source, head.destination, 0, fragment.identification)
            payload = self._reassemble(port, key, fragment.offset, payload, more=fragment.more)
            offload = NOTHING
        if payload:
            trusted = offload.checked
            self._pass_on(
                port,
                Packet(head.source, head.destination, head.protocol, head.hop_limit, payload,
                       bytes(data[: ipv6.SIZE]), trusted=trusted),
            )  # fmt: skip

    def check_source(self, port: Port, source: bytes, destination: bytes) -> None:
        """Anti-spoofing; raises Malformed."""
        if source in (ipv4.ANY, ipv6.ANY):
            # DHCP (RFC 2131 §4.1), duplicate address detection (RFC 4862 §5.4), router solicitation.
            if destination != ipv4.BROADCAST and destination[:1] != b"\xff":
                raise Malformed("spoofed")
        elif not self._stack.may_use(port, source):
            raise Malformed("spoofed")
        elif len(source) == 4:
            self._stack.heard_ipv4(port)
        elif not ipv6.is_link_local(source) and port.ipv6 != source:
            port.ipv6 = source
            self._stack.on_learnt()
        if source == destination:
            raise Malformed("land")

    def _reassemble(
        self, port: Port, key: tuple[object, ...], offset: int, payload: memoryview, *, more: bool
    ) -> memoryview:
        store = self._fragments.setdefault(port.number, FragmentStore())
        now = self._stack.now()
        return memoryview(store.add(key, offset, bytes(payload), now, more=more))

    def _pass_on(self, port: Port, packet: Packet) -> None:
        stack, protocol = self._stack, packet.protocol
        if protocol == tcp.PROTOCOL:
            stack.tcp.receive(port, packet)
        elif protocol == udp.PROTOCOL:
            stack.udp.receive(port, packet)
        elif protocol == (icmp.PROTOCOL6 if packet.ipv6 else icmp.PROTOCOL):
            stack.icmp.receive(port, packet)
        else:
            port.counts["drop.protocol"] += 1

    # Out.

    def send(
        self,
        port: Port,
        source: bytes,
        destination: bytes,
        protocol: int,
        payload: bytes,
        *,
        hop_limit: int = 64,
        mac: bytes = b"",
    ) -> None:
        """A packet to a guest, in fragments when it is too large for its interface."""
        six = len(source) == 16
        room = port.mtu - (ipv6.SIZE if six else ipv4.SIZE)
        if len(payload) > room:
            self._send_fragments(port, source, destination, protocol, payload)
            return
        if six:
            head = ipv6.build(source, destination, protocol, len(payload), hop_limit=hop_limit)
        else:
            self._identification = (self._identification + 1) & 0xFFFF
            head = ipv4.build(
                source, destination, protocol, len(payload),
                identification=self._identification, ttl=hop_limit,
            )  # fmt: skip
        self.emit(port, head, [memoryview(payload)] if payload else [], six, NOTHING, mac)

    def _send_fragments(
        self, port: Port, source: bytes, destination: bytes, protocol: int, payload: bytes
    ) -> None:
        six = len(source) == 16
        self._identification = (self._identification + 1) & 0xFFFF
        step = (port.mtu - (ipv6.SIZE + 8 if six else ipv4.SIZE)) & ~7
        for at in range(0, len(payload), step):
            piece, more = payload[at : at + step], at + step < len(payload)
            if six:
                extra = ipv6.build_fragment(protocol, ipv6.Fragment(self._identification, at, more))
                head = ipv6.build(source, destination, ipv6.FRAGMENT, len(piece) + 8) + extra
            else:
                head = ipv4.build(
                    source, destination, protocol, len(piece),
                    identification=self._identification, offset=at, more=more,
                )  # fmt: skip
            self.emit(port, head, [memoryview(piece)], six, NOTHING)

    def send_tcp(
        self,
        port: Port,
        source: bytes,
        destination: bytes,
        header: bytes,
        payload: list[memoryview],
        mss: int,
    ) -> None:
        """A TCP segment whose checksum field is 0; mss: what the guest's device cuts it into, or 0."""
        six = len(source) == 16
        size = len(header) + sum(map(len, payload))
        pseudo = checksum.pseudo(source, destination, tcp.PROTOCOL, size)
        at = ethernet.SIZE + (ipv6.SIZE if six else ipv4.SIZE)
        if port.checksums:
            total = pseudo
            gso = virtio_net.GSO_TCPV6 if six else virtio_net.GSO_TCPV4
            offload = Offload(
                virtio_net.NEEDS_CSUM, gso if mss else virtio_net.GSO_NONE,
                at + len(header), mss, at, tcp.CHECKSUM,
            )  # fmt: skip
        else:
            total, offload = checksum.internet([header, *payload], pseudo), NOTHING
        header = header[: tcp.CHECKSUM] + total.to_bytes(2, "big") + header[tcp.CHECKSUM + 2 :]
        if six:
            head = ipv6.build(source, destination, tcp.PROTOCOL, size)
        else:
            self._identification = (self._identification + 1) & 0xFFFF
            head = ipv4.build(
                source, destination, tcp.PROTOCOL, size,
                identification=self._identification, dont_fragment=True,
            )  # fmt: skip
        self.emit(port, head + header, payload, six, offload)

    def emit(
        self,
        port: Port,
        head: bytes,
        payload: list[memoryview],
        six: bool,
        offload: Offload,
        mac: bytes = b"",
    ) -> None:
        """A frame to a guest."""
        kind = ethernet.IPV6 if six else ethernet.IPV4
        link = ethernet.build(mac or port.mac, self._stack.addresses.mac, kind)
        self._stack.emit(Transmit(port.number, Frame(link + head, payload, offload)))
