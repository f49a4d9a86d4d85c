"""The virtio-fs device (virtio 1.2 §5.11) behind vhost-user: rings to session and back.

Queue 0 is the high-priority one (FORGET, INTERRUPT), the others carry requests. All are served by the
loop's thread, through crumble_common.doorbell's pump.
"""

from __future__ import annotations

from typing import cast

from crumble_common import doorbell, log
from crumble_common.doorbell import QueuePump, Served
from crumble_common.errors import UsageError
from crumble_common.eventloop import EventLoop, Timer
from crumble_common.lockstep import EPOCH_NS, kick_time
from crumble_common.vhost_user import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_VERSION_1,
    Ring,
)
from crumble_common.virtqueue import Chain, RingError, Virtqueue
from crumble_fsd.clock import CLOCK
from crumble_fsd.session import PENDING, Session

REQUEST_QUEUES = 8
_TAG_SIZE = 36
_RETRY = 0.02  # seconds between attempts at a lock that others hold

Token = tuple[Virtqueue, Chain]


class FsDevice:
    """A crumble_common.vhost_user.Device over one session. tag "": no configuration space.
    lockstep: with a deterministic guest (crumble_common/lockstep.py).
    """

    features = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC
    queues = 1 + REQUEST_QUEUES

    def __init__(self, loop: EventLoop, tag: str = "", *, lockstep: bool = False) -> None:
        self.config = config_space(tag) if tag else None
        self.session: Session | None = None
        self.pump = QueuePump(loop)
        if lockstep:
            self.pump.lockstep = _tell_time
            CLOCK.told = EPOCH_NS
        self._rings: dict[int, Virtqueue] = {}
        self._loop = loop
        self._retry: Timer | None = None

    def negotiated(self, features: int) -> None:
        """Of vhost_user.Device. The rings know them; nothing else depends on them."""

    def start(self, ring: Ring) -> None:
        """Of vhost_user.Device."""
        session, queue = self.session, ring.queue
        assert session is not None
        assert queue is not None

        def serve(chain: Chain) -> int | None:
            length = session.handle(chain.readable, chain.writable, (queue, chain))
            if length != PENDING:
                return length
            self._retry_later()
            return None

        def broken(error: RingError) -> None:
            log.warning("ring broken", queue=ring.index, reason=error.message)
            ring.fail()

        def notify() -> None:  # not ring.notify: the pump has asked should_notify already
            doorbell.ring(ring.call_fd)

        self._rings[ring.index] = queue
        self.pump.add(Served(queue, ring.kick_fd, serve, notify, broken))

    def _retry_later(self) -> None:
        """Whoever waits for a lock held outside the guest tries again now and then."""
        if self._retry is None:
            self._retry = self._loop.call_later(_RETRY, self._retry_locks)

    def _retry_locks(self) -> None:
        assert self.session is not None
        self._retry = None
        self.session.locks_freed()
        if self.session.waiting:
            self._retry_later()

    def stop(self, index: int) -> None:
        """Of vhost_user.Device. Whoever waits for a lock is told to ask again (EINTR)."""
        assert self.session is not None
        self.session.interrupt_all()
        self.pump.remove(self._rings.pop(index))

    def reset(self) -> None:
        """Of vhost_user.Device: the guest's mount is gone, but the tree stays."""
        assert self.session is not None
        self.session.reset()

    def complete(self, token: object, length: int) -> None:
        """Gives back a chain whose request had been PENDING."""
        self.pump.finish(*cast("Token", token), length)


def _tell_time(count: int) -> None:
    CLOCK.told = kick_time(count)


def config_space(tag: str) -> bytes:
    """`struct virtio_fs_config`; UsageError when the tag is too long."""
    raw = tag.encode()
    if not 0 < len(raw) <= _TAG_SIZE:
        raise UsageError(f"A tag has 1 to {_TAG_SIZE} bytes; {tag!r:.50} has {len(raw)}.")
    return raw.ljust(_TAG_SIZE, b"\0") + REQUEST_QUEUES.to_bytes(4, "little")
