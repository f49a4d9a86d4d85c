"""A device served by another process, as tests drive it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

from crumble_common.errors import CrumbleError
from crumble_common.eventloop import EventLoop
from crumble_common.vhost_user import MemoryRegion
from crumble_vmm.devices.virtio.vhost_user import VhostUserDevice
from crumble_vmm.snapshot.state import TransportState
from framework.ready import readable
from framework.virtio_mmio_driver import RAM, RAM_SIZE, MmioDriver
from framework.virtqueue_driver import VirtqueueDriver


class Bench:
    """A vhost-user device in a transport, and what became of it."""

    def __init__(
        self,
        sock: socket.socket,
        config: bytes | None = b"",
        memory: int = -1,
        state: TransportState | None = None,
        kind: Callable[..., VhostUserDevice] = VhostUserDevice,
    ) -> None:
        self.lost: list[CrumbleError] = []
        self.fd = os.dup(memory) if memory >= 0 else os.memfd_create("guest")
        os.ftruncate(self.fd, RAM_SIZE)
        loop = EventLoop()
        regions = [MemoryRegion(RAM, RAM_SIZE, self.fd)]
        self.device = kind(
            "echo",
            99,
            sock,
            regions,
            (64, 64),
            loop,
            self.lost.append,
            config=config,
            config_size=4,
        )
        self.driver = MmioDriver(self.device, loop, memory_fd=self.fd, state=state)

    def wait_call(self) -> None:
        """As the hypervisor's irqfd does."""
        fds = list(self.driver.interrupt.call_fds)
        ready = readable(*fds, timeout=10)
        for fd in ready:
            os.eventfd_read(fd)
        assert ready

    def answers(self, queue: VirtqueueDriver, count: int) -> list[bytes]:
        """The next of them, whenever they come."""
        found: list[bytes] = []
        while len(found) < count:
            found += [data for _, _, data in queue.collect()]
            if len(found) < count:
                self.wait_call()
        return found

    def close_device(self) -> None:
        """The guest's memory stays."""
        self.driver.close()

    def close(self) -> None:
        self.close_device()
        os.close(self.fd)
