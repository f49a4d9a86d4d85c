"""A steady TCP flow lent to the C core, between a driver's rings and a pair of sockets."""

from __future__ import annotations

import mmap
import socket
import struct

from crumble_native.flow import TIMES, WORDS, Fixed, Flows
from crumble_native.frames import Outgoing
from crumble_native.memory import PAGE_SIZE, Memory
from crumble_native.vring import Virtqueue
from crumble_netd.commands import Frame
from crumble_netd.header import checksum, ethernet, ipv4, ipv6, tcp, virtio_net
from crumble_netd.header.virtio_net import NEEDS_CSUM, NOTHING, Offload
from framework.netd_guest import parse
from framework.virtqueue_driver import VirtqueueDriver

RAM = 0x8000_0000
GATEWAY, GUEST = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2"
ENDS4 = (bytes([10, 0, 2, 15]), bytes([10, 0, 2, 1]))
ENDS6 = (bytes(15) + b"\1", bytes(15) + b"\2")
PORTS = (1000, 80)
SEQ, ISS, MSS, ROOM = 5000, 0xFFFFFF00, 1000, 1 << 16
ALL = dict.fromkeys((*TIMES, *WORDS), 0)


class FlowWorld:
    """A flow between a driver and a socket pair; the guest's next byte is SEQ, ours ISS."""

    def __init__(
        self, *, six: bool = False, stamps: bool = True, buffers: int = 64, credit: int = ROOM,
        window: int = 60_000, fill: bool = False,
    ) -> None:  # fmt: skip
        memory = Memory()
        memory.add(RAM, mmap.mmap(-1, 2048 * PAGE_SIZE))
        half = 1024 * PAGE_SIZE
        self.rings = []
        for at in (RAM, RAM + half):
            arena = (at + 16 * PAGE_SIZE, half - 16 * PAGE_SIZE)
            driver = VirtqueueDriver(memory, size=256, at=at, arena=arena)
            self.rings.append(
                (
                    driver,
                    Virtqueue(memory, 256, driver.desc, driver.avail, driver.used, event_idx=True),
                )
            )
        (self.rx, self.rx_queue), (self.tx, self.tx_queue) = self.rings
        self.give(buffers)
        self.six, self.stamps = six, stamps
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.theirs.setblocking(False)
        self.ring = memoryview(bytearray(ROOM))
        self.notes = memoryview(bytearray(512))
        self.outgoing = Outgoing(merge=True)
        self.flows = Flows(
            self.outgoing, GATEWAY + GUEST, left=True, large4=True, large6=True, cut4=False,
            cut6=False, fill=fill,
        )  # fmt: skip
        source, target = ENDS6 if six else ENDS4
        self.key = source + target + struct.pack("!HH", *PORTS)
        self.lend(credit=credit, snd_wnd=window, max_snd_wnd=window)

    def lend(self, index: int = 7, *, credit: int = ROOM, key: bytes = b"", **numbers: int) -> bool:
        values = ALL | {
            "snd_una": ISS, "snd_nxt": ISS, "snd_wl1": SEQ - 1, "cwnd": 10 * MSS, "rcv_nxt": SEQ,
            "rcv_adv": SEQ + ROOM, "last_ack_sent": SEQ, "rto": 1.0, "ts_recent": 10,
        } | numbers  # fmt: skip
        fixed = Fixed(
            7200.0, 0.0, 0, credit, 0, 1 << 30, MSS, 0, 0, ROOM, MSS, self.stamps, 0, 0, False, 0,
            ROOM, self.ours.fileno(), True,
        )  # fmt: skip
        notes = (self.notes[:64], self.notes[64:320])
        return self.flows.lend(
            index, tuple(values[name] for name in (*TIMES, *WORDS)), fixed, key or self.key,
            self.ring, notes,
        )  # fmt: skip

    def give(self, count: int) -> None:
        for _ in range(count):
            self.rx.submit([], [4096])

    def frame(
        self, data: bytes = b"", seq: int = SEQ, *, ack: int = ISS, flags: int = tcp.ACK,
        value: int = 11, window: int = 60_000, left: bool = True, mac: bytes = GATEWAY,
        options: bytes | None = None, spoil: bool = False,
    ) -> bytes:  # fmt: skip
        """A chain's bytes: virtio_net_hdr and frame."""
        source, target = ENDS6 if self.six else ENDS4
        if options is None:
            given = tcp.Options(timestamps=(value, 0)) if self.stamps else tcp.NO_OPTIONS
            options = tcp.build_options(given)
        head = tcp.build(*PORTS, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, flags, window, options)
        pseudo = checksum.pseudo(source, target, tcp.PROTOCOL, len(head) + len(data))
        total = pseudo if left else checksum.internet([head, data], pseudo)
        head = head[:16] + (total ^ spoil).to_bytes(2, "big") + head[18:]
        build, kind = (ipv6.build, ethernet.IPV6) if self.six else (ipv4.build, ethernet.IPV4)
        ip = build(source, target, tcp.PROTOCOL, len(head) + len(data))
        at = ethernet.SIZE + len(ip)
        offload = Offload(NEEDS_CSUM, 0, at + len(head), 0, at, 16) if left else NOTHING
        return virtio_net.build(offload, 0) + ethernet.build(mac, GUEST, kind) + ip + head + data

    def send(self, *chains: bytes) -> tuple[int, bool]:
        """One burst: how many were served, whether something is left."""
        for chain in chains:
            self.tx.submit([chain], [])
        burst = self.flows.burst(self.tx_queue, self.rx_queue, 50.0)
        return burst.chains, burst.left

    def received(self) -> bytes:
        """At the host's end."""
        found = b""
        while True:
            try:
                found += self.theirs.recv(1 << 20)
            except BlockingIOError:
                return found

    def segments(self) -> list[tcp.Segment]:
        """What the guest got."""
        found, parts = [], []
        for _, _, data in self.rx.collect():
            parts.append(data)
            if len(parts) == struct.unpack_from("<H", parts[0], 10)[0]:
                whole, parts = b"".join(parts), []
                offload = Offload(*struct.unpack_from("<BBHHHH", whole))
                message = parse(Frame(whole[virtio_net.SIZE :], [], offload)).message
                assert isinstance(message, tcp.Segment)
                found.append(message)
        return found

    def read(self) -> None:
        """The socket is readable."""
        self.flows.read(7, self.rx_queue, 50.0)

    def noted(self) -> dict[str, int]:
        """What is written down."""
        turn = self.notes[:16].cast("Q")[1]
        names = ("rcv_nxt", "rcv_adv", "snd_una")
        values = struct.unpack_from("@QdIIIIIII", self.notes, 64 + (turn & 1) * 128)
        found = dict(
            zip(("turn", "at", "ts", "snd_una", "rcv_nxt", "rcv_adv"), values, strict=False)
        )
        return {name: found[name] for name in names}

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()
