"""The virtio-mmio transport, version 2 (virtio 1.2 §4.2): one device's registers.

InterruptStatus and InterruptACK are usually served by the back end without coming here. What is left is
rare: negotiation, queue set-up, the configuration space.
"""

from __future__ import annotations

from collections.abc import Callable

from crumble_native.memory import Memory
from crumble_vmm.devices.virtio.device import VirtioDevice
from crumble_vmm.devices.virtio.transport import LOW, Transport
from crumble_vmm.hypervisor.base import VirtioInterrupt, VirtualMachine
from crumble_vmm.lockstep import Lockstep
from crumble_vmm.snapshot.state import TransportState

SIZE = 0x1000
# §4.2.2, table 4.1
MAGIC_VALUE, VERSION, DEVICE_ID, VENDOR_ID = 0x000, 0x004, 0x008, 0x00C
DEVICE_FEATURES, DEVICE_FEATURES_SEL = 0x010, 0x014
DRIVER_FEATURES, DRIVER_FEATURES_SEL = 0x020, 0x024
QUEUE_SEL, QUEUE_SIZE_MAX, QUEUE_SIZE, QUEUE_READY, QUEUE_NOTIFY = 0x030, 0x034, 0x038, 0x044, 0x050
INTERRUPT_STATUS, INTERRUPT_ACK, STATUS = 0x060, 0x064, 0x070
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x080, 0x090, 0x0A0
SHM_SEL, SHM_LEN, SHM_BASE = 0x0AC, 0x0B0, 0x0B8
CONFIG_GENERATION, CONFIG = 0x0FC, 0x100

MAGIC = 0x74726976
VENDOR = 0x4D_55_52_43  # "CRUM"

_ADDRESSES = {QUEUE_DESC: "descriptors", QUEUE_DRIVER: "driver", QUEUE_DEVICE: "device"}


class MmioTransport(Transport):
    """A slot with a device in it, at guest-physical address `base`."""

    state_type = TransportState

    def __init__(
        self,
        device: VirtioDevice,
        base: int,
        memory: Memory,
        interrupt: VirtioInterrupt,
        lockstep: Lockstep | None = None,
    ) -> None:
        super().__init__(device, memory, interrupt)
        self.base = base
        self._lockstep = lockstep
        self._readers: dict[int, Callable[[], int]] = {
            MAGIC_VALUE: lambda: MAGIC,
            VERSION: lambda: 2,
            DEVICE_ID: lambda: device.device_id,
            VENDOR_ID: lambda: VENDOR,
            DEVICE_FEATURES: self._offered_features,
            QUEUE_SIZE_MAX: self._queue_size_max,
            QUEUE_READY: lambda: int(self._queue().ready),
            INTERRUPT_STATUS: interrupt.status,
            STATUS: lambda: self._status,
            CONFIG_GENERATION: lambda: self._generation,
            # No shared memory region: all ones (§4.2.2, SHMLen).
            SHM_LEN: lambda: LOW,
            SHM_LEN + 4: lambda: LOW,
            SHM_BASE: lambda: LOW,
            SHM_BASE + 4: lambda: LOW,
        }
        self._writers: dict[int, Callable[[int], None]] = {
            DEVICE_FEATURES_SEL: lambda value: setattr(self, "_device_features_sel", value),
            DRIVER_FEATURES: self._accept_features,
            DRIVER_FEATURES_SEL: lambda value: setattr(self, "_driver_features_sel", value),
            QUEUE_SEL: lambda value: setattr(self, "_queue_sel", value),
            QUEUE_SIZE: self._set_queue_size,
            QUEUE_READY: self._set_queue_ready,
            QUEUE_NOTIFY: self._notify,
            INTERRUPT_ACK: interrupt.acknowledge,
            STATUS: self._set_status,
        }
        for register in _ADDRESSES:
            self._writers[register] = self._address_writer(register, 0)
            self._writers[register + 4] = self._address_writer(register, 32)

    def connect_doorbells(self, machine: VirtualMachine) -> None:
        """QueueNotify takes each queue's number; in lockstep it takes the vCPU here."""
        for index, fd in enumerate(() if self._lockstep else self._kicks):
            machine.add_doorbell(self.base + QUEUE_NOTIFY, 4, index, fd)

    def mmio_read(self, offset: int, size: int) -> int:
        """Registers are 32 bits wide, and so must be the access (§4.2.2.2); others read as zero."""
        with self._lock:
            if offset >= CONFIG:
                at = offset - CONFIG
                return int.from_bytes(self.device.config[at : at + size], "little")
            reader = self._readers.get(offset)
            return reader() if reader is not None and size == 4 else 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """As mmio_read; others are ignored: no device here has writable configuration."""
        with self._lock:
            writer = self._writers.get(offset)
            if writer is not None and size == 4:
                writer(value & LOW)
        if self._lockstep is not None:
            self._lockstep.give_turn()

    def _notify(self, value: int) -> None:
        if self._lockstep is not None and value < len(self._kicks):
            self.device.kicked(value)
        else:
            super()._notify(value)

    def _address_writer(self, register: int, shift: int) -> Callable[[int], None]:
        name = _ADDRESSES[register]
        return lambda value: self._set_address(name, shift, 4, value)
