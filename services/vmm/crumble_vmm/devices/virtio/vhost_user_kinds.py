"""The devices that are served by other processes: network and file system."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Sequence

from crumble_common.errors import CrumbleError
from crumble_common.vhost_user import MemoryRegion
from crumble_vmm.devices.virtio.local import Loop
from crumble_vmm.devices.virtio.vhost_user import VhostUserDevice
from crumble_vmm.devices.virtio.vhost_user_successor import SucceededDevice
from crumble_vmm.lockstep import Lockstep

NET_DEVICE_ID = 1
# virtio 1.2 §5.1.3: CSUM, GUEST_CSUM, MTU, MAC, GUEST_TSO4/6, HOST_TSO4/6, MRG_RXBUF, STATUS.
_NET_FEATURES = sum(1 << bit for bit in (0, 1, 3, 5, 7, 8, 11, 12, 15, 16))
# §5.1.4: mac, status, max_virtqueue_pairs, mtu
_NET_CONFIG = struct.Struct("<6sHHH")
_NET_LINK_UP = 1
# §5.1.2: receive, transmit.
_NET_QUEUES = (256, 256)

FS_DEVICE_ID = 26
# virtio 1.2 §5.11.4: tag, num_request_queues
_FS_CONFIG = struct.Struct("<36sI")
# §5.11.2: a queue for FORGET and INTERRUPT, then request queues.
_FS_QUEUES = (128, 256)


def virtio_net(
    name: str,
    mac: bytes,
    mtu: int,
    sock: socket.socket,
    regions: Sequence[MemoryRegion],
    loop: Loop,
    lost: Callable[[CrumbleError], None],
    *,
    succeeded: bool = False,
) -> VhostUserDevice:
    """A network device (virtio 1.2 §5.1), its link up. succeeded: its back end has successors."""
    config = _NET_CONFIG.pack(mac, _NET_LINK_UP, 1, mtu)
    kind = SucceededDevice if succeeded else VhostUserDevice
    return kind(
        name, NET_DEVICE_ID, sock, regions, _NET_QUEUES, loop, lost,
        own_features=_NET_FEATURES, config=config,
    )  # fmt: skip


def virtio_fs(
    name: str,
    tag: str,
    sock: socket.socket,
    regions: Sequence[MemoryRegion],
    loop: Loop,
    lost: Callable[[CrumbleError], None],
    lockstep: Lockstep | None = None,
) -> VhostUserDevice:
    """A file system device (virtio 1.2 §5.11) that the guest mounts as `tag`.

    The notification queue's feature is not passed on: Linux does not know it.
    """
    config = _FS_CONFIG.pack(tag.encode(), len(_FS_QUEUES) - 1)
    return VhostUserDevice(
        name, FS_DEVICE_ID, sock, regions, _FS_QUEUES, loop, lost, config=config, lockstep=lockstep
    )
