"""The base of virtio devices whose rings are served in this process, by the event loop's thread.

The guest owns the rings and may write anything there at any time. What breaks a rule raises
RingError in C; here it marks the one device broken, and the machine goes on.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from crumble_common.virtqueue import Chain, RingError, Virtqueue
from crumble_vmm.devices.virtio.device import (
    F_EVENT_IDX,
    F_INDIRECT_DESC,
    INTERRUPT_USED,
    QueueSetup,
    VirtioDevice,
    Wiring,
)
from crumble_vmm.snapshot.state import RingState


class Loop(Protocol):
    """What devices need of crumble_common.eventloop.EventLoop."""

    def add_fd(self, fd: int, kind: str, on_readable: Callable[[], None]) -> None:
        """Calls when readable."""

    def remove_fd(self, fd: int) -> None:
        """Calls no more."""

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Calls in the loop's thread."""


class Source(Protocol):
    """Bytes waiting for the driver's buffers."""

    def __bool__(self) -> bool:
        """Something is waiting."""

    def fill(self, chain: Chain) -> int:
        """Puts what fits into a chain; gives the count of bytes written."""

    def clear(self) -> None:
        """Forgets what is waiting."""


class ByteSource:
    """A stream: cut wherever a buffer ends."""

    def __init__(self) -> None:
        self._data = bytearray()

    def __bool__(self) -> bool:
        return bool(self._data)

    @property
    def data(self) -> bytes:
        """What is waiting."""
        return bytes(self._data)

    def put(self, data: bytes) -> None:
        """Appends to the stream."""
        self._data += data

    def fill(self, chain: Chain) -> int:
        """The next bytes."""
        written = chain.write(self._data[: chain.writable_len])
        del self._data[:written]
        return written

    def clear(self) -> None:
        """Forgets what is waiting."""
        self._data.clear()


class MessageSource:
    """Messages: one a buffer, none larger than what any driver offers."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()

    def __bool__(self) -> bool:
        return bool(self._messages)

    @property
    def waiting(self) -> int:
        """How many messages wait."""
        return len(self._messages)

    @property
    def messages(self) -> list[bytes]:
        """What is waiting, in order."""
        return list(self._messages)

    def put(self, message: bytes) -> None:
        """Appends a message."""
        self._messages.append(message)

    def fill(self, chain: Chain) -> int:
        """The next message, cut when the buffer is too short for it."""
        return chain.write(self._messages.popleft())

    def clear(self) -> None:
        """Forgets what is waiting."""
        self._messages.clear()


class LocalDevice(VirtioDevice):
    """A device served here. Queues in `sources` are filled from there; the others go to `handle`."""

    sources: Mapping[int, Source] = {}

    def __init__(self, name: str, queue_sizes: Sequence[int], loop: Loop) -> None:
        super().__init__(name, queue_sizes)
        self.queues: dict[int, Virtqueue] = {}
        self.loop = loop
        self.wiring: Wiring | None = None

    @abstractmethod
    def handle(self, index: int, chain: Chain, /) -> int:
        """Serves a request on queue `index`; gives the count of bytes written into it."""

    def start(self, wiring: Wiring) -> None:
        """Listens for kicks."""
        self.wiring = wiring
        for index, fd in enumerate(wiring.kicks):
            self.loop.add_fd(fd, f"kick {self.name}", self._listener(index, fd))

    def _listener(self, index: int, fd: int) -> Callable[[], None]:
        def kicked() -> None:
            try:
                os.read(fd, 8)
            except BlockingIOError:
                return
            self.serve(index)

        return kicked

    def stop(self) -> None:
        """Listens no more."""
        if self.wiring is not None:
            for fd in self.wiring.kicks:
                self.loop.remove_fd(fd)
            self.reset()
        self.wiring = None

    def activate(self, features: int, queues: Sequence[QueueSetup]) -> None:
        """Opens the rings."""
        self._open(features, queues, {})

    def _open(
        self, features: int, queues: Sequence[QueueSetup], rings: Mapping[int, RingState]
    ) -> None:
        assert self.wiring is not None
        self.queues = {
            queue.index: Virtqueue(
                self.wiring.memory,
                queue.size,
                queue.descriptors,
                queue.driver,
                queue.device,
                event_idx=bool(features & F_EVENT_IDX),
                indirect=bool(features & F_INDIRECT_DESC),
                base=rings[queue.index].next if queue.index in rings else 0,
            )
            for queue in queues
        }
        # Buffers made available before DRIVER_OK may not have been notified (§3.1.1).
        for queue in queues:
            self._serve_later(queue.index)

    def finish(self) -> None:
        """The guest is off: serves what its driver queued last, whose kick the loop may not have heard yet."""
        for index in tuple(self.queues):
            if index not in self.sources:
                self.serve(index)

    def reset(self) -> None:
        """Closes the rings."""
        self.queues = {}
        for source in self.sources.values():
            source.clear()

    def halt(self) -> None:
        """The loop's thread, which serves the rings, halts the machine itself."""

    def go_on(self) -> None:
        """There is nothing to end."""

    def rings(self) -> Mapping[int, RingState]:
        """Requests are served whole, so nothing is unfinished."""
        return {index: RingState(queue.last_avail) for index, queue in self.queues.items()}

    def resume(
        self, features: int, queues: Sequence[QueueSetup], rings: Mapping[int, RingState]
    ) -> None:
        """Opens the rings where the predecessor was."""
        if features & ~self.features:
            raise ValueError(f"{self.name} never offered features {features:#x}")
        self._open(features, queues, rings)

    def kicked(self, index: int) -> None:
        """In the loop's turn."""
        self._serve_later(index)

    def _serve_later(self, index: int) -> None:
        self.loop.call_soon_threadsafe(lambda: self.serve(index))

    def serve(self, index: int) -> None:
        """Serves what is available on a queue. In the loop's thread."""
        if self.wiring is None:
            return
        with self.wiring.lock:
            queue = self.queues.get(index)
            if queue is not None:
                self._serve(index, queue, self.wiring)

    def _serve(self, index: int, queue: Virtqueue, wiring: Wiring) -> None:
        try:
            self._drain(index, queue)
            if self.queues.get(index) is queue and queue.should_notify():
                wiring.interrupt.signal(INTERRUPT_USED, index)
        except RingError as error:
            wiring.broken(error.message)

    def _drain(self, index: int, queue: Virtqueue) -> None:
        source = self.sources.get(index)
        # A guest that adds buffers as fast as they are used must not keep the loop to itself.
        for _ in range(queue.size):
            if source is not None and not source:
                queue.disable_kicks()
                return
            chain = queue.pop()
            if chain is None:
                if not queue.enable_kicks():
                    return
                continue
            written = self.handle(index, chain) if source is None else source.fill(chain)
            if not self.queues:  # what it asked for was a reset
                return
            queue.push(chain, written)
        self._serve_later(index)
