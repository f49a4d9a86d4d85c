"""The vhost-user protocol's messages as bytes: no I/O here.

After docs/interop/vhost-user of QEMU. Numbers are in host byte order, which virtio 1.x hosts of ours
all have little endian. Names are the protocol's.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import IntEnum

from crumble_common.errors import RemoteError

HEADER = struct.Struct("<III")  # request, flags, payload size
VERSION = 1
VERSION_MASK = 0x3
REPLY = 0x4
NEED_REPLY = 0x8

# The largest payload any request has is a configuration space of 256 bytes and its header, or a table
# of 8 regions; 4 KiB leaves room for what foreign peers add and bounds what a hostile one can make us hold.
MAX_PAYLOAD = 4096
MAX_FDS = 8
MAX_REGIONS = 8
CONFIG_MAX = 256

F_PROTOCOL_FEATURES = 1 << 30
VIRTIO_F_INDIRECT_DESC = 1 << 28
VIRTIO_F_EVENT_IDX = 1 << 29
VIRTIO_F_VERSION_1 = 1 << 32

# Bit 8 of the payload of SET_VRING_KICK, CALL and ERR: no descriptor comes with it.
VRING_NO_FD = 0x100
VRING_INDEX_MASK = 0xFF


class Request(IntEnum):
    """Front-end requests this side knows of."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class ProtocolFeature(IntEnum):
    """Bit numbers of GET_PROTOCOL_FEATURES."""

    MQ = 0
    REPLY_ACK = 3
    BACKEND_REQ = 5
    CONFIG = 9
    INFLIGHT_SHMFD = 12
    RESET_DEVICE = 13
    CONFIGURE_MEM_SLOTS = 15
    STATUS = 16

    @property
    def mask(self) -> int:
        """The bit itself."""
        return 1 << self.value


class VhostUserError(RemoteError):
    """The peer broke the vhost-user protocol, or refused a request."""

    @classmethod
    def default_code(cls) -> str:
        """The code used when none is given."""
        return "vhost_user.protocol"


@dataclass
class Message:
    """One message; whoever holds it owns `fds`."""

    request: int
    payload: bytes = b""
    flags: int = VERSION
    fds: list[int] = field(default_factory=list)

    @property
    def need_reply(self) -> bool:
        """True when the sender asked for an acknowledgement (REPLY_ACK)."""
        return bool(self.flags & NEED_REPLY)

    @property
    def name(self) -> str:
        """The request's name, for people."""
        try:
            return Request(self.request).name
        except ValueError:
            return f"request {self.request}"

    def take_fd(self) -> int:
        """The one fd that came with the message, now the caller's; raises VhostUserError."""
        if len(self.fds) != 1:
            raise VhostUserError(f"{self.name} came with {len(self.fds)} file descriptors, not 1.")
        return self.fds.pop()

    def pack(self) -> bytes:
        """Header and payload."""
        return HEADER.pack(self.request, self.flags, len(self.payload)) + self.payload

    def unpack(self, layout: struct.Struct) -> tuple[int, ...]:
        """The payload's fields; raises VhostUserError when it has another size."""
        if len(self.payload) != layout.size:
            raise VhostUserError(
                f"{self.name} came with {len(self.payload)} bytes instead of {layout.size}."
            )
        return layout.unpack(self.payload)


def parse_header(data: bytes) -> tuple[int, int, int]:
    """Request, flags and payload size; raises VhostUserError for another version or a huge payload."""
    request, flags, size = HEADER.unpack(data)
    if flags & VERSION_MASK != VERSION:
        raise VhostUserError(
            f"The peer speaks version {flags & VERSION_MASK} of vhost-user, not 1."
        )
    if size > MAX_PAYLOAD:
        raise VhostUserError(
            f"The peer announced a message of {size} bytes (at most {MAX_PAYLOAD})."
        )
    return request, flags, size


