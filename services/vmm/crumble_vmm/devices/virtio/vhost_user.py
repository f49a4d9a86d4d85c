"""A virtio device whose rings are served by another process, over vhost-user (D15).

The transport and negotiation are here, the rings are there: the guest's kick is an eventfd the other
process reads, its interrupt an eventfd the hypervisor back end listens to. Once the driver is live,
this process is not on the path of a request.

The other process starts at the same time as we do, so its features are asked for when the guest's
driver first wants to know them, in that vCPU's thread. When it goes away, or answers nonsense, the
device is broken and `lost` says so; the guest goes on without it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

from crumble_common.errors import CrumbleError, HostError
from crumble_common.vhost_user import Frontend, MemoryRegion, RingSetup
from crumble_vmm.devices.virtio.device import (
    F_VERSION_1,
    RING_FEATURES,
    QueueSetup,
    VirtioDevice,
    Wiring,
)
from crumble_vmm.devices.virtio.local import Loop

T = TypeVar("T")

FS_DEVICE_ID = 26
# virtio 1.2 §5.11.4: tag, num_request_queues
_FS_CONFIG = struct.Struct("<36sI")
# §5.11.2: a queue for FORGET and INTERRUPT, then request queues.
_FS_QUEUES = (128, 256)


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
    ) -> None:
        super().__init__(name, queue_sizes)
        self.device_id = device_id
        self._regions = list(regions)
        self._loop = loop
        self._lost = lost
        self._mask = RING_FEATURES | own_features
        self._config, self._config_size = config, config_size
        # Of its own: a socket with a timeout would wait before it peeks.
        self._peek = sock.dup()
        self._peek.setblocking(False)
        self._frontend = Frontend(sock)
        self._offered: int | None = None
        self._error: CrumbleError | None = None
        self._wiring: Wiring | None = None
        self._calls: list[int] = []
        self._active: list[int] = []
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
                self._fail(error)
        return None

    def start(self, wiring: Wiring) -> None:
        """Watches the back end."""
        self._wiring = wiring
        self._loop.add_fd(self._peek.fileno(), f"vhost-user {self.name}", self._readable)
        self._loop.add_fd(self._err_fd, f"vhost-user {self.name} error", self._ring_failed)

    def stop(self) -> None:
        """Takes the rings back and ends the connection."""
        if self._wiring is not None:
            self._loop.remove_fd(self._err_fd)
            if self._error is None:
                self._loop.remove_fd(self._peek.fileno())
        self.reset()
        self._wiring = None
        self._frontend.close()
        self._peek.close()
        os.close(self._err_fd)

    def activate(self, features: int, queues: Sequence[QueueSetup]) -> None:
        """Hands the rings over. In the vCPU's thread; the guest waits."""
        assert self._wiring is not None
        if self._error is not None:
            raise self._error
        frontend = self._frontend
        try:
            frontend.set_features(features)
            frontend.set_memory(self._regions)
            frontend.prepare_inflight(len(self.queue_sizes), max(self.queue_sizes))
            for queue in queues:
                frontend.start_ring(queue.index, self._ring(queue, self._wiring))
                frontend.enable_ring(queue.index, True)
        except CrumbleError as error:
            self._fail(error)
            raise

    def _ring(self, queue: QueueSetup, wiring: Wiring) -> RingSetup:
        call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        wiring.interrupt.add_call_fd(call)
        self._calls.append(call)
        self._active.append(queue.index)
        return RingSetup(
            queue.size,
            queue.descriptors,
            queue.driver,
            queue.device,
            wiring.kicks[queue.index],
            call,
            self._err_fd,
        )

    def reset(self) -> None:
        """Takes the rings back: afterwards the back end touches no guest memory for them."""
        active, self._active = self._active, []
        if self._error is None and active:
            self._ask(lambda: self._take_back(active))
        calls, self._calls = self._calls, []
        for call in calls:
            if self._wiring is not None:
                self._wiring.interrupt.remove_call_fd(call)
            os.close(call)

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
            if self._error is not None:
                return
            try:
                data = self._peek.recv(1, socket.MSG_PEEK)
            except BlockingIOError:
                return  # it was the answer to a question, taken since
            except OSError:
                data = b""
            why = "spoke out of turn" if data else "ended"
            self._fail(
                HostError(f"The back end of device {self.name} {why}.", code="vmm.vhost_user")
            )

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
            self._loop.remove_fd(self._peek.fileno())
            self._wiring.broken(error.message)
        self._lost(error)


def virtio_fs(
    name: str,
    tag: str,
    sock: socket.socket,
    regions: Sequence[MemoryRegion],
    loop: Loop,
    lost: Callable[[CrumbleError], None],
) -> VhostUserDevice:
    """A file system device (virtio 1.2 §5.11) that the guest mounts as `tag`.

    The notification queue's feature is not passed on: Linux does not know it.
    """
    config = _FS_CONFIG.pack(tag.encode(), len(_FS_QUEUES) - 1)
    return VhostUserDevice(name, FS_DEVICE_ID, sock, regions, _FS_QUEUES, loop, lost, config=config)
