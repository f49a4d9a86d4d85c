"""What a connection wants done and tells."""

from __future__ import annotations

from typing import NamedTuple

from crumble_netd.header.tcp import Options


class Send(NamedTuple):
    """A segment to send. mss: payload of each packet it may be cut into; 0 when it is not to be cut."""

    seq: int
    ack: int
    flags: int
    window: int
    options: Options
    payload: list[memoryview]
    mss: int = 0


class Established(NamedTuple):
    """Both sides agree; data may flow."""


class Data(NamedTuple):
    """Bytes in order, for the application; a view of the segment's own where that is possible."""

    data: bytes | memoryview


class PeerClosed(NamedTuple):
    """The peer will send no more."""


class Freed(NamedTuple):
    """The peer acknowledged `size` bytes: the application may write as many more."""

    size: int


class Ended(NamedTuple):
    """The connection is no more. reason: "closed", "reset", "refused", "timeout", "aborted"."""

    reason: str


Output = Send | Established | Data | PeerClosed | Freed | Ended
