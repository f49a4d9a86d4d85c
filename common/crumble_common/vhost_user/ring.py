"""One ring of a back end: what the front end said of it, and the Virtqueue while it runs."""

from __future__ import annotations

import os

from crumble_common.vhost_user import wire
from crumble_common.vhost_user.channel import close_all
from crumble_common.vhost_user.inflight import Inflight
from crumble_common.vhost_user.memory_table import MemoryTable
from crumble_common.vhost_user.wire import VhostUserError
from crumble_common.virtqueue import MAX_SIZE, Virtqueue
from crumble_native import doorbell


class Ring:
    """Given to the device when it starts.

    index: the queue's number. queue: the Virtqueue while the ring runs. kick_fd: readable when the
    driver added chains, -1 when it must be polled; constant while the ring runs. call_fd: write 1 to it
    to interrupt; the same number for the ring's life, whatever the front end changes behind it.
    """

    def __init__(self, index: int) -> None:
        self.index = index
        self.queue: Virtqueue | None = None
        self.addresses: tuple[int, int, int] | None = None  # front-end addresses: desc, avail, used
        self.base = 0
        self.enabled = False
        self.kick_fd = -1
        # Never read by anyone: what a ring without a call fd signals.
        self.call_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._size = 0
        self._kicked = False  # SET_VRING_KICK came
        self._err_fd = -1

    @property
    def running(self) -> bool:
        """True between the device's start and stop."""
        return self.queue is not None

    def ready(self) -> bool:
        """True when everything but memory and SET_VRING_ENABLE is there."""
        return self._kicked and self._size > 0 and self.addresses is not None

    def notify(self) -> None:
        """Interrupts the driver if it wants to be, for what was pushed since the last call."""
        if self.queue is not None and self.queue.should_notify():
            doorbell.ring(self.call_fd)

    def fail(self) -> None:
        """Tells the front end that the ring is broken and no longer served."""
        if self._err_fd >= 0:
            doorbell.ring(self._err_fd)

    def set_size(self, size: int) -> None:
        """SET_VRING_NUM."""
        if not 0 < size <= MAX_SIZE or size & (size - 1):
            raise VhostUserError(f"{size} is not a queue size.")
        if self.running and size != self._size:
            raise VhostUserError("A running ring's size cannot change.")
        self._size = size

    def set_kick(self, fd: int) -> None:
        """SET_VRING_KICK: takes `fd`, -1 for polling."""
        self.drop_kick()
        if fd >= 0:
            os.set_blocking(fd, False)
        self.kick_fd, self._kicked = fd, True

    def drop_kick(self) -> None:
        """The ring waits for another SET_VRING_KICK."""
        if self.kick_fd >= 0:
            os.close(self.kick_fd)
        self.kick_fd, self._kicked = -1, False

    def set_call(self, fd: int) -> None:
        """SET_VRING_CALL: takes `fd`, -1 for none."""
        new = fd if fd >= 0 else os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        os.set_blocking(new, False)
        os.dup2(new, self.call_fd, inheritable=False)
        os.close(new)

    def set_err(self, fd: int) -> None:
        """SET_VRING_ERR: takes `fd`, -1 for none."""
        if self._err_fd >= 0:
            os.close(self._err_fd)
        if fd >= 0:
            os.set_blocking(fd, False)
        self._err_fd = fd

    def open(self, table: MemoryTable, features: int, inflight: Inflight | None) -> None:
        """Makes the queue; raises VhostUserError when the ring is not in guest memory."""
        assert self.addresses is not None
        desc, avail, used = (table.to_gpa(user) for user in self.addresses)
        try:
            queue = Virtqueue(
                table.memory,
                self._size,
                desc,
                avail,
                used,
                event_idx=bool(features & wire.VIRTIO_F_EVENT_IDX),
                indirect=bool(features & wire.VIRTIO_F_INDIRECT_DESC),
                base=self.base,
            )
        except ValueError as error:
            raise VhostUserError(f"Queue {self.index}: {error}.") from error
        if inflight is not None:
            inflight.track(self.index, queue)
        self.queue = queue

    def shut(self) -> None:
        """The device has stopped: remembers where it was."""
        assert self.queue is not None
        self.base = self.queue.last_avail
        self.queue = None

    def reset(self) -> None:
        """As new, but for the fds of call and err."""
        self.drop_kick()
        self.addresses = None
        self.base = self._size = 0
        self.enabled = False

    def close(self) -> None:
        """Closes its fds."""
        self.drop_kick()
        close_all(fd for fd in (self.call_fd, self._err_fd) if fd >= 0)
        self.call_fd = self._err_fd = -1
