"""The virtio-fs device (virtio 1.2 §5.11) behind vhost-user: rings to session and back.

Queue 0 is the high-priority one (FORGET, INTERRUPT), the others carry requests. All are served by the
loop's thread: a ring is drained with its kicks off, then asked once more before it is left. Chains
are given back one by one, the driver interrupted when the ring is empty or a batch is done.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import cast

from crumble_common import log
from crumble_common.eventloop import EventLoop, Timer
from crumble_common.vhost_user import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_VERSION_1,
    Ring,
)
from crumble_common.virtqueue import Chain, RingError, Virtqueue
from crumble_fsd.session import PENDING, Session

REQUEST_QUEUES = 8
_TAG_SIZE = 36
# Requests of one ring before the others and the control channel get their turn.
_TURN = 256
_NOTIFY_BATCH = 16
# A ring without a kick eventfd is looked at this often, seconds.
_POLL = 0.001

Token = tuple[Ring, Virtqueue, Chain]


class FsDevice:
    """A crumble_common.vhost_user.Device over one session. tag "": no configuration space."""

    features = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC
    queues = 1 + REQUEST_QUEUES

    def __init__(self, loop: EventLoop, tag: str = "") -> None:
        self.config = config_space(tag) if tag else None
        self.requests = 0
        self.session: Session | None = None
        self._loop = loop
        self._rings: dict[int, Ring] = {}
        self._timers: dict[int, Timer] = {}

    def negotiated(self, features: int) -> None:
        """Of vhost_user.Device. The rings know them; nothing else depends on them."""

    def start(self, ring: Ring) -> None:
        """Of vhost_user.Device."""
        self._rings[ring.index] = ring
        if ring.kick_fd >= 0:
            self._loop.add_fd(ring.kick_fd, "kick", lambda: self._kicked(ring))
        self._turn(ring)

    def stop(self, index: int) -> None:
        """Of vhost_user.Device. Whoever waits for a lock is told to ask again (EINTR)."""
        ring = self._rings.pop(index)
        self._unwatch(ring)
        assert self.session is not None
        self.session.interrupt_all()
        ring.notify()

    def reset(self) -> None:
        """Of vhost_user.Device: the guest's mount is gone, but the tree stays."""
        assert self.session is not None
        self.session.reset()

    def complete(self, token: object, length: int) -> None:
        """Gives back a chain whose request had been PENDING."""
        ring, queue, chain = cast("Token", token)
        if ring.queue is queue:
            queue.push(chain, length)
            ring.notify()

    def _kicked(self, ring: Ring) -> None:
        try:
            os.eventfd_read(ring.kick_fd)
        except OSError:
            pass  # spurious, or an fd that is no eventfd: the ring says what there is
        self._turn(ring)

    def _turn(self, ring: Ring) -> None:
        """Serves what is on the ring, at most _TURN requests; comes back for more."""
        queue = ring.queue
        if queue is None or self._rings.get(ring.index) is not ring:
            return
        try:
            left = self._drain(ring, queue)
        except RingError as error:
            log.warning("ring broken", queue=ring.index, reason=error.message)
            self._unwatch(ring)
            ring.fail()
            return
        if left:
            self._loop.call_soon(lambda: self._turn(ring))
        elif ring.kick_fd < 0:
            again: Callable[[], None] = lambda: self._turn(ring)  # noqa: E731
            self._timers[ring.index] = self._loop.call_later(_POLL, again)

    def _drain(self, ring: Ring, queue: Virtqueue) -> bool:
        """True when there may be more."""
        session = self.session
        assert session is not None
        queue.disable_kicks()
        for served in range(1, _TURN + 1):
            chain = queue.pop()
            if chain is None:
                ring.notify()
                if not queue.enable_kicks():
                    return False
                queue.disable_kicks()
                continue
            length = session.handle(chain.readable, chain.writable, (ring, queue, chain))
            self.requests += 1
            if length != PENDING:
                queue.push(chain, length)
            if served % _NOTIFY_BATCH == 0:
                ring.notify()
        ring.notify()
        return True

    def _unwatch(self, ring: Ring) -> None:
        if ring.kick_fd >= 0:
            self._loop.remove_fd(ring.kick_fd)
        if timer := self._timers.pop(ring.index, None):
            timer.cancel()


def config_space(tag: str) -> bytes:
    """`struct virtio_fs_config`; ValueError when the tag is too long."""
    raw = tag.encode()
    if not 0 < len(raw) <= _TAG_SIZE:
        raise ValueError(f"a tag has 1 to {_TAG_SIZE} bytes")
    return raw.ljust(_TAG_SIZE, b"\0") + REQUEST_QUEUES.to_bytes(4, "little")
