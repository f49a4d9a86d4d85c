"""What a virtio device is to its transport (virtio 1.2 §2).

A `VirtioDevice` declares its id, features, queues and configuration; a transport negotiates, then
calls `activate` when the driver says DRIVER_OK and `reset` when it resets, both with its lock held.
`local.py` is the base of devices served in this process, `vhost_user.py` of those served by others.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crumble_native.memory import Memory
from crumble_vmm.hypervisor.base import VirtioInterrupt
from crumble_vmm.snapshot.state import RingState

# §6, feature bits every device of ours offers.
F_INDIRECT_DESC, F_EVENT_IDX, F_VERSION_1 = 1 << 28, 1 << 29, 1 << 32
RING_FEATURES = F_INDIRECT_DESC | F_EVENT_IDX | F_VERSION_1

INTERRUPT_USED, INTERRUPT_CONFIG = 1, 2


@dataclass(frozen=True, slots=True)
class QueueSetup:
    """A queue the driver made ready: its size and the guest-physical addresses of its three parts."""

    index: int
    size: int
    descriptors: int
    driver: int
    device: int


@dataclass(frozen=True, slots=True)
class Wiring:
    """What a transport gives its device.

    lock: the transport's; held around everything that touches the device's state or rings. kicks: an
    eventfd a queue, written when the driver notifies it. broken: ends this device until the driver
    resets it (DEVICE_NEEDS_RESET, §2.1); one sentence says why.
    """

    lock: threading.RLock
    memory: Memory
    kicks: tuple[int, ...]
    interrupt: VirtioInterrupt
    broken: Callable[[str], None]


class VirtioDevice(ABC):
    """A device, seen from its transport."""

    device_id: int

    def __init__(self, name: str, queue_sizes: Sequence[int]) -> None:
        self.name = name
        self.queue_sizes = tuple(queue_sizes)
        """The largest size of each queue."""

    @abstractmethod
    def kicked(self, index: int) -> None:
        """In lockstep: the driver notifies a queue. In the vCPU's thread, which then gives its turn."""

    @property
    def features(self) -> int:
        """Feature bits offered."""
        return RING_FEATURES

    @property
    def config(self) -> bytes:
        """The device-specific configuration, as the driver may read it now."""
        return b""

    @abstractmethod
    def start(self, wiring: Wiring) -> None:
        """The machine starts; the device belongs to this transport. In the loop's thread."""

    @abstractmethod
    def stop(self) -> None:
        """The machine has stopped."""

    @abstractmethod
    def activate(self, features: int, queues: Sequence[QueueSetup]) -> None:
        """DRIVER_OK with these features and ready queues. A CrumbleError or ValueError breaks it."""

    @abstractmethod
    def reset(self) -> None:
        """Back to before activate; no ring may be touched afterwards."""

    # Snapshots. The transport keeps what the driver set up; the rest is the device's.

    @abstractmethod
    def halt(self) -> None:
        """Nobody serves the rings from now on, until `go_on`. Raises CrumbleError."""

    @abstractmethod
    def go_on(self) -> None:
        """Ends `halt`."""

    @abstractmethod
    def rings(self) -> Mapping[int, RingState]:
        """Where it is in each active queue; halted."""

    def get_state(self) -> dict[str, Any]:
        """What else a successor needs."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes over what get_state gave, before `start`. Raises ValueError."""
        if state:
            raise ValueError(f"{self.name} has nothing to keep")

    @abstractmethod
    def resume(
        self, features: int, queues: Sequence[QueueSetup], rings: Mapping[int, RingState]
    ) -> None:
        """As activate, for the successor of a device that was here in its rings; ValueError."""
