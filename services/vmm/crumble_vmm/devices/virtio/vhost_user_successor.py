"""A device whose back end may die: another one comes, and goes on with the rings and what is in flight.

What the old one had taken and not given back is in the in-flight region; where the rings are, the used rings say,
both in memory that outlives it. The guest notices nothing but a pause.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Sequence

from crumble_common import log
from crumble_common.errors import CrumbleError, HostError
from crumble_common.vhost_user import Frontend
from crumble_vmm.devices.virtio.device import QueueSetup
from crumble_vmm.devices.virtio.kicks import Kicks, ask_for_kicks
from crumble_vmm.devices.virtio.vhost_user import VhostUserDevice, peeking
from crumble_vmm.snapshot.state import RingState

# What a successor may take to come, s.
_PATIENCE = 30.0


class SucceededDevice(VhostUserDevice):
    """A VhostUserDevice whose back end has successors, once the guest's driver has seen the first one.

    Between two of them there may be none for a while: see `rest`.
    """

    _kicks: Kicks | None = None  # those of the driver that are listened for meanwhile

    def _leave(self) -> bool:
        """The back end has ended: True when its successor is waited for, which the supervisor sees to. With the transport's lock held."""
        if self._offered is None or self._error is not None:
            return False
        if not self._away:
            self._away = True
            self._frontend.close(keep_inflight=True)
            self._loop.call_soon_threadsafe(self._unwatch)
        return True

    def disconnect(self) -> None:
        """Takes the rings back and leaves the back end; `reconnect` may lead to any other. In the loop's thread.

        Raises CrumbleError: then there is no way back.
        """
        wiring = self._wiring
        assert wiring is not None
        if self._resuming is not None:
            self._resuming.join()
        with wiring.lock:
            if self.features and self._active and not self._away:
                self._ask(lambda: self._frontend.stop_rings(self._active))
            if self._error is not None:
                raise self._error
            self._leave()

    def rest(self, queues: Sequence[int], wanted: Callable[[], None]) -> None:
        """As `disconnect`, and the guest is not to notice: when its driver puts something on one of `queues`, `wanted`
        is called, once, and `reconnect` has to follow. In the loop's thread.
        """
        self.disconnect()
        wiring = self._wiring
        assert wiring is not None

        def kicked() -> None:
            self._unasked()
            wanted()

        with wiring.lock:
            self._kicks = Kicks(self._loop, f"{self.name} at rest")
            self._kicks.watch([wiring.kicks[index] for index in queues], kicked)
            watched = [queue for queue in self._active.values() if queue.index in queues]
            if any(
                ask_for_kicks(wiring.memory, queue, self._acked, self._used_index(queue))
                for queue in watched
            ):
                kicked()

    def _used_index(self, queue: QueueSetup) -> int:
        """Of its used ring."""
        assert self._wiring is not None
        return int.from_bytes(self._wiring.memory.read(queue.device + 2, 2), "little")

    def _unasked(self) -> None:
        if self._kicks is not None:
            self._kicks.forget()

    def stop(self) -> None:
        """Also listens no more for who wants a back end."""
        self._unasked()
        super().stop()

    def reconnect(self, sock: socket.socket) -> None:
        """`sock`, which becomes this object's, leads to the successor. In the loop's thread; does not wait."""
        self._unasked()
        wiring = self._wiring
        if wiring is None or self._error is not None:
            sock.close()
            return
        if self._resuming is not None:
            self._resuming.join()
        with wiring.lock:
            self._leave()
        self._unwatch()
        self._peek.close()
        self._peek = peeking(sock)
        self._resuming = threading.Thread(
            target=self._reconnect, args=(sock,), name=f"reconnect {self.name}"
        )
        self._resuming.start()

    def _reconnect(self, sock: socket.socket) -> None:
        assert self._wiring is not None
        # Asked before the lock is taken: it may be starting, and the guest need not wait.
        frontend = Frontend(sock, timeout=_PATIENCE, inflight=self._frontend.inflight)
        try:
            offered = frontend.negotiate()
        except CrumbleError as error:
            frontend.close(keep_inflight=True)
            log.warning("back end did not come back", device=self.name, why=error)
            return  # there may be another one
        with self._wiring.lock:
            if self._error is not None:
                frontend.close()
                return
            frontend.inflight = self._frontend.inflight  # a reset has freed it since
            self._frontend, self._away = frontend, False
            if self._acked & self._mask & ~offered:
                self._fail(
                    HostError(f"The back end of {self.name} changed.", code="vmm.vhost_user")
                )
            elif self._active:
                self._ask(self._take_over_rings)
        self._loop.call_soon_threadsafe(self._watch)

    def _take_over_rings(self) -> None:
        """The new back end goes on where the used rings, and what is in flight, say."""
        rings = {}
        for queue in self._active.values():
            rings[queue.index] = RingState(self._used_index(queue), [])
        self._start_rings(rings)
        for call in self._calls.values():
            os.eventfd_write(call, 1)  # the last interrupt may have died with its sender
