"""A virtio-mmio driver without a guest: register accesses as a kernel makes them, rings in memory.

driver = MmioDriver(transport, memory, interrupt)
driver.negotiate()                 # up to FEATURES_OK
queue = driver.add_queue(0)        # a framework.virtqueue_driver.VirtqueueDriver
driver.go()                        # DRIVER_OK
queue.submit([b"request"], [64]); driver.kick(0)
"""

from __future__ import annotations

import mmap

from crumble_common.eventloop import EventLoop
from crumble_native.memory import Memory
from crumble_vmm.devices.virtio import mmio, transport
from crumble_vmm.devices.virtio.device import F_VERSION_1, VirtioDevice
from crumble_vmm.hypervisor.base import VirtioInterrupt
from crumble_vmm.snapshot.state import TransportState
from framework.virtqueue_driver import Arena, VirtqueueDriver

RAM = 0x8000_0000
RAM_SIZE = 4 << 20
BASE = 0x1000_1000


class Interrupt(VirtioInterrupt):
    """InterruptStatus and its line, in Python; `raised` counts signals."""

    def __init__(self) -> None:
        self.bits = self.raised = 0
        self.call_fds: set[int] = set()

    def signal(self, bits: int, queue: int = -1) -> None:
        self.bits |= bits
        self.raised += 1

    def status(self) -> int:
        return self.bits

    def acknowledge(self, bits: int) -> None:
        self.bits &= ~bits

    def add_call_fd(self, fd: int, queue: int = 0) -> None:
        self.call_fds.add(fd)

    def remove_call_fd(self, fd: int) -> None:
        self.call_fds.remove(fd)


class Doorbells:
    """The part of a VirtualMachine that a transport uses."""

    def __init__(self) -> None:
        self.fds: dict[tuple[int, int], int] = {}

    def add_doorbell(self, address: int, size: int, value: int, fd: int) -> None:
        assert size == 4
        self.fds[address, value] = fd


class MmioDriver:
    """Drives one transport. state: what the transport goes on from."""

    def __init__(
        self,
        device: VirtioDevice,
        loop: EventLoop,
        memory_fd: int = -1,
        state: TransportState | None = None,
    ) -> None:
        self.loop = loop
        self.memory = Memory()
        self.memory.add(RAM, mmap.mmap(memory_fd, RAM_SIZE))
        self.interrupt = Interrupt()
        self.transport = mmio.MmioTransport(device, BASE, self.memory, self.interrupt)
        self.transport.connect_doorbells(Doorbells())  # type: ignore[arg-type]  # a fake
        if state is not None:
            self.transport.set_state(state)
        self.transport.start()
        self._at = RAM
        self._arena = Arena(RAM + (1 << 20), RAM_SIZE - (1 << 20))

    def read(self, register: int) -> int:
        """A 32-bit register."""
        return self.transport.mmio_read(register, 4)

    def write(self, register: int, value: int) -> None:
        """A 32-bit register."""
        self.transport.mmio_write(register, 4, value)

    @property
    def status(self) -> int:
        """The Status register."""
        return self.read(mmio.STATUS)

    def offered(self) -> int:
        """All feature bits the device offers."""
        found = 0
        for sel in (1, 0):
            self.write(mmio.DEVICE_FEATURES_SEL, sel)
            found = found << 32 | self.read(mmio.DEVICE_FEATURES)
        return found

    def accept(self, features: int) -> None:
        """Writes the driver's features."""
        for sel in (0, 1):
            self.write(mmio.DRIVER_FEATURES_SEL, sel)
            self.write(mmio.DRIVER_FEATURES, features >> 32 * sel & 0xFFFF_FFFF)

    def negotiate(self, without: int = 0) -> bool:
        """§3.1.1, steps 1 to 6; True when FEATURES_OK stuck."""
        assert self.read(mmio.MAGIC_VALUE) == 0x74726976
        assert self.read(mmio.VERSION) == 2
        self.write(mmio.STATUS, 0)
        self.write(mmio.STATUS, transport.ACKNOWLEDGE)
        self.write(mmio.STATUS, transport.ACKNOWLEDGE | transport.DRIVER)
        self.accept(self.offered() & ~without | F_VERSION_1)
        self.write(mmio.STATUS, transport.ACKNOWLEDGE | transport.DRIVER | transport.FEATURES_OK)
        return bool(self.status & transport.FEATURES_OK)

    def add_queue(self, index: int, size: int = 0) -> VirtqueueDriver:
        """Lays a queue out and makes it ready."""
        self.write(mmio.QUEUE_SEL, index)
        size = size or self.read(mmio.QUEUE_SIZE_MAX)
        queue = VirtqueueDriver(self.memory, size=size, at=self._at, arena=self._arena)
        self._at = queue.end
        self.program_queue(index, size, queue.desc, queue.avail, queue.used)
        return queue

    def program_queue(self, index: int, size: int, desc: int, avail: int, used: int) -> None:
        """Writes a queue's registers."""
        self.write(mmio.QUEUE_SEL, index)
        self.write(mmio.QUEUE_SIZE, size)
        parts = ((mmio.QUEUE_DESC, desc), (mmio.QUEUE_DRIVER, avail), (mmio.QUEUE_DEVICE, used))
        for register, address in parts:
            self.write(register, address & 0xFFFF_FFFF)
            self.write(register + 4, address >> 32)
        self.write(mmio.QUEUE_READY, 1)

    def go(self) -> None:
        """DRIVER_OK."""
        self.write(mmio.STATUS, self.status | transport.DRIVER_OK)
        self.settle()

    def kick(self, index: int) -> None:
        """QueueNotify, then lets the loop work."""
        self.write(mmio.QUEUE_NOTIFY, index)
        self.settle()

    def settle(self) -> None:
        """Lets the loop do all that is due."""
        for _ in range(8):
            self.loop.step(0)

    def close(self) -> None:
        """Ends the device."""
        self.transport.stop()
        self.loop.close()
