"""A vhost-user front end with memory and queues of its own: what a VMM and its guest would be.

    with Master("/run/fsd.sock") as master:                  # or a connected socket
        master.attach(queues=2, features=VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX)
        queue = master.queues[1]
        head = queue.submit([request], [4096])               # kicks when the device asked for kicks
        head, written, data = queue.wait()

Drives any back end, ours or a foreign one; used by unit tests, benches and fuzzing.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
import time
from collections import deque
from types import TracebackType
from typing import Self

from crumble_common.vhost_user import (
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_VERSION_1,
    Frontend,
    InflightRegion,
    MemoryRegion,
    RingSetup,
    connect,
)
from crumble_common.vhost_user.frontend import PROTOCOL_FEATURES, eventfd
from crumble_common.vhost_user.wire import Request
from crumble_native.memory import Memory
from framework.ready import readable
from framework.virtqueue_driver import Arena, VirtqueueDriver

RAM = 0x8000_0000
DEFAULT_FEATURES = VIRTIO_F_VERSION_1 | VIRTIO_F_EVENT_IDX | VIRTIO_F_INDIRECT_DESC

Done = tuple[int, int, bytes]


class MasterQueue:
    """One virtqueue: a driver, a kick, a call and an error eventfd."""

    def __init__(self, index: int, driver: VirtqueueDriver) -> None:
        self.index = index
        self.driver = driver
        self.kick_fd, self.call_fd, self.err_fd = eventfd(), eventfd(), eventfd()
        self.kicks = self.calls = 0
        self.spin_us = (
            0.0  # how long `wait` looks before it sleeps, as a guest that has other work does
        )
        self._done: deque[Done] = deque()

    def setup(self, base: int = 0) -> RingSetup:
        """What the back end is told of it."""
        d = self.driver
        return RingSetup(
            d.size, d.desc, d.avail, d.used, self.kick_fd, self.call_fd, self.err_fd, base
        )

    def submit(
        self,
        readable: list[bytes],
        writable: list[int],
        *,
        indirect: bool | None = None,
        kick: bool = True,
    ) -> int:
        """Makes a chain available; returns its head. kick=False: `kick()` comes after a batch."""
        head = self.driver.submit(readable, writable, indirect=indirect)
        if kick:
            self.kick()
        return head

    def kick(self) -> None:
        """Kicks, if the device wants to be kicked for what was submitted."""
        if self.driver.kick_wanted():
            self.kicks += 1
            os.eventfd_write(self.kick_fd, 1)

    def poll(self) -> Done | None:
        """The next chain given back, if there is one."""
        if not self._done:
            self._done.extend(self.driver.collect())
        return self._done.popleft() if self._done else None

    def _look(self) -> Done | None:
        done = self.poll()
        if done is None and self.spin_us:
            end = time.perf_counter() + self.spin_us / 1e6
            while done is None and time.perf_counter() < end:
                done = self.poll()
        return done

    def wait(self, timeout: float = 10.0) -> Done:
        """The next chain given back: head, bytes written, those bytes. Raises TimeoutError."""
        while (done := self._look()) is None:
            self.driver.interrupts(wanted=True)
            if (done := self.poll()) is not None:
                break
            ready = readable(self.call_fd, timeout=timeout)
            if not ready:
                raise TimeoutError(f"queue {self.index}: nothing came back in {timeout} s")
            os.eventfd_read(self.call_fd)
            self.calls += 1
        return done

    def broken(self, timeout: float = 0.0) -> bool:
        """True when the back end signalled an error on this queue."""
        return bool(readable(self.err_fd, timeout=timeout))

    def close(self) -> None:
        """Closes the eventfds."""
        for fd in (self.kick_fd, self.call_fd, self.err_fd):
            os.close(fd)


class Master:
    """Guest memory of `memory` bytes at 0x8000_0000 and a connection to the back end at `target`."""

    def __init__(
        self,
        target: str | socket.socket,
        *,
        memory: int = 64 << 20,
        page_state: mmap.mmap | None = None,
    ) -> None:
        self.fd = os.memfd_create("master-ram", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, memory)
        self.size = memory
        self.mapping = mmap.mmap(self.fd, memory)
        self.memory = Memory(page_state)
        self.memory.add(RAM, self.mapping)
        self.queues: list[MasterQueue] = []
        self.acked = 0
        self.offered = 0
        self.frontend = self._connected(target, None)

    def _connected(self, target: str | socket.socket, kept: InflightRegion | None) -> Frontend:
        sock = connect(target) if isinstance(target, str) else target
        return Frontend(sock, inflight=kept)

    def attach(
        self,
        *,
        queues: int,
        features: int = DEFAULT_FEATURES,
        size: int = 128,
        indirect: bool = False,
        inflight: bool = False,
        protocol: int = -1,
    ) -> None:
        """Negotiates, shares memory, sets up and starts `queues` queues of `size` entries.

        features: wanted; what the back end does not offer is left out. indirect: chains use tables.
        protocol: vhost-user protocol features wanted, by default what `Frontend` knows.
        """
        self.offered = self.frontend.negotiate(protocol & PROTOCOL_FEATURES)
        self.acked = self.offered & features
        at, share = RAM, (self.size // 2) // queues
        for index in range(queues):
            arena = Arena(RAM + self.size // 2 + index * share, share)
            driver = VirtqueueDriver(
                self.memory,
                size=size,
                at=at,
                arena=arena,
                event_idx=bool(self.acked & VIRTIO_F_EVENT_IDX),
                indirect=indirect,
            )
            at = (driver.end + 4095) & ~4095
            self.queues.append(MasterQueue(index, driver))
        self._start(size if inflight else 0)

    def reattach(self, target: str | socket.socket) -> None:
        """The back end died: carries on with its successor, in-flight chains included."""
        kept = self.frontend.inflight
        self.frontend.close(keep_inflight=True)
        self.frontend = self._connected(target, kept)
        self.frontend.negotiate()
        self._start(kept.size if kept else 0)

    def _start(self, inflight: int) -> None:
        self.frontend.set_features(self.acked)
        self.frontend.set_memory([MemoryRegion(RAM, self.size, self.fd)])
        if inflight:
            self.frontend.prepare_inflight(len(self.queues), inflight)
        for queue in self.queues:
            base = queue.driver.used_idx()
            self.frontend.start_ring(queue.index, queue.setup(base))
            self.frontend.enable_ring(queue.index, True)

    def detach(self) -> list[int]:
        """Stops all queues; returns their avail indices."""
        bases = []
        for queue in self.queues:
            self.frontend.enable_ring(queue.index, False)
            bases.append(self.frontend.stop_ring(queue.index))
        return bases

    def close(self) -> None:
        """Ends the connection and frees everything."""
        self.frontend.close()
        for queue in self.queues:
            queue.close()
        os.close(self.fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def send(
    frontend: Frontend, request: Request | int, payload: bytes = b"", fds: list[int] | None = None
) -> None:
    """A request by hand, acknowledged."""
    frontend._command(request, payload, fds)  # type: ignore[arg-type]  # numbers that are no request, too


def u64(value: int) -> bytes:
    """The payload of one number."""
    return struct.pack("<Q", value)


def state(index: int, number: int) -> bytes:
    """A vring state."""
    return struct.pack("<II", index, number)


def addresses(index: int, at: int) -> bytes:
    """Vring addresses: the rings of one queue from `at` on."""
    return struct.pack("<IIQQQQ", index, 0, at, at + 8192, at + 4096, 0)
