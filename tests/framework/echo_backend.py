"""A vhost-user back end whose device gives every chain its readable bytes back, in capitals.

Runs on an event loop in a thread: `with EchoServer() as server: Master(server.connect())`.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from crumble_common import doorbell
from crumble_common.doorbell import QueuePump, Served
from crumble_common.eventloop import EventLoop
from crumble_common.vhost_user import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_VERSION_1,
    Backend,
    Ring,
    VhostUserError,
)
from crumble_common.virtqueue import Chain, RingError


class EchoDevice:
    """Two queues by default. `hold`: chains are popped and kept, as by a device that dies on them."""

    features = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC

    def __init__(
        self, loop: EventLoop, queues: int = 2, config: bytes | None = None, spin_us: float = 50
    ) -> None:
        self.queues = queues
        self.config = config
        self.hold = False
        self.acked = 0
        self.resets = 0
        self.running: dict[int, Ring] = {}
        self.broken: list[str] = []
        self.pump = QueuePump(loop, spin_us=spin_us)

    def negotiated(self, features: int) -> None:
        self.acked = features

    def start(self, ring: Ring) -> None:
        assert ring.queue is not None
        self.running[ring.index] = ring
        self.pump.add(
            Served(
                ring.queue,
                ring.kick_fd,
                self._answer,
                lambda: doorbell.ring(ring.call_fd),
                lambda error: self._broke(ring, error),
            )
        )

    def stop(self, index: int) -> None:
        ring = self.running.pop(index)
        assert ring.queue is not None
        self.pump.remove(ring.queue)

    def reset(self) -> None:
        self.resets += 1

    def _broke(self, ring: Ring, error: RingError) -> None:
        self.broken.append(error.code)
        ring.fail()

    def _answer(self, chain: Chain) -> int | None:
        return None if self.hold else chain.write(chain.read().upper())


class EchoServer:
    """A loop in a thread; each `connect()` makes a socket pair and a new Backend, as a new process would."""

    def __init__(self, queues: int = 2, config: bytes | None = None) -> None:
        self.loop = EventLoop()
        self.device = EchoDevice(self.loop, queues, config)
        self.backend: Backend | None = None
        self.error: VhostUserError | None = None
        self.ended = threading.Event()
        self._thread = threading.Thread(target=self.loop.run)

    def connect(self) -> socket.socket:
        """The front end's end of a new connection; the former one is closed."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self.call(lambda: self._adopt(ours))
        return theirs

    def call(self, action: Callable[[], object]) -> None:
        """Runs `action` in the loop's thread and waits for it."""
        done = threading.Event()

        def act() -> None:
            action()
            done.set()

        self.loop.call_soon_threadsafe(act)
        assert done.wait(10)

    def _adopt(self, sock: socket.socket) -> None:
        self._drop()
        self.ended.clear()
        self.error = None
        self.backend = Backend(sock, self.device)
        self.loop.add_fd(self.backend.fileno(), "vhost-user", self._readable)

    def _readable(self) -> None:
        assert self.backend is not None
        try:
            alive = self.backend.handle_readable()
        except VhostUserError as error:
            self.error, alive = error, False
        if not alive:
            self._drop()

    def _drop(self) -> None:
        if self.backend is not None:
            self.loop.remove_fd(self.backend.fileno())
            self.backend.close()
            self.backend = None
        self.ended.set()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.call(self._drop)
        self.loop.stop()
        self._thread.join(10)
        self.loop.close()
