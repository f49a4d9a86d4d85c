"""Whether a driver wants its device, while nobody serves the rings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from crumble_common.virtqueue import Virtqueue
from crumble_native.memory import Memory
from crumble_vmm.devices.virtio.device import F_EVENT_IDX, QueueSetup
from crumble_vmm.devices.virtio.local import Loop


class Kicks:
    """Listens for notifications. They are never read: whoever serves the rings next is to find them."""

    def __init__(self, loop: Loop, kind: str) -> None:
        self._loop, self._kind = loop, kind
        self._fds: Sequence[int] = ()

    def watch(self, fds: Sequence[int], kicked: Callable[[], None]) -> None:
        """`kicked` is called, again and again until `forget`, when one of the eventfds was written."""
        self.forget()
        self._fds = fds
        for fd in fds:
            self._loop.add_fd(fd, self._kind, kicked)

    def forget(self) -> None:
        """Listens no more."""
        for fd in self._fds:
            self._loop.remove_fd(fd)
        self._fds = ()


def ask_for_kicks(memory: Memory, queue: QueueSetup, features: int, base: int) -> bool:
    """Has the driver notify the queue; True when something is there already. Its back end may have been looking.

    base: avail index of what nobody has taken yet.
    """
    try:
        ring = Virtqueue(
            memory, queue.size, queue.descriptors, queue.driver, queue.device,
            event_idx=bool(features & F_EVENT_IDX), base=base,
        )  # fmt: skip
    except ValueError:
        return True  # a back end says so best
    return ring.enable_kicks()