U64 = struct.Struct("<Q")
VRING_STATE = struct.Struct("<II")  # index, number
VRING_ADDR = struct.Struct("<IIQQQQ")  # index, flags, descriptor, used, available, log
REGION = struct.Struct("<QQQQ")  # guest address, size, user address, mmap offset
SINGLE_REGION = struct.Struct("<QQQQQ")  # padding, then a region
REGIONS_HEADER = struct.Struct("<II")  # count, padding
CONFIG_HEADER = struct.Struct("<III")  # offset, size, flags
INFLIGHT = struct.Struct("<QQHH")  # mmap size, mmap offset, queues, queue size
# rust-vmm and libvhost-user pad the in-flight description to its C struct's size.
INFLIGHT_PADDED = struct.Struct("<QQHH4x")


@dataclass(frozen=True)
class Region:
    """One run of guest RAM: where the guest, the front end and the file have it. Bytes."""

    gpa: int
    size: int
    user: int
    offset: int

    def overlaps(self, other: Region) -> bool:
        """True when the two share a guest-physical or a front-end address."""
        return (self.gpa < other.gpa + other.size and other.gpa < self.gpa + self.size) or (
            self.user < other.user + other.size and other.user < self.user + self.size
        )


def parse_regions(message: Message) -> list[Region]:
    """SET_MEM_TABLE's regions, one fd for each, or VhostUserError."""
    if len(message.payload) < REGIONS_HEADER.size:
        raise VhostUserError(f"SET_MEM_TABLE came with {len(message.payload)} bytes.")
    count, _ = REGIONS_HEADER.unpack_from(message.payload)
    if count > MAX_REGIONS or count != len(message.fds):
        raise VhostUserError(
            f"SET_MEM_TABLE has {count} regions and {len(message.fds)} file descriptors "
            f"(at most {MAX_REGIONS}, one each)."
        )
    if len(message.payload) < REGIONS_HEADER.size + count * REGION.size:
        raise VhostUserError("SET_MEM_TABLE is shorter than its regions.")
    return [
        Region(*REGION.unpack_from(message.payload, REGIONS_HEADER.size + i * REGION.size))
        for i in range(count)
    ]


def pack_regions(regions: list[Region]) -> bytes:
    """SET_MEM_TABLE's payload."""
    return REGIONS_HEADER.pack(len(regions), 0) + b"".join(
        REGION.pack(r.gpa, r.size, r.user, r.offset) for r in regions
    )


def parse_single_region(message: Message) -> Region:
    """The region of ADD_MEM_REG and REM_MEM_REG."""
    _, gpa, size, user, offset = message.unpack(SINGLE_REGION)
    return Region(gpa, size, user, offset)


def pack_single_region(region: Region) -> bytes:
    """ADD_MEM_REG's and REM_MEM_REG's payload."""
    return SINGLE_REGION.pack(0, region.gpa, region.size, region.user, region.offset)


def parse_config(message: Message) -> tuple[int, int, int, bytes]:
    """Offset, size, flags and bytes of GET_CONFIG or SET_CONFIG, within CONFIG_MAX."""
    if len(message.payload) < CONFIG_HEADER.size:
        raise VhostUserError(f"{message.name} came with {len(message.payload)} bytes.")
    offset, size, flags = CONFIG_HEADER.unpack_from(message.payload)
    data = message.payload[CONFIG_HEADER.size :]
    if size > CONFIG_MAX or offset > CONFIG_MAX - size or len(data) != size:
        raise VhostUserError(
            f"{message.name} asks for {size} bytes at {offset}, outside the space."
        )
    return offset, size, flags, data


def parse_inflight(message: Message) -> tuple[int, int, int, int]:
    """Mmap size, mmap offset, number of queues and queue size."""
    padded = len(message.payload) == INFLIGHT_PADDED.size
    size, offset, queues, entries = message.unpack(INFLIGHT_PADDED if padded else INFLIGHT)
    return size, offset, queues, entries
