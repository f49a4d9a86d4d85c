"""The virtio-pci transport, modern only (virtio 1.2 §4.1): one function with one BAR.

    0x0000 common configuration   0x1000 ISR   0x2000 device configuration
    0x3000 notification, 4 bytes a queue   0x4000 MSI-X table   0x5000 pending bits

With MSI-X each queue has a vector, which a back end's eventfd raises without us. Without it there is INTA,
whose ISR is cleared by reading it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from crumble_native.memory import Memory
from crumble_vmm.devices.pci.function import Function
from crumble_vmm.devices.pci.msix import NO_VECTOR, Msix
from crumble_vmm.devices.virtio.device import INTERRUPT_CONFIG, INTERRUPT_USED, VirtioDevice
from crumble_vmm.devices.virtio.transport import DRIVER_OK, LOW, Transport
from crumble_vmm.hypervisor.base import MessageInterrupt, VirtioInterrupt, VirtualMachine
from crumble_vmm.snapshot.state import PciState, in_range

VENDOR, FIRST_DEVICE = 0x1AF4, 0x1040
REVISION = 1
BAR, BAR_SIZE = 0, 0x8000
COMMON, ISR, DEVICE, NOTIFY, TABLE, PENDING = 0, 0x1000, 0x2000, 0x3000, 0x4000, 0x5000
_PAGE = 0x1000
NOTIFY_MULTIPLIER = 4
# §4.1.4: struct virtio_pci_cap after its first two bytes: length, type, BAR, id, padding, offset, length.
_CAPABILITY, _VENDOR_SPECIFIC = struct.Struct("<BBBBxxII"), 9
_COMMON_CFG, _NOTIFY_CFG, _ISR_CFG, _DEVICE_CFG, _PCI_CFG = 1, 2, 3, 4, 5
# §4.1.4.3
(DEVICE_FEATURE_SELECT, DEVICE_FEATURE, DRIVER_FEATURE_SELECT, DRIVER_FEATURE, CONFIG_VECTOR, NUM_QUEUES,
 STATUS, CONFIG_GENERATION, QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE, QUEUE_NOTIFY_OFF) = (
    0x00, 0x04, 0x08, 0x0C, 0x10, 0x12, 0x14, 0x15, 0x16, 0x18, 0x1A, 0x1C, 0x1E)  # fmt: skip
QUEUE_DESC, QUEUE_DRIVER, QUEUE_DEVICE = 0x20, 0x28, 0x30
_ADDRESSES = {QUEUE_DESC: "descriptors", QUEUE_DRIVER: "driver", QUEUE_DEVICE: "device"}
_WIDTHS = {STATUS: 1, CONFIG_GENERATION: 1} | dict.fromkeys(
    (CONFIG_VECTOR, NUM_QUEUES, QUEUE_SELECT, QUEUE_SIZE, QUEUE_VECTOR, QUEUE_ENABLE, QUEUE_NOTIFY_OFF), 2
)  # fmt: skip
# Class codes by virtio device id: network, console, entropy, file system.
_CLASSES = {1: 0x02_0000, 3: 0x07_8000, 26: 0x01_8000}
_OTHER_CLASS = 0xFF_0000


class PciInterrupt(VirtioInterrupt):
    """A function's interrupts. line: INTA. msix: None where nobody takes messages.

    vectors: of each queue; config_vector: of configuration changes.
    """

    def __init__(self, line: VirtioInterrupt, msix: Msix | None, queues: int) -> None:
        self._line, self._msix = line, msix
        self._fds: dict[int, tuple[int, VirtioInterrupt | MessageInterrupt | None]] = {}
        self.vectors = [NO_VECTOR] * queues
        self.config_vector = NO_VECTOR

    def signal(self, bits: int, queue: int = -1) -> None:
        """queue: -1 for all of them."""
        if self._msix is None or not self._msix.enabled:
            self._line.signal(bits)
            return
        due = {self.config_vector} if bits & INTERRUPT_CONFIG else set()
        if bits & INTERRUPT_USED:
            due |= set(self.vectors) if queue < 0 else {self.vectors[queue]}
        for vector in due:
            self._msix.send(vector)

    def status(self) -> int:
        return self._line.status()

    def acknowledge(self, bits: int) -> None:
        self._line.acknowledge(bits)

    def add_call_fd(self, fd: int, queue: int = 0) -> None:
        target = self._target(queue)
        self._fds[fd] = queue, target
        if target is not None:
            target.add_call_fd(fd)

    def remove_call_fd(self, fd: int) -> None:
        _, target = self._fds.pop(fd)
        if target is not None:
            target.remove_call_fd(fd)

    def _target(self, queue: int) -> VirtioInterrupt | MessageInterrupt | None:
        if self._msix is not None and self._msix.enabled:
            return self._msix.vector(self.vectors[queue])
        return self._line

    def retarget(self) -> None:
        """The driver has changed what interrupts go by; one may have come while it did."""
        for fd, (queue, old) in list(self._fds.items()):
            if self._target(queue) is not old:
                self.remove_call_fd(fd)
                self.add_call_fd(fd, queue)
                self.signal(INTERRUPT_USED, queue)


class PciTransport(Transport):
    """A function with a device in it. messages: a vector for each queue and one more, or none."""

    state_type = PciState

    def __init__(
        self,
        device: VirtioDevice,
        memory: Memory,
        line: VirtioInterrupt,
        messages: Sequence[MessageInterrupt],
    ) -> None:
        kind = _CLASSES.get(device.device_id, _OTHER_CLASS)
        ident = (VENDOR, FIRST_DEVICE + device.device_id)
        self.function = Function(ident, kind, revision=REVISION, subsystem=ident, interrupts=True)
        self.function.add_bar(BAR, BAR_SIZE, self)
        self._access = self._add_capabilities()
        self._msix = Msix(self.function, messages, BAR, TABLE, PENDING) if messages else None
        self._pci = PciInterrupt(line, self._msix, len(device.queue_sizes))
        self._machine: VirtualMachine | None = None
        self._bells_at: int | None = None
        super().__init__(device, memory, self._pci)
        self.function.changed = self._configured
        self.function.reading = self._fetch
        self._readers: dict[int, Callable[[], int]] = {
            DEVICE_FEATURE_SELECT: lambda: self._device_features_sel,
            DEVICE_FEATURE: self._offered_features,
            DRIVER_FEATURE_SELECT: lambda: self._driver_features_sel,
            DRIVER_FEATURE: self._accepted_features,
            CONFIG_VECTOR: lambda: self._pci.config_vector,
            NUM_QUEUES: lambda: len(self._queues),
            STATUS: lambda: self._status,
            CONFIG_GENERATION: lambda: self._generation & 0xFF,
            QUEUE_SELECT: lambda: self._queue_sel,
            QUEUE_SIZE: lambda: self._queue().size or self._queue_size_max(),
            QUEUE_VECTOR: self._queue_vector,
            QUEUE_ENABLE: lambda: int(self._queue().ready),
            QUEUE_NOTIFY_OFF: lambda: self._queue_sel,
        }
        self._writers: dict[int, Callable[[int], None]] = {
            DEVICE_FEATURE_SELECT: lambda value: setattr(self, "_device_features_sel", value),
            DRIVER_FEATURE_SELECT: lambda value: setattr(self, "_driver_features_sel", value),
            DRIVER_FEATURE: self._accept_features,
            CONFIG_VECTOR: self._set_config_vector,
            STATUS: self._set_status,
            QUEUE_SELECT: lambda value: setattr(self, "_queue_sel", value),
            QUEUE_SIZE: self._set_queue_size,
            QUEUE_VECTOR: self._set_queue_vector,
            QUEUE_ENABLE: self._enable,
        }

    def _add_capabilities(self) -> int:
        """§4.1.4; gives the offset of the one through which a BAR is reached without mapping it."""
        multiplier = struct.pack("<I", NOTIFY_MULTIPLIER)
        for kind, at, more in (
            (_COMMON_CFG, COMMON, b""), (_NOTIFY_CFG, NOTIFY, multiplier), (_ISR_CFG, ISR, b""),
            (_DEVICE_CFG, DEVICE, b""),
        ):  # fmt: skip
            body = _CAPABILITY.pack(16 + len(more), kind, BAR, 0, at, _PAGE) + more
            self.function.add_capability(_VENDOR_SPECIFIC, body)
        writable = _CAPABILITY.pack(0, 0, 0xFF, 0, LOW, LOW) + b"\xff" * 4
        body = _CAPABILITY.pack(20, _PCI_CFG, 0, 0, 0, 0) + bytes(4)
        return self.function.add_capability(_VENDOR_SPECIFIC, body, writable)

    # Configuration space.

    def connect_doorbells(self, machine: VirtualMachine) -> None:
        """Wherever the driver puts the BAR."""
        self._machine = machine
        self._move_bells()

    def _configured(self, offset: int, size: int) -> None:
        """The driver wrote to the configuration space."""
        with self._lock:
            if self._msix is not None and self._msix.owns(offset, size):
                self._msix.update()
                self._pci.retarget()
            wanted = self._accessed(offset, size)
            if wanted is not None:
                at, length = wanted
                start = self._access + 16
                data = self.function.config[start : start + length]
                self.mmio_write(at, length, int.from_bytes(data, "little"))
            self._move_bells()

    def _fetch(self, offset: int, size: int) -> None:
        """The driver reads: pci_cfg_data is what the BAR has (§4.1.4.9)."""
        with self._lock:
            wanted = self._accessed(offset, size)
            if wanted is not None:
                at, length = wanted
                start = self._access + 16
                data = self.mmio_read(at, length).to_bytes(length, "little")
                self.function.config[start : start + length] = data

    def _accessed(self, offset: int, size: int) -> tuple[int, int] | None:
        """Which bytes of the BAR an access of the configuration space is for; None when it is for none."""
        if offset >= self._access + 20 or offset + size <= self._access + 16:
            return None
        bar, at, length = struct.unpack_from("<BxxxII", self.function.config, self._access + 4)
        fine = bar == BAR and length in (1, 2, 4) and at % length == 0 and at < BAR_SIZE
        return (at, length) if fine else None

    def _move_bells(self) -> None:
        base = self.function.bar(BAR)
        if self._machine is None or base == self._bells_at:
            return
        for index, fd in enumerate(self._kicks):
            at = NOTIFY + NOTIFY_MULTIPLIER * index
            if self._bells_at is not None:
                self._machine.remove_doorbell(self._bells_at + at, 2, index)
            if base is not None:
                self._machine.add_doorbell(base + at, 2, index, fd)
        self._bells_at = base

    # The BAR.

    def mmio_read(self, offset: int, size: int) -> int:
        """A field is read as wide as it is; anything else reads as zero."""
        with self._lock:
            if offset < ISR:
                return self._read_common(offset, size)
            if offset < DEVICE:
                return self._read_isr() if offset == ISR else 0
            if offset < NOTIFY:
                at = offset - DEVICE
                return int.from_bytes(self.device.config[at : at + size], "little")
            if self._msix is None or offset < TABLE:
                return 0
            if offset < PENDING:
                return self._msix.mmio_read(offset - TABLE, size)
            return self._msix.pending(offset - PENDING, size)

    def _read_isr(self) -> int:
        """§4.1.4.5: reading it takes the interrupt back."""
        bits = self._pci.status()
        self._pci.acknowledge(bits)
        return bits

    def _read_common(self, offset: int, size: int) -> int:
        if QUEUE_DESC <= offset < QUEUE_DEVICE + 8:
            name, shift = _ADDRESSES[offset & ~7], 8 * (offset & 7)
            return int(getattr(self._queue(), name)) >> shift & (1 << 8 * size) - 1
        reader = self._readers.get(offset)
        return reader() if reader is not None and size == _WIDTHS.get(offset, 4) else 0

    def mmio_write(self, offset: int, size: int, value: int) -> None:
        """As mmio_read."""
        with self._lock:
            if offset < ISR:
                self._write_common(offset, size, value)
            elif NOTIFY <= offset < TABLE:
                self._notify(value & 0xFFFF)
            elif self._msix is not None and TABLE <= offset < PENDING:
                self._msix.mmio_write(offset - TABLE, size, value)

    def _write_common(self, offset: int, size: int, value: int) -> None:
        if QUEUE_DESC <= offset < QUEUE_DEVICE + 8:
            self._set_address(_ADDRESSES[offset & ~7], 8 * (offset & 7), size, value)
            return
        writer = self._writers.get(offset)
        if writer is not None and size == _WIDTHS.get(offset, 4):
            writer(value)

    def _accepted_features(self) -> int:
        sel = self._driver_features_sel
        return self._features >> 32 * sel & LOW if sel < 2 else 0

    def _enable(self, value: int) -> None:
        """§4.1.4.3: 1, of a queue of the size that it says, which is the largest when none was written."""
        queue = self._queue()
        if value == 1 and not queue.ready:
            queue.size = queue.size or self._queue_size_max()
            self._set_queue_ready(1)

    def _queue_vector(self) -> int:
        at = self._queue_sel
        return self._pci.vectors[at] if at < len(self._queues) else NO_VECTOR

    def _known(self, vector: int) -> int:
        """§4.1.5.1.2.1: a vector that is not there reads back as none."""
        there = self._msix is not None and self._msix.vector(vector) is not None
        return vector if there else NO_VECTOR

    def _set_config_vector(self, vector: int) -> None:
        self._pci.config_vector = self._known(vector)

    def _set_queue_vector(self, vector: int) -> None:
        if self._queue_sel < len(self._queues):
            self._pci.vectors[self._queue_sel] = self._known(vector)
            self._pci.retarget()

    def _clear(self) -> None:
        super()._clear()
        self._pci.vectors[:] = [NO_VECTOR] * len(self._pci.vectors)
        self._pci.config_vector = NO_VECTOR

    # Snapshots.

    def get_state(self) -> PciState:
        """The transport's, and what is PCI's."""
        with self._lock:
            return PciState(
                self._transport_state(),
                bytes(self.function.config),
                self._msix.get_state() if self._msix is not None else b"",
                [self._pci.config_vector, *self._pci.vectors],
            )

    def set_state(self, state: PciState) -> None:
        """Interrupts once, for those that were under way."""
        with self._lock:
            self.function.restore(state.config)
            if self._msix is not None:
                self._msix.set_state(state.msix)
            elif state.msix:
                raise ValueError("it had MSI-X")
            if len(state.vectors) != 1 + len(self._queues):
                raise ValueError(f"{len(state.vectors)} vectors")
            known = [self._known(in_range("vector", vector, 16)) for vector in state.vectors]
            self._pci.config_vector, self._pci.vectors[:] = known[0], known[1:]
            if self._msix is not None:
                self._msix.update()
            self._move_bells()
            self._set_transport_state(state.transport)
            if self._status & DRIVER_OK:
                self._pci.signal(INTERRUPT_USED)
