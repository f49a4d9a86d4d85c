"""The vhost-user protocol, both sides, over a connected Unix socket.

`Backend` serves a `Device` to a front end; `Frontend` is the VMM's side. See architecture.md's attach
plane and the protocol's text in QEMU's docs/interop/vhost-user.
"""

from crumble_common.vhost_user.backend import Backend, Device
from crumble_common.vhost_user.channel import Disconnected, connect, listen
from crumble_common.vhost_user.frontend import Frontend, InflightRegion, MemoryRegion, RingSetup
from crumble_common.vhost_user.ring import Ring
from crumble_common.vhost_user.wire import (
    F_PROTOCOL_FEATURES,
    VIRTIO_F_EVENT_IDX,
    VIRTIO_F_INDIRECT_DESC,
    VIRTIO_F_VERSION_1,
    ProtocolFeature,
    VhostUserError,
)

__all__ = [
    "F_PROTOCOL_FEATURES",
    "VIRTIO_F_EVENT_IDX",
    "VIRTIO_F_INDIRECT_DESC",
    "VIRTIO_F_VERSION_1",
    "Backend",
    "Device",
    "Disconnected",
    "Frontend",
    "InflightRegion",
    "MemoryRegion",
    "ProtocolFeature",
    "Ring",
    "RingSetup",
    "VhostUserError",
    "connect",
    "listen",
]
