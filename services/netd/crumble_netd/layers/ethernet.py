"""Ethernet and ARP: frames from guests, told apart; who they claim to be, checked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from crumble_netd.commands import Frame, Transmit
from crumble_netd.header import Malformed, arp, ethernet, ipv4, virtio_net
from crumble_netd.header.virtio_net import Offload
from crumble_netd.port import Port

if TYPE_CHECKING:
    from crumble_netd.stack import Stack

# The largest frame there is: 64 KiB of IP behind the header.
MAX_FRAME = ethernet.SIZE + 65_535 + 40


class EthernetLayer:
    """The stack's outermost layer."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack

    def receive(self, port: Port, frame: memoryview, offload: Offload) -> None:
        """A frame from a guest; raises Malformed."""
        if not ethernet.SIZE <= len(frame) <= MAX_FRAME and not offload.joined:
            raise Malformed("ethernet.length")
        _check_offload(offload, len(frame), port)
        destination, source = bytes(frame[:6]), bytes(frame[6:12])
        self._check_source(port, source)
        if destination != self._stack.addresses.mac:
            switch = self._stack.switch
            if not ethernet.is_group(destination):
                switch.unicast(port, destination, frame, offload)
                return
            if not switch.alone:
                switch.flood(port, frame, offload)
        kind = frame[12] << 8 | frame[13]
        data = frame[ethernet.SIZE :]
        if kind == ethernet.IPV4:
            self._stack.ip.receive4(port, data, offload)
        elif kind == ethernet.IPV6:
            self._stack.ip.receive6(port, data, offload)
        elif kind == ethernet.ARP:
            self._arp(port, data)
        else:
            port.counts["drop.ethertype"] += 1

    def _check_source(self, port: Port, source: bytes) -> None:
        if not port.mac and not ethernet.is_group(source):
            if self._stack.by_mac(source) is not None:
                raise Malformed("spoofed")
            port.mac = source
            self._stack.heard(port)
            self._stack.on_learnt()
        if source != port.mac or source == self._stack.addresses.mac:
            raise Malformed("spoofed")

    def ask(self, port: Port) -> None:
        """Who has the guest's IPv4 address? It has, if it answers."""
        ours = self._stack.addresses
        asked = arp.Arp(arp.REQUEST, ours.mac, ours.gateway4, bytes(6), port.ipv4)
        head = ethernet.build(ethernet.BROADCAST, ours.mac, ethernet.ARP) + arp.build(asked)
        self._stack.emit(Transmit(port.number, Frame(head, [])))

    def _arp(self, port: Port, data: memoryview) -> None:
        """Answers for gateway and host; a guest that probes its own address hears nothing (RFC 5227)."""
        asked = arp.parse(data)
        if asked.sender_mac != port.mac or asked.sender not in (port.ipv4, ipv4.ANY):
            raise Malformed("spoofed")
        if asked.sender == port.ipv4:
            self._stack.heard_ipv4(port)
        addresses = self._stack.addresses
        if asked.operation != arp.REQUEST:
            return
        if asked.target in (addresses.gateway4, addresses.host4):
            answer = arp.Arp(arp.REPLY, addresses.mac, asked.target, port.mac, asked.sender)
            head = ethernet.build(port.mac, addresses.mac, ethernet.ARP) + arp.build(answer)
            self._stack.emit(Transmit(port.number, Frame(head, [])))


def _check_offload(offload: Offload, size: int, port: Port) -> None:
    """§5.1.6.2: only what was negotiated, and inside the frame."""
    kind = offload.gso_type & ~virtio_net.GSO_ECN
    wanted = virtio_net.SENDS.get(kind)
    if wanted is None or wanted & ~port.features:
        raise Malformed("virtio.gso")
    if offload.checksum_left:
        if not port.features & virtio_net.F_CSUM:
            raise Malformed("virtio.checksum")
        if offload.csum_start + offload.csum_offset + 2 > size:
            raise Malformed("virtio.checksum")
    elif kind:
        raise Malformed("virtio.gso")
