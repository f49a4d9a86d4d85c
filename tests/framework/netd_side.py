"""One netd in this process, with a clock of its own: rings of a guest on one side, real sockets on the other.

side = NetdSide()
side.tx.submit([header + frame], [])
for offload, frame in side.turn(): ...
"""

from __future__ import annotations

import itertools
import mmap
import os
import struct

from crumble_common.eventloop import EventLoop
from crumble_common.vhost_user.ring import Ring
from crumble_common.virtqueue import Virtqueue
from crumble_native.memory import PAGE_SIZE, Memory
from crumble_netd.header import virtio_net
from crumble_netd.header.virtio_net import Offload
from crumble_netd.loop import HostSide
from crumble_netd.policy import Policy
from crumble_netd.port import Port
from crumble_netd.queue_pump import RX, TX, NetDevice
from crumble_netd.stack import Stack
from framework.net_client import OFFLOADS
from framework.netd_guest import ADDRESSES, GUEST, MAC
from framework.virtqueue_driver import VirtqueueDriver

RAM = 0x8000_0000


class NetdSide:
    """buffers: of 4 KiB, which the guest gives at first. features: what its driver takes."""

    def __init__(self, *, buffers: int = 200, mtu: int = 65_520, features: int = OFFLOADS) -> None:
        self.time = 1000.0
        self.loop = EventLoop(clock=lambda: self.time)
        counter = itertools.count(1)
        self.stack = Stack(
            ADDRESSES,
            self.loop.now,
            random=lambda n: (next(counter) * 7919).to_bytes(16, "big")[-n:],
        )
        self.port = Port(1, MAC, GUEST, mtu, Policy.of([], ["host"], internet=True))
        self.host = HostSide(self.loop, self.stack)
        self.device = NetDevice(
            self.loop, self.stack, self.port, self.host.settle, self.host.waiter
        )
        self.stack.add_port(self.port)
        self.host.devices[1] = self.device
        self._parts: list[bytes] = []
        self._rings(buffers, features)

    def _rings(self, buffers: int, features: int) -> None:
        memory = Memory()
        memory.add(RAM, mmap.mmap(-1, 2048 * PAGE_SIZE))
        half = 1024 * PAGE_SIZE
        self.device.negotiated(features)
        made = []
        self.rings = []
        for index, at in ((RX, RAM), (TX, RAM + half)):
            arena = (at + 16 * PAGE_SIZE, half - 16 * PAGE_SIZE)
            driver = VirtqueueDriver(memory, size=256, at=at, arena=arena)
            ring = Ring(index)
            ring.queue = Virtqueue(
                memory, 256, driver.desc, driver.avail, driver.used, event_idx=True
            )
            ring.set_kick(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
            self.rings.append(ring)
            made.append(driver)
        self.rx, self.tx = made
        self.give(buffers)
        for ring in self.rings:
            self.device.start(ring)

    def give(self, count: int) -> None:
        """More buffers."""
        for _ in range(count):
            self.rx.submit([], [4096])

    def turn(self) -> list[tuple[Offload, bytes]]:
        """Until nothing happens any more; the frames that the guest got."""
        for ring in self.rings:
            os.eventfd_write(ring.kick_fd, 1)
        for _ in range(12):
            self.loop.step(0)
        self.tx.collect()
        found = []
        for _, _, data in self.rx.collect():
            self._parts.append(data)
            if len(self._parts) == struct.unpack_from("<H", self._parts[0], 10)[0]:
                whole, self._parts = b"".join(self._parts), []
                offload = Offload(*struct.unpack_from("<BBHHHH", whole))
                found.append((offload, whole[virtio_net.SIZE :]))
        return found

    def close(self) -> None:
        """Ends all of it."""
        for index in (RX, TX):
            self.device.stop(index)
        self.host.close()
        for ring in self.rings:
            ring.close()
        self.loop.close()
