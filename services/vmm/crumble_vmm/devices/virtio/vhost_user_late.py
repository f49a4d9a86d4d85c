"""A device of a restored machine whose back end begins when it is wanted.

    resumed ──a kick, something in the rings, a reset──► `wanted` is called ──► negotiated ──► live

Until then the rings are as they were captured, and nobody is asked for anything.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crumble_vmm.devices.virtio.device import QueueSetup, Wiring
from crumble_vmm.devices.virtio.kicks import Kicks, ask_for_kicks
from crumble_vmm.devices.virtio.vhost_user import VhostUserDevice
from crumble_vmm.snapshot.state import RingState

# What a back end that is wanted may take to begin, s: the supervisor has a limit of its own. And while a vCPU waits.
_PATIENCE, _QUESTION = 90.0, 10.0


@dataclass(frozen=True)
class _Rings:
    """What there is to hand over once the back end begins."""

    features: int
    queues: Sequence[QueueSetup]
    states: Mapping[int, RingState]


class LateDevice(VhostUserDevice):
    """A VhostUserDevice at whose other end nobody may be. wanted: called once, in the loop's thread, when somebody has to be."""

    def __init__(self, *args: Any, wanted: Callable[[], None], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._wanted: Callable[[], None] | None = wanted
        self._waiting: _Rings | None = None
        self._kicks = Kicks(self._loop, f"vhost-user {self.name} to begin")
        self._asking = threading.Lock()  # for the features; taken after the transport's

    @property
    def features(self) -> int:
        """As a VhostUserDevice's. Who asks wants a back end."""
        return self._ask_features(_QUESTION)

    def _ask_features(self, seconds: float) -> int:
        """0 as well when another thread has waited for the answer for so long."""
        wanted, self._wanted = self._wanted, None
        if wanted is not None:
            self._loop.call_soon_threadsafe(wanted)
        if self._offered is not None:
            return self._offered
        if not self._asking.acquire(timeout=seconds):
            return 0
        try:
            with self._frontend.patient(seconds):
                return super().features
        finally:
            self._asking.release()

    def resume(
        self, features: int, queues: Sequence[QueueSetup], rings: Mapping[int, RingState]
    ) -> None:
        """Waits for the guest to want something."""
        self._check(queues)
        self._unwatch()
        self._waiting = _Rings(features, queues, rings)
        self._listen_for_kicks(self._waiting)

    def _listen_for_kicks(self, rings: _Rings) -> None:
        wiring = self._wiring
        assert wiring is not None
        self._kicks.watch([wiring.kicks[queue.index] for queue in rings.queues], self._kicked)
        if any(_has_requests(wiring, rings, queue) for queue in rings.queues):
            self._kicked()

    def _kicked(self) -> None:
        """In the loop's thread."""
        self._kicks.forget()
        wiring = self._wiring
        if wiring is None:
            return
        with wiring.lock:
            rings, self._waiting = self._waiting, None
            if rings is not None:
                super().resume(rings.features, rings.queues, rings.states)

    def _resume(
        self, features: int, queues: Sequence[QueueSetup], rings: Mapping[int, RingState]
    ) -> None:
        # Asked before the lock is taken: it begins now, and the guest need not wait.
        self._ask_features(_PATIENCE)
        super()._resume(features, queues, rings)

    def halt(self) -> None:
        """Also while nobody has begun."""
        if self._waiting is None:
            super().halt()
        else:
            self._kicks.forget()

    def go_on(self) -> None:
        """Ends `halt`."""
        if self._waiting is None:
            super().go_on()
        else:
            self._listen_for_kicks(self._waiting)

    def rings(self) -> dict[int, RingState]:
        """Those it was given, as long as nobody has served them."""
        return super().rings() if self._waiting is None else dict(self._waiting.states)

    def reset(self) -> None:
        """Its driver begins anew: what was there to hand over is gone."""
        if self._waiting is not None:
            self._waiting = None
            self._loop.call_soon_threadsafe(self._watch)
        super().reset()

    def stop(self) -> None:
        """Does not wait for one that has not begun."""
        self._kicks.forget()
        if self._resuming is not None and self._resuming.is_alive():
            with contextlib.suppress(OSError):
                self._peek.shutdown(socket.SHUT_RDWR)
        super().stop()


def _has_requests(wiring: Wiring, rings: _Rings, queue: QueueSetup) -> bool:
    """Something is in a queue; if not, its driver will say so."""
    state = rings.states.get(queue.index, RingState())
    return bool(state.unfinished) or ask_for_kicks(wiring.memory, queue, rings.features, state.next)
