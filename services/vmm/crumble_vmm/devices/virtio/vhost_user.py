"""A virtio device whose rings are served by another process, over vhost-user (D15).

The transport and negotiation are here, the rings are there: the guest's kick is an eventfd the other
process reads, its interrupt an eventfd the hypervisor back end listens to. Once the driver is live,
this process is not on the path of a request.

The other process starts at the same time as we do, so its features are asked for when the guest's
driver first wants to know them, in that vCPU's thread. When it goes away, or answers nonsense, the
device is broken and `lost` says so; the guest goes on without it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from crumble_common.errors import CrumbleError, HostError
from crumble_common.vhost_user import (
    Disconnected,
    Frontend,
    InflightRegion,
    MemoryRegion,
    RingSetup,
    inflight,
)
from crumble_vmm.devices.virtio.answers import Answers
from crumble_vmm.devices.virtio.device import (
    F_EVENT_IDX,
    F_VERSION_1,
    RING_FEATURES,
    QueueSetup,
    VirtioDevice,
    Wiring,
)
from crumble_vmm.devices.virtio.local import Loop
from crumble_vmm.lockstep import Lockstep
from crumble_vmm.snapshot.state import RingState

T = TypeVar("T")


class VhostUserDevice(VirtioDevice):
    """A device behind `sock`, which is connected and becomes this object's.

    own_features: device-specific feature bits the guest may see. config: what the guest reads; None
    asks the back end. lost: called once, in the loop's thread, when the back end is no use any more.
    """

    def __init__(
        self,
        name: str,
        device_id: int,
        sock: socket.socket,
        regions: Sequence[MemoryRegion],
        queue_sizes: Sequence[int],
        loop: Loop,
        lost: Callable[[CrumbleError], None],
        *,
        own_features: int = 0,
        config: bytes | None = None,
        config_size: int = 0,
        lockstep: Lockstep | None = None,
    ) -> None:
        super().__init__(name, queue_sizes)
        self.device_id = device_id
        self._regions = list(regions)
        self._loop = loop
        self._lost = lost
        self._mask = RING_FEATURES | own_features
        self._answers = Answers(lockstep) if lockstep else None
        if lockstep is not None:
            self._mask &= ~F_EVENT_IDX  # the driver kicks each time
        self._config, self._config_size = config, config_size
        self._peek = peeking(sock)
        self._frontend = Frontend(sock)
        self._away = False  # the back end has ended, and its successor has not come (vhost_user_successor.py)
        self._acked = 0
        self._offered: int | None = None
        self._error: CrumbleError | None = None
        self._wiring: Wiring | None = None
        self._calls: dict[int, int] = {}
        self._active: dict[int, QueueSetup] = {}
        self._stopped: dict[int, int] | None = None  # avail indices by queue while halted
        self._resuming: threading.Thread | None = None
        self._resumed = False  # the driver is a captured one's, and has not reset it
        self._watched = False
        self._err_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    @property
    def features(self) -> int:
        """What the back end offers and the guest may see; 0 when there is no back end."""
        if self._offered is None:
            self._offered = self._ask(self._negotiate) or 0
        return self._offered

    def _negotiate(self) -> int:
        offered = self._frontend.negotiate()
        if not offered & F_VERSION_1:
            raise HostError(
                f"The back end of {self.name} offers no modern virtio.", code="vmm.vhost_user"
            )
        if 0 < self._frontend.queues < len(self.queue_sizes):
            raise HostError(
                f"The back end of {self.name} has {self._frontend.queues} queues, "
                f"{len(self.queue_sizes)} are needed.",
                code="vmm.vhost_user",
            )
        return offered & self._mask

    @property
    def config(self) -> bytes:
        """Ours when it was given, the back end's otherwise."""
        if self._config is None:
            found = self._ask(lambda: self._frontend.get_config(0, self._config_size))
            self._config = found if found is not None else bytes(self._config_size)
        return self._config

    def _ask(self, question: Callable[[], T]) -> T | None:
        if self._error is None:
            try:
                return question()
            except CrumbleError as error:
                if not isinstance(error, Disconnected) or not self._leave():
                    self._fail(error)
        return None

    def start(self, wiring: Wiring) -> None:
        """Watches the back end."""
        self._wiring = wiring
        self._watch()
        self._loop.add_fd(self._err_fd, f"vhost-user {self.name} error", self._ring_failed)

    def _watch(self) -> None:
        if not self._watched and self._error is None and self._wiring is not None:
            self._watched = True
            self._loop.add_fd(self._peek.fileno(), f"vhost-user {self.name}", self._readable)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.remove_fd(self._peek.fileno())

    def stop(self) -> None:
        """Takes the rings back and ends the connection."""
        if self._resuming is not None:
            self._resuming.join()
        if self._wiring is not None:
            self._loop.remove_fd(self._err_fd)
            self._unwatch()
        self.reset()
        self._wiring = None
        self._frontend.close()
        self._peek.close()
        os.close(self._err_fd)

    def activate(self, features: int, queues: Sequence[QueueSetup]) -> None:
        """Hands the rings over. In the vCPU's thread; the guest waits."""
        self._hand_over(features, queues, {})

    def _hand_over(
        self, features: int, queues: Sequence[QueueSetup], rings: Mapping[int, RingState]
    ) -> None:
        if self._error is not None:
            raise self._error
        self._acked = features
        self._active = {queue.index: queue for queue in queues}
        try:
            if not self._away:
                self._start_rings(rings)
        except Disconnected:
            if not self._leave():
                raise
        except CrumbleError as error:
            self._fail(error)
            raise

    def _start_rings(self, rings: Mapping[int, RingState]) -> None:
        """Hands the active rings to the back end there is. rings: where they were; by default at their start."""
        assert self._wiring is not None
        frontend, queues = self._frontend, list(self._active.values())
        with frontend.at_once():
            frontend.set_features(self._acked)
            frontend.set_memory(self._regions)
            undone = functools.partial(self._hand_over_undone, queues, rings)
            frontend.prepare_inflight(len(self.queue_sizes), max(self.queue_sizes), undone)
            for queue in queues:
                base = rings[queue.index].next if queue.index in rings else 0
                frontend.start_ring(queue.index, self._ring(queue, self._wiring, base))
                frontend.enable_ring(queue.index, True)

    def _hand_over_undone(
        self,
        queues: Sequence[QueueSetup],
        rings: Mapping[int, RingState],
        region: InflightRegion,
    ) -> None:
        """Requests that the predecessor's back end held go to ours first."""
        assert self._wiring is not None
        for queue in queues:
            if queue.index in rings and (heads := rings[queue.index].unfinished):
                used = self._wiring.memory.read(queue.device + 2, 2)
                inflight.hand_over(
                    region, queue.index, queue.size, int.from_bytes(used, "little"), heads
                )

    def _ring(self, queue: QueueSetup, wiring: Wiring, base: int) -> RingSetup:
        call = self._calls.get(queue.index, -1)
        if call < 0:
            call = self._calls[queue.index] = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
            self._listen(queue, call, wiring)
        return RingSetup(
            queue.size,
            queue.descriptors,
            queue.driver,
            queue.device,
            wiring.kicks[queue.index],
            call,
            self._err_fd,
            base,
        )

    def _listen(self, queue: QueueSetup, call: int, wiring: Wiring) -> None:
        if self._answers is not None:
            self._answers.add(queue, call)
        else:
            wiring.interrupt.add_call_fd(call, queue.index)

    def kicked(self, index: int) -> None:
        """Returns when the back end has served the queue, or is gone."""
        assert self._answers is not None
        if self._wiring is not None and index in self._active:
            self._answers.wait(index, self._wiring, self._peek.fileno())

    # Snapshots.

    def halt(self) -> None:
        """Takes the rings back until `go_on`; requests are finished, or unfinished for good reason."""
        if self._error is not None:
            raise self._error
        if self._resuming is not None:
            self._resuming.join()
        if self._away:
            raise self._replaced()
        try:
            self._stopped = self._frontend.stop_rings(self._active)
        except CrumbleError as error:
            if isinstance(error, Disconnected) and self._leave():
                raise self._replaced() from None
            self._fail(error)
            raise

    def _replaced(self) -> HostError:
        return HostError(
            f"The back end of device {self.name} is being replaced.",
            code="vmm.vhost_user",
            hint="Try again in a moment.",
        )

    def go_on(self) -> None:
        """Gives them again."""
        stopped, self._stopped = self._stopped or {}, None
        if self._wiring is None or not stopped or self._away:
            return
        self._ask(lambda: self._restart(stopped))
        for index in stopped:
            os.eventfd_write(self._wiring.kicks[index], 1)

    def _restart(self, stopped: dict[int, int]) -> None:
        assert self._wiring is not None
        with self._frontend.at_once():
            for index, base in stopped.items():
                self._frontend.restart_ring(index, base, self._wiring.kicks[index])

    def rings(self) -> dict[int, RingState]:
        """What the back end answered when the rings were taken back."""
        region, found = self._frontend.inflight, {}
        for index, base in (self._stopped or {}).items():
            held: list[int] = []
            if region is not None:
                held = inflight.unfinished(region, index, self._active[index].size)
            found[index] = RingState(base, held)
        return found

    def resume(
        self, features: int, queues: Sequence[QueueSetup], rings: Mapping[int, RingState]
    ) -> None:
        """Hands the rings over in a thread: the back end may be starting, the guest need not wait."""
        self._check(queues)
        self._unwatch()
        self._resumed = True
        self._resuming = threading.Thread(
            target=self._resume, args=(features, queues, rings), name=f"resume {self.name}"
        )
        self._resuming.start()

    def _check(self, queues: Sequence[QueueSetup]) -> None:
        """ValueError when rings cannot be where a snapshot says."""
        for queue in queues:
            if queue.size == 0 or not self._in_memory(queue):
                raise ValueError(f"queue {queue.index} is not in the guest's memory")

    def _in_memory(self, queue: QueueSetup) -> bool:
        assert self._wiring is not None
        return self._wiring.memory.has(queue.device, 4)

    def _resume(
        self, features: int, queues: Sequence[QueueSetup], rings: Mapping[int, RingState]
    ) -> None:
        assert self._wiring is not None
        with self._wiring.lock:
            if features & ~self.features:
                error = HostError(
                    f"The back end of {self.name} no longer offers what it did.",
                    code="vmm.vhost_user",
                )
                self._fail(error)
                return
            if self._resumed:  # else the driver has reset it since
                with contextlib.suppress(CrumbleError):  # told by _fail
                    self._hand_over(features, queues, rings)
        self._loop.call_soon_threadsafe(self._watch)

    def reset(self) -> None:
        """Takes the rings back: afterwards the back end touches no guest memory for them."""
        active, self._active, self._resumed = self._active, {}, False
        if self._error is None and active and not self._away:
            self._ask(lambda: self._take_back(list(active)))
        if self._away:
            self._frontend.forget_inflight()
        calls, self._calls = self._calls, {}
        for call in calls.values():
            if self._wiring is not None and self._answers is None:
                self._wiring.interrupt.remove_call_fd(call)
            os.close(call)
        if self._answers is not None:
            self._answers.clear()

    def _take_back(self, active: list[int]) -> None:
        for index in active:
            self._frontend.enable_ring(index, False)
            self._frontend.stop_ring(index)
        self._frontend.reset()

    def _readable(self) -> None:
        """Between our questions the back end says nothing: it is gone, or out of order."""
        wiring = self._wiring
        if wiring is None:
            return
        with wiring.lock:
            if self._error is not None or self._away:
                return
            try:
                data = self._peek.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return  # it was the answer to a question, taken since
            except OSError:
                data = b""
            why = "spoke out of turn" if data else "ended"
            error = HostError(f"The back end of device {self.name} {why}.", code="vmm.vhost_user")
            if data or not self._leave():
                self._fail(error)

    def _leave(self) -> bool:
        """The back end has ended: True when its successor is waited for. With the transport's lock held."""
        return False

    def _ring_failed(self) -> None:
        """SET_VRING_ERR: the guest broke a ring and the back end serves it no more."""
        wiring = self._wiring
        if wiring is None:
            return
        with wiring.lock:
            os.read(self._err_fd, 8)
            wiring.broken("The driver broke a ring, says the back end.")

    def _fail(self, error: CrumbleError) -> None:
        """The back end is no use any more. With the transport's lock held."""
        if self._error is not None:
            return
        self._error = error
        self._loop.call_soon_threadsafe(lambda: self._report(error))

    def _report(self, error: CrumbleError) -> None:
        if self._wiring is not None:
            self._unwatch()
            self._wiring.broken(error.message)
        self._lost(error)


def peeking(sock: socket.socket) -> socket.socket:
    """For a look at what comes: of its own, as a socket with a timeout would wait before it peeks."""
    peek = sock.dup()
    peek.setblocking(False)
    return peek
