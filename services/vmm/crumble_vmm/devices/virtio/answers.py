"""How a vCPU in lockstep waits for a device that another process serves (crumble_common/lockstep.py)."""

from __future__ import annotations

import os
import select

from crumble_common.lockstep import kick_count
from crumble_vmm.devices.virtio.device import INTERRUPT_USED, QueueSetup, Wiring
from crumble_vmm.lockstep import Lockstep

# How long to wait before looking whether the machine is over, ms.
_LOOK = 100
# virtio 1.2 §2.7.6: the driver wants no interrupt.
_NO_INTERRUPT = 1


class Answers:
    """The call eventfds of one device's queues, listened to by the vCPU's thread alone."""

    def __init__(self, lockstep: Lockstep) -> None:
        self._lockstep = lockstep
        self._queues: dict[int, tuple[QueueSetup, int]] = {}
        self._used: dict[int, bytes] = {}

    def add(self, queue: QueueSetup, call: int) -> None:
        """A queue that was handed over."""
        self._queues[queue.index] = queue, call
        self._used[queue.index] = bytes(2)

    def clear(self) -> None:
        """All were taken back."""
        self._queues.clear()

    def wait(self, index: int, wiring: Wiring, back_end: int) -> None:
        """Kicks a queue; returns when it was served, or when nobody is there to do so.

        back_end: the connection, of which nothing is heard but its end.
        """
        queue, call = self._queues[index]
        os.eventfd_write(wiring.kicks[index], kick_count(self._lockstep.time_ns()))
        poller = select.poll()
        poller.register(call, select.POLLIN)
        poller.register(back_end, select.POLLIN)
        while not self._lockstep.over():
            ready = [fd for fd, _events in poller.poll(_LOOK)]
            if call in ready:
                os.eventfd_read(call)
                self._interrupt(queue, wiring)
            if ready:
                return

    def _interrupt(self, queue: QueueSetup, wiring: Wiring) -> None:
        """Raises the interrupt when something was used and the driver wants to know."""
        used = wiring.memory.read(queue.device + 2, 2)
        flags = int.from_bytes(wiring.memory.read(queue.driver, 2), "little")
        changed, self._used[queue.index] = used != self._used[queue.index], used
        if changed and not flags & _NO_INTERRUPT:
            wiring.interrupt.signal(INTERRUPT_USED, queue.index)
