"""A virtio device's transport: negotiation, queues, and how its driver finds it broken (virtio 1.2 §2.1, §3.1).

What a driver's accesses look like is for mmio.py and pci.py. All of them come from vCPU threads, and are made
under `lock`. QueueNotify usually never gets there: each value of it rings an eventfd.
"""

from __future__ import annotations

import os
import threading
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

from crumble_common import log
from crumble_common.errors import CrumbleError
from crumble_native.memory import Memory
from crumble_vmm.chipset.builder import Device
from crumble_vmm.devices.virtio.device import (
    F_VERSION_1,
    INTERRUPT_CONFIG,
    INTERRUPT_USED,
    QueueSetup,
    VirtioDevice,
    Wiring,
)
from crumble_vmm.hypervisor.base import VirtioInterrupt, VirtualMachine
from crumble_vmm.snapshot.state import (
    QueueState,
    RingState,
    TransportState,
    corrupt,
    in_range,
)

# §2.1
ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
LOW = 0xFFFF_FFFF


@dataclass(slots=True)
class Queue:
    """What the driver wrote of one queue."""

    size: int = 0
    ready: bool = False
    descriptors: int = 0
    driver: int = 0
    device: int = 0


class Transport(Device):
    """A device and what its driver set up. problem: why the device is broken; "" when it isn't."""

    def __init__(self, device: VirtioDevice, memory: Memory, interrupt: VirtioInterrupt) -> None:
        self.name = device.name
        self.device = device
        self.problem = ""
        self._memory = memory
        self._interrupt = interrupt
        self._lock = threading.RLock()
        flags = os.EFD_NONBLOCK | os.EFD_CLOEXEC
        self._kicks = tuple(os.eventfd(0, flags) for _ in device.queue_sizes)
        self._generation = 0
        self._resumed: dict[int, RingState] | None = None
        self._clear()

    @property
    def lock(self) -> threading.RLock:
        """Held around everything that touches the device's state; see Wiring."""
        return self._lock

    @abstractmethod
    def connect_doorbells(self, machine: VirtualMachine) -> None:
        """Makes a queue's eventfd rung by the driver's notification, without an exit."""

    def _clear(self) -> None:
        self._status = 0
        self._device_features_sel = self._driver_features_sel = self._queue_sel = 0
        self._features = 0
        self._queues = [Queue() for _ in self.device.queue_sizes]
        self.problem = ""

    def start(self) -> None:
        """Hands the device its wiring."""
        self.device.start(
            Wiring(self._lock, self._memory, self._kicks, self._interrupt, self._broken)
        )
        if self._resumed is None:
            return
        try:
            with self._lock:
                self.device.resume(self._features, self._ready_queues(), self._resumed)
        except ValueError as error:
            raise corrupt(f"{self.name}: {error}") from error

    def stop(self) -> None:
        """Takes it back."""
        self.device.stop()
        for fd in self._kicks:
            os.close(fd)
        self._kicks = ()

    def reset(self) -> None:
        """§2.4: as the driver's write of 0 to Status."""
        with self._lock:
            if self._status:
                self.device.reset()
            self._interrupt.acknowledge(INTERRUPT_USED | INTERRUPT_CONFIG)
            self._clear()

    def config_changed(self) -> None:
        """The device's configuration is another one now. Any thread."""
        with self._lock:
            self._generation = (self._generation + 1) & LOW
            if self._status & DRIVER_OK:
                self._interrupt.signal(INTERRUPT_CONFIG)

    def _offered_features(self) -> int:
        sel = self._device_features_sel
        return self.device.features >> 32 * sel & LOW if sel < 2 else 0

    def _accept_features(self, value: int) -> None:
        sel = self._driver_features_sel
        if sel < 2 and not self._status & FEATURES_OK:
            self._features = self._features & ~(LOW << 32 * sel) | value << 32 * sel

    def _queue(self) -> Queue:
        """The selected queue; one that is written in vain when there is none."""
        at = self._queue_sel
        return self._queues[at] if at < len(self._queues) else Queue()

    def _queue_size_max(self) -> int:
        at = self._queue_sel
        return self.device.queue_sizes[at] if at < len(self._queues) else 0

    def _frozen(self) -> bool:
        """§4.2.2.2: no changes while the queue is ready or the driver is live."""
        return bool(self._status & DRIVER_OK) or self._queue().ready

    def _set_queue_size(self, value: int) -> None:
        if not self._frozen() and value <= self._queue_size_max():
            self._queue().size = value

    def _set_queue_ready(self, value: int) -> None:
        if not self._status & DRIVER_OK:
            self._queue().ready = value == 1

    def _set_address(self, name: str, shift: int, size: int, value: int) -> None:
        """`size` bytes of where a part of the selected queue is, from bit `shift` on."""
        if not self._frozen():
            queue = self._queue()
            mask = ((1 << 8 * size) - 1) << shift & 0xFFFF_FFFF_FFFF_FFFF
            setattr(queue, name, getattr(queue, name) & ~mask | value << shift & mask)

    def _notify(self, value: int) -> None:
        """Only when the back end has no doorbells, or for a queue that isn't there."""
        if value < len(self._kicks):
            os.eventfd_write(self._kicks[value], 1)

    def _set_status(self, value: int) -> None:
        if value == 0:
            self.reset()
            return
        new = value & ~self._status
        if new & FEATURES_OK and not self._features_fit():
            value &= ~FEATURES_OK
        # A driver never clears bits but by reset (§2.1.1); NEEDS_RESET is ours.
        self._status |= value & ~NEEDS_RESET & 0xFF
        if new & DRIVER_OK:
            self._activate()

    def _features_fit(self) -> bool:
        return bool(self._features & F_VERSION_1) and not self._features & ~self.device.features

    def _activate(self) -> None:
        if not self._status & FEATURES_OK:
            self._broken("The driver went on without FEATURES_OK.")
            return
        try:
            self.device.activate(self._features, self._ready_queues())
        except (CrumbleError, ValueError, OSError) as error:
            self._broken(str(error))

    def _ready_queues(self) -> list[QueueSetup]:
        return [
            QueueSetup(index, queue.size, queue.descriptors, queue.driver, queue.device)
            for index, queue in enumerate(self._queues)
            if queue.ready
        ]

    # Snapshots.

    def halt(self) -> None:
        """The rings stand still."""
        self.device.halt()

    def go_on(self) -> None:
        """The rings are served again."""
        with self._lock:
            self.device.go_on()

    def get_state(self) -> Any:
        """Registers, queues, and where the device is in them."""
        return self._transport_state()

    def _transport_state(self) -> TransportState:
        with self._lock:
            rings = self.device.rings()
            queues = [
                QueueState(
                    queue.size, queue.ready, queue.descriptors, queue.driver, queue.device,
                    rings.get(index, RingState()),
                )
                for index, queue in enumerate(self._queues)
            ]  # fmt: skip
            return TransportState(
                self._status, self._device_features_sel, self._driver_features_sel,
                self._queue_sel, self._features, self._generation, self._interrupt.status(),
                self.problem, queues, self.device.get_state(),
            )  # fmt: skip

    def set_state(self, state: Any) -> None:
        """The device resumes its rings when it is started."""
        self._set_transport_state(state)

    def _set_transport_state(self, state: TransportState) -> None:
        if len(state.queues) != len(self._queues):
            raise ValueError(f"{len(state.queues)} queues, not {len(self._queues)}")
        with self._lock:
            self._status = in_range("status", state.status, 8)
            self._device_features_sel = in_range("sel", state.device_features_sel, 32)
            self._driver_features_sel = in_range("sel", state.driver_features_sel, 32)
            self._queue_sel = in_range("queue_sel", state.queue_sel, 32)
            self._features = in_range("features", state.features, 64)
            self._generation = in_range("generation", state.generation, 32)
            self.problem = state.problem
            self._queues = [
                _checked(queue, limit)
                for queue, limit in zip(state.queues, self.device.queue_sizes, strict=True)
            ]
            self.device.set_state(state.device)
            if self._status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK:
                self._resumed = {index: queue.ring for index, queue in enumerate(state.queues)}
            bits = INTERRUPT_USED | INTERRUPT_CONFIG
            if in_range("interrupt", state.interrupt, bits.bit_length()):
                self._interrupt.signal(state.interrupt)

    def _broken(self, why: str) -> None:
        """§2.1: the device says that only a reset helps."""
        with self._lock:
            if self._status & NEEDS_RESET:
                return
            log.warning("device broken", device=self.name, why=why)
            self.device.reset()
            self.problem = why
            live = self._status & DRIVER_OK
            self._status |= NEEDS_RESET
            if live:
                self._interrupt.signal(INTERRUPT_CONFIG)


def _checked(state: QueueState, limit: int) -> Queue:
    """A queue as it was; ValueError when the registers could not say so."""
    if not 0 <= state.size <= limit:
        raise ValueError(f"a queue has {state.size} entries, of {limit}")
    in_range("a queue's next", state.ring.next, 16)
    if len(state.ring.unfinished) > state.size or any(
        not 0 <= head < state.size for head in state.ring.unfinished
    ):
        raise ValueError("a queue's unfinished chains are not its own")
    for address in (state.descriptors, state.driver, state.device):
        in_range("a queue's address", address, 64)
    return Queue(state.size, state.ready, state.descriptors, state.driver, state.device)
