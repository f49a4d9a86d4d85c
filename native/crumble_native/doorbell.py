"""Doorbells (eventfds) and adaptive waiting on rings. See native/include/crumble/doorbell.h."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from crumble_native._core import ffi, lib
from crumble_native.vring import Virtqueue

MAX_SPIN_US: int = lib.CRB_SPIN_MAX_NS // 1000
MAX_FDS: int = lib.CRB_DOORBELL_MAX_FDS - 1


def ring(fd: int) -> None:
    """Adds 1 to an eventfd; one that is full, or that takes no writes, is left as it is."""
    lib.crb_doorbell_ring(fd)


def drain(fd: int) -> int:
    """Empties a non-blocking eventfd; the number of rings since the last time."""
    return int(lib.crb_doorbell_drain(fd))


class Doorbell:
    """An eventfd of our own. `fd` may be given to other processes and outlives nobody: `close` it."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """The eventfd, for polling."""
        return self.fd

    def ring(self) -> None:
        """Wakes whoever waits."""
        lib.crb_doorbell_ring(self.fd)

    def drain(self) -> int:
        """Empties it; the number of rings since the last time."""
        return int(lib.crb_doorbell_drain(self.fd))

    def close(self) -> None:
        """Closes the eventfd."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Spinner:
    """Looks at queues for a bounded, adaptive time before its thread goes to sleep.

    max_us: the window's bound, at most 100; 0 never looks. On a thread that may use only one CPU it is 0.
    The GIL is free while it looks. One thread at a time.
    """

    def __init__(self, queues: Sequence[Virtqueue] = (), max_us: float = 50) -> None:
        if not 0 <= max_us <= MAX_SPIN_US:
            raise ValueError(f"{max_us} is no spin window: it is 0 to {MAX_SPIN_US} µs")
        self.handle: Any = ffi.new("crb_spin *")
        lib.crb_spin_init(self.handle, int(max_us * 1000))
        self.watch(queues)

    def watch(self, queues: Sequence[Virtqueue]) -> None:
        """Looks at these queues from now on."""
        self._queues = tuple(queues)  # kept alive: C has their addresses
        self._rings: Any = ffi.new("crb_vring *[]", [queue.handle for queue in self._queues])

    def wait(self) -> bool:
        """True as soon as a queue has something to pop; False when the window is over."""
        return bool(lib.crb_spin_wait(self.handle, self._rings, len(self._queues)))

    def slept(self, seconds: float) -> None:
        """After a False: how long it then took until there was work. Adapts the window."""
        lib.crb_spin_slept(self.handle, min(int(seconds * 1e9), 1 << 62))

    def sleep(self, fds: Sequence[int], timeout: float | None = None) -> list[int]:
        """Looks, then asks the queues for kicks and sleeps in poll(2), at most `timeout` seconds.

        Returns those of `fds` that are readable or hung up; none when a queue has work or time is over.
        Raises InterruptedError, ValueError for too many fds.
        """
        if len(fds) > MAX_FDS:
            raise ValueError(f"{len(fds)} fds are too many to wait for: at most {MAX_FDS}")
        milliseconds = -1 if timeout is None else max(0, min(int(timeout * 1000), (1 << 31) - 1))
        ready = lib.crb_doorbell_wait(
            self.handle, self._rings, len(self._queues), list(fds), len(fds), milliseconds
        )
        if ready < 0:
            raise OSError(-ready, os.strerror(-ready))
        return [fd for index, fd in enumerate(fds) if ready >> index & 1]

    def idle(self) -> None:
        """After a False: somebody else sleeps from now on, and calls `woken` when there is work."""
        lib.crb_spin_idle(self.handle)

    def woken(self) -> None:
        """That sleep, if there was one, is over. Adapts the window."""
        lib.crb_spin_woken(self.handle)

    @property
    def window_us(self) -> float:
        """How long the next wait looks at most."""
        return float(self.handle.window_ns / 1000)

    @property
    def hits(self) -> int:
        """Waits that found work."""
        return int(self.handle.hits)

    @property
    def misses(self) -> int:
        """Waits that did not."""
        return int(self.handle.misses)
