"""The file system device, served by another process."""

from __future__ import annotations

import functools
import socket
import struct
from collections.abc import Callable, Sequence

from crumble_common.errors import CrumbleError
from crumble_common.vhost_user import MemoryRegion
from crumble_vmm.devices.virtio.local import Loop
from crumble_vmm.devices.virtio.vhost_user import VhostUserDevice
from crumble_vmm.devices.virtio.vhost_user_late import LateDevice
from crumble_vmm.lockstep import Lockstep

FS_DEVICE_ID = 26
# virtio 1.2 §5.11.4: tag, num_request_queues
_FS_CONFIG = struct.Struct("<36sI")
# §5.11.2: a queue for FORGET and INTERRUPT, then request queues.
_FS_QUEUES = (128, 256)


def virtio_fs(
    name: str,
    tag: str,
    sock: socket.socket,
    regions: Sequence[MemoryRegion],
    loop: Loop,
    lost: Callable[[CrumbleError], None],
    lockstep: Lockstep | None = None,
    wanted: Callable[[], None] | None = None,
) -> VhostUserDevice:
    """A file system device (virtio 1.2 §5.11) that the guest mounts as `tag`.

    The notification queue's feature is not passed on: Linux does not know it. wanted: its back end begins when that
    has been called.
    """
    config = _FS_CONFIG.pack(tag.encode(), len(_FS_QUEUES) - 1)
    kind = VhostUserDevice if wanted is None else functools.partial(LateDevice, wanted=wanted)
    return kind(
        name, FS_DEVICE_ID, sock, regions, _FS_QUEUES, loop, lost, config=config, lockstep=lockstep
    )
