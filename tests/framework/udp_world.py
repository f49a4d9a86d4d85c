"""A UDP flow between a driver's rings and a pair of sockets."""

from __future__ import annotations

import mmap
import socket
import struct

from crumble_native.frames import Outgoing
from crumble_native.memory import PAGE_SIZE, Memory
from crumble_native.udp_flow import UdpFlows
from crumble_native.vring import Virtqueue
from crumble_netd.commands import Frame
from crumble_netd.header import checksum, ethernet, ipv4, ipv6, udp, virtio_net
from crumble_netd.header.virtio_net import NEEDS_CSUM, NOTHING, Offload
from framework.netd_guest import parse
from framework.virtqueue_driver import VirtqueueDriver

Rings = list[tuple[VirtqueueDriver, Virtqueue]]

RAM = 0x8000_0000
GATEWAY, GUEST = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"
ENDS4 = (bytes([10, 0, 2, 15]), bytes([10, 0, 2, 2]))
ENDS6 = (bytes(15) + b"\1", bytes(15) + b"\2")
PORTS = (1000, 7777)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two UDP sockets, connected to each other."""
    found = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for sock in found:
        sock.bind(("127.0.0.1", 0))
        sock.setblocking(False)
    found[0].connect(found[1].getsockname())
    found[1].connect(found[0].getsockname())
    return found[0], found[1]


class UdpWorld:
    """Flow 3. rings: of another world, to be shared: what is received, what is sent."""

    def __init__(
        self, *, six: bool = False, buffers: int = 64, fill: bool = False, mtu: int = 65_520,
        rings: Rings | None = None,
    ) -> None:  # fmt: skip
        (self.rx, self.rx_queue), (self.tx, self.tx_queue) = rings or _rings()
        self.give(buffers)
        self.six = six
        self.ours, self.theirs = pair()
        self.outgoing = Outgoing(merge=True)
        self.flows = UdpFlows(self.outgoing, GATEWAY + GUEST, mtu, left=True, fill=fill)
        self.ends = ENDS6 if six else ENDS4
        self.key = b"".join(self.ends) + struct.pack("!HH", *PORTS)
        assert self.flows.lend(3, self.key, self.ours.fileno(), 40.0)

    def give(self, count: int) -> None:
        for _ in range(count):
            self.rx.submit([], [4096])

    def frame(
        self, data: bytes, *, left: bool = True, spoil: int = 0, mac: bytes = GATEWAY,
        port: int = PORTS[0], gso: int = 0, more: bool = False, total: int | None = None, pad: int = 0,
    ) -> bytes:  # fmt: skip
        """A chain's bytes: virtio_net_hdr and frame."""
        source, target = self.ends
        size = udp.SIZE + len(data)
        pseudo = checksum.pseudo(source, target, udp.PROTOCOL, size)
        head = udp.build(port, PORTS[1], data, pseudo)
        if left or total is not None:
            head = head[:6] + (pseudo if total is None else total).to_bytes(2, "big")
        head = head[:7] + bytes([head[7] ^ spoil])
        if self.six:
            ip = ipv6.build(source, target, udp.PROTOCOL, size)
        else:
            ip = ipv4.build(source, target, udp.PROTOCOL, size, more=more)
        at = ethernet.SIZE + len(ip)
        offload = Offload(NEEDS_CSUM, gso, 0, 0, at, 6) if left else NOTHING
        kind = ethernet.IPV6 if self.six else ethernet.IPV4
        link = ethernet.build(mac, GUEST, kind)
        return virtio_net.build(offload, 0) + link + ip + head + data + bytes(pad)

    def send(self, *chains: bytes) -> tuple[int, bool]:
        """One burst: how many were served, whether something is left."""
        for chain in chains:
            self.tx.submit([chain], [])
        found = self.flows.burst(self.tx_queue, 50.0)
        return found.chains, found.left

    def received(self) -> list[bytes]:
        """At the host's end."""
        found = []
        while True:
            try:
                found.append(self.theirs.recv(1 << 16))
            except BlockingIOError:
                return found

    def read(self) -> None:
        """The socket is readable."""
        self.flows.read(3, self.rx_queue, 60.0)

    def datagrams(self) -> list[bytes]:
        """What the guest got; checked by `parse`."""
        found, parts = [], []
        for _, _, data in self.rx.collect():
            parts.append(data)
            if len(parts) == struct.unpack_from("<H", parts[0], 10)[0]:
                whole = b"".join(parts)
                offload = Offload(*struct.unpack_from("<BBHHHH", whole))
                packet = parse(Frame(whole[virtio_net.SIZE :], [], offload))
                assert isinstance(packet.message, udp.Udp)
                ends = packet.source, packet.destination
                assert ends == (self.ends[1], self.ends[0])
                message = packet.message
                assert (message.source, message.destination) == (PORTS[1], PORTS[0])
                found.append(bytes(message.payload))
                parts = []
        assert not parts
        return found

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


def _rings() -> Rings:
    memory = Memory()
    memory.add(RAM, mmap.mmap(-1, 2048 * PAGE_SIZE))
    half = 1024 * PAGE_SIZE
    rings = []
    for at in (RAM, RAM + half):
        arena = (at + 16 * PAGE_SIZE, half - 16 * PAGE_SIZE)
        driver = VirtqueueDriver(memory, size=256, at=at, arena=arena)
        queue = Virtqueue(memory, 256, driver.desc, driver.avail, driver.used, event_idx=True)
        rings.append((driver, queue))
    return rings
