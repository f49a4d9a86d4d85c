"""What the host side tells the stack."""

from __future__ import annotations

from typing import NamedTuple


class Connected(NamedTuple):
    """HostConnect worked."""

    flow: int


class Failed(NamedTuple):
    """HostConnect, a stream or a datagram failed."""

    flow: int
    errno: int


class Received(NamedTuple):
    """Bytes, or one datagram, from the host side."""

    flow: int
    data: bytes


class Filled(NamedTuple):
    """Bytes of a stream were read to where `Stack.space` said."""

    flow: int
    size: int


class Closed(NamedTuple):
    """The host side will send no more."""

    flow: int


class Took(NamedTuple):
    """The host's kernel took `size` bytes of a stream."""

    flow: int
    size: int


class Accepted(NamedTuple):
    """A connection to a forward. peer: address (4 or 16 bytes) and port. Answer: Adopt or Refuse."""

    token: int
    rule: int
    peer: tuple[bytes, int]


class Incoming(NamedTuple):
    """A datagram to a forward from a peer that has no flow yet. Answer: Adopt or Refuse."""

    token: int
    rule: int
    peer: tuple[bytes, int]
    data: bytes


Event = Connected | Failed | Received | Filled | Closed | Took | Accepted | Incoming
