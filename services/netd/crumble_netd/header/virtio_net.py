"""`struct virtio_net_hdr` with VERSION_1 (virtio 1.2 §5.1.6): what stands before a frame on a ring."""

from __future__ import annotations

import struct
from typing import NamedTuple

from crumble_native.frames import JOINED

_LAYOUT = struct.Struct("<BBHHHHH")
SIZE = _LAYOUT.size
NEEDS_CSUM, DATA_VALID = 1, 2
GSO_NONE, GSO_TCPV4, GSO_UDP, GSO_TCPV6, GSO_UDP_L4, GSO_ECN = 0, 1, 3, 4, 5, 0x80

# §5.1.3 feature bits.
F_CSUM, F_GUEST_CSUM, F_MTU, F_MAC = 1 << 0, 1 << 1, 1 << 3, 1 << 5
F_GUEST_TSO4, F_GUEST_TSO6, F_HOST_TSO4, F_HOST_TSO6 = 1 << 7, 1 << 8, 1 << 11, 1 << 12
F_MRG_RXBUF, F_STATUS = 1 << 15, 1 << 16

# What a driver must take for a kind of large segment that it sends, or that it is sent.
SENDS = {GSO_NONE: 0, GSO_TCPV4: F_HOST_TSO4, GSO_TCPV6: F_HOST_TSO6}
TAKES = {GSO_NONE: 0, GSO_TCPV4: F_GUEST_TSO4, GSO_TCPV6: F_GUEST_TSO6}


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

    @property
    def checked(self) -> bool:
        """The transport checksum need not be looked at: left out, or verified (by `crumble_native.frames`)."""
        return bool(self.flags & (NEEDS_CSUM | DATA_VALID))

    @property
    def joined(self) -> bool:
        """Made of several frames (by `crumble_native.frames`): may be longer than its IP header can say."""
        return bool(self.flags & JOINED)


NOTHING = Offload()


def build(offload: Offload, buffers: int) -> bytes:
    """The header of a frame that takes `buffers` buffers."""
    return _LAYOUT.pack(*offload, buffers)
