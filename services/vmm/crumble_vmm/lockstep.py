"""Lockstep: the vCPU of a deterministic machine and the loop's thread take turns.

The vCPU runs until its guest kicks a device of this process. Then the loop's thread serves the device, and
everything that follows from it, while the vCPU waits; `settled` is called last. What the guest sees of the
host's side so depends on its own instructions only. (Devices of other processes: virtio/vhost_user.py.)
"""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable

from crumble_common.eventloop import EventLoop
from crumble_common.lockstep import EPOCH_NS

# How long the vCPU's thread waits before it looks whether the machine is over, s.
_LOOK = 0.1


class Never:
    """A timer that does not come: the host's time means nothing to a deterministic guest."""

    def cancel(self) -> None:
        """Nothing to do."""


class Lockstep:
    """The loop of a deterministic machine's devices, its clock and its entropy. seed: of the latter.

    uptime: the guest's clock, ns since it was switched on. settled: called in the loop's thread at the end of
    each turn. over: whether the machine ends; nobody waits any more.
    """

    def __init__(self, loop: EventLoop, seed: bytes) -> None:
        self._loop = loop
        self._queued: deque[Callable[[], None]] = deque()
        self._turn: threading.Event | None = None
        self._seed, self._drawn = seed, 0
        self.uptime: Callable[[], int] = lambda: 0
        self.settled: Callable[[], None] = lambda: None
        self.over: Callable[[], bool] = lambda: False

    # What devices need of a loop.

    def add_fd(self, fd: int, kind: str, on_readable: Callable[[], None]) -> None:
        """As the loop does; a local device's kicks are not written in lockstep."""
        self._loop.add_fd(fd, kind, on_readable)

    def remove_fd(self, fd: int) -> None:
        """As the loop does."""
        self._loop.remove_fd(fd)

    def call_soon_threadsafe(self, callback: Callable[[], None]) -> None:
        """Calls in the loop's next turn."""
        self._queued.append(callback)

    def call_later(self, _seconds: float, _callback: Callable[[], None]) -> Never:
        """Does not call."""
        return Never()

    # Turns.

    def give_turn(self) -> None:
        """In the vCPU's thread: returns when what is queued has been done, and all that came of it."""
        if not self._queued:
            return
        turn = self._turn = threading.Event()
        self._loop.call_soon_threadsafe(self.take_turn)
        while not turn.wait(_LOOK) and not self.over():
            pass

    def take_turn(self) -> None:
        """In the loop's thread: the turn that the vCPU gave, if it is not taken yet."""
        turn, self._turn = self._turn, None
        if turn is None:
            return
        try:
            self.drain()
            self.settled()
        finally:
            turn.set()

    def drain(self) -> None:
        """Does what is queued."""
        while self._queued:
            self._queued.popleft()()

    # Where others ask the host.

    def time_ns(self) -> int:
        """The guest's time, since 1970."""
        return EPOCH_NS + self.uptime()

    def entropy(self, size: int) -> bytes:
        """The next bytes of what the seed makes."""
        self._drawn += 1
        return hashlib.shake_256(self._drawn.to_bytes(8, "little") + self._seed).digest(size)
