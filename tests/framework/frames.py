"""TCP frames for tests of bursts, and a ring to put them in."""

from __future__ import annotations

import mmap

from crumble_native.memory import PAGE_SIZE, Memory
from crumble_native.vring import Virtqueue
from crumble_netd.header import checksum, ethernet, ipv4, ipv6, tcp
from framework.virtqueue_driver import VirtqueueDriver

RAM = 0x8000_0000
HERE, THERE, GROUP = b"\x02\0\0\0\0\1", b"\x02\0\0\0\0\2", b"\xff" * 6
ENDS4 = (bytes([10, 0, 2, 15]), bytes([10, 0, 2, 1]))
ENDS6 = (bytes(15) + b"\1", bytes(15) + b"\2")


def ring(size: int = 256, *, event_idx: bool = True) -> tuple[VirtqueueDriver, Virtqueue]:
    """A driver, and the device's side of its queue."""
    memory = Memory()
    memory.add(RAM, mmap.mmap(-1, 1024 * PAGE_SIZE))
    arena = (RAM + 16 * PAGE_SIZE, 1008 * PAGE_SIZE)
    driver = VirtqueueDriver(memory, size=size, at=RAM, arena=arena, event_idx=event_idx)
    queue = Virtqueue(memory, size, driver.desc, driver.avail, driver.used, event_idx=event_idx)
    return driver, queue


def frame(
    data: bytes, seq: int = 0, *, six: bool = False, ack: int = 5, flags: int = tcp.ACK,
    port: int = 1000, options: bytes = b"", window: int = 100, to: bytes = HERE, left: bool = False,
) -> bytes:  # fmt: skip
    """A segment in its frame. `left`: its checksum is left to who comes next."""
    source, target = ENDS6 if six else ENDS4
    seq, ack = seq & 0xFFFFFFFF, ack & 0xFFFFFFFF
    head = tcp.build(port, 80, seq, ack, flags, window, options)
    pseudo = checksum.pseudo(source, target, tcp.PROTOCOL, len(head) + len(data))
    total = pseudo if left else checksum.internet([head, data], pseudo)
    head = head[:16] + total.to_bytes(2, "big") + head[18:]
    build = ipv6.build if six else ipv4.build
    kind = ethernet.IPV6 if six else ethernet.IPV4
    ip = build(source, target, tcp.PROTOCOL, len(head) + len(data))
    return ethernet.build(to, THERE, kind) + ip + head + data


def stamps(value: int) -> bytes:
    """A timestamp option."""
    return tcp.build_options(tcp.Options(timestamps=(value & 0xFFFFFFFF, 7)))
