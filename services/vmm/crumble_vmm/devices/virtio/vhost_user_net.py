"""The network device (virtio 1.2 §5.1), served by another process; it may move from one network to another."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Sequence

from crumble_common.errors import CrumbleError, UsageError
from crumble_common.vhost_user import MemoryRegion
from crumble_vmm.devices.virtio.local import Loop
from crumble_vmm.devices.virtio.transport import Transport
from crumble_vmm.devices.virtio.vhost_user_successor import SucceededDevice

DEVICE_ID = 1
# §5.1.3: CSUM, GUEST_CSUM, MTU, MAC, GUEST_TSO4/6, HOST_TSO4/6, MRG_RXBUF, STATUS.
_FEATURES = sum(1 << bit for bit in (0, 1, 3, 5, 7, 8, 11, 12, 15, 16))
# §5.1.4: mac, status, max_virtqueue_pairs, mtu
_CONFIG = struct.Struct("<6sHHH")
_LINK_UP = 1
# §5.1.2: receive, transmit.
_QUEUES = (256, 256)
_TRANSMIT = (1,)


class VirtioNet(SucceededDevice):
    """Its link is up until it is disconnected."""

    def __init__(
        self,
        name: str,
        mac: bytes,
        mtu: int,
        sock: socket.socket,
        regions: Sequence[MemoryRegion],
        loop: Loop,
        lost: Callable[[CrumbleError], None],
    ) -> None:
        self._mac, self._mtu = mac, mtu
        super().__init__(
            name, DEVICE_ID, sock, regions, _QUEUES, loop, lost,
            own_features=_FEATURES, config=_CONFIG.pack(mac, _LINK_UP, 1, mtu),
        )  # fmt: skip

    def set_link(self, *, up: bool, mac: bytes = b"") -> None:
        """What the driver reads from now on; mac: another one, when not empty. With the transport's lock held."""
        self._mac = mac or self._mac
        self._config = _CONFIG.pack(self._mac, _LINK_UP if up else 0, 1, self._mtu)


class NetworkLink:
    """The way from a machine's network device to its back end. transports: those of the machine."""

    def __init__(self, transports: Iterable[object]) -> None:
        found = [item for item in transports if isinstance(item, Transport)]
        self._of = [(item, item.device) for item in found if isinstance(item.device, VirtioNet)]

    def _device(self) -> tuple[Transport, VirtioNet]:
        if not self._of:
            raise UsageError("The VM has no network interface.", code="vm.network")
        return self._of[0]

    def disconnect(self) -> None:
        """Takes the rings back and leaves the back end, the link down; raises CrumbleError."""
        transport, device = self._device()
        device.disconnect()
        with transport.lock:
            device.set_link(up=False)
            transport.config_changed()

    def rest(self, wanted: Callable[[], None]) -> None:
        """Leaves the back end, which has nothing to do; `wanted` is called once the guest sends. Raises CrumbleError."""
        _, device = self._device()
        device.rest(_TRANSMIT, wanted)

    def reconnect(self, fd: int, mac: bytes = b"") -> None:
        """`fd`, a socket and taken over, leads to the next back end. mac: not empty when it is another network's:
        the link is down until `up`.
        """
        sock = socket.socket(fileno=fd)
        try:
            transport, device = self._device()
        except UsageError:
            sock.close()
            raise
        device.reconnect(sock)
        if mac:
            with transport.lock:
                device.set_link(up=False, mac=mac)

    def up(self) -> None:
        """The driver hears that there is a link."""
        transport, device = self._device()
        with transport.lock:
            device.set_link(up=True)
            transport.config_changed()
