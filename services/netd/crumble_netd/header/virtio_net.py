"""`struct virtio_net_hdr` with VERSION_1 (virtio 1.2 §5.1.6): what stands before a frame on a ring."""

from __future__ import annotations

import struct
from typing import NamedTuple

from crumble_netd.header import Malformed

_LAYOUT = struct.Struct("<BBHHHHH")
SIZE = _LAYOUT.size
NEEDS_CSUM, DATA_VALID = 1, 2
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 3, 4, 5, 0x80

# §5.1.3 feature bits.
F_CSUM, F_GUEST_CSUM, F_MTU, F_MAC = 1 << 0, 1 << 1, 1 << 3, 1 << 5
F_GUEST_TSO4, F_GUEST_TSO6, F_HOST_TSO4, F_HOST_TSO6 = 1 << 7, 1 << 8, 1 << 11, 1 << 12
F_MRG_RXBUF, F_STATUS = 1 << 15, 1 << 16


class Offload(NamedTuple):
    """What one side left to the other. gso_size: payload of each segment (MSS)."""

    flags: int = 0
    gso_type: int = GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    @property
    def checksum_left(self) -> bool:
        """The transport checksum is not there: the sender vouches for the data."""
        return bool(self.flags & NEEDS_CSUM)


NOTHING = Offload()


def parse(data: bytes | memoryview) -> Offload:
    """The header at the start of a driver's buffer; raises Malformed."""
    if len(data) < SIZE:
        raise Malformed("virtio.short")
    return Offload(*_LAYOUT.unpack_from(data)[:6])


def build(offload: Offload, buffers: int) -> bytes:
    """The header of a frame that takes `buffers` buffers."""
    return _LAYOUT.pack(*offload, buffers)
