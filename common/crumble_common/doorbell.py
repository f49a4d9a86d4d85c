"""Doorbells and queue pumps: how a service serves virtqueues without paying for wake-ups.

`QueuePump` runs on a service's event loop. While chains keep coming it stays awake: kicks are off and it
looks at the rings for a bounded, adaptive time (`Spinner`) before it asks for kicks and lets the loop sleep.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from crumble_common.eventloop import EventLoop, Timer
from crumble_common.virtqueue import Chain, RingError, Virtqueue
from crumble_native.doorbell import Doorbell, Spinner, drain, ring

__all__ = ["Doorbell", "QueuePump", "Served", "Spinner", "drain", "ring"]

# Chains, and seconds, until other things on the loop get their turn.
_BURST = 256
_TURN = 0.004
# How often a queue without a kick fd is looked at. The protocol's way to ask for polling; no peer
# that we know of uses it with a device of ours.
_POLL = 0.001


@dataclass(eq=False)
class Served:
    """One queue of a pump.

    serve: handles a chain; returns the bytes written, after which the chain is pushed, or None when the
    device keeps it and calls `QueuePump.finish` later. notify: interrupts the driver; called after pushes when
    the driver wants it. broken: the guest broke the ring; it is no longer served. after: called when a
    burst of chains has been served, with what they have in common to do. take: instead of `serve`: takes, serves and
    gives back as many chains as it likes; how many. live: a pump serves it.
    """

    queue: Virtqueue
    kick_fd: int
    serve: Callable[[Chain], int | None] | None
    notify: Callable[[], None]
    broken: Callable[[RingError], None]
    after: Callable[[], None] | None = None
    take: Callable[[], int] | None = None
    live: bool = False


class QueuePump:
    """Serves any number of queues on one loop, in turns. All calls come from the loop's thread."""

    def __init__(self, loop: EventLoop, *, spin_us: float = 50) -> None:
        self._loop = loop
        self.lockstep: Callable[[int], None] | None = None
        """Serves in lockstep (crumble_common/lockstep.py): told of each kick's count. Set before `add`."""
        self._served: list[Served] = []
        self.spinner = Spinner(max_us=spin_us)
        self._again = False
        self._poll: Timer | None = None
        self.chains = 0

    def add(self, served: Served) -> None:
        """Serves a queue from now on; what is in it already is served in the loop's next round."""
        self._served.append(served)
        served.live = True
        if self.lockstep is not None:
            self._loop.add_fd(served.kick_fd, "kick", lambda: self._answer(served))
            return
        if served.kick_fd >= 0:
            self._loop.add_fd(served.kick_fd, "kick", self._kicked)
        self._changed()
        self._soon()

    def remove(self, queue: Virtqueue) -> None:
        """Serves it no more; unknown queues are fine. Call it before closing the kick fd."""
        for served in [s for s in self._served if s.queue is queue]:
            if served.kick_fd >= 0:
                self._loop.remove_fd(served.kick_fd)
            self._served.remove(served)
            served.live = False
        self._changed()

    def finish(self, queue: Virtqueue, chain: Chain, written: int) -> None:
        """Gives back a chain that `serve` kept. Chains of removed queues are forgotten."""
        for served in self._served:
            if served.queue is queue:
                queue.push(chain, written)
                self._notify(served)

    def stats(self) -> dict[str, int]:
        """Counters for heartbeats."""
        spin = self.spinner
        return {"chains": self.chains, "spin_hits": spin.hits, "spin_misses": spin.misses}

    def _changed(self) -> None:
        self.spinner.watch([served.queue for served in self._served])
        if self._poll is not None:
            self._poll.cancel()
            self._poll = None
        if any(served.kick_fd < 0 for served in self._served):
            self._poll = self._loop.call_later(_POLL, self._polled)

    def _polled(self) -> None:
        self._changed()
        self._run()

    def _soon(self) -> None:
        if not self._again:
            self._again = True
            self._loop.call_soon(self._resume)

    def _resume(self) -> None:
        self._again = False
        self._run()

    def _kicked(self) -> None:
        for served in self._served:
            if served.kick_fd >= 0:
                drain(served.kick_fd)
        self.spinner.woken()
        self._run()

    def _answer(self, served: Served) -> None:
        """In lockstep: serves one queue to its end and answers with one call."""
        assert self.lockstep is not None
        self.lockstep(drain(served.kick_fd))
        while self._drain(served):
            pass
        if served.live:
            served.notify()

    def _run(self) -> None:
        """Serves until nothing comes any more, or it is somebody else's turn."""
        for served in tuple(self._served):
            served.queue.disable_kicks()
        end = time.monotonic() + _TURN
        while self._served:
            for served in tuple(self._served):
                self._drain(served)
            if time.monotonic() >= end:
                self._soon()
                return
            if not self.spinner.wait() and not self._enable_kicks():
                break
        self.spinner.idle()

    def _drain(self, served: Served) -> int:
        """Serves at most a burst of one queue; returns how many chains."""
        count = 0
        try:
            if served.take is not None:
                count = served.take() if served.live else 0
            while served.serve is not None and count < _BURST and served.live:
                chain = served.queue.pop()
                if chain is None:
                    break
                count += 1
                written = served.serve(chain)
                if written is not None:
                    served.queue.push(chain, written)
        except RingError as error:
            self.remove(served.queue)
            served.broken(error)
        self.chains += count
        self._notify(served)
        if count and served.after is not None:
            served.after()
        return count

    def _notify(self, served: Served) -> None:
        if self.lockstep is None and served.queue.should_notify():
            served.notify()

    def _enable_kicks(self) -> bool:
        """True when a queue turned out to have work."""
        return any(served.queue.enable_kicks() for served in self._served)
